//go:build linux

package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/procfs"
)

// Probes says how the kubelet's probes are told from other connections to a pod. They go to the application and not by
// the proxy, whose policy may admit no plaintext.
type Probes string

const (
	// ProbesCaptured has them go by the proxy like any other connection.
	ProbesCaptured Probes = "captured"
	// ProbesOfKubelet knows them by the process that opens them, the node's kubelet: see SetKubelet.
	ProbesOfKubelet Probes = "kubelet"
	// ProbesByAddress knows them by the node's address and the pod's probe ports: Pod.ProbePorts. Any process of the node
	// passes for the kubelet, and so does a forwarded connection that comes from the node's address. It is for nodes that
	// translate the addresses of their own connections to pods.
	ProbesByAddress Probes = "address"
)

// Check returns an error if p is none of the constants; "" is ProbesCaptured.
func (p Probes) Check() error {
	switch p {
	case "", ProbesCaptured, ProbesOfKubelet, ProbesByAddress:
		return nil
	}
	return fmt.Errorf("%q is not %s, %s or %s", string(p), ProbesOfKubelet, ProbesByAddress, ProbesCaptured)
}

// The ways of SetKubelet.
const (
	// ByCgroup: the kubelet has a cgroup of its own, and the programs run for that alone.
	ByCgroup = "cgroup"
	// ByProcess: the programs run for every process of the machine and know the kubelet by its number.
	ByProcess = "process"
)

// maxProbers and maxProbePorts are MAX_PROBERS and MAX_PROBE_PORTS of ambit.h.
const (
	maxProbers    = 4
	maxProbePorts = 32
)

// initPIDNS is the inode number of the machine's first PID namespace (PROC_PID_INIT_INO).
const initPIDNS = 0xeffffffc

var probeHooks = []struct {
	pin    string
	attach ebpf.AttachType
	prog   func(*probePrograms) *ebpf.Program
}{
	{"probe4", ebpf.AttachCGroupInet4Connect, func(p *probePrograms) *ebpf.Program { return p.Probe4 }},
	{"probe6", ebpf.AttachCGroupInet6Connect, func(p *probePrograms) *ebpf.Program { return p.Probe6 }},
	{"probe_tuple", ebpf.AttachCGroupSockOps, func(p *probePrograms) *ebpf.Program { return p.ProbeTuple }},
}

// kubeletObjects are those of probe.c without its variables, each of which maps memory of the kernel into ours.
type kubeletObjects struct {
	probePrograms
	probeMaps
}

func (o *kubeletObjects) Close() error {
	return errors.Join(o.probePrograms.Close(), o.probeMaps.Close())
}

// openProbe makes or takes over the maps, and in the mode ProbesOfKubelet the programs. What an earlier process attached
// goes on with this build's programs, so that a restart misses no probe; in other modes it ends. A crash leaves some maps
// unpinned, which the next Open makes.
func (n *Node) openProbe(cookie uint64) error {
	spec, err := loadProbe()
	if err != nil {
		return fmt.Errorf("read probe programs: %w", err)
	}
	if err := spec.Variables[probeVarNodeCookie].Set(cookie); err != nil {
		return fmt.Errorf("set cookie of the node: %w", err)
	}
	maps := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range maps {
			m.Close() // the objects have descriptors of their own
		}
	}()
	for _, name := range []string{probeMapProbes, probeMapKubelet, probeMapKubeletSockets} {
		if maps[name], err = pinnedMap(n.dir.node(name), spec.Maps[name]); err != nil {
			return err
		}
	}
	if n.probes, err = maps[probeMapProbes].Clone(); err != nil {
		return fmt.Errorf("duplicate map of probes: %w", err)
	}
	if n.cfg.Probes != ProbesOfKubelet {
		for _, h := range probeHooks {
			if err := unloadHook(n.dir.node(h.pin)); err != nil {
				return fmt.Errorf("end recognition of the kubelet: %w", err)
			}
		}
		return maps[probeMapKubelet].Put(uint32(0), probeKubelet{})
	}
	if err := spec.LoadAndAssign(&n.probe, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return explainProbes(fmt.Errorf("load probe programs: %w", err))
	}
	for _, h := range probeHooks {
		if err := updateHook(n.dir.node(h.pin), h.prog(&n.probe.probePrograms)); err != nil {
			return fmt.Errorf("update %s: %w", h.pin, err)
		}
	}
	return nil
}

// pinnedMap opens the map that is pinned, or makes and pins it.
func pinnedMap(pin string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		if m, err = ebpf.NewMap(spec); err != nil {
			return nil, fmt.Errorf("make map %q: %w", spec.Name, err)
		}
		if err := m.Pin(pin); err != nil {
			m.Close()
			return nil, fmt.Errorf("pin map %q: %w", spec.Name, err)
		}
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %q: %w", spec.Name, err)
	}
	return m, nil
}

// SetKubelet says which process is the kubelet, as the machine's /proc numbers it; 0: none, its probes are captured until
// there is one. It returns how the kubelet is recognised, ByCgroup or ByProcess. On an error none is. The kubelet that
// ends must be taken back before its number can belong to another process. It may be called again for the same one, and
// then repairs what others broke.
func (n *Node) SetKubelet(pid int) (how string, err error) {
	end, err := n.begin()
	if err != nil {
		return "", err
	}
	defer end()
	if n.cfg.Probes != ProbesOfKubelet {
		return "", fmt.Errorf("recognise the kubelet: probes are %q", n.cfg.Probes)
	}
	if pid == 0 {
		return "", n.putKubelet(probeKubelet{})
	}
	if how, err = n.setKubelet(pid); err != nil {
		return "", errors.Join(fmt.Errorf("recognise the kubelet, process %d: %w", pid, err), n.putKubelet(probeKubelet{}))
	}
	return how, nil
}

func (n *Node) setKubelet(pid int) (how string, err error) {
	root, err := openCgroup(n.cfg.Cgroup)
	if err != nil {
		return "", err
	}
	defer root.Close()
	cg, err := ownCgroup(root, pid)
	if err != nil {
		return "", err
	}
	want := probeKubelet{Tgid: uint32(pid)}
	if how = ByProcess; cg != nil {
		defer cg.Close()
		how, want.Cgroup = ByCgroup, 1
	} else if cg = root; !inInitPIDNamespace() {
		return "", errors.New("it has no cgroup v2 of its own, and by its number it can be known only in the machine's first PID namespace (hostPID)")
	}
	var have probeKubelet
	if err := n.probe.Kubelet.Lookup(uint32(0), &have); err != nil {
		return "", fmt.Errorf("read who the kubelet is: %w", err)
	}
	// Programs at the root that take everybody for the kubelet must never be: nobody is, while they move.
	if have.Cgroup != want.Cgroup {
		if err := n.putKubelet(probeKubelet{}); err != nil {
			return "", err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(cg.Fd()), &st); err != nil {
		return "", fmt.Errorf("stat cgroup: %w", err)
	}
	for _, h := range probeHooks {
		if err := attachHook(n.dir.node(h.pin), h.attach, h.prog(&n.probe.probePrograms), cg, st.Ino); err != nil {
			return "", fmt.Errorf("attach %s: %w", h.pin, err)
		}
	}
	return how, n.putKubelet(want)
}

func (n *Node) putKubelet(k probeKubelet) error {
	if err := n.probe.Kubelet.Put(uint32(0), k); err != nil {
		return fmt.Errorf("write who the kubelet is: %w", err)
	}
	return nil
}

func inInitPIDNamespace() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initPIDNS
}

// ownCgroup opens the cgroup v2 of a process if no other process is in it but those that it started: a unit of systemd,
// say. Otherwise nil.
func ownCgroup(root *os.File, pid int) (cg *os.File, err error) {
	var path string
	if err := inHostCgroups(func() (err error) {
		path, err = cgroupPath(pid)
		return err
	}); err != nil {
		return nil, err
	}
	if path == "" || path == "/" || strings.Contains(path, "/..") {
		return nil, nil
	}
	cg, err = os.Open(filepath.Join(fdPath(root), path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a path of another root than ours
	}
	if err != nil {
		return nil, fmt.Errorf("open its cgroup: %w", err)
	}
	if !onlyOf(cg, pid) {
		cg.Close()
		return nil, nil
	}
	return cg, nil
}

// cgroupPath returns the cgroup v2 of a process, as seen from the calling thread's cgroup namespace; "" without v2.
func cgroupPath(pid int) (string, error) {
	b, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return "", fmt.Errorf("read its cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, nil
		}
	}
	return "", nil
}

// onlyOf says that all processes in a cgroup are pid or below it, and that it has no cgroups below.
func onlyOf(cg *os.File, pid int) bool {
	stat, err := os.ReadFile(filepath.Join(fdPath(cg), "cgroup.stat"))
	if err != nil || !strings.Contains("\n"+string(stat), "\nnr_descendants 0\n") {
		return false
	}
	procs, err := os.Open(filepath.Join(fdPath(cg), "cgroup.procs"))
	if err != nil {
		return false
	}
	defer procs.Close()
	found := false
	for s := bufio.NewScanner(procs); s.Scan(); {
		p, err := strconv.Atoi(s.Text())
		if err != nil || !below(p, pid) {
			return false
		}
		found = found || p == pid
	}
	return found
}

// below says that a process is another one or was started by it or by one below it.
func below(p, pid int) bool {
	for p != pid && p > 1 {
		s, err := procfs.ReadStat(procPath(p, ""))
		if err != nil {
			return false
		}
		p = s.Parent
	}
	return p == pid
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// probers are the addresses from which the node itself comes to a pod, in the mode ProbesByAddress.
func (n *Node) probers(pod []netip.Addr) (out []netip.Addr, err error) {
	if n.cfg.Probes != ProbesByAddress {
		return nil, nil
	}
	h, err := n.own.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	for _, a := range pod {
		routes, err := h.RouteGet(a.Unmap().AsSlice())
		if err != nil {
			return nil, fmt.Errorf("find the node's route to %v: %w", a, err)
		}
		for _, r := range routes {
			if src, ok := netip.AddrFromSlice(r.Src); ok {
				out = append(out, src.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	if len(out) > maxProbers {
		return nil, fmt.Errorf("the node comes to the pod from %d addresses, more than %d", len(out), maxProbers)
	}
	return out, nil
}
