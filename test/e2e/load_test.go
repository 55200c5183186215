package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// loadTimeout is how long one exchange may take: far longer than any program needs to come back.
const loadTimeout = 30 * time.Second

// generator opens connections out of a pod in open loop: connection number i begins at i/rate, whatever became of those
// before it. Each sends a line to an echo server, reads it back and closes. When the generator is late it catches up, so
// the number of connections is exact and only their rate may suffer.
//
// The sockets are this process's, made in the pod's network namespace: to the mesh they are the pod's.
type generator struct {
	ns      *netns.NS
	targets []netip.AddrPort
	rate    int  // connections a second
	held    int  // connections that stay open all the time, with a line twice a second on each
	again   bool // a held connection that failed is made anew
}

// window is a span of time.
type window struct{ from, to time.Time }

// failure is a connection that did not do what it should.
type failure struct {
	window // from before connect until the error
	step   string
	err    error
	held   bool
}

func (f failure) String() string { return f.step + ": " + f.err.Error() }

// tally is what came of a load.
type tally struct {
	started  int
	took     []time.Duration // of those that succeeded
	failures []failure
	lateness time.Duration // the worst
	length   time.Duration
	lines    int64 // exchanged on held connections
}

// running is a load under way.
type running struct {
	g     *generator
	stop  context.CancelFunc
	done  chan struct{}
	begin time.Time

	open, lines atomic.Int64

	mu  sync.Mutex
	sum tally
}

// start begins the load.
func (g *generator) start(ctx context.Context) *running {
	ctx, cancel := context.WithCancel(ctx)
	r := &running{g: g, stop: cancel, done: make(chan struct{}), begin: time.Now()}
	go r.run(ctx) // ends with cancel; end waits for it
	return r
}

// end stops the load, waits for the connections under way, and returns the result.
func (r *running) end() tally {
	r.stop()
	<-r.done
	r.sum.length = time.Since(r.begin)
	r.sum.lines = r.lines.Load()
	slices.Sort(r.sum.took)
	return r.sum
}

func (r *running) run(ctx context.Context) {
	defer close(r.done)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range r.g.held {
		wg.Go(func() { r.hold(ctx, r.g.targets[i%len(r.g.targets)]) })
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for i := 0; ; i++ {
		due := r.begin.Add(time.Duration(i) * time.Second / time.Duration(r.g.rate))
		if d := time.Until(due); d > 0 {
			pause.Reset(d)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.sum.lateness = max(r.sum.lateness, time.Since(due))
		r.sum.started++
		wg.Go(func() { r.once(i) })
	}
}

// once is one connection.
func (r *running) once(i int) {
	r.open.Add(1)
	defer r.open.Add(-1)
	begin := time.Now()
	line := fmt.Sprintf("%s %d\n", marker, i)
	step, err := "connect", error(nil)
	conn, err := connect(r.g.ns, r.g.targets[i%len(r.g.targets)], begin.Add(loadTimeout))
	if err == nil {
		defer conn.Close()
		step, err = exchange(conn, line)
	}
	end := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.sum.failures = append(r.sum.failures, failure{window{begin, end}, step, err, false})
		return
	}
	r.sum.took = append(r.sum.took, end.Sub(begin))
}

// hold keeps a connection busy until ctx ends.
func (r *running) hold(ctx context.Context, to netip.AddrPort) {
	for r.holdOne(ctx, to); r.g.again && ctx.Err() == nil; {
		r.holdOne(ctx, to)
	}
}

func (r *running) holdOne(ctx context.Context, to netip.AddrPort) {
	begin := time.Now()
	fail := func(step string, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sum.failures = append(r.sum.failures, failure{window{begin, time.Now()}, step, err, true})
	}
	conn, err := connect(r.g.ns, to, begin.Add(loadTimeout))
	if err != nil {
		fail("held connection: connect", err)
		return
	}
	defer conn.Close()
	tick := time.NewTicker(time.Second / 2)
	defer tick.Stop()
	for n := 0; ; n++ {
		_ = conn.SetDeadline(time.Now().Add(loadTimeout))
		if step, err := exchange(conn, fmt.Sprintf("%s held %d\n", marker, n)); err != nil {
			fail("held connection: "+step, err)
			return
		}
		r.lines.Add(1)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// connect connects out of the namespace. Reads and writes of the connection end at the deadline.
func connect(ns *netns.NS, to netip.AddrPort, deadline time.Time) (*os.File, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := ns.Socket(family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), to.String()) // non-blocking: the runtime's poller takes it
	if err := f.SetDeadline(deadline); err != nil {
		f.Close()
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		no, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || no != 0 {
			failed = errors.Join(err, unix.Errno(no))
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // otherwise it is still connecting
	})
	if err = errors.Join(err, failed); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// exchange sends a line and reads it back.
func exchange(conn io.ReadWriter, line string) (step string, err error) {
	if _, err := io.WriteString(conn, line); err != nil {
		return "write", cause(err)
	}
	buf := make([]byte, len(line))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return "read", cause(err)
	}
	if string(buf) != line {
		return "read", fmt.Errorf("got %q, want the line that was sent", buf)
	}
	return "", nil
}

// cause drops the connection's name, so that failures can be counted by their text.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// count is how many failures f holds for.
func (s *tally) count(f func(failure) bool) (n int) {
	for _, x := range s.failures {
		if f(x) {
			n++
		}
	}
	return n
}

func refused(f failure) bool { return errors.Is(f.err, unix.ECONNREFUSED) }

func held(f failure) bool { return f.held }

// within tells whether the connection was under way in one of the windows.
func (f failure) within(windows []window) bool {
	return slices.ContainsFunc(windows, func(w window) bool { return !f.from.After(w.to) && !f.to.Before(w.from) })
}

func (s *tally) quantile(q float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	return s.took[min(len(s.took)-1, int(q*float64(len(s.took))))].Round(10 * time.Microsecond)
}

// words are the figures of a load in one line, and a line per kind of failure.
func (s *tally) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d connections in %.1f s (%.0f/s, generator late by at most %.2f s): %d served, %d failed, %d refused; time of one p50 %s, p99 %s, longest %s",
		s.started, s.length.Seconds(), float64(s.started)/s.length.Seconds(), s.lateness.Seconds(), len(s.took), len(s.failures), s.count(refused),
		s.quantile(0.5), s.quantile(0.99), s.quantile(1))
	if s.lines > 0 {
		fmt.Fprintf(&b, "; %d lines on held connections", s.lines)
	}
	kinds := map[string]int{}
	for _, f := range s.failures {
		kinds[f.String()]++
	}
	for k, n := range kinds {
		fmt.Fprintf(&b, "\n  %d x %s", n, k)
	}
	return b.String()
}

// zero fails the test if any connection failed.
func (s *tally) zero(t *testing.T) {
	t.Helper()
	for i, f := range s.failures {
		if i == 10 {
			t.Errorf("... and %d more", len(s.failures)-i)
			break
		}
		t.Errorf("connection of %s, after %.3f s: %v", f.from.Format(stamp), f.to.Sub(f.from).Seconds(), f)
	}
	if len(s.took) == 0 {
		t.Error("no connection was served")
	}
}

const stamp = "15:04:05.000000"
