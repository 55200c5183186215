package forward

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
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

func FuzzHello(f *testing.F) {
	f.Add(clientHello(f, "a.example"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, done, ok := hello(b)
		if name != "" && (!done || !ok || !bytes.Contains(bytes.ToLower(b), []byte(name)) && len(name) > 64) {
			t.Errorf("hello: %q %v %v", name, done, ok)
		}
	})
}
