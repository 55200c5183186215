package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// DefaultRetry is the pause between attempts to start a pod that could not be started (Z5).
const DefaultRetry = 5 * time.Second

// Runner serves pods for a Tracker. Its methods are called one at a time and must not call the Tracker.
type Runner interface {
	// StartPod begins to serve a pod: on w.Files' listeners, or under istio-cni (w.Files.HasListeners() is false) on
	// listeners of its own in the namespace. The descriptors stay the Tracker's and open until StopPod has returned:
	// duplicate what must live longer. After an error nothing of the pod runs; it is tried again later.
	StartPod(ctx context.Context, w *Workload) error
	// StopPod ends a pod, or without drain what goes on of one that was ended with drain; others are no error. It does not wait for connections: with drain they end by themselves, and what waits in the
	// listeners is still taken; without drain everything is cut.
	StopPod(uid string, drain bool)
}

// TrackerConfig configures a Tracker.
type TrackerConfig struct {
	// Runner serves the pods. Mandatory.
	Runner Runner
	// Setup is called with the node's setup, at the start of every connection to our capture, before any pod is started.
	// The descriptor is the callee's. nil refuses our capture.
	Setup func(Setup) error
	// Retry is the pause between attempts to start a pending pod. 0 means DefaultRetry.
	Retry time.Duration
	// Logger, nil for none.
	Logger *slog.Logger
}

// State counts what a Tracker has.
type State struct {
	// Connected says that the agent is there, Synced that it has named every pod since it connected.
	Connected, Synced bool
	// Active pods are served, Pending ones could not be started and are tried again. They are
	// workload_manager_active_proxy_count and workload_manager_pending_proxy_count. Unlike Z8 a pending pod is no reason
	// to be unready: the other pods of the node are served (B14).
	Active, Pending int
	// Started and Stopped count since the start: workload_manager_proxies_{started,stopped}_total.
	Started, Stopped uint64
}

// Tracker is the Handler of a proxy: it keeps the list of the node's pods as Z4 to Z8 want it and starts and stops them.
// It is safe for concurrent use.
type Tracker struct {
	cfg TrackerConfig
	log *slog.Logger

	mu    sync.Mutex // held over calls of the Runner, which keeps them in order
	state State
	pods  map[string]*tracked
	seen  map[string]bool // pods named since the connection was opened, until it is synced
}

type tracked struct {
	w       *Workload
	running bool
	err     error // why it is not running
}

// NewTracker returns a Tracker without pods. Pass it to Client.Run; Tracker.Run retries pending pods.
func NewTracker(cfg TrackerConfig) *Tracker {
	if cfg.Retry == 0 {
		cfg.Retry = DefaultRetry
	}
	t := &Tracker{cfg: cfg, log: cfg.Logger, pods: map[string]*tracked{}, seen: map[string]bool{}}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t
}

// Run tries pending pods again until ctx is done; then it returns nil. Pods keep running.
func (t *Tracker) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Retry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.retry(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// State returns the counts.
func (t *Tracker) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

// Pending returns the pods that could not be started and why.
func (t *Tracker) Pending() map[string]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]error{}
	for uid, p := range t.pods {
		if !p.running {
			out[uid] = p.err
		}
	}
	return out
}

// StopAll stops every pod, for the end of the process (S2): with drain connections end by themselves.
func (t *Tracker) StopAll(drain bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for uid := range t.pods {
		t.dropLocked(uid, drain)
	}
}

// Connected implements Handler.
func (t *Tracker) Connected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Connected = true
	clear(t.seen)
}

// Disconnected implements Handler. Pods keep running; pending ones are forgotten, for the next agent names them (Z7).
func (t *Tracker) Disconnected(error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Connected, t.state.Synced = false, false
	for uid, p := range t.pods {
		if !p.running {
			t.dropLocked(uid, false)
		}
	}
}

// Handle implements Handler.
func (t *Tracker) Handle(ctx context.Context, r Request) (Files, error) {
	if s, ok := r.(*NodeSetup); ok {
		return Files{}, t.setup(s)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch r := r.(type) {
	case *Add:
		return Files{}, t.addLocked(ctx, &r.Workload)
	case *Del:
		t.delLocked(r)
	case *Keep:
		if t.state.Synced {
			return Files{}, protocolError("keep of %q after the snapshot", r.UID)
		}
		t.seen[r.UID] = true
	case *SnapshotSent:
		return Files{}, t.snapshotLocked()
	case *Return:
		p := t.pods[r.UID]
		if p == nil || !p.w.Files.HasListeners() {
			return Files{}, fmt.Errorf("no listeners of pod %q", r.UID)
		}
		return p.w.Files.Dup()
	default:
		return Files{}, protocolError("unexpected %T", r)
	}
	return Files{}, nil
}

func (t *Tracker) setup(s *NodeSetup) error {
	if t.cfg.Setup == nil {
		s.Exempt.Close()
		return protocolError("node setup from an agent that is not ours")
	}
	return t.cfg.Setup(s.Setup)
}

func (t *Tracker) addLocked(ctx context.Context, w *Workload) error {
	if !t.state.Synced {
		t.seen[w.UID] = true
	}
	p := t.pods[w.UID]
	if p != nil {
		sameNetns := sameFile(p.w.Files.NetNS, w.Files.NetNS)
		if sameNetns && sameListeners(p.w.Files, w.Files) && slices.Equal(p.w.Addrs, w.Addrs) && p.running {
			return w.Files.Close() // Z5
		}
		// A new sandbox replaces the old one. New listeners in the same namespace come from a capture that could not get
		// the old ones back: connections live on.
		t.dropLocked(w.UID, sameNetns)
	}
	p = &tracked{w: w}
	t.pods[w.UID] = p
	t.state.Pending++
	t.startLocked(ctx, p)
	return p.err
}

// startLocked tries to start a pending pod.
func (t *Tracker) startLocked(ctx context.Context, p *tracked) {
	if p.err = t.cfg.Runner.StartPod(ctx, p.w); p.err != nil {
		t.log.Warn("pod not started", "pod", p.w.Namespace+"/"+p.w.Name, "uid", p.w.UID, "err", p.err)
		return
	}
	p.running = true
	t.state.Pending--
	t.state.Active++
	t.state.Started++
}

// dropLocked forgets a pod, stopping it if it runs.
func (t *Tracker) dropLocked(uid string, drain bool) {
	p := t.pods[uid]
	if p.running {
		t.cfg.Runner.StopPod(uid, drain)
		t.state.Active--
		t.state.Stopped++
	} else {
		t.state.Pending--
	}
	if err := p.w.Files.Close(); err != nil {
		t.log.Warn("close descriptors", "uid", uid, "err", err)
	}
	delete(t.pods, uid)
}

// delLocked: before the snapshot is complete a del only takes the pod off the list and the snapshot stops it (Z6).
func (t *Tracker) delLocked(r *Del) {
	p := t.pods[r.UID]
	if !t.state.Synced {
		delete(t.seen, r.UID)
		if p == nil || p.running {
			return
		}
	}
	switch {
	case p != nil:
		t.dropLocked(r.UID, r.Drain)
	case !r.Drain: // it may have left with connections
		t.cfg.Runner.StopPod(r.UID, false)
	}
}

// snapshotLocked stops what was not named. Whether such a pod is gone or only left the mesh is not known, so it drains.
func (t *Tracker) snapshotLocked() error {
	if t.state.Synced {
		return protocolError("second snapshot")
	}
	t.state.Synced = true
	for uid := range t.pods {
		if !t.seen[uid] {
			t.dropLocked(uid, true)
		}
	}
	clear(t.seen)
	return nil
}

func (t *Tracker) retry(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pods {
		if !p.running {
			t.startLocked(ctx, p)
		}
	}
}

// sameFile reports whether two descriptors refer to the same object, or are both absent.
func sameFile(a, b *File) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, err := a.ID()
	y, err2 := b.ID()
	return errors.Join(err, err2) == nil && x == y
}

func sameListeners(a, b Files) bool {
	return sameFile(a.Outbound, b.Outbound) && sameFile(a.Plaintext, b.Plaintext) && sameFile(a.HBONE, b.HBONE) &&
		sameFile(a.DNS, b.DNS) && sameFile(a.DNSStream, b.DNSStream)
}
