// Package interop shows that our parts work with Istio's ztunnel. Its tests need root and ZTUNNEL_BIN, the path of a Rust
// ztunnel, and are skipped without them (make test-interop).
//
//   - lab_root_test.go: the Rust ztunnel as a node of a lab, under our control plane, beside a node of ours;
//   - tunnel_root_test.go: our HTTP/2 tunnels (hbone) against it, without control plane or capture.
package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
	"github.com/ambit-mesh/ambit/test/bed"
)

// Ports of the applications in the pods.
const (
	echoPort = 9003 // sends back what it reads, half-closes when it has read all
	lastPort = 9004 // reads all, then sends its SHA-256 and closes
	whoPort  = 9005 // sends the client's address and closes
)

// rustBin is the Rust ztunnel; the test is skipped if there is none.
func rustBin(t *testing.T) string {
	t.Helper()
	netnstest.RequireRoot(t)
	bin := os.Getenv("ZTUNNEL_BIN")
	if bin == "" {
		t.Skip("needs a Rust ztunnel: ZTUNNEL_BIN does not name one")
	}
	return bin
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	netnstest.Must(t, errs...)
}

// within is a context that ends with the test, or after d.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// apps serves the test's ports in a pod until the test ends.
func apps(t *testing.T, pod *bed.NS) {
	t.Helper()
	for port, serve := range map[int]func(*net.TCPConn) error{echoPort: echo, lastPort: last, whoPort: who} {
		l, err := pod.Listen(t.Context(), "tcp", ":"+strconv.Itoa(port))
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // closed below
				}
				wg.Go(func() {
					defer c.Close()
					_ = serve(c.(*net.TCPConn)) // the other end sees it
				})
			}
		})
		t.Cleanup(func() { l.Close() })
	}
}

func echo(c *net.TCPConn) error {
	if _, err := io.Copy(c, onlyReader{c}); err != nil {
		return err
	}
	return c.CloseWrite()
}

func last(c *net.TCPConn) error {
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		return err
	}
	_, err := c.Write(h.Sum(nil))
	return err
}

func who(c *net.TCPConn) error {
	_, err := io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
	return err
}

// onlyReader hides the connection's splice path: a test of bytes should touch them.
type onlyReader struct{ io.Reader }

// A conn is a connection that can be half-closed.
type conn interface {
	net.Conn
	CloseWrite() error
}

// random is n bytes of a stream that the seed determines.
func random(seed uint64, n int64) io.Reader {
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	return io.LimitReader(rand.NewChaCha8(s), n)
}

func sum(r io.Reader) ([]byte, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return h.Sum(nil), err
}

// echoes sends n bytes through an echo, half-closes, and wants the same back and then the end.
func echoes(c conn, n int64) error {
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, onlyReader{random(1, n)})
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := sum(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	want, err := sum(random(1, n))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("what came back differs from what was sent")
	}
	return nil
}

// uploads sends n bytes, half-closes, and wants their sum: the other direction must outlive the half-close.
func uploads(c conn, n int64) error {
	defer c.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(h, c), onlyReader{random(2, n)}); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, h.Sum(nil)) {
		return fmt.Errorf("server's sum differs (%d bytes of answer)", len(got))
	}
	return nil
}

// asks sends a line on an open connection and wants it back.
func asks(c net.Conn, line string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != line {
		return fmt.Errorf("got %q, want %q", got, line)
	}
	return c.SetDeadline(time.Time{})
}

// dial connects from inside a pod.
func dial(ctx context.Context, from *bed.NS, to netip.AddrPort) (conn, error) {
	c, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
