package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsDir is where iproute2 keeps named namespaces.
const nsDir = "/run/netns"

// NS is a named network namespace, kept open. Its methods are safe for use by several goroutines.
type NS struct {
	name string
	h    netns.NsHandle
}

// createNS makes a namespace under /run/netns, as `ip netns add` does.
func createNS(name string) (*NS, error) {
	ns := &NS{name: name, h: -1}
	err := onThread(func() error {
		h, err := netns.NewNamed(name)
		ns.h = h
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make namespace %q: %w", name, err)
	}
	return ns, nil
}

// onThread runs f on a thread of its own that dies afterwards, so that f may change the thread's namespaces.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with this goroutine
		done <- f()
	}()
	return <-done
}

// Name is the namespace's name under /run/netns.
func (ns *NS) Name() string { return ns.name }

// FD is the namespace's descriptor, which stays the NS's.
func (ns *NS) FD() int { return int(ns.h) }

// Handle is FD for the netlink library.
func (ns *NS) Handle() netns.NsHandle { return ns.h }

// Do runs f on a thread inside the namespace and waits for it. Sockets that f makes stay in the namespace.
func (ns *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.h); err != nil {
			return fmt.Errorf("enter namespace %q: %w", ns.name, err)
		}
		return f()
	})
}

// Dial connects to a numeric address from inside the namespace. It has the shape of http.Transport.DialContext.
func (ns *NS) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens on a numeric address inside the namespace.
func (ns *NS) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := ns.Do(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// remove deletes the namespace; it lives on as long as a process is in it. It may be called twice and on nil.
func (ns *NS) remove() error {
	if ns == nil || ns.h < 0 {
		return nil
	}
	h := ns.h
	ns.h = -1
	err := netns.DeleteNamed(ns.name)
	return errors.Join(err, unix.Close(int(h)))
}

// A Process is a program running in a namespace.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; after done
}

// Start starts cmd inside the namespace. It is killed when this program dies, however it dies.
func (ns *NS) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(ns, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s in namespace %q: %w", filepath.Base(cmd.Path), ns.name, err)
	}
	return p, nil
}

// run starts and awaits the program on one thread, because the parent-death signal counts the death of the thread that
// started it.
func (p *Process) run(ns *NS, started chan<- error) {
	runtime.LockOSThread() // never unlocked: it has changed its namespace
	defer close(p.done)
	if err := netns.Set(ns.h); err != nil {
		started <- err
		return
	}
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
}

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended; valid once Done is closed.
func (p *Process) Err() error { return p.err }

// Stop asks the program to end, kills it after grace, and returns when it is gone. It may be called twice and on nil.
func (p *Process) Stop(grace time.Duration) {
	if p == nil {
		return
	}
	if grace > 0 {
		p.signal(unix.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
	p.signal(unix.SIGKILL)
	<-p.done
}

// signal ignores that the program may be gone already: Stop waits for that anyway.
func (p *Process) signal(s unix.Signal) { _ = p.cmd.Process.Signal(s) }

// removeStale deletes the namespaces that begin with prefix and kills the processes left in them.
func removeStale(prefix string) error {
	entries, err := os.ReadDir(nsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !isOurs(e.Name(), prefix) {
			continue
		}
		errs = append(errs, killInside(filepath.Join(nsDir, e.Name())), netns.DeleteNamed(e.Name()))
	}
	return errors.Join(errs...)
}

// killInside kills every process whose network namespace is the one at path.
func killInside(path string) error {
	var want, got unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil // a name without a namespace behind it: nothing runs in it
	}
	procs, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, p := range procs {
		if unix.Stat(p, &got) != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			continue // gone, or elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p))))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d in %q: %w", pid, path, err)
		}
	}
	return nil
}

// sysctls of a node: it routes, and a pod's packets may take another way back.
var nodeSysctls = map[string]string{
	"net/ipv4/ip_forward":              "1",
	"net/ipv4/conf/all/rp_filter":      "0",
	"net/ipv4/conf/default/rp_filter":  "0",
	"net/ipv6/conf/all/forwarding":     "1",
	"net/ipv6/conf/default/accept_dad": "0",
	"net/ipv6/conf/all/accept_dad":     "0",
}

func (ns *NS) setUpNode() error {
	if err := ns.sysctl(nodeSysctls); err != nil {
		return err
	}
	return ns.setUp()
}

// setUp is what nodes and pods have in common. A namespace is born with the machine's congestion control. A bed has
// reno, which without loss acts as Linux's default does and which every namespace may choose: one that paces its sending
// by timers (bbr) would make the timers all that is measured on a link without delay.
func (ns *NS) setUp() error {
	if err := ns.sysctl(map[string]string{"net/ipv4/tcp_congestion_control": "reno"}); err != nil {
		return err
	}
	return ns.linkUp("lo")
}

// sysctl writes settings of the namespace, keyed by path below /proc/sys.
func (ns *NS) sysctl(settings map[string]string) error {
	return ns.Do(func() error {
		for k, v := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys", k), []byte(v), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// netlink runs f with a netlink handle of the namespace.
func (ns *NS) netlink(f func(h *netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(ns.h)
	if err != nil {
		return fmt.Errorf("open netlink in %q: %w", ns.name, err)
	}
	defer h.Close()
	return f(h)
}

func (ns *NS) linkUp(dev string) error {
	return ns.netlink(func(h *netlink.Handle) error {
		l, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		return h.LinkSetUp(l)
	})
}

// veth makes a pair of devices with one end in each namespace.
func veth(a *NS, aDev string, b *NS, bDev string) error {
	return a.netlink(func(h *netlink.Handle) error {
		err := h.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: aDev, MTU: 1500, TxQLen: 1000},
			PeerName:      bDev,
			PeerNamespace: netlink.NsFd(b.FD()),
		})
		if err != nil {
			return fmt.Errorf("make veth pair %s/%s: %w", aDev, bDev, err)
		}
		return nil
	})
}

// device gives a device addresses, brings it up and adds routes by it.
func (ns *NS) device(dev string, addrs []netip.Prefix, routes []route) error {
	return ns.netlink(func(h *netlink.Handle) error {
		l, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := h.AddrAdd(l, &netlink.Addr{IPNet: IPNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("add %s to %s: %w", a, dev, err)
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			return err
		}
		for _, r := range routes {
			if err := h.RouteAdd(r.netlink(l.Attrs().Index)); err != nil {
				return fmt.Errorf("add route %s via %s dev %s: %w", r.dst, r.via, dev, err)
			}
		}
		return nil
	})
}
