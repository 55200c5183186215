package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/test/peer"
)

// bare is our tunnel alone, a relay on each node made of hbone and internal/loop: no capture, policy, metrics or lookup.
// What ours costs above it is what those cost.
type bare struct{}

func (bare) name() string { return "bare" }

func (s bare) start(ctx context.Context, opts options) (*instance, error) {
	in := &instance{about: map[string]string{"loops": "1"}}
	if err := s.build(ctx, in, opts); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (s bare) build(ctx context.Context, in *instance, opts options) error {
	b, err := in.newBed(ctx, s.name())
	if err != nil {
		return err
	}
	if err := writeIdentity(opts.dir); err != nil {
		return err
	}
	a, z := b.Nodes[0], b.Nodes[1]
	pidB, err := in.startSelf(ctx, z.NS, "tunnel", "-dir", opts.dir)
	if err != nil {
		return err
	}
	pidA, err := in.startSelf(ctx, a.NS, "tunnel", "-dir", opts.dir, "-via", netip.AddrPortFrom(z.Addr, hbonePort).String(),
		"-to", b.Pod(farPod).Addr.String())
	if err != nil {
		return err
	}
	in.procs = map[role][]int{proxyA: {pidA}, proxyB: {pidB}}
	in.targets = map[path]target{crossNode: {a.Addr, 0}}
	return nil
}

const hbonePort = 15008

// Files of a tunnel's identity.
const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
	rootFile = "root.pem"
)

func writeIdentity(dir string) error {
	ca, err := peer.NewCA()
	if err != nil {
		return err
	}
	cert, key, err := ca.Issue("spiffe://cluster.local/ns/bench/sa/bench")
	if err != nil {
		return err
	}
	var errs []error
	for name, text := range map[string]string{certFile: cert, keyFile: key, rootFile: ca.RootPEM()} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return errors.Join(errs...)
}

func readIdentity(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(root) {
		return nil, fmt.Errorf("no certificate in %s", rootFile)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, DynamicRecordSizingDisabled: true,
		SessionTicketsDisabled: true, CurvePreferences: []tls.CurveID{tls.X25519},
		InsecureSkipVerify: true, // a SPIFFE certificate has no DNS name; the chain is verified here
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}, nil
}

// tunnelMain is one relay: with -via it forwards the server's ports through a tunnel, without it it is the tunnel's end.
func tunnelMain(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("tunnel", flag.ContinueOnError)
	dir := fs.String("dir", "", "directory with the identity")
	via := fs.String("via", "", "address of the tunnel's end")
	to := fs.String("to", "", "host to forward to, on the same port")
	if err := fs.Parse(args); err != nil {
		return err
	}
	cfg, err := readIdentity(*dir)
	if err != nil {
		return err
	}
	l, err := loop.New(loop.Config{})
	if err != nil {
		return err
	}
	t := &tunnel{ctx: ctx, l: l, tls: cfg, to: *to}
	t.pool = hbone.NewPool(l, hbone.PoolConfig{Dial: t.dial})
	t.server = hbone.NewServer(l, hbone.ServerConfig{Handler: t})
	ports := []int{hbonePort}
	accepted := t.serve
	if *via != "" {
		if t.key.Addr, err = netip.ParseAddrPort(*via); err != nil {
			return err
		}
		ports, accepted = []int{sinkPort, sourcePort, echoPort}, t.open
	}
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	for _, p := range ports {
		if err := t.listen(p, accepted); err != nil {
			return err
		}
	}
	fmt.Println("READY")
	return <-ran
}

// tunnel is the state of a relay. Loop only, but for dial and serve's goroutines.
type tunnel struct {
	ctx    context.Context
	l      *loop.Loop
	tls    *tls.Config
	to     string
	key    hbone.Key
	pool   *hbone.Pool
	server *hbone.Server
}

// listener accepts on the loop.
type listener struct {
	port     int
	accepted func(fd, port int)
}

func (t *tunnel) listen(port int, accepted func(fd, port int)) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port}),
		unix.Listen(fd, 4096),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on port %d: %w", port, err), unix.Close(fd))
	}
	t.l.OnLoop(func() { _, err = t.l.Add(fd, &listener{port, accepted}) })
	return err
}

// Ready implements loop.Handler.
func (l *listener) Ready(f *loop.FD) {
	for {
		fd, _, err := unix.Accept4(f.Fd(), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // none is left, or it failed before it was accepted
		}
		l.accepted(fd, l.port)
	}
}

// idle is the handler of a socket that waits for its stream.
type idle struct{}

func (idle) Ready(*loop.FD) {}

// open forwards an accepted connection through the tunnel.
func (t *tunnel) open(fd, port int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // a matter of speed
	app, err := t.l.Add(fd, idle{})
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	t.pool.Open(t.key, nil, &hbone.Request{Authority: t.to + ":" + strconv.Itoa(port)}, &opening{app})
}

type opening struct{ app *loop.FD }

// StreamOpened implements hbone.OpenHandler.
func (o *opening) StreamOpened(s *hbone.Stream, _ *hbone.Response) { s.Join(o.app, nil) }

// StreamFailed implements hbone.OpenHandler.
func (o *opening) StreamFailed(err error) {
	fmt.Fprintln(os.Stderr, "tunnel:", err)
	o.app.Reset()
}

// dial connects and shakes hands in a goroutine.
func (t *tunnel) dial(key hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
	go func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done(-1, nil, err)
			return
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: key.Addr.Addr().As4(), Port: int(key.Addr.Port())})
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		var c *looptls.Conn
		if err == nil {
			c, err = looptls.Client(t.ctx, fd, t.tls)
		}
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
		done(fd, c, err)
	}()
}

// serve shakes hands with an accepted peer in a goroutine.
func (t *tunnel) serve(fd, _ int) {
	go func() {
		c, err := looptls.Server(t.ctx, fd, t.tls)
		if err != nil {
			fmt.Fprintln(os.Stderr, "tunnel:", err)
			_ = unix.Close(fd)
			return
		}
		t.l.Inject(func() {
			if err := t.server.Serve(fd, c, nil); err != nil {
				_ = unix.Close(fd)
			}
		})
	}()
}

// ServeConnect implements hbone.Handler.
func (t *tunnel) ServeConnect(s *hbone.Stream, req *hbone.Request) {
	to, err := netip.ParseAddrPort(req.Authority)
	if err != nil {
		s.Reject(400)
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.Reject(503)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // a matter of speed
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		s.Reject(503)
		return
	}
	if _, err := t.l.Add(fd, &connecting{s}); err != nil {
		_ = unix.Close(fd)
		s.Reject(503)
	}
}

// connecting waits for a connection to the application.
type connecting struct{ s *hbone.Stream }

// Ready implements loop.Handler.
func (c *connecting) Ready(f *loop.FD) {
	if err := f.Failed(); err != nil {
		f.Close()
		c.s.Reject(503)
		return
	}
	c.s.Accept(nil)
	c.s.Join(f, nil)
}
