//go:build linux

package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// maxAddrs is MAX_ADDRS of ambit.h.
const maxAddrs = 32

// The slots of the map listeners; enum slot of ambit.h.
const (
	slotOutbound  uint32 = 0
	slotPlaintext uint32 = 1
	slotHBONE     uint32 = 2
)

// Pod is what Attach needs to know.
type Pod struct {
	// UID names the pod on this node; any string up to about 80 bytes.
	UID string
	// NS is the pod's network namespace. It stays the caller's.
	NS *netns.NS
	// Addrs are the pod's addresses, its preferred one of each family first. Those found on its interfaces count as well.
	Addrs []netip.Addr
	// ProbePorts are those that the kubelet asks. They count in the mode ProbesByAddress.
	ProbePorts []uint16
	// BypassInbound leaves connections from outside to the application, but for those to the HBONE port.
	BypassInbound bool
	// Reroute are interfaces to machines inside the pod (a bridge to virtual machines or containers): TCP that comes in by
	// them is taken for connections that the pod opens. One that has the pod's addresses or a default route is left alone.
	Reroute []string
	// Listeners are the sockets that get the connections; those of Listen. They stay the caller's, and the kernel drops
	// them from the pod when the last descriptor of them is closed, in whatever process: from then on it refuses. Those
	// that are 0 or negative leave the pod's as they are.
	Listeners Listeners
	// DNS are the sockets that get the pod's DNS queries, as Listeners get its connections. Without both the queries are
	// not captured.
	DNS DNSSockets
}

// PodState is a pod that has pins.
type PodState struct {
	UID string
	// NS is the namespace that it is attached to.
	NS netns.ID
	// Attached is false between Detach and the end of its connections.
	Attached bool
}

// Attach redirects the pod's connections to its listeners, or brings an attached pod up to date: listeners, addresses,
// routes, programs of this build. Connections that are open already stay as they are. On an error call it again, or
// Remove. The node's own namespace is refused.
func (n *Node) Attach(p Pod) error {
	if err := checkUID(p.UID); err != nil {
		return err
	}
	if p.NS.ID() == n.own.ID() {
		return fmt.Errorf("attach pod %q: %v is the node's own network namespace", p.UID, p.NS)
	}
	end, err := n.begin()
	if err != nil {
		return err
	}
	defer end()
	if err := n.attach(p); err != nil {
		return fmt.Errorf("attach pod %q: %w", p.UID, err)
	}
	return nil
}

func (n *Node) attach(p Pod) error {
	cookie, err := p.NS.Cookie()
	if err != nil {
		return err
	}
	h, err := p.NS.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	s, err := readSpace(h, p.Addrs)
	if err != nil {
		return err
	}
	st, err := n.openPod(p.UID)
	if err == nil && st.rec.Cookie != cookie {
		// The pod's sandbox was made anew. The old namespace ends by itself.
		st.Close()
		if err := n.forget(p.UID); err != nil {
			return err
		}
		err = ErrUnknownPod
	}
	if errors.Is(err, ErrUnknownPod) {
		st, err = n.createPod(p.UID, cookie, p.NS.ID())
	}
	if err != nil {
		return err
	}
	defer st.Close()
	if err := n.keep(p); err != nil {
		return err
	}
	// 1. Routes and sysctls. Nothing has the mark yet, so that they change nothing. A crash leaves them to the record.
	if err := n.setRouting(st, p, s, h); err != nil {
		return err
	}
	// 2. Listeners before the link: for a running pod no connection is refused.
	if err := st.fill(p.Listeners); err != nil {
		return err
	}
	if err := n.prepareDNS(st, p.DNS, h); err != nil {
		return err
	}
	// 3. From here inbound connections are redirected or refused.
	c, err := n.constants(h, p, s)
	if err != nil {
		return err
	}
	c.dns = p.DNS.given()
	if err := n.linkLookup(st, p.NS, c); err != nil {
		return err
	}
	if err := st.routing().reroute(h, c.rerouteNames); err != nil {
		return err
	}
	// 4. From here outbound connections are redirected.
	if err := n.maps.Enrolled.Put(cookie, connectEnrolment{}); err != nil {
		return fmt.Errorf("enrol namespace: %w", err)
	}
	// 5. From here DNS queries are, if they are to be.
	if err := st.finishDNS(p.DNS, h); err != nil {
		return err
	}
	n.warnPorts(p)
	return nil
}

// setRouting makes the namespace's routes and sysctls; the record tells beforehand what to undo.
func (n *Node) setRouting(st *podPins, p Pod, s *space, h netlinkHandle) error {
	old := st.routing()
	r := n.cfg.routing()
	if old != r && old != (routing{}) {
		if err := errors.Join(old.reroute(h, nil), old.remove(h)); err != nil {
			return err
		}
	}
	st.rec.Mark, st.rec.Mask, st.rec.Table, st.rec.Priority = r.mark, r.mask, uint32(r.table), uint32(r.priority)
	st.rec.Detached = 0
	if err := st.save(); err != nil {
		return err
	}
	if err := r.ensure(h, s, p.Addrs); err != nil {
		return err
	}
	was, err := setSysctls(p.NS)
	if err != nil {
		return err
	}
	// A crash before this line leaves sysctls that nobody will set back; they do nothing without marks.
	st.rec.Sysctls |= was
	return st.save()
}

// constants are what the lookup program of a pod is built with.
type constants struct {
	own        []netip.Addr // the pod's addresses
	probers    []netip.Addr // of ProbesByAddress
	probePorts []uint16     // likewise
	bypass     bool
	dns        bool     // the pod's queries are captured
	rerouted   []uint32 // interfaces

	rerouteNames []string // those, and such as are not there yet; not the program's
}

func (n *Node) constants(h *netlink.Handle, p Pod, s *space) (c constants, err error) {
	c.own, c.bypass = s.own, p.BypassInbound
	if c.rerouteNames, c.rerouted, err = n.rerouted(h, p, s); err != nil {
		return c, err
	}
	if c.probers, err = n.probers(p.Addrs); err != nil {
		return c, err
	}
	if len(c.probers) > 0 {
		c.probePorts = p.ProbePorts
		if len(c.probePorts) > maxProbePorts {
			n.cfg.Logger.Warn("pod has too many probes; those of its last ports are captured", "pod", p.UID, "ports", len(c.probePorts), "max", maxProbePorts)
			c.probePorts = c.probePorts[:maxProbePorts]
		}
	}
	if len(c.own) > maxAddrs {
		return c, fmt.Errorf("pod has %d addresses, more than %d", len(c.own), maxAddrs)
	}
	return c, nil
}

// build is a hash of all that the lookup program is made of.
func (n *Node) build(c constants) (uint64, error) {
	info, err := n.probes.Info()
	if err != nil {
		return 0, fmt.Errorf("describe map of probes: %w", err)
	}
	id, _ := info.ID()
	h := fnv.New64a()
	h.Write(_LookupBytes)
	fmt.Fprint(h, n.cfg.HBONEPort, id, c.own, c.probers, c.probePorts, c.bypass, c.rerouted, c.dns)
	return h.Sum64(), nil
}

// words are addresses as the programs have them.
func words(list []netip.Addr) []lookupAddr {
	out := make([]lookupAddr, len(list))
	for i, a := range list {
		b := a.As16()
		for w := range out[i].Word {
			out[i].Word[w] = binary.NativeEndian.Uint32(b[w*4:])
		}
	}
	return out
}

// flag is a bool as the programs have it.
func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// loadProgram loads the lookup program with a pod's constants; maps replace those that it would make.
func (n *Node) loadProgram(c constants, maps map[string]*ebpf.Map) (*lookupObjects, error) {
	var own [maxAddrs]lookupAddr
	var probers [maxProbers]lookupAddr
	var ports [maxProbePorts]uint16
	var rerouted [maxRerouted]uint32
	spec := n.spec.Copy()
	for name, value := range map[string]any{
		lookupVarOwn: &own, lookupVarOwnCount: uint32(copy(own[:], words(c.own))),
		lookupVarProber: &probers, lookupVarProberCount: uint32(copy(probers[:], words(c.probers))),
		lookupVarProbePort: &ports, lookupVarProbePortCount: uint32(copy(ports[:], c.probePorts)),
		lookupVarRerouted: &rerouted, lookupVarReroutedCount: uint32(copy(rerouted[:], c.rerouted)),
		lookupVarBypassInbound: flag(c.bypass), lookupVarDnsOn: flag(c.dns), lookupVarHbonePort: n.cfg.HBONEPort,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set constant %q of lookup program: %w", name, err)
		}
	}
	objs := new(lookupObjects)
	if err := spec.LoadAndAssign(objs, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return nil, fmt.Errorf("load lookup program: %w", err)
	}
	return objs, nil
}

func (n *Node) tryLookup() error {
	objs, err := n.loadProgram(constants{dns: true}, nil)
	if err != nil {
		return err
	}
	return objs.Close()
}

// linkLookup attaches the program to the namespace, or updates the link in one step if it is of another build.
func (n *Node) linkLookup(st *podPins, ns *netns.NS, c constants) error {
	build, err := n.build(c)
	if err != nil {
		return err
	}
	old, err := link.LoadPinnedLink(st.path("link"), nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("open pinned link: %w", err)
	default:
		defer old.Close()
		if linked := namespaceOf(old) == ns.ID().Ino; linked && st.rec.Build == build {
			return nil
		} else if !linked {
			old = nil
		}
	}
	objs, err := n.loadProgram(c, map[string]*ebpf.Map{
		lookupMapListeners: st.listeners, lookupMapRecord: st.record, lookupMapProbes: n.probes, lookupMapDnsSockets: st.dns,
	})
	if err != nil {
		return err
	}
	defer objs.Close()
	if old != nil {
		err = old.Update(objs.Lookup)
	} else {
		err = pinLookup(st, ns, objs.Lookup)
	}
	if err != nil {
		return fmt.Errorf("attach lookup program: %w", err)
	}
	// A crash before this line costs one update more.
	st.rec.Build = build
	return st.save()
}

// pinLookup attaches the program anew. A crash before Pin ends the link.
func pinLookup(st *podPins, ns *netns.NS, prog *ebpf.Program) error {
	l, err := link.AttachNetNs(ns.FD(), prog)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := os.Remove(st.path("link")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return l.Pin(st.path("link"))
}

// namespaceOf returns the inode of the namespace that a link is attached to; 0 if that has ended.
func namespaceOf(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.NetNs() == nil {
		return 0
	}
	return uint64(info.NetNs().NetnsInode)
}

// Detach ends the redirection of new connections. Open ones go on; Sweep removes the rest when they are over. A pod that
// is not attached is no error.
func (n *Node) Detach(uid string) error {
	end, err := n.begin()
	if err != nil {
		return err
	}
	defer end()
	st, err := n.openPod(uid)
	if errors.Is(err, ErrUnknownPod) {
		return nil
	}
	if err == nil {
		defer st.Close()
		err = n.detach(uid, st)
	}
	if err != nil {
		return fmt.Errorf("detach pod %q: %w", uid, err)
	}
	return nil
}

// detach notes first that the pod is to be detached, so that Sweep completes it after a crash. The order is that of the
// enrolment backwards: DNS and outbound end first, inbound stays closed to plaintext until the pod has left.
func (n *Node) detach(uid string, st *podPins) error {
	if st.rec.Detached == 0 {
		st.rec.Detached = now()
		if err := st.save(); err != nil {
			return err
		}
	}
	if err := n.releaseDNS(uid, st); err != nil {
		return err
	}
	if err := n.unlink(st); err != nil {
		return err
	}
	return n.endReroute(uid, st)
}

// endReroute ends the redirection of what comes in by interfaces, before somebody would refuse it.
func (n *Node) endReroute(uid string, st *podPins) error {
	k, err := n.namespace(uid, st)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := k.ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return st.routing().reroute(h, nil)
}

// unlink ends redirection in both directions.
func (n *Node) unlink(st *podPins) error {
	if err := n.maps.Enrolled.Delete(st.rec.Cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("end enrolment: %w", err)
	}
	return unlinkLookup(st)
}

func unlinkLookup(st *podPins) error {
	l, err := link.LoadPinnedLink(st.path("link"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	// Another process may hold the link open. It may have ended with its namespace, too.
	_ = l.Detach()
	if err := os.Remove(st.path("link")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin link: %w", err)
	}
	return nil
}

// Remove forgets a pod that is gone, and ends its redirection at once. Its namespace is taken to end, and is not tidied.
// A pod that is not known is no error.
func (n *Node) Remove(uid string) error {
	end, err := n.begin()
	if err != nil {
		return err
	}
	defer end()
	if err := n.forget(uid); err != nil {
		return fmt.Errorf("remove pod %q: %w", uid, err)
	}
	return nil
}

// forget removes the pins of a pod and closes its namespace.
func (n *Node) forget(uid string) error {
	st, err := n.openPod(uid)
	if err != nil && !errors.Is(err, ErrUnknownPod) {
		return err
	}
	if err == nil {
		defer st.Close()
		if err := n.unlink(st); err != nil {
			return err
		}
	}
	if err := n.dir.removePod(uid); err != nil {
		return err
	}
	k := n.known[uid]
	delete(n.known, uid)
	if k == nil {
		return nil
	}
	return k.ns.Close()
}

// Pods returns the pods that have pins, also those of an earlier process, sorted by UID. It returns what it can read, and
// logs what it cannot.
func (n *Node) Pods() []PodState {
	end, err := n.begin()
	if err != nil {
		return nil
	}
	defer end()
	uids, err := n.dir.uids()
	if err != nil {
		n.cfg.Logger.Error("pinned pods not listed", "err", err)
	}
	slices.Sort(uids)
	var out []PodState
	for _, uid := range uids {
		st, err := n.openPod(uid)
		if err != nil {
			n.cfg.Logger.Error("pinned pod not read", "pod", uid, "err", err)
			continue
		}
		out = append(out, PodState{UID: uid, NS: st.id(), Attached: st.rec.Detached == 0})
		st.Close()
	}
	return out
}

// keep holds the pod's namespace open, for Detach, Sweep and Verify.
func (n *Node) keep(p Pod) error {
	known := &known{pod: p}
	known.pod.NS, known.pod.Listeners = nil, Listeners{}
	known.pod.Addrs, known.pod.ProbePorts = slices.Clone(p.Addrs), slices.Clone(p.ProbePorts)
	known.pod.Reroute = slices.Clone(p.Reroute)
	have := n.known[p.UID]
	if have != nil && have.ns.Same(p.NS) {
		have.pod = known.pod
		return nil
	}
	dup, err := p.NS.Dup()
	if err != nil {
		return err
	}
	if have != nil {
		have.ns.Close()
	}
	known.ns = dup
	n.known[p.UID] = known
	return nil
}

// namespace returns what is known of the pod, searching for its namespace if an earlier process attached it. It wraps
// os.ErrNotExist if the namespace has ended.
func (n *Node) namespace(uid string, st *podPins) (*known, error) {
	if k := n.known[uid]; k != nil {
		return k, nil
	}
	ns, err := findNamespace(st)
	if err != nil {
		return nil, err
	}
	n.known[uid] = &known{ns: ns}
	return n.known[uid], nil
}

// findNamespace searches for the namespace of a record. Inode numbers are used again, cookies are not.
func findNamespace(st *podPins) (*netns.NS, error) {
	ns, err := netns.Find(st.id())
	if err != nil {
		return nil, err
	}
	cookie, err := ns.Cookie()
	if err == nil && cookie != st.rec.Cookie {
		err = os.ErrNotExist
	}
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("check network namespace %v: %w", st.id(), err)
	}
	return ns, nil
}
