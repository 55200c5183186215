// Package demo shows what the mesh claims, claim by claim, in a lab of its own: what was asked, what was seen, and
// whether that is a pass.
//
// What is seen on the wire comes from a packet socket on a node's link, what is seen at the server from the server.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

// Config says where the demo finds what it needs.
type Config struct {
	// Lab is the lab to make; two nodes, with the mesh. The demo sets the lifetime of certificates.
	Lab lab.Options
	// Manifests is the directory deploy/examples/demo.
	Manifests string
	// Out takes the report.
	Out io.Writer
}

// ErrFailed is returned when at least one claim did not hold.
var ErrFailed = errors.New("not every claim holds")

// marker is in every request of the demo; it must never be seen on the wire once the shop is in the mesh.
const marker = "AMBIT-DEMO-MARKER-7f3a9c"

// certLife is short, so that a rotation can be watched.
const certLife = 30 * time.Second

type demo struct {
	cfg    Config
	c      *lab.Client
	number int
	failed int
}

// claim is one thing that the mesh promises. The function returns what was seen; an error is a fail.
type claim struct {
	title string
	asked string
	show  func(context.Context) (seen string, err error)
}

// Run makes the lab, checks all claims, removes the lab (also when ctx ends) and returns ErrFailed unless all hold.
func Run(ctx context.Context, cfg Config) (err error) {
	begin := time.Now()
	cfg.Lab.Programs.ProxyArgs = append(cfg.Lab.Programs.ProxyArgs, "--cert-ttl="+certLife.String())
	if err := lab.Down(cfg.Lab.Name, time.Minute); err != nil { // of a demo that was killed
		return err
	}
	fmt.Fprintf(cfg.Out, "Ambit on one machine: two nodes, a ztunnel on each, a control plane.\n")
	l, err := lab.Up(ctx, cfg.Lab)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Close())
	}()
	d := &demo{cfg: cfg, c: l.Client()}
	if err := d.apply(ctx, "start"); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "The lab is up after %.1f s.\n", time.Since(begin).Seconds())
	for _, cl := range d.claims() {
		if err := ctx.Err(); err != nil {
			return err
		}
		d.check(ctx, cl)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "\n%d of %d claims hold, in %.0f s.\n", d.number-d.failed, d.number, time.Since(begin).Seconds())
	if d.failed > 0 {
		return ErrFailed
	}
	return nil
}

func (d *demo) check(ctx context.Context, cl claim) {
	d.number++
	fmt.Fprintf(d.cfg.Out, "\n%d. %s\n   asked: %s\n", d.number, cl.title, cl.asked)
	cctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	seen, err := cl.show(cctx)
	if ctx.Err() != nil {
		fmt.Fprintf(d.cfg.Out, "   interrupted\n")
		return
	}
	if seen != "" {
		fmt.Fprintf(d.cfg.Out, "   seen:  %s\n", seen)
	}
	if err != nil {
		d.failed++
		fmt.Fprintf(d.cfg.Out, "   FAIL:  %v\n", err)
		return
	}
	fmt.Fprintf(d.cfg.Out, "   pass\n")
}

// apply applies a file or directory of the demo and waits until all pods are Ready.
func (d *demo) apply(ctx context.Context, name string) error {
	files, err := manifest.Read(filepath.Join(d.cfg.Manifests, name))
	if err != nil {
		return err
	}
	if _, err := d.c.Apply(ctx, files...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return d.c.WaitReady(ctx, nil)
}

// load runs the echo client in a pod and returns its summary.
func (d *demo) load(ctx context.Context, namespace, pod string, args ...string) (*echo.Summary, error) {
	argv := append(append([]string{}, d.cfg.Lab.Programs.Echo...), "client", "--json", "--data="+marker)
	out, err := d.c.Run(ctx, namespace, pod, append(argv, args...)...)
	if err != nil {
		return nil, err
	}
	sum := &echo.Summary{}
	if err := json.Unmarshal([]byte(out), sum); err != nil {
		return nil, fmt.Errorf("read summary: %w", err)
	}
	return sum, nil
}

// background is a load under way.
type background struct {
	sum  *echo.Summary
	err  error
	done chan struct{}
}

// loadBehind starts load and returns at once.
func (d *demo) loadBehind(ctx context.Context, args ...string) *background {
	b := &background{done: make(chan struct{})}
	go func() { // ends with the load, which the caller waits for
		defer close(b.done)
		b.sum, b.err = d.load(ctx, "shop", "client", args...)
	}()
	return b
}

func (b *background) wait() (*echo.Summary, error) {
	<-b.done
	return b.sum, b.err
}

// tap captures a node's link to the other nodes until stop is called; xDS and CA traffic is left out.
func (d *demo) tap(ctx context.Context, node string) (stop func() wire.Report, err error) {
	a, err := d.c.Access(ctx, "", node, "")
	if err != nil {
		return nil, err
	}
	c, err := wire.Open(wire.Config{
		Link: "eth0", Inside: a.Do, Marker: []byte(marker),
		Filter: func(s wire.Segment) bool { return s.Src.Port() != 15012 && s.Dst.Port() != 15012 },
	})
	if err != nil {
		return nil, err
	}
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends with cancel; stop waits for it
		defer close(done)
		_ = c.Run(rctx)
	}()
	return func() wire.Report {
		cancel()
		<-done
		defer c.Close()
		return c.Report()
	}, nil
}

// wireWords says what a capture saw.
func wireWords(r wire.Report) string {
	tls13 := r.Count(func(f *wire.Flow) bool { return f.TLS13() })
	plain := r.Count(func(f *wire.Flow) bool { return f.Plaintext() })
	return fmt.Sprintf("on the wire %d packets: %d connections TLS 1.3 (chosen in the ServerHello), %d plaintext, marker %d times, %d packets missed",
		r.Packets, tls13, plain, r.Markers(), r.Dropped)
}

// encrypted is nil if nothing was in the clear.
func encrypted(r wire.Report) error {
	switch {
	case r.Markers() > 0:
		return fmt.Errorf("the marker was on the wire %d times", r.Markers())
	case r.Count(func(f *wire.Flow) bool { return f.Plaintext() }) > 0:
		return errors.New("there was a plaintext connection")
	case r.Dropped > 0:
		return fmt.Errorf("%d packets were missed", r.Dropped)
	}
	return nil
}

// poll repeats f until it returns nil, at most for limit; the last error is returned.
func poll(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// hold opens a TCP connection from inside of a pod; it belongs to the pod like the connection of any process in it.
func (d *demo) hold(ctx context.Context, namespace, pod, addr string) (net.Conn, error) {
	a, err := d.c.Access(ctx, namespace, pod, "")
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = a.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// failures puts what went wrong in a load into words.
func failures(sum *echo.Summary) string {
	var parts []string
	for e, n := range sum.Errors {
		parts = append(parts, fmt.Sprintf("%d x %s", n, e))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
