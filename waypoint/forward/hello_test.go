package forward

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		c := tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Handshake()
	}()
	defer a.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func TestServerNameIsReadFromAClientHello(t *testing.T) {
	for _, want := range []string{"db.example.com", "DB.Example.com", ""} {
		h := clientHello(t, want)
		if want == "DB.Example.com" {
			want = "db.example.com"
		}
		for n := range h {
			if name, done, ok := hello(h[:n]); done || !ok {
				t.Fatalf("%d of %d bytes: %q %v %v", n, len(h), name, done, ok)
			}
		}
		name, done, ok := hello(h)
		if !done || !ok || name != want {
			t.Errorf("hello: %q %v %v, want %q", name, done, ok, want)
		}
	}
}

func TestServerNameIsReadFromAClientHelloInSeveralRecords(t *testing.T) {
	h := clientHello(t, "db.example.com")
	var split []byte
	for body := h[5:]; len(body) > 0; {
		n := min(50, len(body))
		split = append(append(split, 22, 3, 1, 0, byte(n)), body[:n]...)
		body = body[n:]
	}
	if name, done, ok := hello(split); !done || !ok || name != "db.example.com" {
		t.Errorf("hello: %q %v %v", name, done, ok)
	}
}

// given is a connection whose client has sent all that it will.
type given struct {
	net.Conn
	r io.Reader
}

func (g given) Read(p []byte) (int, error)     { return g.r.Read(p) }
func (given) Write(p []byte) (int, error)      { return len(p), nil }
func (given) SetReadDeadline(time.Time) error  { return nil }
func (given) SetWriteDeadline(time.Time) error { return nil }
func (given) Close() error                     { return nil }

// serverNameByTLS is the server name that crypto/tls finds; false if it does not get as far.
func serverNameByTLS(b []byte) (name string, ok bool) {
	stop := errors.New("enough")
	c := tls.Server(given{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, stop
	}})
	_ = c.Handshake() // fails in any case
	return name, ok
}

// FuzzHello compares with crypto/tls: what that takes for a ClientHello is one, with the same name.
func FuzzHello(f *testing.F) {
	f.Add(clientHello(f, "a.example"))
	f.Add(clientHello(f, ""))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, done, ok := hello(b)
		if name != "" && (!done || !ok) {
			t.Errorf("hello: %q %v %v", name, done, ok)
		}
		want, taken := serverNameByTLS(b)
		if !taken || len(b) > maxHello || b[1] != 3 {
			return
		}
		if !done || !ok || name != strings.ToLower(want) {
			t.Errorf("hello: %q, done %v, ok %v; crypto/tls: %q", name, done, ok, want)
		}
	})
}
