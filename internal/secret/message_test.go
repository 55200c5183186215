package secret

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// TestMessagesAreShownWithoutSecrets: PLANTED is gone, SHOWN is still there.
func TestMessagesAreShownWithoutSecrets(t *testing.T) { // B45
	for _, c := range []struct {
		name string
		m    proto.Message
		json string
	}{
		{"a private key", &clusterv3.Cluster{}, `{"name": "SHOWN", "transport_socket": {"name": "tls", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "SHOWN",
			"common_tls_context": {"tls_certificates": [{"certificate_chain": {"inline_string": "SHOWN"}, "private_key": {"inline_string": "PLANTED"}, "password": {"inline_bytes": "UExBTlRFRA=="}}]}}}}`},
		{"a header that is set", &routev3.RouteConfiguration{}, `{"name": "SHOWN", "request_headers_to_add": [
			{"header": {"key": "Authorization", "value": "Basic PLANTED"}}, {"header": {"key": "x-a", "value": "SHOWN"}}],
			"virtual_hosts": [{"name": "SHOWN", "domains": ["*"], "routes": [{"match": {"prefix": "/SHOWN"}, "response_headers_to_add": [{"header": {"key": "set-cookie", "raw_value": "UExBTlRFRA=="}}],
			"direct_response": {"status": 200}}]}]}`},
		{"a header that is compared", &routev3.RouteMatch{}, `{"prefix": "/SHOWN", "headers": [{"name": "authorization", "string_match": {"exact": "PLANTED"}},
			{"name": "cookie", "string_match": {"safe_regex": {"regex": "PLANTED"}}}, {"name": "x", "string_match": {"exact": "SHOWN"}}],
			"query_parameters": [{"name": "token", "string_match": {"prefix": "PLANTED"}}, {"name": "q", "string_match": {"exact": "SHOWN"}}]}`},
		{"a header in a policy", &listenerv3.Filter{}, `{"name": "SHOWN", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "SHOWN", "http_filters": [{"name": "rbac", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"policies": {"SHOWN": {
			"permissions": [{"any": true}], "principals": [{"header": {"name": "x-api-key", "string_match": {"exact": "PLANTED"}}}]}}}}}]}}`},
		{"private halves of keys", &jwtv3.JwtAuthentication{}, `{"providers": {"p": {"issuer": "SHOWN", "local_jwks": {"inline_string": "{\"keys\": [{\"kty\": \"RSA\", \"n\": \"SHOWN\", \"d\": \"PLANTED\"}, {\"kty\": \"oct\", \"k\": \"PLANTED\"}]}"}}}}`},
		{"keys that are none", &jwtv3.JwtProvider{}, `{"issuer": "SHOWN", "local_jwks": {"inline_string": "PLANTED"}}`},
		{"a password in an address", &jwtv3.JwtProvider{}, `{"issuer": "https://SHOWN", "remote_jwks": {"http_uri": {"uri": "https://user:PLANTED@SHOWN/keys?token=PLANTED", "cluster": "SHOWN"}}}`},
		{"metadata of calls", &tracev3.OpenTelemetryConfig{}, `{"service_name": "SHOWN", "grpc_service": {"envoy_grpc": {"cluster_name": "SHOWN"}, "initial_metadata": [{"key": "x-auth-token", "value": "PLANTED"}]}}`},
		{"metadata of an object", &routev3.Route{}, `{"name": "SHOWN", "metadata": {"filter_metadata": {"x": {"a": [{"password": "PLANTED", "user": "SHOWN"}]}}}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := protojson.Unmarshal([]byte(c.json), c.m); err != nil {
				t.Fatal(err)
			}
			Redact(c.m)
			b, err := protojson.Marshal(c.m)
			if err != nil {
				t.Fatal(err)
			}
			got := string(b)
			if strings.Contains(got, "PLANTED") || strings.Contains(got, "UExBTlRFRA") {
				t.Errorf("the secret is still there: %s", got)
			}
			if n, want := strings.Count(got, "SHOWN"), strings.Count(c.json, "SHOWN"); n != want {
				t.Errorf("%d of %d other texts are there: %s", n, want, got)
			}
		})
	}
}

func TestKeySetsWithoutPrivateHalvesStayAsTheyAre(t *testing.T) {
	const text = `{"keys":  [{"kty": "RSA", "n": "x", "e": "AQAB"}]}`
	if got := publicKeys(text); got != text {
		t.Errorf("got %s, want %s", got, text)
	}
}
