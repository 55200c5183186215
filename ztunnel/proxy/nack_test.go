package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/xds/xdstest"
)

func TestAListedPolicyThatIsRefusedAtItsFirstAppearanceDeniesAndAnUpdateThatIsRefusedChangesNothing(t *testing.T) {
	w := idleWorker(t)
	server := xdstest.NewServer()
	client := xds.NewClient(xds.Config{Transport: server})
	xds.Subscribe(client, xds.Type[*rbac.Policy]{URL: xds.AuthorizationType, Decode: rbac.Decode}, w.p.cfg.Policies, xds.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- client.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	resource := func(version string, prefix uint32) *discoverypb.DeltaDiscoveryResponse {
		b, err := proto.Marshal(&securitypb.Authorization{
			Name: "p", Namespace: "default", Scope: securitypb.Scope_WORKLOAD_SELECTOR, Action: securitypb.Action_ALLOW,
			Rules: []*securitypb.Rule{{Clauses: []*securitypb.Clause{{Matches: []*securitypb.Match{{
				SourceIps: []*securitypb.Address{{Address: []byte{10, 0, 0, 2}, Length: prefix}},
			}}}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return &discoverypb.DeltaDiscoveryResponse{TypeUrl: xds.AuthorizationType, Nonce: version,
			Resources: []*discoverypb.Resource{xdstest.Resource(xds.AuthorizationType, "default/p", version, string(b))}}
	}
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	attrs := rbac.Attributes{SourceIP: netip.MustParseAddr("10.0.0.2"), Dest: netip.MustParseAddrPort("10.0.0.1:80")}
	w.listed(t, "default/p")
	w.p.pods.Store(newPodTable().with(func(m map[string]*Pod) { m[pod.UID] = pod }))
	st := server.Accept(t)
	st.Request(t)
	st.Respond(t, resource("1", 33)) // no such prefix
	if nack := st.WantNACK(t, "1"); !strings.Contains(nack, "default/p") {
		t.Errorf("the NACK does not name the policy: %s", nack)
	}
	g := w.guard(pod)
	g.grace.Stop()
	g.Expired(nil)
	var denied deniedError
	if err := w.guard(pod).admit(&guarded{}, attrs, &cuts{}); !errors.As(err, &denied) || denied.decision.Missing != "default/p" {
		t.Fatalf("refused at its first appearance: %v, want a refusal that names it", err)
	}
	st.Respond(t, resource("2", 32))
	st.WantACK(t, "2")
	var live guarded
	var cut cuts
	if err := w.guard(pod).admit(&live, attrs, &cut); err != nil {
		t.Errorf("the corrected policy allows: %v", err)
	}
	st.Respond(t, resource("3", 33))
	st.WantNACK(t, "3")
	st.Break(nil) // over a reconnect what is known stays known
	st = server.Accept(t)
	if v := st.Request(t).GetInitialResourceVersions()["default/p"]; v != "2" {
		t.Errorf("the next stream begins with version %q", v)
	}
	w.changed()
	if err := w.guard(pod).admit(&guarded{}, attrs, &cuts{}); err != nil || cut.err != nil {
		t.Errorf("a refused update: new connections %v, live ones %v", err, cut.err)
	}
	st.Respond(t, &discoverypb.DeltaDiscoveryResponse{TypeUrl: xds.AuthorizationType, Nonce: "4", RemovedResources: []string{"default/p"}})
	st.WantACK(t, "4")
	w.changed()
	if err := w.guard(pod).admit(&guarded{}, attrs, &cuts{}); err != nil || cut.err != nil {
		t.Errorf("removed on reconnect, still listed: new connections %v, live ones %v", err, cut.err)
	}
}
