// Package capture decides which pods of a node are in the mesh, redirects their traffic, and owns what that takes: BPF
// links and pins, the pods' listening sockets and their namespaces. It moves no bytes: that is the proxy's work, which
// learns of the pods and gets their listeners over ZDS.
//
// What survives what:
//
//   - The proxy dies: connections wait in the backlog of the listeners, which capture holds too.
//   - Capture dies: pins keep the redirection up, the proxy holds the listeners too and goes on accepting.
//   - Capture starts again: it reads which pods there were from its run directory, finds their pins, and asks the proxy
//     for the listeners. Whether a proxy has them it learns by trying to listen: the mesh's ports are not shared
//     (no SO_REUSEPORT), so the kernel answers "in use" exactly as long as somebody holds them.
//   - Both are gone: the BPF program finds no listener and refuses, so nothing is plaintext by accident.
package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// States of a pod.
const (
	// StateSkipped is that of a pod which is not in the mesh, and of which nothing remains there.
	StateSkipped  = "skipped"
	stateCaptured = "captured"
	statePending  = "pending"
	stateDraining = "draining"
)

const (
	// ZDSSocket is the name of the socket in the run directory by which the proxy is told of pods.
	ZDSSocket = "zds.sock"
	// PodsSocket is the name of the socket in the run directory by which capture is told of pods.
	PodsSocket = "pods.sock"

	stateName = "pods"
	lockName  = "capture.lock"

	defaultRetry  = 5 * time.Second
	defaultVerify = 30 * time.Second
	defaultLinger = 300 * time.Millisecond
	parallel      = 8 // pods that are worked on at a time
)

// Config configures a Manager.
type Config struct {
	// RunDir is where the sockets and the state are. It must live as long as the pins. Mandatory.
	RunDir string
	// Kernel does the work on the node. Mandatory.
	Kernel Kernel
	// Setup is what proxies are told of the node. Its descriptor stays the caller's.
	Setup zds.Setup
	// Policy says which pods are never captured.
	Policy Policy
	// Retry is the pause between attempts to capture a pending pod, to notice that a namespace is gone and to clean up
	// behind pods that left the mesh. 0 means 5 s.
	Retry time.Duration
	// Verify is the pause between checks of every pod's redirection. 0 means 30 s.
	Verify time.Duration
	// Linger is how long the listeners of a pod that leaves the mesh stay when its redirection has ended: more than packets take to
	// a client and back. Whoever connects takes itself for connected that much before the connection is in a listener's queue; a
	// listener that closes in between forgets it without a word, and what the client then sends is answered with a reset. 0 means
	// 300 ms.
	Linger time.Duration
	// Cluster knows the pods that a CNI plugin asks for. nil refuses such requests.
	Cluster Cluster
	// Late is how many pods ran before they were captured, for the metrics. nil for no such metric.
	Late func() uint64
	// Probes says how the kubelet's probes of pods are recognised now, for the metrics. nil for no such metric.
	Probes func() string
	// ProxyUID is the user that proxies run as. The zero value is root.
	ProxyUID uint32
	// Logger, nil for none.
	Logger *slog.Logger
}

// Cluster knows a pod that is being started, of which a CNI plugin knows only the name.
type Cluster interface {
	// Resolve describes the pod; it may block until the cluster's word has arrived.
	Resolve(ctx context.Context, s podsock.Sandbox) (podsock.Pod, error)
	// Admitted is called when the pod is captured, or left alone. It does not block.
	Admitted(p podsock.Pod)
}

// Manager captures the pods of a node. It is safe for concurrent use.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	zds   *zds.Server
	store *store
	kick  chan struct{} // asks for a round of retries now

	started, stopped, repaired atomic.Uint64
	waits                      waits
	leaving                    atomic.Bool
	open                       atomic.Bool // connections from outside reach pods past the proxy

	mu   sync.Mutex
	pods map[string]*pod // guarded by mu
}

// pod is a pod that a source told of.
type pod struct {
	op sync.Mutex // held over whole operations, one at a time; taken before Manager.mu

	// written with op and Manager.mu held, so either is enough to read
	spec     podsock.Pod
	netns    zds.FileID // of the namespace that something was done to
	dir      zds.FileID // of the directory of spec.Netns then
	enrolled bool       // it is to be captured
	decision Decision
	removed  bool // no longer in Manager.pods

	// guarded by Manager.mu
	files   zds.Files // open while captured; without listeners while they are missing or given up
	missing bool      // the listeners are with a proxy, which is to return them
	state   string
	err     error
}

// New returns a Manager without pods; Run starts it.
func New(cfg Config) (*Manager, error) {
	if cfg.Retry == 0 {
		cfg.Retry = defaultRetry
	}
	if cfg.Linger == 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.Verify == 0 {
		cfg.Verify = defaultVerify
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, pods: map[string]*pod{}, kick: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if m.store, err = openStore(filepath.Join(cfg.RunDir, stateName)); err != nil {
		return nil, err
	}
	m.zds = zds.NewServer(zds.ServerConfig{
		Path: filepath.Join(cfg.RunDir, ZDSSocket), Source: m, Setup: cfg.Setup, UID: cfg.ProxyUID,
		Logger: m.log,
	})
	return m, nil
}

// Run takes over what a predecessor left, opens the sockets and works until ctx is done; then it returns nil. Pods stay
// captured. The caller has the Lock.
func (m *Manager) Run(ctx context.Context) error {
	m.recover(ctx)
	defer m.closeFiles()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.zds.Run(ctx) })
	g.Go(func() error { return m.serveSocket(ctx, filepath.Join(m.cfg.RunDir, PodsSocket)) })
	g.Go(func() error { m.rounds(ctx); return nil })
	return g.Wait()
}

// Proxies returns how many proxies are connected.
func (m *Manager) Proxies() int { return m.zds.Proxies() }

// Open lets connections from outside reach the pods past the proxy, and so past the mesh's policies, or ends that again. Those
// in HBONE go on to the proxy. It is for the end of a mesh: pods that have left it already must reach those that have not.
// Open blocks until all pods are so; pods that come later are too. The error names a pod that is not.
func (m *Manager) Open(ctx context.Context, open bool) error {
	m.open.Store(open)
	var mu sync.Mutex
	var errs []error
	m.each(ctx, func(_ context.Context, p *pod) error {
		if !p.enrolled || !m.filesOf(p).HasListeners() {
			return nil // it is attached so when it is captured
		}
		err := m.attach(p, m.filesOf(p))
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("redirect pod %s/%s: %w", p.spec.Namespace, p.spec.Name, err))
		}
		return err
	})
	return errors.Join(append(errs, ctx.Err())...)
}

// Cut ends the connections of pods that have left the mesh, by the proxies that carry them: they say so to both ends, which
// they could not when the routes are gone. It blocks until the proxies have answered.
func (m *Manager) Cut(ctx context.Context) {
	m.each(ctx, func(ctx context.Context, p *pod) error {
		if m.stateOf(p) != stateDraining {
			return nil
		}
		return m.zds.Del(ctx, p.spec.UID, false)
	})
	m.round(ctx)
}

// Leave says that the mesh leaves the node: from now on Set lets no pod in, and lets out each one that it is told of.
func (m *Manager) Leave() { m.leaving.Store(true) }

func (m *Manager) decide(p *podsock.Pod) Decision {
	if m.leaving.Load() {
		return Decision{Reason: "the mesh leaves the node"}
	}
	return m.cfg.Policy.Decide(p)
}

// Set is told of a pod, new or changed, and captures it, leaves it alone, or lets it out of the mesh. It blocks until
// that is done: a captured pod has its redirection in place and the newest proxy, if one is connected, serves it. On
// error the pod is pending and tried again; it is never left open where it was captured before. A namespace or addresses
// that are not given are the known ones.
func (m *Manager) Set(ctx context.Context, spec *podsock.Pod) (podsock.Result, error) {
	if !validUID(spec.UID) {
		return podsock.Result{}, refuse("pod uid %q is not 1 to %d printable characters", spec.UID, maxUID)
	}
	p := m.take(spec.UID)
	defer p.op.Unlock()
	d := m.decide(spec)
	m.mu.Lock()
	old, problem := p.spec, p.decision.Problem
	p.spec, p.decision = *spec, d
	if p.spec.Netns == "" {
		p.spec.Netns = old.Netns
	}
	if len(p.spec.Addresses) == 0 {
		p.spec.Addresses = old.Addresses
	}
	m.mu.Unlock()
	if d.Problem != "" && d.Problem != problem {
		m.log.Warn("labels or annotations of pod are wrong", "pod", spec.Namespace+"/"+spec.Name, "uid", spec.UID, "problem", d.Problem)
	}
	if d.Enrol {
		err := m.enrol(ctx, p, inUseWait)
		m.note(p, err)
		return podsock.Result{Result: podsock.Captured, Problem: d.Problem}, err
	}
	return podsock.Result{Result: podsock.Skipped, Reason: d.Reason, Problem: d.Problem}, m.leave(ctx, p)
}

// Remove is told that a pod is gone. It blocks until nothing of it remains here and the proxies know. Unknown pods are no
// error.
func (m *Manager) Remove(ctx context.Context, uid string) error {
	return m.remove(ctx, uid, func(podsock.Pod) bool { return true })
}

// remove is Remove if the pod is still the one that is meant.
func (m *Manager) remove(ctx context.Context, uid string, meant func(podsock.Pod) bool) error {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	p.op.Lock()
	defer p.op.Unlock()
	if p.removed || !meant(p.spec) {
		return nil
	}
	if err := m.discard(ctx, p); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.removed = true
	delete(m.pods, uid)
	return nil
}

// SetSandbox is Set for a pod that a CNI plugin is starting. How long the plugin has waited is measured.
func (m *Manager) SetSandbox(ctx context.Context, s podsock.Sandbox) (podsock.Result, error) {
	if m.cfg.Cluster == nil {
		return podsock.Result{}, refuse("this capture is told of pods by others and cannot look up pod %s/%s itself", s.Namespace, s.Name)
	}
	if s.Begun.IsZero() {
		s.Begun = time.Now()
	}
	p, err := m.cfg.Cluster.Resolve(ctx, s)
	if err != nil {
		return podsock.Result{}, fmt.Errorf("look up pod %s/%s: %w", s.Namespace, s.Name, err)
	}
	res, err := m.Set(ctx, &p)
	if err == nil {
		m.waits.observe(time.Since(s.Begun), res.Result)
		m.cfg.Cluster.Admitted(p)
	}
	return res, err
}

// RemoveSandbox is Remove for a pod whose sandbox is gone, unless it has another one by now.
func (m *Manager) RemoveSandbox(ctx context.Context, s podsock.Sandbox) error {
	meant := func(p podsock.Pod) bool { return p.Namespace == s.Namespace && p.Name == s.Name && p.Netns == s.Netns }
	m.mu.Lock()
	uid := ""
	for _, p := range m.pods {
		if meant(p.spec) {
			uid = p.spec.UID
		}
	}
	m.mu.Unlock()
	return m.remove(ctx, uid, meant)
}

// List returns all pods in the order of their UIDs.
func (m *Manager) List() []podsock.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]podsock.State, 0, len(m.pods))
	for uid, p := range m.pods {
		s := podsock.State{
			UID: uid, Namespace: p.spec.Namespace, Name: p.spec.Name, Netns: p.spec.Netns, Addresses: p.spec.Addresses,
			State: p.state, Reason: p.decision.Reason, Problem: p.decision.Problem,
		}
		if p.err != nil {
			s.Error = p.err.Error()
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b podsock.State) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// take returns the pod with op held, new if it was not known.
func (m *Manager) take(uid string) *pod {
	for {
		m.mu.Lock()
		p := m.pods[uid]
		if p == nil {
			p = &pod{state: StateSkipped, spec: podsock.Pod{UID: uid}}
			m.pods[uid] = p
		}
		m.mu.Unlock()
		p.op.Lock()
		if !p.removed {
			return p
		}
		p.op.Unlock()
	}
}

func (m *Manager) stateOf(p *pod) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.state
}

// filesOf returns the descriptors, which stay the pod's: they are only closed with p.op held, as it must be here.
func (m *Manager) filesOf(p *pod) zds.Files {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.files
}

// note writes the outcome of an enrolment down. p.op is held.
func (m *Manager) note(p *pod, err error) {
	m.mu.Lock()
	old, oldErr, missing := p.state, p.err, p.missing
	p.state, p.err = stateCaptured, err
	if err != nil {
		p.state = statePending
	}
	m.mu.Unlock()
	log := m.log.With("pod", p.spec.Namespace+"/"+p.spec.Name, "uid", p.spec.UID)
	switch {
	case missing && errors.Is(err, ErrInUse):
		log.Info("pod waits for the proxy to return its listeners")
	case err != nil && (oldErr == nil || oldErr.Error() != err.Error()):
		log.Warn("pod not captured", "err", err)
	case err == nil && old != stateCaptured:
		m.started.Add(1)
		log.Info("pod captured")
	}
}

// closeFiles closes all descriptors at the end. Pins stay.
func (m *Manager) closeFiles() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		p.files.Close()
	}
}

// refusal is an error that the same request will meet again.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

func isRefusal(err error) bool {
	var r refusal
	return errors.As(err, &r)
}
