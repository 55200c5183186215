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
