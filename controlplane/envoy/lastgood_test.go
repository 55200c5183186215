package envoy

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

const lastGoodBase = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: demo}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: waypoint.demo.svc.cluster.local}]}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {clusterIPs: [10.96.0.1], ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: api, namespace: demo}, spec: {clusterIPs: [10.96.0.2], ports: [{name: http, port: 80}]}}
---
`

func buildYAML(t *testing.T, text string, last *Resources) *Resources {
	t.Helper()
	return testIndex(Config{}, kubetest.Decode(t, lastGoodBase+text)).Build(kube.Name{Namespace: "demo", Name: "waypoint"}, last)
}

func rewriteRule(host, substitution string) string {
	return "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: " + host + ", namespace: demo}, spec: {hosts: [" + host + "], http: [{rewrite: {uriRegexRewrite: {match: '/(a)', rewrite: '" +
		substitution + "'}}, route: [{destination: {host: " + host + "}}]}]}}\n---\n"
}

const webChain, apiChain = "inbound-vip|80|http|web.demo.svc.cluster.local", "inbound-vip|80|http|api.demo.svc.cluster.local"

func TestTheLastGoodRoutesStayInForceForTheServiceWithABadOne(t *testing.T) {
	good := buildYAML(t, rewriteRule("web", `/first\1`)+rewriteRule("api", `/one`), nil)
	if len(good.Problems) > 0 {
		t.Fatal(good.Problems)
	}
	bad := buildYAML(t, rewriteRule("web", `/second\2`)+rewriteRule("api", `/two`), good)
	if !proto.Equal(bad.chain(webChain), good.chain(webChain)) {
		t.Error("the service with the bad rule lost its good routes")
	}
	if proto.Equal(bad.chain(apiChain), good.chain(apiChain)) || !strings.Contains(bad.chain(apiChain).String(), "/two") {
		t.Error("the other service did not get its new routes")
	}
	want := `VirtualService demo/web: spec.http[0]: \2 refers to a group that "/(a)" does not have`
	if len(bad.Problems) != 1 || !strings.HasPrefix(bad.Problems[0].Error(), want) || bad.Problems[0].Severity != kube.Rejected {
		t.Errorf("got %v, want %q", bad.Problems, want)
	}
	first := buildYAML(t, rewriteRule("web", `/second\2`), nil)
	if text := first.chain(webChain).String(); !strings.Contains(text, "500") {
		t.Error("without anything good before, the rule must answer with 500")
	}
}

func TestAClusterThatWouldBeRefusedKeepsItsLastGoodSettings(t *testing.T) {
	rule := func(size string) string {
		return "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: web, namespace: demo}, spec: {host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: " + size + "}}}}}}\n"
	}
	good := buildYAML(t, rule("65537"), nil)
	bad := buildYAML(t, rule("5000012"), good) // beyond what Envoy takes
	if !proto.Equal(good.cluster(webChain), bad.cluster(webChain)) || len(bad.Problems) != 1 {
		t.Errorf("got %v and problems %v", bad.cluster(webChain), bad.Problems)
	}
	if first := buildYAML(t, rule("5000012"), nil); first.cluster(webChain) != nil || first.cluster(apiChain) == nil {
		t.Error("want no cluster for the host of the bad rule, and all others")
	}
}

func TestEverythingWeMakeIsValid(t *testing.T) {
	r := buildYAML(t, rewriteRule("web", `/x`), nil)
	for _, list := range [][]Resource{r.Clusters, r.Listeners, r.Endpoints(Place{}), Plain(r.Listeners), Plain(r.Clusters)} {
		for _, x := range list {
			if err := flaw(x.Message); err != nil {
				t.Errorf("%s: %v", x.Name, err)
			}
		}
	}
}

func TestPlainLeavesOutWhatOnlyIstiosBuildHas(t *testing.T) {
	r := buildYAML(t, "", nil)
	for _, x := range Plain(r.Listeners) {
		text := string(x.Body)
		for _, word := range []string{"stats.PluginConfig", "TypedStruct", "istio.hashable_string"} {
			if strings.Contains(text, word) {
				t.Errorf("%s still has %s", x.Name, word)
			}
		}
	}
	if !strings.Contains(string(r.Listeners[0].Body)+string(r.Listeners[1].Body), "istio.hashable_string") {
		t.Error("the original was changed")
	}
	if _, ok := r.Listeners[0].Message.(*listenerv3.Listener); !ok {
		t.Error("want listeners")
	}
}

func TestHeaderValuesKeepPercentSignsThatAreNoCommands(t *testing.T) {
	for in, want := range map[string]string{
		"50%": "50%%", "100%%": "100%%", "%REQ(:path)%": "%REQ(:path)%", "%REQ(x?y):3%": "%REQ(x?y):3%", "%NOBODY%": "%%NOBODY%%",
		"a%b%c": "a%%b%%c", "%PROTOCOL% 1%": "%PROTOCOL% 1%%", "": "",
	} {
		if got := headerValue(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestTemplatesAreCheckedAsEnvoyWould(t *testing.T) {
	for in, ok := range map[string]bool{"/a/{*}/b": true, "/{**}": true, "/a/{**}/b": true, "/{**}/{*}": false, "/a{*}": false, "a/{*}": false, "/{x}": false} {
		if got := templateFlaw(in) == ""; got != ok {
			t.Errorf("%q: got %t (%s), want %t", in, got, templateFlaw(in), ok)
		}
	}
}

func TestKeySetsWithoutAUsableKeyAreNotPassedOn(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"keys":[]}`: false, `x`: false, `{"keys":[{"kty":"oct","k":"a"}]}`: false, noKeys: true,
		`{"keys":[{"kty":"oct"},{"kty":"RSA","n":"a","e":"AQAB"}]}`: true, `{"keys":[{"kty":"EC","crv":"P-1","x":"a","y":"b"}]}`: false,
	} {
		if got := keysFlaw(in) == ""; got != ok {
			t.Errorf("%s: got %t, want %t", in, got, ok)
		}
	}
}
