package forward

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

func TestAConnectionThatWasToldApartIsNotToldApartAgainWhileItWaits(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	got, began, shake := make(chan string, 10), make(chan struct{}, 10), make(chan struct{})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			began <- struct{}{}
			go func() {
				defer c.Close()
				<-shake
				b, _ := io.ReadAll(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{a.issue("db.example")}}))
				got <- string(b)
			}()
		}
	}()
	r.cluster("db", toTLS("", "file-root:"+a.file, ""), ln.Addr().String())
	r.routes(toReviews)
	both := *r.snap.Load().Listener.Lookup(vip)
	both.TCP = raw(t, "db")
	r.target(&both)
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "not HTTP ")
	<-began
	io.WriteString(c, "at all")
	c.(interface{ CloseWrite() error }).CloseWrite()
	r.proxy.workers[0].loop.OnLoop(func() {})
	time.AfterFunc(50*time.Millisecond, func() { close(shake) }) // a shorter time would only make the test less sharp
	if s := <-got; s != "not HTTP at all" {
		t.Errorf("the endpoint got %q", s)
	}
	if len(began) > 0 {
		t.Error("the endpoint was connected to more than once")
	}
}
