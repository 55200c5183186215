package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// recover takes over what an earlier process left. A pod that cannot be taken over is pending; its redirection stays.
func (m *Manager) recover(ctx context.Context) {
	records, err := m.store.load()
	if err != nil {
		// The pins of such a pod stay and refuse: a source names it again.
		m.log.Error("state not read", "err", err)
	}
	known := map[string]bool{}
	for _, r := range records {
		known[r.Pod.UID] = true
		m.recoverPod(r)
	}
	for _, uid := range m.cfg.Kernel.Pinned() {
		if !known[uid] {
			m.log.Warn("redirected pod is not known; it stays as it is until a source names it", "uid", uid)
		}
	}
	m.log.Info("state recovered", "pods", len(records))
	m.round(ctx)
}

// recoverPod lists a pod as it was. Its listeners count as missing; the first round tries to listen anew.
func (m *Manager) recoverPod(r *record) {
	p := m.take(r.Pod.UID)
	defer p.op.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	p.spec, p.netns, p.dir = r.Pod, r.netns(), r.dir()
	p.decision = m.cfg.Policy.Decide(&r.Pod)
	if r.Draining {
		p.state = stateDraining
		return
	}
	p.enrolled, p.missing, p.state = true, true, statePending
}

// rounds works on the pods until ctx is done.
func (m *Manager) rounds(ctx context.Context) {
	retry := time.NewTicker(m.cfg.Retry)
	defer retry.Stop()
	verify := time.NewTicker(m.cfg.Verify)
	defer verify.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
			m.round(ctx)
		case <-retry.C:
			m.round(ctx)
		case <-verify.C:
			m.each(ctx, m.verify)
		}
	}
}

// round removes pods that are gone, tries pending ones and cleans up behind those that left.
func (m *Manager) round(ctx context.Context) {
	m.each(ctx, func(ctx context.Context, p *pod) error {
		state := m.stateOf(p)
		switch {
		case state != StateSkipped && gone(p.spec.Netns, p.netns, p.dir):
			if err := m.discard(ctx, p); err != nil {
				return err
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			p.removed = true
			delete(m.pods, p.spec.UID)
		case state == statePending:
			m.note(p, m.enrol(ctx, p, 0))
		case state == stateDraining:
			return m.swept(ctx, p)
		case state == stateCaptured && p.spec.Annotations[annotationReroute] != "":
			return m.verify(ctx, p) // its interfaces come later than the pod
		}
		return nil
	})
}

// verify repairs what others broke: flushed rules, reset sysctls, pins removed by hand.
func (m *Manager) verify(_ context.Context, p *pod) error {
	if m.stateOf(p) != stateCaptured {
		return nil
	}
	problems := m.cfg.Kernel.Verify(p.spec.UID)
	if len(problems) == 0 {
		return nil
	}
	m.log.Warn("redirection was damaged", "uid", p.spec.UID, "problems", problems)
	m.repaired.Add(1)
	if err := m.attach(p, m.filesOf(p)); err != nil {
		err = fmt.Errorf("repair redirection: %w", err)
		m.note(p, err)
		return err
	}
	if left := m.cfg.Kernel.Verify(p.spec.UID); len(left) > 0 {
		return fmt.Errorf("repair redirection: still %q", left)
	}
	return nil
}

// each calls f for every pod with op held, for several at a time: a slow one does not hold up the others (B14).
func (m *Manager) each(ctx context.Context, f func(ctx context.Context, p *pod) error) {
	m.mu.Lock()
	all := make([]*pod, 0, len(m.pods))
	for _, p := range m.pods {
		all = append(all, p)
	}
	m.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, p := range all {
		g.Go(func() error {
			p.op.Lock()
			defer p.op.Unlock()
			if p.removed || ctx.Err() != nil {
				return nil
			}
			if err := f(ctx, p); err != nil && ctx.Err() == nil {
				m.log.Warn("work on pod", "uid", p.spec.UID, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // f's errors are logged
}

// Forget makes sure that no capture runs in runDir, until the function that it returns was called, which removes the state
// there. That is for the end of a mesh: redirection must be removed in between.
func Forget(runDir string) (func() error, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := os.Stat(runDir); errors.Is(err, os.ErrNotExist) {
		return func() error { return nil }, nil
	}
	unlock, err := Lock(ctx, slog.New(slog.DiscardHandler), runDir)
	if err != nil {
		return nil, fmt.Errorf("lock %q: capture runs: %w", runDir, err)
	}
	return func() error {
		defer unlock()
		var errs []error
		// Not the lock: a capture may be waiting for this very file.
		for _, name := range []string{stateName, ZDSSocket, PodsSocket} {
			errs = append(errs, os.RemoveAll(filepath.Join(runDir, name)))
		}
		return errors.Join(errs...)
	}, nil
}

// Lock makes sure that there is one capture on a node: it waits until another one, which uses runDir, ends. Whoever has the
// lock may open the node's redirection and run a Manager. It ends with the process, or with unlock.
func Lock(ctx context.Context, log *slog.Logger, runDir string) (unlock func(), err error) {
	path := filepath.Join(runDir, lockName)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock %q: %w", path, err)
	}
	f := zds.NewFile(fd)
	for first := true; ; first = false {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		if first && ctx.Err() == nil {
			log.Info("wait for another capture to end", "lock", path)
		}
		if !sleep(ctx, 100*time.Millisecond) {
			f.Close()
			return nil, ctx.Err()
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
