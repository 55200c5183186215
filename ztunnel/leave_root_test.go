package ztunnel

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// takeRest takes what waits in a listener's queue.
func (p *fakeProxy) takeRest(l net.Listener) {
	c, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		p.t.Error(err)
		return
	}
	err = c.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != nil {
				return
			}
			f := os.NewFile(uintptr(n), "")
			c, err := net.FileConn(f)
			f.Close()
			if err == nil {
				fmt.Fprint(c, "rest")
				c.Close()
			}
		}
	})
	if err != nil {
		p.t.Error(err)
	}
}

func TestRootNoNewConnectionIsLostWhenAPodLeavesTheMesh(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	m.server(m.peer, peerIP+":80", "peer")
	m.capture()
	m.proxy(nil, nil)
	m.add()
	var done atomic.Bool
	var asked, lost atomic.Int64
	var wg sync.WaitGroup
	for _, way := range []struct {
		ns *netns.NS
		to string
	}{{m.pod, peerIP + ":80"}, {m.peer, podIP + ":8080"}} {
		for range 3 {
			wg.Go(func() {
				for !done.Load() {
					begun := time.Now()
					got, err := m.fetch(way.ns, way.to)
					asked.Add(1)
					if err != nil || got == "" {
						lost.Add(1)
						t.Errorf("connection to %s begun %s: %q, %v after %s", way.to, begun.Format("05.000000"), got, err, time.Since(begun))
					}
				}
			})
		}
	}
	cycles := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); cycles++ {
		if _, err := m.pods.Update(t.Context(), m.spec(false)); err != nil {
			t.Error(err)
		}
		m.add()
	}
	done.Store(true)
	wg.Wait()
	t.Logf("%d times left, %d connections, %d lost", cycles, asked.Load(), lost.Load())
}

// halfOpen says whether a connection of a namespace waits for the ACK of its handshake.
func halfOpen(ns *netns.NS) (found bool) {
	_ = ns.Do(func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			b, _ := os.ReadFile("/proc/thread-self/net/" + name)
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				found = found || len(f) > 3 && f[3] == "03"
			}
		}
		return nil
	})
	return found
}

// A client takes itself for connected one journey before the pod's side does: what it sent then may be on its way still.
func TestRootAHandshakeUnderWayEndsWellWhenThePodLeavesTheMesh(t *testing.T) {
	m := newMesh(t)
	m.linger = 5 * time.Second // also for a machine that is slow
	m.server(m.pod, podIP+":8080", "app")
	m.capture()
	m.proxy(nil, nil)
	m.add()
	m.wantFetch(m.peer, podIP+":8080", "in "+podIP+":8080")
	prefix := fmt.Sprintf("ambit-cap%d-", os.Getpid())
	// block has the packets of one side go nowhere, until open is called.
	block := func(side, to string) (open func()) {
		ip := func(args ...string) {
			t.Helper()
			if b, err := exec.Command("ip", append([]string{"-n", prefix + side, "neigh"}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("ip neigh %v: %v: %s", args, err, b)
			}
		}
		ip("replace", to, "lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0")
		return func() { ip("del", to, "dev", "eth0") }
	}
	answers := block("pod", peerIP)
	dialled := make(chan error, 1)
	var c net.Conn
	go func() {
		var err error
		c, err = m.dial(m.peer, podIP+":8080")
		dialled <- err
	}()
	for end := time.Now().Add(10 * time.Second); !halfOpen(m.pod); time.Sleep(time.Millisecond) { // the SYN is there, its answer is lost
		if time.Now().After(end) {
			t.Fatal("no SYN arrived")
		}
	}
	questions := block("peer", podIP)
	answers() // the answer comes again after a second, and what follows it is lost
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	left := make(chan error, 1)
	go func() {
		_, err := m.pods.Update(t.Context(), m.spec(false))
		left <- err
	}()
	time.Sleep(100 * time.Millisecond)
	questions()
	if _, err := fmt.Fprint(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The fake closes with the request unread, which is a reset after its greeting.
	b := make([]byte, 64)
	n, err := io.ReadAtLeast(c, b, 2)
	if err != nil {
		t.Errorf("a connection that was made when the pod left: %q, %v", b[:n], err)
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}
