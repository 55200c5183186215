package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

func (b *builder) accessLogs(target) []*accesslogv3.AccessLog {
	return nil
}
func (b *builder) applyTracing(*hcmv3.HttpConnectionManager_Tracing, target) {}
