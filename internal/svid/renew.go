package svid

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Run obtains and renews certificates until ctx ends, and returns nil after every call has ended. It blocks. It must
// be called once.
func (m *Manager) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if d, ok := m.start(ctx, &calls); ok {
			timer.Reset(d)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// start begins every call that may begin now and says how long until the next one's time.
func (m *Manager) start(ctx context.Context, calls *sync.WaitGroup) (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	limit := m.cfg.maxInFlight()
	for m.inFlight < limit {
		// The last call is kept for those who wait: a slow CA must not let warm-up stand in their way.
		anyPriority := limit == 1 || m.inFlight < limit-1
		e := m.queue.next(now, anyPriority)
		if e == nil {
			break
		}
		m.inFlight++
		e.inFlight = true
		callCtx, cancel := context.WithTimeout(ctx, m.cfg.callTimeout())
		e.cancel = cancel
		calls.Go(func() { m.call(callCtx, e) })
	}
	return m.queue.wait(now)
}

// enqueue plans a call for e. Needs mu.
func (m *Manager) enqueue(e *entry, p priority, due time.Time) {
	m.seq++
	e.prio, e.seq, e.due = p, m.seq, due
	m.queue.add(e, time.Now())
	m.poke()
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// call asks the CA once for e and publishes the result.
func (m *Manager) call(ctx context.Context, e *entry) {
	s, err := m.sign(ctx, e)
	m.mu.Lock()
	defer m.mu.Unlock()
	e.cancel()
	e.cancel, e.inFlight = nil, false
	m.inFlight--
	m.poke()
	switch {
	case e.gone: // discarded (C8)
	case err != nil:
		m.failed(e, err)
	default:
		m.succeeded(e, s)
	}
	e.release()
}

// sign makes a key, has it signed, and checks the answer.
func (m *Manager) sign(ctx context.Context, e *entry) (*SVID, error) {
	key, csr, err := newCSR(e.id)
	if err != nil {
		return nil, err
	}
	chain, err := m.cfg.CA.Sign(ctx, csr, e.id, m.cfg.ttl())
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", e.id, err)
	}
	s, err := New(e.id, key, chain, time.Now())
	if err != nil {
		return nil, fmt.Errorf("use certificate of %s: %w", e.id, err)
	}
	return s, nil
}

// succeeded publishes s and plans its renewal. Needs mu.
func (m *Manager) succeeded(e *entry, s *SVID) {
	now := time.Now()
	e.lastErr, e.backoff, e.expired = nil, 0, false
	roots, changed := m.bundles.merge(s, now)
	s = s.withRoots(roots)
	e.cur.Store(&outcome{svid: s})
	// Half of what is left, not of notBefore to notAfter: a CA dates certificates back (C5), and then a short one
	// would be renewed at once. The jitter keeps a fleet that started together from renewing together (B12).
	left := s.NotAfter.Sub(now)
	e.renewAt = now.Add(max(m.cfg.spread(left/2, 0.05), 100*time.Millisecond))
	m.enqueue(e, background, e.renewAt)
	m.log().Info("certificate issued", slog.String("id", e.id.String()), slog.Time("notAfter", s.NotAfter),
		slog.String("serial", s.Leaf.SerialNumber.Text(16)), slog.Time("renewAt", e.renewAt))
	if changed {
		m.shareRoots(e.id.TrustDomain(), e)
	}
}

// shareRoots gives the SVIDs of other identities of td the roots that came with a new one, so that a rotation
// reaches all of a node at the first renewal and not at everyone's own (C11, B12). Needs mu.
func (m *Manager) shareRoots(td string, except *entry) {
	roots := m.bundles.roots(td)
	m.log().Info("trust bundle changed", slog.String("trustDomain", td), slog.Int("roots", len(roots)))
	m.entries.Range(func(_, v any) bool {
		e := v.(*entry)
		if o := e.cur.Load(); e != except && o != nil && o.svid != nil && e.id.TrustDomain() == td {
			e.cur.Store(&outcome{svid: o.svid.withRoots(roots), err: o.err})
		}
		return true
	})
}

// failed keeps a valid certificate, or publishes err, and plans the next try (C6). Needs mu.
func (m *Manager) failed(e *entry, err error) {
	now := time.Now()
	e.lastErr = err
	e.backoff = min(max(2*e.backoff, m.cfg.minBackoff()), m.cfg.maxBackoff())
	wait := m.cfg.spread(e.backoff, 0.2)
	attrs := []any{slog.String("id", e.id.String()), slog.Any("err", err)}
	o := e.cur.Load()
	switch {
	case o == nil || o.svid == nil:
		e.cur.Store(&outcome{err: err})
		m.log().Warn("no certificate", append(attrs, slog.Duration("retryIn", wait))...)
	case now.Before(o.svid.NotAfter):
		e.cur.Store(&outcome{svid: o.svid, err: err})
		// A try at the very end, so that the expiry is noticed and logged when it happens.
		wait = min(wait, o.svid.NotAfter.Sub(now)+time.Millisecond)
		m.log().Warn("certificate not renewed, the old one stays", append(attrs,
			slog.Time("notAfter", o.svid.NotAfter), slog.Duration("retryIn", wait))...)
	default:
		e.cur.Store(&outcome{svid: o.svid, err: err})
		if !e.expired {
			e.expired = true
			m.log().Error("certificate expired, connections of this identity are refused", append(attrs,
				slog.Time("notAfter", o.svid.NotAfter), slog.Duration("retryIn", wait))...)
		}
	}
	m.enqueue(e, background, now.Add(wait))
}

func (m *Manager) log() *slog.Logger { return m.cfg.logger() }
