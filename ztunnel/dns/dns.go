// Package dns answers the name queries of the node's captured pods.
//
// Names of the mesh (services of Kubernetes and hosts of ServiceEntries) are answered from the workload table, as CoreDNS
// would answer them; everything else goes on, unchanged, to the nameserver that the pod addressed, out of the pod's own
// network namespace: the pod's dnsPolicy and its NetworkPolicies hold as without the mesh.
//
//   - names.go, lookup.go: which name means which service, and its addresses; pure functions of a [workload.View]
//   - message.go: what is answered to one message; pure as well, and where malformed messages end
//   - pod.go, datagram_linux.go, stream.go: the sockets of a pod, which capture made
//   - forward.go: the nameserver
//
// # Failing
//
// The nameserver's failure is answered with SERVFAIL, and only for names that the mesh does not know. While the control
// plane has not delivered the table once, queries wait a little and then fail: an address from outside for a name of the
// mesh would stay in the application's cache. What one pod asks costs at most [Config.MaxPerPod] sockets, all pods
// together [Config.Max]; what is more than that is answered with SERVFAIL at once.
package dns

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

const (
	// DefaultMax is the default of Config.Max.
	DefaultMax = 2048
	// DefaultMaxPerPod is the default of Config.MaxPerPod.
	DefaultMaxPerPod = 256
	// DefaultTimeout is the default of Config.Timeout.
	DefaultTimeout = 5 * time.Second
	// DefaultWait is the default of Config.Wait.
	DefaultWait = 5 * time.Second
)

// Config is what a Server is made of. Zero values mean the defaults.
type Config struct {
	// Lookup says how names are read.
	Lookup Lookup
	// Off has every query forwarded (D1).
	Off bool
	// Workloads is the table of the mesh. Mandatory.
	Workloads *workload.Store
	// Synced is closed when the control plane has delivered the table once. nil: it is complete from the start.
	Synced <-chan struct{}
	// Wait is how long a query waits for Synced (D2).
	Wait time.Duration
	// Alone is closed when no other proxy serves the node's pods. Until then nothing is taken from their sockets before Synced:
	// the other one has the table. nil: there is no other.
	Alone <-chan struct{}
	// Timeout bounds an exchange with a nameserver, and how long a connection may be idle (D9, D10).
	Timeout time.Duration
	// Max and MaxPerPod bound the queries that are with nameservers at a time.
	Max, MaxPerPod int
	// Metrics counts. Mandatory.
	Metrics *telemetry.Ztunnel
	// Logger gets a line per query at level debug (D13); nil: nothing.
	Logger *slog.Logger
}

// Server is the DNS proxy of a node. Its methods may be called from any goroutine.
type Server struct {
	cfg   Config // immutable
	log   *slog.Logger
	slots chan struct{}  // one for each query that is with a nameserver
	none  *workload.View // immutable: a table without anything

	wg sync.WaitGroup // what serves pods

	mu    sync.Mutex
	dial  dialer          // guarded by mu: how nameservers are reached; nil until the node was set up
	pods  map[string]*pod // guarded by mu
	ended bool            // guarded by mu
}

// New makes a server without pods.
func New(cfg Config) *Server {
	if cfg.Max == 0 {
		cfg.Max = DefaultMax
	}
	if cfg.MaxPerPod == 0 {
		cfg.MaxPerPod = DefaultMaxPerPod
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: cfg.Logger, slots: make(chan struct{}, cfg.Max), none: workload.NewStore(workload.Config{}).View(), pods: map[string]*pod{}}
}

// Run blocks until ctx is done and everything that the server started has ended. What waits in the pods' sockets then is
// left to the successor.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for uid := range s.pods {
		s.stopLocked(uid, false)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// StartPod begins to answer a pod on its sockets, of which it makes duplicates. A pod without them does not have its
// queries captured. The same pod again, on the same sockets, is no change.
func (s *Server) StartPod(_ context.Context, w *zds.Workload) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !w.Files.HasDNS() || s.ended {
		s.stopLocked(w.UID, true)
		return nil
	}
	id, err := w.Files.DNS.ID()
	if err != nil {
		return fmt.Errorf("identify DNS socket of pod %s/%s: %w", w.Namespace, w.Name, err)
	}
	if old := s.pods[w.UID]; old != nil && old.id == id && old.name == w.Name && old.account == w.ServiceAccount {
		return nil
	}
	s.stopLocked(w.UID, true)
	p, err := newPod(s, w, id)
	if err != nil {
		return fmt.Errorf("serve DNS of pod %s/%s: %w", w.Namespace, w.Name, err)
	}
	s.pods[w.UID] = p
	p.start()
	return nil
}

// StopPod ends the service of a pod. What waits in its sockets when the pod leaves the mesh (drain) is still answered. An
// unknown UID is no error.
func (s *Server) StopPod(uid string, drain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[uid]; p != nil && drain {
		p.drain()
	}
	s.stopLocked(uid, !drain)
}

// stopLocked ends the service of a pod; with cut also what is under way.
func (s *Server) stopLocked(uid string, cut bool) {
	if p := s.pods[uid]; p != nil {
		delete(s.pods, uid)
		p.stop(cut)
	}
}

// dialer returns how nameservers are reached.
func (s *Server) dialer() dialer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dial
}

// mayTake waits until the pods' queries are to be taken from their sockets; false if ctx ended before.
func (s *Server) mayTake(ctx context.Context) bool {
	if s.cfg.Alone == nil || s.ready() {
		return true
	}
	select {
	case <-s.cfg.Synced:
	case <-s.cfg.Alone:
	case <-ctx.Done():
		return false
	}
	return true
}

// synced waits until the table is complete, at most for Config.Wait.
func (s *Server) synced(ctx context.Context) bool {
	if s.cfg.Synced == nil {
		return true
	}
	select {
	case <-s.cfg.Synced:
		return true
	default:
	}
	t := time.NewTimer(s.cfg.Wait)
	defer t.Stop()
	select {
	case <-s.cfg.Synced:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// ready says that synced would not wait.
func (s *Server) ready() bool {
	if s.cfg.Synced == nil {
		return true
	}
	select {
	case <-s.cfg.Synced:
		return true
	default:
		return false
	}
}
