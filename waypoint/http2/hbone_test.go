package http2

import (
	"bytes"
	"strconv"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// tunnelOpened makes a client's connection of an HBONE stream.
type tunnelOpened struct {
	f    func(p loop.Pipe)
	fail func(err error)
}

func (o *tunnelOpened) StreamOpened(s *hbone.Stream, _ *hbone.Response) { o.f(s.Pipe()) }
func (o *tunnelOpened) StreamFailed(err error)                          { o.fail(err) }

func TestAConnectionRunsThroughHBONE(t *testing.T) {
	cl, sl := hbonetest.Loop(t), hbonetest.Loop(t)
	ca := hbonetest.NewCA(t)
	closed := make(chan error, 2)
	var srv *hbone.Server
	sl.OnLoop(func() {
		srv = hbone.NewServer(sl, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) {
			s.Accept(nil)
			NewServer(s.Pipe(), ServerConfig{}, &echo{}, &echo{closed: closed})
		})})
	})
	key := hbone.Key{Source: "a", Dest: "b", Addr: hbonetest.Listen(t, sl, srv, ca.Config("spiffe://cluster.local/ns/s/sa/server"))}
	var cc *ClientConn
	opened := make(chan error, 1)
	cl.OnLoop(func() {
		p := hbone.NewPool(cl, hbone.PoolConfig{Dial: hbonetest.Dialer(cl, ca.Config("spiffe://cluster.local/ns/c/sa/client"))})
		p.Open(key, nil, &hbone.Request{Authority: "10.0.0.1:80"}, &tunnelOpened{
			f: func(p loop.Pipe) {
				cc = NewClient(p, ClientConfig{}, &echo{closed: closed})
				opened <- nil
			},
			fail: func(err error) { opened <- err },
		})
	})
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var all []*fetch
		cl.OnLoop(func() {
			for i := range 30 {
				f := &fetch{send: bytes.Repeat([]byte{byte(i)}, i*i*2000)}
				all = append(all, f)
				f.start(cc, &message.Request{Method: "POST", Scheme: "http", Authority: "a", Path: "/" + strconv.Itoa(i)})
			}
		})
		for i, f := range all {
			if err := <-f.done; err != nil {
				t.Fatal(err)
			}
			if want := bytes.Repeat([]byte{byte(i)}, i*i*2000); f.status != 200 || !bytes.Equal(f.got.Bytes(), want) {
				t.Errorf("%d: status %d, %d of %d bytes", i, f.status, f.got.Len(), len(want))
			}
		}
	}
	cl.OnLoop(cc.Drain)
	for range 2 {
		select {
		case <-closed:
		case <-time.After(20 * time.Second): // only if it hangs
			t.Fatal("the connection stays open")
		}
	}
}
