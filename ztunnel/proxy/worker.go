package proxy

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// worker is one event loop with what is bound to it: the tunnels, the connections, the listeners. All fields are the
// loop's unless said otherwise.
type worker struct {
	// immutable
	p    *Proxy
	id   int
	loop *loop.Loop
	rand *rand.Rand

	pool   *hbone.Pool
	server *hbone.Server
	// flows are all connections, a list through flow.prev and next.
	flows flowList
	// labels are those of the connection that begins.
	labels telemetry.Labels
	// parked wait for a change of the workload table.
	parked []parked
	// guards hold, for each pod with inbound connections here, its policy and those connections.
	guards    map[*Pod]*guard
	acceptors map[*Pod][]*acceptor
	// hellos are tunnels whose peer has not begun the handshake.
	hellos *handshake.Silent

	// any goroutine
	open   atomic.Int32
	coming atomic.Int32 // accepted by others for it
	nudged atomic.Bool
}

// parked is a connection that waits for the workload table to change.
type parked interface {
	retry()
}

func newWorker(p *Proxy, id int) (*worker, error) {
	l, err := loop.New(loop.Config{Name: fmt.Sprintf("worker-%d", id), Logger: p.log, Hold: loop.DefaultHold})
	if err != nil {
		return nil, err
	}
	w := &worker{p: p, id: id, loop: l, rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), guards: map[*Pod]*guard{}, acceptors: map[*Pod][]*acceptor{}, hellos: handshake.NewSilent(l, p.cfg.ConnectTimeout)}
	pc := p.cfg.Pool
	pc.Dial = w.dialTunnel
	w.pool = hbone.NewPool(l, pc)
	sc := p.cfg.Server
	sc.Handler = inboundHandler{w}
	sc.OnClose = func(c *hbone.ServerConn, _ error) { c.Tag().(*peerTunnel).pod.unref() }
	w.server = hbone.NewServer(l, sc)
	return w, nil
}

// load is the number of connections that it carries or is about to. Any goroutine.
func (w *worker) load() int32 { return w.open.Load() + w.coming.Load() }

// nudge has changed run soon on the loop, once for any number of calls. Any goroutine.
func (w *worker) nudge() {
	if !w.nudged.Swap(true) {
		w.loop.Inject(w.changed)
	}
}

// changed runs after the workload or policy table was replaced.
func (w *worker) changed() {
	w.nudged.Store(false)
	waiting := w.parked
	w.parked = nil
	for _, x := range waiting {
		x.retry()
	}
	for pod, g := range w.guards {
		g.refresh()
		g.recheck()
		if g.conns.empty() && w.p.pods.Load().byUID[pod.UID] != pod {
			w.dropGuard(pod)
		}
	}
}

// park keeps x until the next change; unpark forgets it.
func (w *worker) park(x parked) { w.parked = append(w.parked, x) }

func (w *worker) unpark(x parked) {
	for i, y := range w.parked {
		if x == y {
			w.parked[i] = w.parked[len(w.parked)-1]
			w.parked = w.parked[:len(w.parked)-1]
			return
		}
	}
}

func (w *worker) views() (*workload.View, *rbac.View) {
	return w.p.cfg.Workloads.View(), w.p.cfg.Policies.View()
}

// stopAcceptingAll leaves all pods' queues to the proxy's successor. What was accepted already is carried on: the pool goes
// on opening tunnels for it.
func (w *worker) stopAcceptingAll() {
	for pod := range w.acceptors {
		w.stopAccepting(pod)
	}
}

// closeTunnels ends all tunnels, after the connections in them.
func (w *worker) closeTunnels() {
	w.endHellos(errDrained, func(*Pod) bool { return true })
	w.server.Close()
	w.pool.Close()
}

// cutAll ends every connection.
func (w *worker) cutAll() { w.cutWhere(errDrained, func(*flow) bool { return true }) }

// cutWhere ends the connections that match. Ending one may end others: both halves of a connection inside this node.
func (w *worker) cutWhere(err error, match func(*flow) bool) {
	var list []*flow
	for f := w.flows.head; f != nil; f = f.next {
		if match(f) {
			list = append(list, f)
		}
	}
	for _, f := range list {
		if f.listed {
			f.end.cut(err)
		}
	}
}

// cutPod ends every connection and tunnel of a pod that is gone (S3).
func (w *worker) cutPod(pod *Pod) {
	w.cutPods(func(p *Pod) bool { return p == pod })
	w.dropGuard(pod)
}

// cutLeft ends what goes on of a pod that has left the mesh.
func (w *worker) cutLeft(uid string) {
	w.cutPods(func(p *Pod) bool { return p.UID == uid })
}

// cutPods ends every connection and tunnel of the pods for which is holds.
func (w *worker) cutPods(is func(*Pod) bool) {
	w.cutWhere(errPodGone, func(f *flow) bool { return f.pod != nil && is(f.pod) })
	w.endHellos(errPodGone, is)
	w.eachTunnel(is, func(c *hbone.ServerConn) { c.Cut(errPodGone) })
}

func (w *worker) dropGuard(pod *Pod) {
	if g := w.guards[pod]; g != nil {
		g.grace.Stop()
		delete(w.guards, pod)
	}
}

// leavePod has the tunnels into a pod that leaves the mesh take no new streams.
func (w *worker) leavePod(pod *Pod) {
	w.eachTunnel(func(p *Pod) bool { return p == pod }, (*hbone.ServerConn).Drain)
}

func (w *worker) eachTunnel(of func(*Pod) bool, f func(*hbone.ServerConn)) {
	w.server.Each(func(c *hbone.ServerConn) {
		if of(c.Tag().(*peerTunnel).pod) {
			f(c)
		}
	})
}
