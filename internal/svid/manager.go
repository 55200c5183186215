package svid

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Manager holds the SVIDs of one node. All its methods may be called from any goroutine; only Run starts work.
type Manager struct {
	cfg     Config
	entries sync.Map // spiffe.ID -> *entry; written under mu, read without
	wake    chan struct{}

	mu       sync.Mutex
	queue    queue   // entries that wait for their time or for a free call; guarded by mu
	inFlight int     // calls of the CA under way; guarded by mu
	seq      uint64  // order of requests; guarded by mu
	bundles  bundles // roots by trust domain; guarded by mu
}

// entry is one identity. cur is atomic, the rest is guarded by Manager.mu.
type entry struct {
	id  spiffe.ID
	cur atomic.Pointer[outcome]

	index    int       // in the queue, -1 = not there
	due      time.Time // when the next call may start
	prio     priority
	seq      uint64
	renewAt  time.Time
	backoff  time.Duration
	lastErr  error // of the last call, nil after a success
	expired  bool  // the expiry was logged
	inFlight bool
	gone     bool               // forgotten
	cancel   context.CancelFunc // of the call under way
	done     chan struct{}      // closed when the call that somebody waits for has ended; nil = nobody waits
}

// outcome is what callers see. It is immutable.
type outcome struct {
	svid *SVID
	err  error // why there is no svid, or why the last renewal failed
}

// NewManager makes a Manager that does nothing until Run.
func NewManager(cfg Config) *Manager {
	return &Manager{cfg: cfg, wake: make(chan struct{}, 1), bundles: bundles{}}
}

// Current is the SVID of id now, without blocking or locking. Errors: ErrPending when no answer came yet or id was
// never asked for (Fetch and Want ask), ErrExpired around the cause of the failed renewals, or the CA's error.
func (m *Manager) Current(id spiffe.ID) (*SVID, error) {
	e, ok := m.entries.Load(id)
	if !ok {
		return nil, ErrPending
	}
	return e.(*entry).current()
}

func (e *entry) current() (*SVID, error) {
	o := e.cur.Load()
	switch {
	case o == nil:
		return nil, ErrPending
	case o.svid == nil:
		return nil, o.err
	case time.Now().After(o.svid.NotAfter):
		return nil, expiredError(o)
	}
	return o.svid, nil
}

func expiredError(o *outcome) error {
	if o.err == nil {
		return fmt.Errorf("%w: %s ended at %s", ErrExpired, o.svid.ID, o.svid.NotAfter.Format(time.RFC3339))
	}
	return fmt.Errorf("%w: %s ended at %s: renew: %w", ErrExpired, o.svid.ID, o.svid.NotAfter.Format(time.RFC3339), o.err)
}

// Fetch is Current, but waits for the first answer, with priority over all that nobody waits for. All who wait for
// one identity get the result of one call. After a failure the error is returned at once until a later call, which
// the Manager makes by itself, has succeeded (C6). It returns ctx's error when ctx ends first.
func (m *Manager) Fetch(ctx context.Context, id spiffe.ID) (*SVID, error) {
	if s, err := m.Current(id); err != ErrPending { //nolint:errorlint // Current returns it unwrapped
		return s, err
	}
	e, done := m.request(id, realTime)
	select {
	case <-done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for certificate of %s: %w", id, ctx.Err())
	}
	s, err := e.current()
	if err == ErrPending { //nolint:errorlint // as above
		return nil, ErrForgotten
	}
	return s, err
}

// Want has the certificate of id obtained and kept fresh, without waiting: the warm-up of C7.
func (m *Manager) Want(id spiffe.ID) { m.request(id, warmup) }

// request makes sure that an answer for id comes, and returns a channel that is closed when it has.
func (m *Manager) request(id spiffe.ID, p priority) (*entry, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var e *entry
	if v, ok := m.entries.Load(id); ok {
		e = v.(*entry)
	} else {
		e = &entry{id: id, index: -1, due: time.Now()}
		m.entries.Store(id, e)
	}
	if e.cur.Load() != nil {
		return e, closed
	}
	if e.done == nil {
		e.done = make(chan struct{})
	}
	if !e.inFlight && (e.index < 0 || p > e.prio) {
		m.enqueue(e, p, e.due)
	}
	return e, e.done
}

// Forget stops renewing id, drops its certificate and discards a call under way; who waits gets ErrForgotten (C8).
func (m *Manager) Forget(id spiffe.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.entries.LoadAndDelete(id)
	if !ok {
		return
	}
	e := v.(*entry)
	e.gone = true
	m.queue.remove(e)
	if e.cancel != nil {
		e.cancel()
	}
	e.release()
}

// release lets those go who wait for e. Needs Manager.mu.
func (e *entry) release() {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// closed is a channel that was closed.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// State describes one identity for dumps and metrics.
type State struct {
	ID spiffe.ID
	// Status is "Available", "Initializing" or "Unavailable", as in Istio's config dump.
	Status string
	// SVID is the certificate in use, nil when there is none. An expired one is shown with status Unavailable.
	SVID *SVID
	// Err is why the last call failed; nil after a success.
	Err error
	// NextCall is when the CA is asked next; zero while it is being asked.
	NextCall time.Time
}

// Describe is the state as dumps show it: its status, with the reason if it is not available, the certificate with its
// chain, and the roots.
func (s *State) Describe() (status string, chain, roots []*x509.Certificate) {
	status = s.Status
	if s.Err != nil && s.Status == "Unavailable" {
		status += ": " + s.Err.Error()
	}
	if s.SVID == nil {
		return status, nil, nil
	}
	for _, der := range s.SVID.Chain() {
		if c, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, c)
		}
	}
	return status, chain, s.SVID.RootCerts()
}

// Snapshot describes all identities, ordered by ID.
func (m *Manager) Snapshot() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []State
	m.entries.Range(func(_, v any) bool {
		e := v.(*entry)
		st := State{ID: e.id, Status: "Initializing", Err: e.lastErr}
		if e.index >= 0 {
			st.NextCall = e.due
		}
		if o := e.cur.Load(); o != nil {
			st.SVID = o.svid
			st.Status = "Available"
			if _, err := e.current(); err != nil {
				st.Status = "Unavailable"
			}
		}
		out = append(out, st)
		return true
	})
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return out
}
