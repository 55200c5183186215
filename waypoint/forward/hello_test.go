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

// helloOf is a ClientHello with extensions and nothing else.
func helloOf(extensions ...[]byte) []byte {
	vector := func(size int, b []byte) []byte {
		var n []byte
		for i := size - 1; i >= 0; i-- {
			n = append(n, byte(len(b)>>(8*i)))
		}
		return append(n, b...)
	}
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vector(1, nil)...)
	body = append(body, vector(2, []byte{0x13, 1})...)
	body = append(body, vector(1, []byte{0})...)
	body = append(body, vector(2, bytes.Join(extensions, nil))...)
	return append([]byte{22, 3, 1}, vector(2, append([]byte{1}, vector(3, body)...))...)
}

// serverNames is the extension with a list of names, each with its type in front.
func serverNames(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, n[0], 0, byte(len(n)-1))
		list = append(list, n[1:]...)
	}
	data := append([]byte{0, byte(len(list))}, list...)
	return append([]byte{0, 0, 0, byte(len(data))}, data...)
}

// TestWhoNamesTwoServersNamesNone: a server might take the name that no rule has seen (RFC 6066 section 3, RFC 8446
// section 4.2).
func TestWhoNamesTwoServersNamesNone(t *testing.T) {
	other := []byte{0, 23, 0, 0} // extended_master_secret
	for _, c := range []struct {
		why  string
		b    []byte
		name string
		ok   bool
	}{
		{"one name", helloOf(other, serverNames("\x00a.example"), other), "a.example", true},
		{"no name", helloOf(other), "", true},
		{"two names", helloOf(serverNames("\x00a.example", "\x00b.example")), "", false},
		{"two lists", helloOf(serverNames("\x00a.example"), other, serverNames("\x00b.example")), "", false},
		{"a name of another kind", helloOf(serverNames("\x01a.example")), "", false},
		{"a name with NUL", helloOf(serverNames("\x00a.example\x00.b")), "", false},
		{"something behind the list", helloOf(append(serverNames("\x00a")[:3], append([]byte{7}, append(serverNames("\x00a")[4:], 0)...)...)), "", false},
		{"an extension cut off", helloOf(serverNames("\x00a.example"), []byte{0, 23, 0, 9}), "", false},
	} {
		if name, done, ok := hello(c.b); name != c.name || !done || ok != c.ok {
			t.Errorf("%s: %q, done %v, ok %v; want %q, %v", c.why, name, done, ok, c.name, c.ok)
		}
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
		if done && !ok && (want == "" || strings.Contains(want, "\x00")) {
			return // names of other kinds only, or a name with NUL: refused on purpose, as by Envoy's TLS library
		}
		if !done || !ok || name != strings.ToLower(want) {
			t.Errorf("hello: %q, done %v, ok %v; crypto/tls: %q", name, done, ok, want)
		}
	})
}
