package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// Pod is a captured pod of this node. It is not changed once added; a pod that comes back in another namespace is
// another Pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	// Addrs are the pod's own; may be empty when the source of pods does not know them.
	Addrs []netip.Addr
	// NS is the pod's network namespace.
	NS *netns.NS

	id zds.FileID
	// outbound, plaintext and hbone are the listening sockets, as descriptors. Proxy.podsMu guards them.
	outbound, plaintext, hbone int
	nextApp, nextUpstream      portCounter
	// refs counts the table, the tunnels and the connections that may still need NS; at 0 it is closed.
	refs atomic.Int32
	// gone is how the pod has left the table, if it has.
	gone atomic.Uint32
	// described is the latest result of baggage.
	described atomic.Pointer[description]
	// guessed is the result of standIn.
	guessed atomic.Pointer[workload.Workload]
}

// description is the value of the baggage header that goes with a record.
type description struct {
	record *workload.Workload
	value  string
}

// baggage is the value of the header that describes the pod by its record. Any goroutine.
func (p *Pod) baggage(record *workload.Workload) string {
	d := p.described.Load()
	if d == nil || d.record != record {
		g := BaggageOf(record)
		d = &description{record, g.String()}
		p.described.Store(d)
	}
	return d.value
}

// standIn describes the pod by what its node knows, where the control plane does not know it yet: its record follows its
// status, which a busy kubelet tells late, and not before a hook after its start has ended (istio/istio#60969). Its certificate is
// still the control plane's to sign. nil while the table as a whole is still to come, or if the names make no identity. Any
// goroutine.
func (p *Proxy) standIn(pod *Pod) *workload.Workload {
	if !p.synced.Load() {
		return nil
	}
	if w := pod.guessed.Load(); w != nil {
		return w
	}
	id, err := spiffe.New(p.cfg.TrustDomain, pod.Namespace, pod.ServiceAccount)
	if err != nil {
		return nil
	}
	w := &workload.Workload{
		Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Addrs: pod.Addrs, Type: workload.Pod, WorkloadName: pod.Name,
		TrustDomain: p.cfg.TrustDomain, Network: p.cfg.Network, Cluster: p.cfg.ClusterID, Node: p.cfg.Node, ID: id,
	}
	pod.guessed.Store(w) // one for all connections: what is derived from a record is kept by its pointer
	return w
}

// newPod makes a Pod of what capture hands over, on duplicates of its descriptors.
func newPod(w *zds.Workload) (*Pod, error) {
	id, err := w.Files.NetNS.ID()
	if err != nil {
		return nil, err
	}
	files, err := w.Files.Dup()
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(files.NetNS.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		files.Close()
		return nil, fmt.Errorf("duplicate network namespace: %w", err)
	}
	ns, err := netns.FromFD(fd)
	if err != nil {
		files.Close()
		return nil, err
	}
	pod := &Pod{UID: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Addrs: w.Addrs, NS: ns, id: id}
	pod.outbound, pod.plaintext, pod.hbone = take(files.Outbound), take(files.Plaintext), take(files.HBONE)
	pod.refs.Store(1)
	return pod, files.Close()
}

// take is a duplicate of f's descriptor.
func take(f *zds.File) int {
	fd, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1
	}
	return fd
}

func (pod *Pod) ref() { pod.refs.Add(1) }

func (pod *Pod) unref() {
	if pod.refs.Add(-1) > 0 {
		return
	}
	pod.closeListeners()
	pod.NS.Close()
}

// closeListeners frees the pod's ports. A pod that leaves the mesh may come back while connections of before go on: its
// new listeners need the ports.
func (pod *Pod) closeListeners() {
	for _, fd := range []*int{&pod.outbound, &pod.plaintext, &pod.hbone} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
}

// Values of Pod.gone.
const (
	podLeft = 1 + iota // lives on outside of the mesh: what is under way may end by itself
	podCut             // everything of it is cut
)

// podKey finds the local pod behind a workload record.
type podKey struct{ namespace, name, serviceAccount string }

// podTable is immutable.
type podTable struct {
	byUID map[string]*Pod
	byKey map[podKey]*Pod
}

func newPodTable() *podTable {
	return &podTable{byUID: map[string]*Pod{}, byKey: map[podKey]*Pod{}}
}

// with is a copy of t with the pods changed by f.
func (t *podTable) with(f func(map[string]*Pod)) *podTable {
	n := newPodTable()
	for uid, pod := range t.byUID {
		n.byUID[uid] = pod
	}
	f(n.byUID)
	for _, pod := range n.byUID {
		n.byKey[podKey{pod.Namespace, pod.Name, pod.ServiceAccount}] = pod
	}
	return n
}

// local is the pod of this node that a workload record describes, or nil. addr must be one of the pod's own, where the
// source of pods said which these are: a record that is out of date names nobody.
func (t *podTable) local(w *workload.Workload, addr netip.Addr) *Pod {
	pod := t.byKey[podKey{w.Namespace, w.Name, w.ServiceAccount}]
	if pod == nil || len(pod.Addrs) > 0 && !slices.Contains(pod.Addrs, addr) {
		return nil
	}
	return pod
}

// record is the pod's own entry in the workload table, or nil. It is found by name, never by address (O2).
func (pod *Pod) record(v *workload.View) *workload.Workload {
	return v.Pod(pod.Name, pod.Namespace, pod.ServiceAccount)
}

// StartPod implements zds.Runner: it begins to accept the pod's connections. The same pod in the same namespace again is
// no change; in another namespace the old one is cut (Z5). Any goroutine.
func (p *Proxy) StartPod(_ context.Context, w *zds.Workload) error {
	if p.sockets.Load() == nil {
		return errors.New("the node was not set up: capture sent no node setup")
	}
	if !w.Files.HasListeners() {
		return errors.New("pods without listeners (istio-cni) are not supported yet")
	}
	pod, err := newPod(w)
	if err != nil {
		return fmt.Errorf("take pod %s/%s: %w", w.Namespace, w.Name, err)
	}
	p.podsMu.Lock()
	defer p.podsMu.Unlock()
	old := p.pods.Load().byUID[pod.UID]
	if old != nil && old.id == pod.id && old.Name == pod.Name && old.ServiceAccount == pod.ServiceAccount {
		pod.unref()
		return nil
	}
	if old != nil {
		p.stopLocked(old, false)
	}
	p.pods.Store(p.pods.Load().with(func(m map[string]*Pod) { m[pod.UID] = pod }))
	if !p.draining.Load() {
		wk := p.workers[int(hashString(pod.UID)%uint32(len(p.workers)))]
		wk.loop.OnLoop(func() { err = wk.startAccepting(pod) })
		if err != nil {
			p.stopLocked(pod, false)
			return fmt.Errorf("accept connections of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	p.warmCertificates()
	return nil
}

// StopPod implements zds.Runner. With drain the pod lives on outside of the mesh: what waits in its listeners is taken,
// and its connections end by themselves. Without, everything is cut (Z6), also what goes on of a pod that left before. An
// unknown UID is no error. Any goroutine.
func (p *Proxy) StopPod(uid string, drain bool) {
	p.podsMu.Lock()
	defer p.podsMu.Unlock()
	switch pod := p.pods.Load().byUID[uid]; {
	case pod != nil:
		p.stopLocked(pod, drain)
	case !drain:
		for _, w := range p.workers {
			w.loop.OnLoop(func() { w.cutLeft(uid) })
		}
	}
	p.forgetCertificates()
}

func (p *Proxy) stopLocked(pod *Pod, drain bool) {
	for _, w := range p.workers {
		w.loop.OnLoop(func() {
			if drain {
				w.acceptRest(pod)
			}
			w.stopAccepting(pod)
		})
	}
	pod.closeListeners()
	if drain {
		pod.gone.Store(podLeft)
	} else {
		pod.gone.Store(podCut)
	}
	p.pods.Store(p.pods.Load().with(func(m map[string]*Pod) { delete(m, pod.UID) }))
	for _, w := range p.workers {
		w.loop.OnLoop(func() {
			w.pool.Retire(func(_ poolKey, tag any) bool { return tag.(*peerSpec).pod == pod })
			if drain {
				w.leavePod(pod)
			} else {
				w.cutPod(pod)
			}
		})
	}
	pod.unref()
}

// closePods releases what is left after the workers have ended.
func (p *Proxy) closePods() {
	p.podsMu.Lock()
	defer p.podsMu.Unlock()
	for _, pod := range p.pods.Load().byUID {
		pod.unref()
	}
	p.pods.Store(newPodTable())
}

// warmCertificates asks for the certificates of all local pods whose record is known, so that the first connection does
// not wait (C7).
func (p *Proxy) warmCertificates() {
	v := p.cfg.Workloads.View()
	for _, pod := range p.pods.Load().byUID {
		if w := pod.record(v); w != nil && !w.ID.IsZero() {
			p.cfg.Certs.Want(w.ID)
		}
	}
}

// forgetCertificates stops the renewal of identities that no local pod has any more (C8).
func (p *Proxy) forgetCertificates() {
	used := map[[2]string]bool{}
	for _, pod := range p.pods.Load().byUID {
		used[[2]string{pod.Namespace, pod.ServiceAccount}] = true
	}
	for _, s := range p.cfg.Certs.Snapshot() {
		if !used[[2]string{s.ID.Namespace(), s.ID.ServiceAccount()}] {
			p.cfg.Certs.Forget(s.ID)
		}
	}
}

// hashString is FNV-1a.
func hashString(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}
