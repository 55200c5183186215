package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/api/securitypb"
	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// idleWorker is a worker whose loop does not run: the test calls what the loop would.
func idleWorker(t *testing.T) *worker {
	t.Helper()
	p, err := New(Config{
		Workloads: workload.NewStore(workload.Config{}), Policies: rbac.NewStore(), Logger: slog.New(slog.DiscardHandler),
		AccessLog: telemetry.NewAccessLog(telemetry.NewWriter(telemetry.WriterConfig{Out: io.Discard}), telemetry.Plain, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.synced.Store(true)
	return p.workers[0]
}

func (w *worker) tellWorkload(t *testing.T, m *pb.Workload) {
	t.Helper()
	a, err := workload.FromProto("test", &pb.Address{Type: &pb.Address_Workload{Workload: m}})
	if err != nil {
		t.Fatal(err)
	}
	w.p.cfg.Workloads.Apply([]xds.Resource[workload.Address]{{Value: a}}, nil)
}

// denyAll forbids everything in namespace default.
func (w *worker) denyAll(t *testing.T) {
	t.Helper()
	v, err := rbac.FromProto(&securitypb.Authorization{
		Name: "none", Namespace: "default", Scope: securitypb.Scope_NAMESPACE, Action: securitypb.Action_ALLOW,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.p.cfg.Policies.Apply([]xds.Resource[*rbac.Policy]{{Name: "default/none", Value: v}}, nil)
}

// cuts records that a connection was cut.
type cuts struct {
	err  error
	then func()
}

func (c *cuts) cut(err error) {
	c.err = err
	if c.then != nil {
		c.then()
	}
}

func TestAPolicyChangeThatANewConnectionSeesFirstStillEndsTheOld(t *testing.T) { // I18
	w := idleWorker(t)
	w.tellWorkload(t, wl("a", "10.0.0.1"))
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	var old guarded
	var ended cuts
	attrs := rbac.Attributes{SourceIP: netip.MustParseAddr("10.0.0.2"), Dest: netip.MustParseAddrPort("10.0.0.1:80")}
	if err := w.guard(pod).admit(&old, attrs, &ended); err != nil {
		t.Fatal(err)
	}
	w.denyAll(t)
	var late guarded // arrives before the loop has come to the notice of the change
	if err := w.guard(pod).admit(&late, attrs, &cuts{}); err == nil {
		t.Fatal("the new policy was not applied to a new connection")
	}
	w.changed()
	var want policyChangedError
	if !errors.As(ended.err, &want) {
		t.Errorf("the old connection goes on: cut with %v", ended.err)
	}
}

func TestARecheckEndsAllThoughOneEndTakesItsNeighbourAlong(t *testing.T) { // I18
	w := idleWorker(t)
	w.tellWorkload(t, wl("a", "10.0.0.1"))
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	attrs := rbac.Attributes{SourceIP: netip.MustParseAddr("10.0.0.2"), Dest: netip.MustParseAddrPort("10.0.0.1:80")}
	var list [3]guarded
	var ended [3]cuts
	for i := range list {
		if err := w.guard(pod).admit(&list[i], attrs, &ended[i]); err != nil {
			t.Fatal(err)
		}
	}
	ended[2].then = func() { // first in the list; its neighbour leaves with it
		list[2].leave()
		list[1].leave()
	}
	w.denyAll(t)
	w.changed()
	if ended[0].err == nil {
		t.Error("the last connection was not looked at")
	}
}

// ends is a connection that finishes as soon as it is cut.
type ends struct {
	flow
	also *ends
}

func (e *ends) cut(err error) {
	for ; e != nil; e = e.also {
		e.finish(err, 0, 0)
	}
}

func TestAPodsConnectionsAllEndThoughOneTakesItsOtherHalfAlong(t *testing.T) { // S3, same node
	w := idleWorker(t)
	gone, other := &Pod{UID: "a"}, &Pod{UID: "b"}
	gone.refs.Store(10)
	other.refs.Store(10)
	var old, source, inside ends
	old.begin(w, gone, &old, inboundDir)
	source.begin(w, other, &source, outboundDir)
	inside.also = &source
	inside.begin(w, gone, &inside, inboundDir)
	w.cutPod(gone)
	if old.listed || inside.listed {
		t.Error("a connection of the pod that is gone was not cut")
	}
}

// listed gives workload a, with the policies that it lists.
func (w *worker) listed(t *testing.T, policies ...string) {
	t.Helper()
	w.tellWorkload(t, wl("a", "10.0.0.1", func(m *pb.Workload) { m.AuthorizationPolicies = policies }))
}

// selectorPolicy makes an ALLOW policy of everybody in namespace default for those that list it, or removes it.
func (w *worker) selectorPolicy(t *testing.T, name string, there bool) {
	t.Helper()
	if !there {
		w.p.cfg.Policies.Apply(nil, []string{"default/" + name})
		return
	}
	v, err := rbac.FromProto(&securitypb.Authorization{
		Name: name, Namespace: "default", Scope: securitypb.Scope_WORKLOAD_SELECTOR, Action: securitypb.Action_ALLOW,
		Rules: []*securitypb.Rule{{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.p.cfg.Policies.Apply([]xds.Resource[*rbac.Policy]{{Name: v.Key, Value: v}}, nil)
}

func TestAPolicyThatHasNotArrivedLetsNobodyInAndCutsNobodyAtOnce(t *testing.T) { // B49; style 20: unknown policy = deny
	w := idleWorker(t)
	w.listed(t)
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	attrs := rbac.Attributes{SourceIP: netip.MustParseAddr("10.0.0.2"), Dest: netip.MustParseAddrPort("10.0.0.1:80")}
	var live, late guarded
	var ended cuts
	if err := w.guard(pod).admit(&live, attrs, &ended); err != nil {
		t.Fatal(err)
	}
	w.listed(t, "default/p") // the record overtakes the policy
	w.changed()
	if err := w.guard(pod).admit(&late, attrs, &cuts{}); err != errPolicyPending {
		t.Fatalf("a new connection did not wait for the policy: %v", err)
	}
	if ended.err != nil {
		t.Fatalf("a live connection was cut by a policy that nobody has seen: %v", ended.err)
	}
	g := w.guard(pod)
	if !g.grace.Running() {
		t.Fatal("the wait has no end")
	}
	g.grace.Stop()
	g.Expired(nil) // the policy does not come
	var denied deniedError
	if err := w.guard(pod).admit(&late, attrs, &cuts{}); !errors.As(err, &denied) || denied.decision.Missing != "default/p" {
		t.Errorf("a new connection after the wait: %v, want a refusal that names the policy", err)
	}
	var changed policyChangedError
	if !errors.As(ended.err, &changed) || changed.decision.Missing != "default/p" {
		t.Errorf("the live connection after the wait: %v, want an end that names the policy", ended.err)
	}
	w.selectorPolicy(t, "p", true)
	if err := w.guard(pod).admit(&late, attrs, &cuts{}); err != nil {
		t.Errorf("the policy has come and allows: %v", err)
	}
}

func TestAPolicyRemovedBeforeTheRecordDropsItIsSkipped(t *testing.T) {
	w := idleWorker(t)
	w.listed(t, "default/p")
	w.selectorPolicy(t, "p", true)
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	attrs := rbac.Attributes{SourceIP: netip.MustParseAddr("10.0.0.2"), Dest: netip.MustParseAddrPort("10.0.0.1:80")}
	var live, late guarded
	var ended cuts
	if err := w.guard(pod).admit(&live, attrs, &ended); err != nil {
		t.Fatal(err)
	}
	w.selectorPolicy(t, "p", false)
	w.changed()
	if err := w.guard(pod).admit(&late, attrs, &cuts{}); err != nil || ended.err != nil {
		t.Errorf("a removal refuses a new connection (%v) or cuts a live one (%v)", err, ended.err)
	}
	w.listed(t) // the record follows
	w.changed()
	w.listed(t, "default/p")
	w.changed()
	if err := w.guard(pod).admit(&guarded{}, attrs, &cuts{}); err != errPolicyPending {
		t.Errorf("the policy is listed anew and not there: %v, want a wait", err)
	}
}

// endsOther is a parked connection whose retry takes another one along.
type endsOther struct{ c *inboundPlain }

func (e endsOther) retry() { e.c.finish(errPodGone, 0, 0) }

func TestAConnectionThatEndedWhileOthersWereRetriedIsNotRetried(t *testing.T) {
	w := idleWorker(t)
	w.tellWorkload(t, wl("a", "10.0.0.1"))
	pod := &Pod{UID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	pod.refs.Store(10)
	c := &inboundPlain{}
	c.begin(w, pod, c, inboundDir)
	w.park(endsOther{c})
	w.park(c)
	w.changed() // would open its metrics, of which this worker has none
	if c.listed || w.open.Load() != 0 {
		t.Errorf("listed %v, %d open", c.listed, w.open.Load())
	}
}
