//go:build linux

package redirect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	kernel "github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotSupported is wrapped by Open when the kernel lacks a feature; the text says which, and since when Linux has it.
	ErrNotSupported = errors.New("kernel does not support redirection")
	// ErrNotMounted is wrapped by Open when there is no BPF file system and it may not mount one.
	ErrNotMounted = errors.New("no BPF file system is mounted there")
	// ErrUnknownPod is wrapped by methods that are given the UID of a pod which is not attached.
	ErrUnknownPod = errors.New("pod is not attached")

	errClosed = errors.New("redirection is closed")
)

// Floor is the oldest Linux release that has everything. Distributions port features back, so it is tried, not compared.
const Floor = "5.17"

// feature is something of the kernel that is needed.
type feature struct {
	name, since string
	probe       func() error
}

var features = []feature{
	{"BPF programs at connect (CONFIG_CGROUP_BPF)", "4.17", func() error { return kernel.HaveProgramType(ebpf.CGroupSockAddr) }},
	{"BPF programs at socket lookup (CONFIG_BPF_SYSCALL, CONFIG_INET)", "5.9", func() error { return kernel.HaveProgramType(ebpf.SkLookup) }},
	{"maps of sockets (CONFIG_NET_SOCK_MSG)", "4.14", func() error { return kernel.HaveMapType(ebpf.SockMap) }},
	{"storage on sockets", "5.2", func() error { return kernel.HaveMapType(ebpf.SkStorage) }},
	{"the storage of a connecting socket", "5.3", helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)},
	{"the network namespace's cookie at connect", "5.7", helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)},
	{"setting options of a connecting socket", "5.8", helper(ebpf.CGroupSockAddr, asm.FnSetsockopt)},
	{"maps that drop what is least used", "4.10", func() error { return kernel.HaveMapType(ebpf.LRUHash) }},
	{"the interface of a SYN at socket lookup", Floor, haveIngressIfindex},
}

// probeFeatures are needed to recognise the kubelet.
var probeFeatures = []feature{
	{"BPF programs at the steps of a TCP connection (CONFIG_CGROUP_BPF)", "4.13", func() error { return kernel.HaveProgramType(ebpf.SockOps) }},
	{"news of a TCP connection's end", "4.16", helper(ebpf.SockOps, asm.FnSockOpsCbFlagsSet)},
	{"the storage of a socket at the steps of its connection", "5.4", helper(ebpf.SockOps, asm.FnSkStorageGet)},
	{"the process that connects", "5.7", helper(ebpf.CGroupSockAddr, asm.FnGetCurrentPidTgid)},
}

// explain finds out why loading failed: it is called after the failure and only then probes, feature by feature. It
// returns err itself if all features are there.
func explain(err error, needed []feature) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (loading BPF programs needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN)", err)
	}
	for _, f := range needed {
		if perr := f.probe(); errors.Is(perr, ebpf.ErrNotSupported) {
			return fmt.Errorf("%w: it lacks %s, in Linux since %s (all features: %s): %w", ErrNotSupported, f.name, f.since, Floor, err)
		}
	}
	return err
}

// explainProbes is explain for what only the recognition of the kubelet needs.
func explainProbes(err error) error {
	return fmt.Errorf("%w (probes %q or %q do without)", explain(err, probeFeatures), ProbesByAddress, ProbesCaptured)
}

func helper(t ebpf.ProgramType, f asm.BuiltinFunc) func() error {
	return func() error { return kernel.HaveProgramHelper(t, f) }
}

// haveIngressIfindex loads a program that reads the last field of struct bpf_sk_lookup.
func haveIngressIfindex() error {
	const offset = 64 // of ingress_ifindex
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R0, asm.R1, offset, asm.Word),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("read interface of a SYN: %w: %w", ebpf.ErrNotSupported, err)
	}
	return p.Close()
}
