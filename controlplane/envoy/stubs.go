package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

type attachedRoute struct{}

func (x *Index) attachRoutes() {}

func (b *builder) gatewayRules(s *service, p port) *ruleSource { return nil }

func (b *builder) networkAuthorization(target) []*listenerv3.Filter          { return nil }
func (b *builder) httpAuthentication(target) []*hcmv3.HttpFilter             { return nil }
func (b *builder) accessLogs(target) []*accesslogv3.AccessLog                { return nil }
func (b *builder) applyTracing(*hcmv3.HttpConnectionManager_Tracing, target) {}
