package proxy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// long says that the long forms of tests are to run.
func long() bool { return os.Getenv("AMBIT_SOAK") == "1" }

func TestRootMeshKeepsEveryPropertyOfAByteStream(t *testing.T) { // B35, by tunnel, inside the node, in plaintext both ways
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	served := make(chan *net.TCPConn)
	for _, p := range []*meshPod{b, c, out} {
		m.serve(p, 8080, func(conn *net.TCPConn) { served <- conn })
	}
	m.capture(a, b, c)
	for _, way := range []struct {
		what string
		from *meshPod
		to   string
	}{
		{"by tunnel", a, "10.99.0.3:8080"}, {"inside the node", a, "10.99.0.4:8080"},
		{"plaintext out", a, "10.99.0.9:8080"}, {"plaintext in", out, "10.99.0.3:8080"},
	} {
		pair := func(t *testing.T) (client, server *net.TCPConn) {
			t.Helper()
			client, err := m.dial(way.from, way.to)
			if err != nil {
				t.Fatal(err)
			}
			server = <-served
			t.Cleanup(func() { server.Close() })
			server.SetDeadline(time.Now().Add(20 * time.Second))
			return client, server
		}
		t.Run(way.what, func(t *testing.T) {
			t.Run("each side half-closes first, the other goes on", func(t *testing.T) {
				for range 2 {
					x, y := pair(t)
					halfClose(t, x, y)
					x, y = pair(t)
					halfClose(t, y, x)
				}
			})
			t.Run("a reset is a reset, a FIN a FIN", func(t *testing.T) {
				for _, fromServer := range []bool{false, true} {
					x, y := pair(t)
					if fromServer {
						x, y = y, x
					}
					io.WriteString(x, "x")
					io.ReadFull(y, make([]byte, 1))
					x.SetLinger(0)
					x.Close()
					if _, err := y.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("reset by the server %v: the other side sees %v", fromServer, err)
					}
				}
			})
			t.Run("writes of one byte", func(t *testing.T) {
				x, y := pair(t)
				want := random(20000)
				go func() {
					for i := range want {
						x.Write(want[i : i+1])
					}
					x.CloseWrite()
				}()
				if got, err := io.ReadAll(y); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
				}
			})
			t.Run("a reader that stops stops its writer only", func(t *testing.T) {
				x, y := pair(t)
				sent := fill(t, x)
				other, peer := pair(t) // by the same tunnel
				halfClose(t, other, peer)
				go x.CloseWrite()
				n, err := io.Copy(io.Discard, y)
				if err != nil || n != sent {
					t.Errorf("%d bytes of %d came after the reader went on, %v", n, sent, err)
				}
			})
			t.Run("much in both directions", func(t *testing.T) {
				size := int64(64 << 20)
				if long() {
					size = 10 << 30
				}
				x, y := pair(t)
				x.SetDeadline(time.Now().Add(10 * time.Minute))
				y.SetDeadline(time.Now().Add(10 * time.Minute))
				done := make(chan error, 2)
				go func() { done <- exchange(x, 1, 2, size) }()
				go func() { done <- exchange(y, 2, 1, size) }()
				for range 2 {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// halfClose has x end its direction; y sees the end, and its answer still arrives.
func halfClose(t *testing.T, x, y *net.TCPConn) {
	t.Helper()
	io.WriteString(x, "question")
	x.CloseWrite()
	if q, err := io.ReadAll(y); err != nil || string(q) != "question" {
		t.Errorf("before the half-close: %q, %v", q, err)
	}
	io.WriteString(y, "answer")
	y.CloseWrite()
	if a, err := io.ReadAll(x); err != nil || string(a) != "answer" {
		t.Errorf("after the half-close: %q, %v", a, err)
	}
}

// fill writes until nothing moves any more and returns how much that was.
func fill(t *testing.T, c *net.TCPConn) (sent int64) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(buf)
		sent += int64(n)
		if sent > 256<<20 {
			t.Fatalf("%d bytes were taken for a reader that does not read", sent)
		}
		if err != nil {
			c.SetWriteDeadline(time.Now().Add(20 * time.Second))
			return sent
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

// exchange sends size bytes of the stream of a seed and wants as many of another one.
func exchange(c *net.TCPConn, out, in byte, size int64) error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(&pattern{seed: out}, size), make([]byte, 256<<10))
		c.CloseWrite()
		sent <- err
	}()
	got, want := sha256.New(), sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{got}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err != nil || n != size {
		return fmt.Errorf("%d of %d bytes came: %w", n, size, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	io.Copy(want, io.LimitReader(&pattern{seed: in}, size))
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return errors.New("the bytes were changed")
	}
	return <-sent
}

// pattern is an endless stream in which no two blocks of 8 bytes are equal.
type pattern struct {
	seed byte
	n    uint64
}

// Read implements io.Reader; len(p) is a multiple of 8.
func (s *pattern) Read(p []byte) (int, error) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], s.n<<8|uint64(s.seed))
		s.n++
	}
	return len(p) &^ 7, nil
}
