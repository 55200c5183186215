package scale

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// traffic is what a client received.
type traffic struct {
	streams, responses, resources, removed, bytes int
}

func (a traffic) minus(b traffic) traffic {
	return traffic{a.streams - b.streams, a.responses - b.responses, a.resources - b.resources, a.removed - b.removed, a.bytes - b.bytes}
}

// counter is a Transport that counts what its streams receive.
type counter struct {
	xds.Transport
	mu  sync.Mutex
	sum traffic // guarded by mu
}

// Open implements xds.Transport.
func (c *counter) Open(ctx context.Context) (xds.Stream, error) {
	st, err := c.Transport.Open(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.streams++
	return &countedStream{st, c}, nil
}

func (c *counter) total() traffic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

type countedStream struct {
	xds.Stream
	c *counter
}

// Recv implements xds.Stream.
func (s *countedStream) Recv() (*discoverypb.DeltaDiscoveryResponse, error) {
	resp, err := s.Stream.Recv()
	if err == nil {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		s.c.sum.responses++
		s.c.sum.resources += len(resp.GetResources())
		s.c.sum.removed += len(resp.GetRemovedResources())
		s.c.sum.bytes += proto.Size(resp)
	}
	return resp, err
}

// client is the part of a node proxy that knows the mesh: its xDS client, workload store and policy store.
type client struct {
	t     testing.TB
	node  string
	store *workload.Store
	xds   *xds.Client
	*counter

	mu      sync.Mutex
	refuse  string                    // a resource that is to be rejected; guarded by mu
	waiting map[string]chan time.Time // by uid: gets the time of the next change; guarded by mu
}

func transport(t testing.TB, c *controlPlane, node string) *counter {
	t.Helper()
	tr, err := xds.NewTransport(xds.TransportConfig{Address: "https://" + c.listen, RootCA: c.rootCA(), ClusterID: "Kubernetes",
		Token: func() (string, error) { return c.token(node), nil }})
	if err != nil {
		t.Fatal(err)
	}
	return &counter{Transport: tr}
}

func xdsNode(node string) xds.Node {
	return xds.Node{ID: "ztunnel~1.1.1.1~ztunnel-" + node + ".istio-system~istio-system.svc.cluster.local",
		Metadata: map[string]string{"NAMESPACE": "istio-system", "NODE_NAME": node}}
}

var errRefused = errors.New("refused by the test")

// startClient runs a client until the test's end and returns once it is in sync.
func startClient(t testing.TB, c *controlPlane, node string) *client {
	t.Helper()
	cl := &client{t: t, node: node, store: workload.NewStore(workload.Config{Node: node}), counter: transport(t, c, node), waiting: map[string]chan time.Time{}}
	cl.xds = xds.NewClient(xds.Config{Transport: cl.counter, Node: xdsNode(node), MaxBackoff: 200 * time.Millisecond})
	decode := func(name string, body []byte) (workload.Address, error) {
		cl.mu.Lock()
		refuse := cl.refuse
		cl.mu.Unlock()
		if name == refuse {
			return workload.Address{}, errRefused
		}
		return workload.DecodeAddress(name, body)
	}
	cl.store.Watch(cl.changed)
	xds.Subscribe(cl.xds, xds.Type[workload.Address]{URL: xds.AddressType, Decode: decode}, cl.store, xds.Options{})
	xds.Subscribe(cl.xds, xds.Type[*rbac.Policy]{URL: xds.AuthorizationType, Decode: rbac.Decode}, rbac.NewStore(), xds.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cl.xds.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-cl.xds.Ready():
	case <-time.NewTimer(within).C:
		t.Fatalf("client of %s: not in sync: %+v", node, cl.xds.Status())
	}
	return cl
}

func (cl *client) changed(c *workload.Change) {
	now := time.Now()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, w := range c.Workloads {
		uid := ""
		if w.New != nil {
			uid = w.New.UID
		} else {
			uid = w.Old.UID
		}
		if ch := cl.waiting[uid]; ch != nil {
			delete(cl.waiting, uid)
			ch <- now
		}
	}
}

// expect returns a channel that gets the time at which the store next has a change of a workload.
func (cl *client) expect(uid string) <-chan time.Time {
	ch := make(chan time.Time, 1)
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.waiting[uid] = ch
	return ch
}

// await takes a time from a channel of expect.
func await(t testing.TB, ch <-chan time.Time) time.Time {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case at := <-ch:
		return at
	case <-timer.C:
		t.Fatal("a change did not arrive")
		return time.Time{}
	}
}

// setRefused makes the client reject a resource from now on; "" = none.
func (cl *client) setRefused(name string) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.refuse = name
}
