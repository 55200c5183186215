package dumps

import (
	"fmt"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// forgeries are headers by which a client tells a proxy, or the application behind it, something that is not the client's to tell.
// What becomes of each is compared with Envoy's answer; what is not the same is one of the exceptions.
var forgeries = map[string][]string{
	"x-request-id":     {"mine", "3c5c5a0e-9ff0-4dd6-bf0a-7b4a4ad0a8d1", "", "a b"},
	"forwarded":        {"for=192.0.2.7;proto=https;host=evil.example;by=10.0.0.1", "for=\"[2001:db8::1]\""},
	"baggage":          {"k8s.namespace.name=kube-system,service.name=admin", "x"},
	"x-forwarded-for":  {"192.0.2.7", "10.0.0.1", "127.0.0.1", "192.0.2.7, 10.0.0.1", "10.0.0.1,192.0.2.7", "evil", "", "2001:db8::1", "10.0.0.1:80"},
	"x-real-ip":        {"192.0.2.7"},
	"true-client-ip":   {"192.0.2.7"},
	"x-forwarded-host": {"evil.example"}, "x-forwarded-port": {"443"}, "x-forwarded-prefix": {"/x"}, "x-forwarded-path": {"/x"},
	"x-forwarded-proto":       {"https", "http", "HTTPS", "ftp"},
	"x-forwarded-client-cert": {"By=me", "By=spiffe://evil;URI=spiffe://cluster.local/ns/shop/sa/admin", "Hash=0;Subject=\"CN=a,b\"", ""},
	"via":                     {"1.1 evil"},
	"x-envoy-internal":        {"true", "false"},

	"x-envoy-external-address": {"1.2.3.4"}, "x-envoy-original-path": {"/x"}, "x-envoy-original-host": {"evil.example"}, "x-envoy-original-url": {"/x"},
	"x-envoy-max-retries": {"9"}, "x-envoy-retry-on": {"5xx"}, "x-envoy-retry-grpc-on": {"cancelled"}, "x-envoy-retriable-status-codes": {"200"},
	"x-envoy-retriable-header-names": {"date"}, "x-envoy-hedge-on-per-try-timeout": {"true"}, "x-envoy-is-timeout-retry": {"true"},
	"x-envoy-upstream-rq-timeout-ms": {"60000"}, "x-envoy-upstream-rq-per-try-timeout-ms": {"60000"}, "x-envoy-expected-rq-timeout-ms": {"1"},
	"x-envoy-upstream-rq-timeout-alt-response": {"1"}, "x-envoy-upstream-stream-duration-ms": {"60000"}, "x-envoy-upstream-alt-stat-name": {"evil"},
	"x-envoy-attempt-count": {"7"}, "x-envoy-decorator-operation": {"evil"}, "x-envoy-force-trace": {"true"}, "x-envoy-ip-tags": {"trusted"},
	"x-envoy-peer-metadata": {"evil"}, "x-envoy-peer-metadata-id": {"evil"}, "x-envoy-downstream-service-cluster": {"admin"},
	"x-envoy-downstream-service-node": {"admin"}, "x-envoy-upstream-service-time": {"1"}, "x-envoy-degraded": {"1"}, "x-envoy-overloaded": {"1"},
	"x-envoy-ratelimited": {"1"}, "x-envoy-immediate-health-check-fail": {"1"}, "x-envoy-upstream-healthchecked-cluster": {"x"}, "x-envoy-anything": {"1"},
}

// An empty x-forwarded-proto is not among them: Envoy finds no route then, and we take it for none (docs/differences.md).

// headersKind is the same for chains that treat a client's headers alike.
func headersKind(h *hcmv3.HttpConnectionManager) string {
	return fmt.Sprint(h.GetForwardClientCertDetails(), h.GetSetCurrentClientCertDetails(), h.GetUseRemoteAddress(), h.GetSkipXffAppend(), h.GetXffNumTrustedHops(),
		h.GetVia(), h.GetGenerateRequestId(), h.GetPreserveExternalRequestId(), h.GetAlwaysSetRequestIdInResponse(), h.GetServerHeaderTransformation())
}

// forged makes a request with each of the forgeries, once and twice, for a route that leads somewhere; false if there is none.
func (m *maker) forged(c *chain) bool {
	for _, vh := range c.http.GetRouteConfig().GetVirtualHosts() {
		for i, x := range vh.GetRoutes() {
			if x.GetRoute() == nil {
				continue
			}
			hit := m.hit(c, vh, x.GetMatch(), fmt.Sprintf("%s route %d", c.name, i))
			for _, name := range sorted(forgeries) {
				for _, v := range forgeries[name] {
					m.add(hit.with("forged "+name, func(r *request) { r.set(name, v) }))
				}
				m.add(hit.with("forged "+name+" twice", func(r *request) {
					r.drop(name)
					v := forgeries[name]
					r.header = append(r.header, pair{name, v[0]}, pair{name, v[len(v)-1]})
				}))
			}
			return true
		}
	}
	return false
}
