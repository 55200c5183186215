package scale

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// TestSoakAStuckClientHoldsUpNobody opens streams that ask for everything and then read nothing, or read and never
// answer, and changes pods: the others get each change, and the control plane keeps nothing for the stuck ones.
func TestSoakAStuckClientHoldsUpNobody(t *testing.T) {
	m := writeManifests(t, manyPods, manyServices)
	c := startControlPlane(t, m)
	for i := range 4 {
		open(t, c, fmt.Sprintf("node-%d", 10+i), false)
	}
	mute := open(t, c, "node-20", true)
	healthy := startClient(t, c, "node-1")
	change := func(n int) {
		for i := range n {
			at := healthy.expect(m.uid(i))
			m.setReady(i, false)
			await(t, at)
			at = healthy.expect(m.uid(i))
			m.setReady(i, true)
			await(t, at)
		}
	}
	n := amount(20, 200)
	change(n)
	_, before := c.rss()
	after := before
	for round := 1; ; round++ { // garbage comes and goes; what clients hold up would stay, and become more
		change(n)
		if _, after = c.rss(); after <= before+40 {
			break
		}
		if round == 6 {
			t.Errorf("%d changes made the control plane's memory grow from %.0f to %.0f MB", (1+round)*n, before, after)
			break
		}
	}
	if got := mute(); got > 2 {
		t.Errorf("a client that answers nothing got %d responses, want one of each type at most", got)
	}
	t.Logf("%d changes with 5 stuck clients: %.0f MB before, %.0f MB after", 2*n, before, after)
}

// open opens a stream that asks for all addresses and never answers; it reads or does not. The result says how many
// responses came.
func open(t *testing.T, c *controlPlane, node string, read bool) func() int {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tr := transport(t, c, node)
	st, err := tr.Open(ctx)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	meta := &structpb.Struct{Fields: map[string]*structpb.Value{"NODE_NAME": structpb.NewStringValue(node)}}
	req := &discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, Node: &corepb.Node{Id: xdsNode(node).ID, Metadata: meta}}
	if err := st.Send(req); err != nil {
		cancel()
		t.Fatal(err)
	}
	var reader sync.WaitGroup
	if read {
		reader.Go(func() {
			for {
				if _, err := st.Recv(); err != nil {
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		reader.Wait()
		if !read {
			for {
				if _, err := st.Recv(); err != nil {
					return
				}
			}
		}
	})
	return func() int { return tr.total().responses }
}

// TestSoakTwoHundredClients connects 200 nodes at once and changes one pod.
func TestSoakTwoHundredClients(t *testing.T) {
	pods, services := amount(500, 2000), amount(50, 200)
	m := writeManifests(t, pods, services)
	c := startControlPlane(t, m)
	const n = 200
	clients := make([]*client, n)
	var starting sync.WaitGroup
	for i := range clients {
		starting.Go(func() { clients[i] = startClient(t, c, fmt.Sprintf("node-%d", i)) })
	}
	starting.Wait()
	if t.Failed() {
		return
	}
	for _, cl := range clients {
		if w, _ := cl.store.View().Len(); w != pods {
			t.Fatalf("%s has %d workloads, want %d", cl.node, w, pods)
		}
	}
	all, _ := c.rss()
	t.Logf("%d clients with %d workloads each: control plane %.0f MB, %v CPU", n, pods, all, c.cpu())
	for i := range amount(3, 30) {
		m.setReady(i, false)
		for _, cl := range clients {
			waitFor(t, cl.node+" has the change", func() bool { w := cl.store.View().ByUID(m.uid(i)); return w != nil && w.Unhealthy })
		}
	}
}

// TestSoakARejectedResourceKeepsItsLastGoodValue lets one node reject one resource: it keeps what it had, goes on with
// the rest, and the control plane shows why.
func TestSoakARejectedResourceKeepsItsLastGoodValue(t *testing.T) {
	m := writeManifests(t, 100, 10)
	c := startControlPlane(t, m)
	bad, good := startClient(t, c, "node-1"), startClient(t, c, "node-2")
	bad.setRefused(m.uid(5))
	at := good.expect(m.uid(5))
	m.setReady(5, false)
	await(t, at)
	nacked := func() string {
		for _, cl := range c.clients() {
			for _, ty := range cl.Types {
				if strings.Contains(cl.Client, "ztunnel-node-1.") && ty.TypeURL == xds.AddressType {
					return ty.NACK
				}
			}
		}
		return ""
	}
	waitFor(t, "the NACK at /debug/syncz", func() bool { return strings.Contains(nacked(), m.uid(5)+": "+errRefused.Error()) })
	if w := bad.store.View().ByUID(m.uid(5)); w == nil || w.Unhealthy {
		t.Errorf("the rejected change left %+v, want the last good state", w)
	}
	at = bad.expect(m.uid(6))
	m.setReady(6, false)
	await(t, at)
	if w := bad.store.View().ByUID(m.uid(5)); w == nil || w.Unhealthy {
		t.Errorf("a later response left %+v, want the last good state", w)
	}
	// Over a restart the rejected resource alone comes again (X6), and is taken now.
	before := bad.total()
	bad.setRefused("")
	at = bad.expect(m.uid(5))
	c.kill()
	c.start()
	await(t, at)
	if d := bad.total().minus(before); d.resources != 1 || d.removed != 0 {
		t.Errorf("after the restart came %+v, want the rejected resource", d)
	}
}
