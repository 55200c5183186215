package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// ErrNoProxy is returned by Server.Add when no proxy is connected.
var ErrNoProxy = errors.New("no proxy connected")

// errGone ends the requests of a connection that ended before they were answered.
var errGone = errors.New("zds connection ended")

// Source knows the pods of the node. Its methods are called from several goroutines, must not block for long and must
// not call the Server.
type Source interface {
	// Pods returns the UIDs of all captured pods.
	Pods() []string
	// Workload returns a pod with duplicates of its descriptors, which the Server closes; without listeners the proxy is
	// only told to keep what it has. false: the pod is gone meanwhile.
	Workload(uid string) (*Workload, bool)
	// Missing returns the UIDs of captured pods whose listeners only a proxy can have.
	Missing() []string
	// Returned hands over descriptors of a missing pod that a proxy had.
	Returned(uid string, f Files) error
	// Answered tells how the proxy answered the add of a pod in a snapshot.
	Answered(uid string, err error)
}

// ServerConfig configures a Server.
type ServerConfig struct {
	// Path is where the socket is made, with mode 0600; what is there is replaced. Mandatory.
	Path string
	// Source knows the pods. Mandatory.
	Source Source
	// Setup is sent to every proxy. Its descriptor stays the caller's and open while the Server runs.
	Setup Setup
	// UID is the user that a proxy must run as. The zero value is root.
	UID uint32
	// Timeout bounds the wait for a hello and for each answer. 0 means DefaultTimeout.
	Timeout time.Duration
	// Logger, nil for none.
	Logger *slog.Logger
}

// Server is capture's end of ZDS. Several proxies may be connected during an upgrade: each is told all pods when it
// connects, new pods go to the newest, removals to all (Z10). It is safe for concurrent use.
type Server struct {
	cfg ServerConfig
	log *slog.Logger

	mu      sync.Mutex
	proxies []*peer // guarded by mu; oldest first
	nextID  uint64
}

// NewServer returns a Server; Run starts it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Run listens and serves until ctx is done; then it removes the socket, closes the connections and returns nil. Proxies
// go on with the pods they have.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.cfg.Path)
	if err != nil {
		return err
	}
	return s.serve(ctx, l)
}

func listen(path string) (*net.UnixListener, error) {
	// A second capture on a node would be refused by its lock; what is found here is a socket of one that is no more.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for proxies: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("restrict socket: %w", err)
	}
	return l, nil
}

func (s *Server) serve(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, most likely: proxies that are connected go on.
			s.log.Warn("accept proxy", "err", err)
		} else {
			wg.Go(func() { s.admit(ctx, &packetConn{c: c}) })
		}
		if !sleep(ctx, 200*time.Millisecond) { // at most 5 connections a second (Z10)
			return nil
		}
	}
}

// sleep reports whether it ended before ctx did.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// admit checks who dialled and serves it.
func (s *Server) admit(ctx context.Context, c *packetConn) {
	if err := CheckPeer(c.c, s.cfg.UID); err != nil {
		s.log.Warn("proxy refused", "err", err)
		c.close()
		return
	}
	s.connection(ctx, c)
}

// connection lives one connection and closes it.
func (s *Server) connection(ctx context.Context, c conn) {
	p := newPeer(c, s.cfg.Timeout)
	stop := context.AfterFunc(ctx, func() { p.end(ctx.Err()) })
	defer stop()
	defer p.end(nil)
	h, err := p.hello()
	if err == nil && !h.listeners {
		err = protocolError("proxy cannot take listeners")
	}
	if err != nil {
		s.log.Warn("proxy refused", "err", err)
		return
	}
	s.mu.Lock()
	s.nextID++
	p.id, p.dns = s.nextID, h.dns
	s.proxies = append(s.proxies, p)
	s.mu.Unlock()
	log := s.log.With("proxy", p.id, "pid", h.pid)
	log.Info("proxy connected")

	var wg sync.WaitGroup
	wg.Go(p.readAnswers)
	if err = s.introduce(p, log); err == nil {
		err = p.work()
	}
	p.end(err)
	wg.Wait()
	s.mu.Lock()
	s.proxies = slices.DeleteFunc(s.proxies, func(q *peer) bool { return q == p })
	s.mu.Unlock()
	log.Info("proxy disconnected", "err", p.cause())
}

// introduce tells a new proxy everything: the node, then the pods. A pod that it refuses does not keep the others waiting.
func (s *Server) introduce(p *peer, log *slog.Logger) error {
	if _, err := p.call(&NodeSetup{s.cfg.Setup}); err != nil {
		return fmt.Errorf("set proxy up: %w", err)
	}
	for _, uid := range s.cfg.Source.Missing() {
		files, err := p.call(&Return{UID: uid})
		if err == nil {
			err = s.cfg.Source.Returned(uid, files)
		}
		if fatal(err) {
			return err
		}
		log.Info("listeners asked back", "uid", uid, "err", err)
	}
	uids := s.cfg.Source.Pods()
	for _, uid := range uids {
		err := s.add(p, uid)
		if fatal(err) {
			return err
		}
		s.cfg.Source.Answered(uid, err)
	}
	_, err := p.call(&SnapshotSent{})
	log.Info("proxy knows all pods", "pods", len(uids), "err", err)
	return err
}

// fatal says whether an error of peer.call ended the connection.
func fatal(err error) bool { return errors.Is(err, ErrProtocol) || errors.Is(err, errGone) }

// add sends one pod.
func (s *Server) add(p *peer, uid string) error {
	w, ok := s.cfg.Source.Workload(uid)
	if !ok {
		return fmt.Errorf("pod %q is gone", uid)
	}
	defer w.Files.Close()
	if !w.Files.HasListeners() {
		if p.synced {
			return fmt.Errorf("listeners of pod %q are missing", uid)
		}
		_, err := p.call(&Keep{UID: uid})
		return err
	}
	add := &Add{*w}
	if !p.dns {
		add.Files = add.Files.WithoutDNS()
	}
	_, err := p.call(add)
	return err
}

// Add hands a pod that the Source has to the newest proxy and waits for its answer, or until ctx is done. If that proxy
// goes away meanwhile, the next newest is asked; ErrNoProxy when there is none. A refusal is a *PeerError.
func (s *Server) Add(ctx context.Context, uid string) error {
	for {
		p := s.newest()
		if p == nil {
			return ErrNoProxy
		}
		err := p.do(ctx, func() error { return s.add(p, uid) })
		if !fatal(err) {
			return err
		}
		s.forget(p)
	}
}

// Del tells all proxies that a pod is gone, or with drain that it left the mesh, and waits for the answers or until ctx
// is done.
func (s *Server) Del(ctx context.Context, uid string, drain bool) error {
	s.mu.Lock()
	all := slices.Clone(s.proxies)
	s.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() {
			errs[i] = p.do(ctx, func() error {
				_, err := p.call(&Del{UID: uid, Drain: drain})
				return err
			})
			if fatal(errs[i]) {
				errs[i] = nil // a proxy that connects again is not told of the pod
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Proxies returns how many proxies are connected.
func (s *Server) Proxies() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.proxies)
}

func (s *Server) newest() *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.proxies) == 0 {
		return nil
	}
	return s.proxies[len(s.proxies)-1]
}

func (s *Server) forget(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proxies = slices.DeleteFunc(s.proxies, func(q *peer) bool { return q == p })
}
