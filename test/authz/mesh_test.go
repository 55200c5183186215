package authz

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// service is a service with its policies.
type service struct {
	name     string
	dest     netip.AddrPort
	policies []*securityv1.AuthorizationPolicy
}

// services makes n of them.
func (m *maker) services(n int) []*service {
	var out []*service
	for i := range n {
		s := &service{name: fmt.Sprintf("s%d", i)}
		s.dest = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(i / 250), byte(i%250 + 1)}), map[string]uint16{"80": 80, "8080": 8080}[pick(m, []string{"80", "8080"})])
		s.policies = m.policies(s.name)
		out = append(out, s)
	}
	return out
}

const gateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: demo, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status:
  addresses: [{type: Hostname, value: waypoint.demo.svc.cluster.local}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: demo, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: mesh, port: 15008}]}
`

const serviceText = `
---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: demo, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: %[2]v, clusterIPs: [%[2]v], ports: [{name: http, port: %d}], selector: {app: none}}
`

const authentication = `
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: demo}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  jwtRules:
`

// translated is main_internal as our control plane makes it of services and policies, but that every route answers with
// 200 by itself. Paths are made canonical as MeshConfig says.
func translated(t *testing.T, services []*service, keys string, as normalization) *listenerv3.Listener {
	t.Helper()
	var b strings.Builder
	b.WriteString(gateway + authentication)
	for _, iss := range issuers {
		fmt.Fprintf(&b, "  - {issuer: %q, jwks: %q, forwardOriginalToken: true}\n", iss, keys)
	}
	for _, s := range services {
		fmt.Fprintf(&b, serviceText, s.name, s.dest.Addr(), s.dest.Port())
		for _, p := range s.policies {
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "---\n%s\n", text)
		}
	}
	objects, problems := kube.Decode("test.yaml", []byte(b.String()))
	for _, p := range problems {
		t.Errorf("problem with what the test made: %v", p)
	}
	mesh, err := envoy.ParseMesh([]byte("pathNormalization: {normalization: " + string(as) + "}"))
	if err != nil {
		t.Fatal(err)
	}
	set := kube.NewObjects(objects...)
	var addresses []*workloadpb.Address
	for _, a := range translate.Build(translate.Config{}, set).Addresses {
		addresses = append(addresses, a.Message.(*workloadpb.Address))
	}
	r := envoy.NewIndex(envoy.Config{TrustDomainAliases: meshDomains[1:], Mesh: mesh}, set, addresses).Build(kube.Name{Namespace: "demo", Name: "waypoint"}, nil)
	for _, p := range r.Problems {
		t.Errorf("problem with what the test made: %v", p)
	}
	for _, l := range r.Listeners {
		if l.Name == listener.Main {
			main := proto.Clone(l.Message).(*listenerv3.Listener)
			answering(t, main)
			return main
		}
	}
	t.Fatal("no listener")
	return nil
}

// pathHeader tells what became of the path.
const pathHeader = "x-path"

// answering makes every HTTP chain answer all requests by itself.
func answering(t *testing.T, l *listenerv3.Listener) {
	t.Helper()
	for _, c := range l.GetFilterChains() {
		for _, f := range c.GetFilters() {
			var m hcmv3.HttpConnectionManager
			if !f.GetTypedConfig().MessageIs(&m) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
				t.Fatal(err)
			}
			m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
				Name: "answer", VirtualHosts: []*routev3.VirtualHost{{Name: "answer", Domains: []string{"*"}, Routes: []*routev3.Route{{
					Match:                &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
					Action:               &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}},
					ResponseHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: pathHeader, Value: "%REQ(:path)%"}}},
				}}}},
			}}
			m.AccessLog, m.Tracing = nil, nil
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, &m)}
		}
	}
}

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ours is what our waypoint makes of a listener: its choice of chains, its way with paths, and its filters.
type ours struct {
	*listener.Listener
	rand *rand.Rand
}

func newOurs(t *testing.T, l *listenerv3.Listener) *ours {
	t.Helper()
	c, err := listener.Compile(l)
	if err != nil {
		t.Fatal(err)
	}
	return &ours{c, rand.New(rand.NewPCG(1, 1))}
}

// host is never asked for anything: all keys are in the configuration.
type host struct{ filter.Host }

// decide returns the decision, and the path of a request that is allowed.
func (o *ours) decide(r *request) (string, string) {
	target := o.Lookup(r.dest)
	if target == nil || target.HTTP == nil {
		return "no chain", ""
	}
	if !message.PathAndQuery(r.path) || !message.Authority(r.host) {
		return refused, "" // by the codec
	}
	h := target.HTTP
	req := &message.Request{Method: r.method, Scheme: "http", Authority: r.host, Proto: message.HTTP11}
	var verdict route.PathVerdict
	if req.Path, verdict = h.Path.Apply(r.path); verdict == route.PathBad {
		return refused, ""
	}
	for _, p := range r.fields() {
		req.Header.Add(strings.ToLower(p.name), strings.TrimSpace(p.value))
	}
	x := &filter.Exchange{
		Host: host{}, Req: req, Routes: h.Routes, Rand: o.rand, Now: time.Now(), Dest: r.dest,
		Client: filter.Peer{Principal: "spiffe://" + r.identity, Addr: netip.AddrPortFrom(r.source, 40000)}, Local: "spiffe://cluster.local/ns/demo/sa/waypoint",
	}
	for _, f := range h.Filters {
		switch f.Request(x) {
		case filter.Continue:
			continue
		case filter.Stop:
			if x.Reply.Status == 403 && strings.HasPrefix(x.Details, "rbac_access_denied") {
				return denied, ""
			}
		}
		return fmt.Sprint(x.Reply.Status, " ", x.Details), ""
	}
	return allowed, req.Path
}

// fields are the header fields of the request, with that of the token.
func (r *request) fields() []pair {
	if r.token == "" {
		return r.header
	}
	return append(r.header[:len(r.header):len(r.header)], pair{"authorization", "Bearer " + r.token})
}
