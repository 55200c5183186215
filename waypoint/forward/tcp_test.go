package forward

import (
	"crypto/tls"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/listener"
)

func TestAConnectionThatWasToldApartIsNotToldApartAgainWhileItWaits(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	got, began, shake := make(chan string, 10), make(chan struct{}, 10), make(chan struct{})
	addr := script(t, func(c net.Conn) {
		began <- struct{}{}
		<-shake
		b, _ := io.ReadAll(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{a.issue("db.example")}}))
		got <- string(b)
	})
	r.cluster("db", toTLS("", "file-root:"+a.file, ""), addr)
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

func TestAConnectionIsCountedWhileItIsOpen(t *testing.T) {
	r := newRig(t)
	r.cluster("db", "", script(t, func(c net.Conn) { io.Copy(c, c) }))
	r.target(&listener.Target{TCP: raw(t, "db")})
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "12345")
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	w := r.proxy.workers[0]
	count := func(name string) (n int) {
		var b strings.Builder
		if err := r.proxy.cfg.Metrics.Expose(&b); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, name+"{") {
				k, _ := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1 : len(line)-1])
				n += k
			}
		}
		return n
	}
	if n := count("istio_tcp_connections_opened_total"); n != 1 {
		t.Errorf("%d connections opened", n)
	}
	w.loop.OnLoop(func() { // the time of a report comes
		for in := range w.conns {
			if in.stream != nil {
				(*reportDue)(in.stream).Expired(&in.stream.reports)
			}
		}
	})
	if a, b := count("istio_tcp_received_bytes_total"), count("istio_tcp_sent_bytes_total"); a != 5 || b != 5 {
		t.Errorf("%d and %d bytes while it is open", a, b)
	}
	io.WriteString(c, "678")
	c.(interface{ CloseWrite() error }).CloseWrite()
	io.Copy(io.Discard, c)
	for end := time.Now().Add(10 * time.Second); count("istio_tcp_connections_closed_total") != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the connection is not counted as closed")
		}
	}
	if a, b, o := count("istio_tcp_received_bytes_total"), count("istio_tcp_sent_bytes_total"), count("istio_tcp_connections_opened_total"); a != 8 || b != 8 || o != 1 {
		t.Errorf("%d and %d bytes, %d opened at the end", a, b, o)
	}
}

func TestConnectionsOfOneClientGoToOneEndpointWhereItsAddressDecides(t *testing.T) {
	r := newRig(t)
	const n = 4
	var addrs []string
	for i := range n {
		addrs = append(addrs, script(t, func(c net.Conn) { io.WriteString(c, strconv.Itoa(i)) }))
	}
	r.cluster("db", `"lb_policy": "MAGLEV"`, addrs...)
	seen := func(hash bool) map[string]int {
		chain := raw(t, "db")
		chain.HashSource = hash
		r.target(&listener.Target{TCP: chain})
		out := map[string]int{}
		for range 24 {
			c, err := r.dial(t.Context(), vip)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			out[string(b)]++
		}
		return out
	}
	if got := seen(true); len(got) != 1 {
		t.Errorf("by the client's address, 24 connections went to %v", got)
	}
	if got := seen(false); len(got) < 2 {
		t.Errorf("without a hash, 24 connections went to %v", got)
	}
}
