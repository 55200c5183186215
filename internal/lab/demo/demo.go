// Package demo shows what the mesh claims, claim by claim, in a lab of its own: what was asked, what was seen, and
// whether that is a pass.
//
// What is seen on the wire comes from a packet socket on a node's link, what is seen at the server from the server.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
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
	// Claims ends the demo after so many claims; all are shown if zero.
	Claims int
}

// ErrFailed is returned when at least one claim did not hold.
var ErrFailed = errors.New("not every claim holds")

// marker is in every request of the demo; it must never be seen on the wire once the shop is in the mesh.
const marker = "AMBIT-DEMO-MARKER-7f3a9c"

// certLife is short, so that a rotation can be watched.
const certLife = 30 * time.Second

type demo struct {
	cfg    Config
	c      place
	number int
	failed int
}

// claimTime is how long a claim may take before it counts as failed.
const claimTime = 90 * time.Second

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
	d := &demo{cfg: cfg, c: &labPlace{l.Client(), cfg.Lab.Programs.Echo}}
	if err := d.apply(ctx, "start"); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "The lab is up after %.1f s.\n", time.Since(begin).Seconds())
	d.check(ctx, append(d.connectionClaims(), d.restartClaim()))
	d.beside(ctx, d.rotationClaim(), d.waypointClaims())
	return d.end(ctx, begin)
}

// end tells how many claims hold.
func (d *demo) end(ctx context.Context, begin time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fmt.Fprintf(d.cfg.Out, "\n%d of %d claims hold, in %.0f s.\n", d.number-d.failed, d.number, time.Since(begin).Seconds())
	if d.failed > 0 {
		return ErrFailed
	}
	return nil
}

// check shows claims one after the other.
func (d *demo) check(ctx context.Context, claims []claim) {
	for _, cl := range claims {
		if d.over(ctx) {
			return
		}
		d.head(cl)
		d.show(ctx, cl)()
	}
}

// beside shows a claim that is mostly waiting, and disturbs no other and is disturbed by none, while the others are shown. It
// is told of after them, and waited for also when ctx ends.
func (d *demo) beside(ctx context.Context, cl claim, others []claim) {
	if d.over(ctx) {
		return
	}
	done := make(chan func(), 1)
	go func() { done <- d.show(ctx, cl) }()
	d.check(ctx, others)
	d.head(cl)
	(<-done)()
}

// over says that no more claims are to be shown.
func (d *demo) over(ctx context.Context) bool {
	return ctx.Err() != nil || d.cfg.Claims > 0 && d.number >= d.cfg.Claims
}

// head tells which claim comes.
func (d *demo) head(cl claim) {
	d.number++
	fmt.Fprintf(d.cfg.Out, "\n%d. %s\n   asked: %s\n", d.number, cl.title, cl.asked)
}

// show finds out whether a claim holds; the result tells of it.
func (d *demo) show(ctx context.Context, cl claim) (tell func()) {
	cctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	seen, err := cl.show(cctx)
	return func() {
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
}

// apply applies a file or directory of the demo and waits until all pods are Ready.
func (d *demo) apply(ctx context.Context, name string) error {
	files, err := manifest.Read(filepath.Join(d.cfg.Manifests, name))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return d.c.apply(ctx, files)
}

// tap captures a node's link to the other nodes until stop is called; xDS and CA traffic is left out.
func (d *demo) tap(ctx context.Context, node string) (stop func() wire.Report, err error) {
	inside, err := d.c.inside(ctx, "", node)
	if err != nil {
		return nil, err
	}
	c, err := wire.Open(wire.Config{Link: "eth0", Inside: inside, Marker: []byte(marker), Filter: d.c.watched})
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
	return pollEvery(ctx, 50*time.Millisecond, limit, f)
}

func pollEvery(ctx context.Context, pause, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		t := time.NewTimer(pause)
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
	inside, err := d.c.inside(ctx, namespace, pod)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = inside(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}
