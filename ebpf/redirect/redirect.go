//go:build linux

// Package redirect brings the TCP connections of pods to the node proxy, by BPF and policy routes, without netfilter and
// without touching a packet.
//
// # How a connection gets there
//
// Outbound: connect.c marks the socket of an enrolled namespace as it connects; a rule sends marked packets to a table
// whose only route is "local default dev lo src POD"; the SYN comes in on lo and lookup.c gives it to the outbound
// listener. Inbound: lookup.c gives the SYN from eth0 to the plaintext or the HBONE listener, but for probes of the node's kubelet,
// which probe.c wrote down as they were made. getsockname on the accepted
// socket is the original destination, getpeername the real client. Towards the application the proxy dials from the
// client's address, marked and bound to lo (PrepareApp); tcp_fwmark_accept keeps the answers on lo.
//
// # What is where
//
// Below the pin directory, one per node, on a BPF file system:
//
//	node/{enrolled,exempt}             maps: enrolled namespaces by cookie; sockets of the proxy
//	node/{connect4,connect6}           links to the root of cgroup v2
//	node/{kubelet,kubelet_sockets}     maps: who is the kubelet, and its sockets
//	node/probes                        map: connections that the kubelet has just opened
//	node/{probe4,probe6,probe_tuple}   links to the kubelet's cgroup, or the root: probes are to be known by the kubelet
//	pods/UID/{record,listeners,dns}    maps: what to undo, listening sockets, sockets for DNS
//	pods/UID/link                      link to the pod's namespace
//	new-*                              being built; whoever opens the directory next removes it
//
// and in each pod's namespace two rules, or three, and a table per family and three sysctls. The kernel keeps all of it when the
// process ends. Everything here is idempotent: after a crash between any two lines the same call again, or Attach of a
// restarted process, completes the work; comments say what is left until then. A lock on the pin directory serialises
// processes.
//
// # Order
//
// Attach makes routes, fills the listeners, then links the lookup, then enrols; Detach goes backwards and leaves the routes to
// Sweep. So a marked socket always has its route, a redirected SYN always a listener or a refusal, and open connections
// go on undisturbed both when a pod enters the mesh and when it leaves.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// Defaults of Config. The mark uses no bit of Istio's (0xfff above the low byte), Cilium's (0x0f00), kube-proxy's (0xc000),
// Calico's and Tailscale's (0xffff0000) or the AWS CNI's (0x80); CNI plugins allocate tables from 100 upwards.
const (
	DefaultMark       uint32 = 0x2051
	DefaultMask       uint32 = 0x307f
	DefaultTable             = 8273
	DefaultPriority          = 827
	DefaultHBONEPort  uint16 = 15008
	DefaultSweepAfter        = 10 * time.Minute
)

// Config says how a node redirects. All of it but PinDir has a default; it must be the same for all processes that open
// the directory, and changing it while pods are attached moves them when they are attached again.
type Config struct {
	// PinDir is this node's directory on a BPF file system. If it is not on one, a BPF file system is mounted, at
	// /sys/fs/bpf for a directory below that and otherwise at PinDir itself.
	PinDir string
	// Mounted has Open fail with ErrNotMounted if PinDir is not on a BPF file system. In a container that is needed: what is
	// mounted there ends with it, and all pods would be let out of the mesh.
	Mounted bool
	// Cgroup is the root of cgroup v2; found or mounted if empty.
	Cgroup string
	// Mark and Mask are the bits that marked sockets have; the others of a socket's mark are left alone.
	Mark, Mask uint32
	// Table is the routing table in pods; Priority that of the first of its rules, which take six.
	Table, Priority int
	// HBONEPort is the port of pods whose connections go to the HBONE listener.
	HBONEPort uint16
	// AppPorts are the source ports that PrepareApp uses; a pod whose own range overlaps is reported in the log.
	AppPorts PortRange
	// Probes says how the kubelet's probes are told from other connections; "" is ProbesCaptured.
	Probes Probes
	// SweepAfter is how long after Detach the routes stay at most, for connections that do not end; negative: for ever.
	SweepAfter time.Duration
	// Logger gets what a human wants once; nil: nothing.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Mark == 0 && c.Mask == 0 {
		c.Mark, c.Mask = DefaultMark, DefaultMask
	}
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	if c.Priority == 0 {
		c.Priority = DefaultPriority
	}
	if c.HBONEPort == 0 {
		c.HBONEPort = DefaultHBONEPort
	}
	if c.AppPorts == (PortRange{}) {
		c.AppPorts = DefaultAppPorts
	}
	if c.SweepAfter == 0 {
		c.SweepAfter = DefaultSweepAfter
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.PinDir == "":
		return c, errors.New("pin directory is not given")
	case c.Mark == 0 || c.Mark&^c.Mask != 0:
		return c, fmt.Errorf("mark %#x does not fit mask %#x", c.Mark, c.Mask)
	case c.Table < 1 || c.Table >= 253 && c.Table <= 255:
		return c, fmt.Errorf("table %d is the kernel's", c.Table)
	case c.AppPorts.overlaps(UpstreamPorts):
		return c, fmt.Errorf("port range %d-%d towards applications overlaps %d-%d, which connections away from pods have",
			c.AppPorts.First, c.AppPorts.Last, UpstreamPorts.First, UpstreamPorts.Last)
	case c.Priority < 1 || c.Priority >= 32760:
		return c, fmt.Errorf("priority %d is not between the local and the main table", c.Priority)
	}
	return c, errors.Join(c.AppPorts.check(), c.Probes.Check())
}

// Node is the redirection of one node. Safe for concurrent use; every method but ExemptFD blocks for system calls (about
// 2 ms) and for other processes that work on the same directory.
type Node struct {
	cfg    Config               // immutable
	dir    pinDir               // immutable
	own    *netns.NS            // immutable: the node's namespace, which is never a pod's
	maps   connectMaps          // immutable
	probes *ebpf.Map            // immutable: of all pods' programs
	probe  kubeletObjects       // immutable; empty unless probes are known by the kubelet
	spec   *ebpf.CollectionSpec // immutable: lookup.c, copied for each pod

	mu     sync.Mutex
	known  map[string]*known // guarded by mu: pods by UID
	closed bool              // guarded by mu
}

// known is what this process knows of a pod beside its pins.
type known struct {
	ns  *netns.NS // ours to close
	pod Pod       // of Attach, without NS and Listeners; empty for pods that only an earlier process attached
}

// Open loads the programs of a node, or takes over what an earlier process pinned: the maps stay, the links go on with
// this build's programs without a gap. Errors wrap ErrNotSupported if the kernel lacks something. The caller closes the
// node.
//
// A crash leaves either a new-node directory, which the next Open removes, or links of which some run this build's
// program and some the earlier one's, which the next Open updates.
func Open(cfg Config) (_ *Node, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open redirection: %w", err)
	}
	dir, err := makePinDir(cfg.PinDir, !cfg.Mounted)
	if err != nil {
		return nil, err
	}
	unlock, err := dir.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := dir.removeStaged(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, dir: dir, known: map[string]*known{}}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.closeObjects())
	}
	return n, nil
}

func (n *Node) open() (err error) {
	if n.own, err = netns.Current(); err != nil {
		return err
	}
	cookie, err := n.own.Cookie()
	if err != nil {
		return err
	}
	if n.spec, err = loadLookup(); err != nil {
		return fmt.Errorf("read lookup program: %w", err)
	}
	// Not needed yet, but an unsuitable kernel shall show now and not with the first pod.
	if err := n.tryLookup(); err != nil {
		return explain(err, features)
	}
	if err := n.openConnect(); err != nil {
		return explain(err, features)
	}
	return n.openProbe(cookie)
}

// Close closes what the node holds open. All that is pinned stays and works on; Unload removes it.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	for _, k := range n.known {
		errs = append(errs, k.ns.Close())
	}
	n.known = nil
	return errors.Join(append(errs, n.closeObjects())...)
}

func (n *Node) closeObjects() error {
	errs := []error{n.maps.Close(), n.probe.Close(), n.probes.Close()}
	if n.own != nil {
		errs = append(errs, n.own.Close())
	}
	return errors.Join(errs...)
}

// ExemptFD returns the descriptor of the map that OpenExempt takes, to be sent to the proxy. It stays the node's.
func (n *Node) ExemptFD() int { return n.maps.Exempt.FD() }

// Mark returns the mark of redirected sockets and its mask, for AppOptions.
func (n *Node) Mark() (mark, mask uint32) { return n.cfg.Mark, n.cfg.Mask }

// AppPorts returns the source ports for AppOptions.
func (n *Node) AppPorts() PortRange { return n.cfg.AppPorts }

// begin takes the locks of a change; the caller calls end.
func (n *Node) begin() (end func(), err error) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil, errClosed
	}
	unlock, err := n.dir.lock()
	if err != nil {
		n.mu.Unlock()
		return nil, err
	}
	return func() { unlock(); n.mu.Unlock() }, nil
}
