package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/test/bed"
	"github.com/ambit-mesh/ambit/test/peer"
)

const hbonePort = 15008

// tunnelWorld is a bed with the pods "client" on node a and "far" on node b, the applications in far, a CA, and the Rust
// ztunnel on one of the nodes.
type tunnelWorld struct {
	t      *testing.T
	client *bed.Pod
	far    *bed.Pod
	ca     *peer.CA
	rust   *peer.Ztunnel
	cfg    peer.Config
}

// newTunnelWorld makes it, with the Rust ztunnel on node "a" or "b".
func newTunnelWorld(t *testing.T, node string) *tunnelWorld {
	t.Helper()
	bin := rustBin(t)
	b, err := bed.New("ambit-interop", bed.NodeSpec{Name: "a", Pods: []string{"client"}}, bed.NodeSpec{Name: "b", Pods: []string{"far"}})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	w := &tunnelWorld{t: t, client: b.Pod("client"), far: b.Pod("far")}
	apps(t, w.far.NS)

	w.ca, err = peer.NewCA(b.Nodes[0].Addr, b.Nodes[1].Addr)
	must(t, err)
	pods := []peer.PodInfo{info(w.client), info(w.far)}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	must(t, peer.WriteConfig(config, []peer.Workload{peer.NewWorkload(w.client, pods[0]), peer.NewWorkload(w.far, pods[1])}))

	i := map[string]int{"a": 0, "b": 1}[node]
	addr := netip.AddrPortFrom(b.Nodes[i].Addr, 15012).String()
	l, err := b.Nodes[i].NS.Listen(t.Context(), "tcp", addr)
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.ca.Serve(l) }) // ends by Stop
	t.Cleanup(func() { w.ca.Stop(); wg.Wait() })
	w.cfg = peer.Config{Bin: bin, Node: b.Nodes[i], Pods: pods[i : i+1], Dir: dir, Log: "info,access=debug", Env: []string{
		"LOCAL_XDS_PATH=" + config, "XDS_ADDRESS=", "CA_ADDRESS=https://" + addr, "CA_ROOT_CA=" + w.ca.RootPEM(),
	}}
	w.start()
	t.Cleanup(func() {
		err := w.rust.Stop()
		if t.Failed() {
			t.Logf("the ztunnel's log ends with:\n%s", w.rust.LogTail())
		}
		must(t, err)
	})
	return w
}

func (w *tunnelWorld) start() {
	w.t.Helper()
	var err error
	w.rust, err = peer.Start(within(w.t, 30*time.Second), w.cfg)
	must(w.t, err)
}

func info(p *bed.Pod) peer.PodInfo {
	return peer.PodInfo{NS: p.NS.NS, UID: "uid-" + p.Name, Name: p.Name, Namespace: "default", ServiceAccount: p.Name}
}

// tls is the configuration of an end of ours with a pod's identity.
func (w *tunnelWorld) tls(sa string) *tls.Config {
	w.t.Helper()
	cert, key, err := w.ca.Issue("spiffe://cluster.local/ns/default/sa/" + sa)
	must(w.t, err)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	must(w.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(w.ca.RootPEM()))
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, DynamicRecordSizingDisabled: true,
		InsecureSkipVerify: true, // no DNS name to check; the chain is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}
}

// pool is our client in the client's namespace.
func (w *tunnelWorld) pool() (*hbone.Pool, *loop.Loop) {
	w.t.Helper()
	l := hbonetest.Loop(w.t)
	cfg := w.tls("client")
	p := hbone.NewPool(l, hbone.PoolConfig{Dial: func(key hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			fd, c, err := w.connect(ctx, key.Addr, cfg)
			done(fd, c, err)
		}()
	}})
	w.t.Cleanup(func() { l.OnLoop(p.Close) })
	return p, l
}

func (w *tunnelWorld) connect(ctx context.Context, to netip.AddrPort, cfg *tls.Config) (int, *looptls.Conn, error) {
	nc, err := w.client.NS.Dial(ctx, "tcp", to.String())
	if err != nil {
		return -1, nil, err
	}
	fd, err := hbonetest.Descriptor(nc)
	if err != nil {
		return -1, nil, err
	}
	c, err := looptls.Client(ctx, fd, cfg)
	if err != nil {
		return -1, nil, errors.Join(err, unix.Close(fd))
	}
	return fd, c, nil
}

// open opens a stream of ours to a port of the far pod, by the ztunnel in it.
func (w *tunnelWorld) open(ctx context.Context, p *hbone.Pool, to netip.Addr, port int) (*hbone.NetConn, error) {
	authority := netip.AddrPortFrom(to, uint16(port)).String()
	key := hbone.Key{Source: "client", Dest: "far", Addr: netip.AddrPortFrom(to, hbonePort)}
	c, _, err := p.OpenConn(ctx, key, nil, &hbone.Request{Authority: authority})
	return c, err
}

func TestRootInteropOurTunnelToRust(t *testing.T) {
	w := newTunnelWorld(t, "b")
	p, l := w.pool()
	ctx := within(t, 3*time.Minute)
	open := func(t *testing.T, to netip.Addr, port int) *hbone.NetConn {
		t.Helper()
		c, err := w.open(ctx, p, to, port)
		must(t, err)
		return c
	}
	t.Run("256 MiB there and back arrive unharmed", func(t *testing.T) {
		must(t, echoes(open(t, w.far.Addr, echoPort), 256<<20))
	})
	t.Run("an answer after our half-close arrives", func(t *testing.T) {
		must(t, uploads(open(t, w.far.Addr, lastPort), 64<<20))
	})
	t.Run("IPv6", func(t *testing.T) {
		must(t, echoes(open(t, w.far.Addr6, echoPort), 1<<20))
	})
	t.Run("200 streams at once", func(t *testing.T) {
		must(t, at200(func() (conn, error) { return w.open(ctx, p, w.far.Addr, echoPort) }))
	})
	t.Run("a port that nobody listens on is refused", func(t *testing.T) {
		_, err := w.open(ctx, p, w.far.Addr, 9)
		if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Status != 503 {
			t.Errorf("error %v, want status 503", err)
		}
	})
	t.Run("a restart of the ztunnel ends old tunnels and new streams find the new one", func(t *testing.T) {
		old := open(t, w.far.Addr, echoPort)
		defer old.Close()
		must(t, asks(old, "before\n"))
		must(t, w.rust.Stop())
		if err := asks(old, "after\n"); err == nil {
			t.Error("a stream outlived its ztunnel")
		}
		w.start()
		must(t, echoes(open(t, w.far.Addr, echoPort), 1<<20))
	})
	var st hbone.PoolStats
	l.OnLoop(func() { st = p.Stats() })
	if st.Streams != 0 || st.Waiting != 0 {
		t.Errorf("%d streams and %d waiting are left", st.Streams, st.Waiting)
	}
}

// at200 opens 200 connections, uses them all while all are open, and sees each through to its end.
func at200(open func() (conn, error)) error {
	const n = 200
	cs := make([]conn, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c, err := open()
			if err != nil {
				errs[i] = err
				return
			}
			cs[i] = c
			errs[i] = asks(c, fmt.Sprintf("connection %d\n", i))
		})
	}
	wg.Wait()
	for i, c := range cs {
		if errs[i] == nil {
			wg.Go(func() { errs[i] = echoes(c, 256<<10) })
		} else if c != nil {
			c.Close()
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// serve is our server in the far pod's namespace: what ztunnel would be there.
func (w *tunnelWorld) serve() (*hbone.Server, *loop.Loop) {
	w.t.Helper()
	l := hbonetest.Loop(w.t)
	s := hbone.NewServer(l, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(st *hbone.Stream, r *hbone.Request) {
		go w.join(l, st, r)
	})})
	cfg := w.tls("far")
	ln, err := w.far.NS.Listen(w.t.Context(), "tcp", ":"+strconv.Itoa(hbonePort))
	must(w.t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { accept(l, s, cfg, c) })
		}
	})
	w.t.Cleanup(func() { ln.Close(); wg.Wait(); l.OnLoop(s.Close) })
	return s, l
}

// join connects a stream with the application that its request names.
func (w *tunnelWorld) join(l *loop.Loop, st *hbone.Stream, r *hbone.Request) {
	fd := -1
	c, err := w.far.NS.Dial(context.Background(), "tcp", r.Authority)
	if err == nil {
		fd, err = hbonetest.Descriptor(c)
	}
	l.Inject(func() {
		if err != nil {
			st.Reject(503)
			return
		}
		f, err := l.Add(fd, nil)
		if err != nil {
			st.Reject(503)
			return
		}
		st.Accept(nil)
		st.Join(f, nil)
	})
}

func accept(l *loop.Loop, s *hbone.Server, cfg *tls.Config, c net.Conn) {
	fd, err := hbonetest.Descriptor(c)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tc, err := looptls.Server(ctx, fd, cfg)
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	l.Inject(func() {
		if s.Serve(fd, tc, nil) != nil {
			_ = unix.Close(fd)
		}
	})
}

func TestRootInteropRustTunnelToOurs(t *testing.T) {
	w := newTunnelWorld(t, "a")
	s, l := w.serve()
	ctx := within(t, 3*time.Minute)
	to := func(a netip.Addr, port int) func() (conn, error) {
		return func() (conn, error) { return dial(ctx, w.client.NS, netip.AddrPortFrom(a, uint16(port))) }
	}
	open := func(t *testing.T, a netip.Addr, port int) conn {
		t.Helper()
		c, err := to(a, port)()
		must(t, err)
		return c
	}
	t.Run("256 MiB there and back arrive unharmed", func(t *testing.T) {
		must(t, echoes(open(t, w.far.Addr, echoPort), 256<<20))
	})
	t.Run("an answer after the client's half-close arrives", func(t *testing.T) {
		must(t, uploads(open(t, w.far.Addr, lastPort), 64<<20))
	})
	t.Run("IPv6", func(t *testing.T) {
		must(t, echoes(open(t, w.far.Addr6, echoPort), 1<<20))
	})
	t.Run("200 connections at once", func(t *testing.T) {
		must(t, at200(to(w.far.Addr, echoPort)))
	})
	t.Run("our GOAWAY moves new connections to a new tunnel and lets old ones end", func(t *testing.T) {
		old := open(t, w.far.Addr, echoPort)
		must(t, asks(old, "before\n"))
		l.OnLoop(func() { s.Each(func(c *hbone.ServerConn) { c.Drain() }) })
		must(t, echoes(open(t, w.far.Addr, echoPort), 1<<20))
		must(t, asks(old, "after\n"))
		must(t, echoes(old, 1<<20))
	})
}
