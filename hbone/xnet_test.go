package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
)

// The other end is net/http, with its frames of 16 KiB and windows of 64 KiB and more.

func TestAnotherClientIsServed(t *testing.T) {
	l := hbonetest.Loop(t)
	ca := hbonetest.NewCA(t)
	var wg sync.WaitGroup
	var srv *hbone.Server
	l.OnLoop(func() { srv = hbone.NewServer(l, hbone.ServerConfig{Handler: echoes(&wg)}) })
	addr := hbonetest.Listen(t, l, srv, ca.Config("spiffe://cluster.local/ns/s/sa/server"))
	cfg := ca.Config("spiffe://cluster.local/ns/c/sa/client")
	tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: cfg}).DialContext(ctx, network, addr.String())
	}}
	defer tr.CloseIdleConnections()
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{3}).Read(data)
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() {
			body, in := io.Pipe()
			req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: "10.0.0.1:80"}, Host: "10.0.0.1:80", Header: http.Header{"Baggage": {"k=v"}}, Body: body}
			resp, err := tr.RoundTrip(req.WithContext(t.Context()))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			go func() {
				in.Write(data)
				in.Close()
			}()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, data) || resp.StatusCode != 200 {
				t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
			}
		})
	}
	streams.Wait()
	wg.Wait()
}

func TestAnotherServerIsUsed(t *testing.T) {
	l := hbonetest.Loop(t)
	ca := hbonetest.NewCA(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(echoHTTP), TLSConfig: ca.Config("spiffe://cluster.local/ns/s/sa/server")}
	var wg sync.WaitGroup
	wg.Go(func() { srv.ServeTLS(ln, "", "") })
	defer wg.Wait()
	defer srv.Close()
	var pool *hbone.Pool
	l.OnLoop(func() {
		pool = hbone.NewPool(l, hbone.PoolConfig{Dial: hbonetest.Dialer(l, ca.Config("spiffe://cluster.local/ns/c/sa/client"))})
	})
	key := hbone.Key{Addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{4}).Read(data)
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() {
			c, resp, err := pool.OpenConn(t.Context(), key, nil, &hbone.Request{Authority: "10.0.0.1:80", Header: []hbone.HeaderField{{Name: "baggage", Value: "k=v"}}})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if resp.Get("x-seen") != "10.0.0.1:80 k=v" {
				t.Errorf("the server saw %q", resp.Get("x-seen"))
			}
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	streams.Wait()
	l.OnLoop(func() { pool.Close() })
}

func echoHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-seen", r.Host+" "+r.Header.Get("baggage"))
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			return
		}
	}
}
