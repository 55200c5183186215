package svid_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
)

// managed runs test in a bubble with a running Manager whose jitter is off.
func managed(t *testing.T, change func(*svid.Config, *svidtest.CA), test func(t *testing.T, m *svid.Manager, ca *svidtest.CA)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := svidtest.NewCA(t, "cluster.local")
		cfg := svid.Config{CA: ca, Rand: func() float64 { return 0.5 }}
		if change != nil {
			change(&cfg, ca)
		}
		m := svid.NewManager(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		test(t, m, ca)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func fetch(t *testing.T, m *svid.Manager, id spiffe.ID) *svid.SVID {
	t.Helper()
	s, err := m.Fetch(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestManyWaitersShareOneCall(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		if _, err := m.Current(id); !errors.Is(err, svid.ErrPending) {
			t.Errorf("Current before any request: %v, want ErrPending", err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if s, err := m.Fetch(t.Context(), id); err != nil || s.ID != id {
					t.Errorf("Fetch: %v, %v", s, err)
				}
			})
		}
		wg.Wait()
		if n := len(ca.Calls()); n != 1 {
			t.Errorf("the CA was called %d times, want once", n)
		}
	})
}

func TestFailureReachesAllWaitersAndThoseAfterThem(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		ca.Fail(errors.New("out of ink"))
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := m.Fetch(t.Context(), id); err == nil || !strings.Contains(err.Error(), "out of ink") {
					t.Errorf("got %v, want the CA's error", err)
				}
			})
		}
		wg.Wait()
		start := time.Now()
		if _, err := m.Fetch(t.Context(), id); err == nil || time.Since(start) != 0 {
			t.Errorf("a later call got %v after %v, want the error at once (C6)", err, time.Since(start))
		}
		ca.Fail(nil)
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		fetch(t, m, id)
	})
}

func TestBackoffDoublesToItsLimit(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		ca.Fail(errors.New("out of ink"))
		m.Want(ca.ID("a", "b"))
		time.Sleep(time.Hour)
		// 1+2+4+...+128 = 255 s for 8 retries, then every 150 s.
		if got, want := len(ca.Calls()), 1+8+(3600-255)/150; got != want {
			t.Errorf("%d calls in an hour, want %d", got, want)
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		first := fetch(t, m, id)
		time.Sleep(12*time.Hour - time.Second)
		if now := fetch(t, m, id); now != first {
			t.Error("renewed before half of the lifetime")
		}
		time.Sleep(2 * time.Second)
		second := fetch(t, m, id)
		if second == first || second.Generation <= first.Generation || second.NotAfter != first.NotAfter.Add(12*time.Hour) {
			t.Errorf("got generation %d until %v after %d until %v", second.Generation, second.NotAfter, first.Generation, first.NotAfter)
		}
	})
}

func TestOldCertificateIsServedUntilItExpires(t *testing.T) {
	var buf bytes.Buffer
	log := func(c *svid.Config, _ *svidtest.CA) { c.Logger = slog.New(slog.NewTextHandler(&buf, nil)) }
	managed(t, log, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		s := fetch(t, m, id)
		ca.Fail(errors.New("out of ink"))
		time.Sleep(24*time.Hour - time.Second)
		if got, err := m.Current(id); got != s || err != nil {
			t.Fatalf("just before the expiry: %v, %v; want the old certificate (C12)", got, err)
		}
		if st := m.Snapshot(); len(st) != 1 || st[0].Status != "Available" || st[0].Err == nil {
			t.Errorf("snapshot %+v, want Available with the renewal's error", st)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		_, err := m.Current(id)
		if !errors.Is(err, svid.ErrExpired) || !strings.Contains(err.Error(), "out of ink") {
			t.Errorf("after the expiry: %v, want ErrExpired with the cause", err)
		}
		if _, err := m.Fetch(t.Context(), id); !errors.Is(err, svid.ErrExpired) {
			t.Errorf("Fetch after the expiry: %v, want ErrExpired", err)
		}
		if n := strings.Count(buf.String(), "certificate expired"); n != 1 || !strings.Contains(buf.String(), "out of ink") {
			t.Errorf("the log says %d times that the certificate expired, want once, with the cause", n)
		}
		ca.Fail(nil)
		time.Sleep(3 * time.Minute)
		if s, err := m.Current(id); err != nil || s.NotAfter.Before(time.Now()) {
			t.Errorf("after the CA came back: %v, %v", s, err)
		}
	})
}

func TestForgetStopsRenewal(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		fetch(t, m, id)
		m.Forget(id)
		m.Forget(id)
		if _, err := m.Current(id); !errors.Is(err, svid.ErrPending) {
			t.Errorf("Current after Forget: %v, want ErrPending", err)
		}
		time.Sleep(48 * time.Hour)
		if n := len(ca.Calls()); n != 1 {
			t.Errorf("%d calls, want no renewal (C8)", n)
		}
		fetch(t, m, id)
	})
}

// slowCA blocks each call until the test lets it go.
type slowCA struct {
	*svidtest.CA
	started chan spiffe.ID
	release chan struct{}
}

func newSlow(ca *svidtest.CA) *slowCA {
	return &slowCA{CA: ca, started: make(chan spiffe.ID, 100), release: make(chan struct{})}
}

func (s *slowCA) Sign(ctx context.Context, csr []byte, id spiffe.ID, ttl time.Duration) ([]string, error) {
	s.started <- id
	select {
	case <-s.release:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.CA.Sign(ctx, csr, id, ttl)
}

func TestForgetEndsACallUnderWay(t *testing.T) {
	var slow *slowCA
	managed(t, func(c *svid.Config, ca *svidtest.CA) { slow = newSlow(ca); c.CA = slow }, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		id := ca.ID("a", "b")
		got := make(chan error)
		go func() { _, err := m.Fetch(t.Context(), id); got <- err }()
		<-slow.started
		m.Forget(id)
		if err := <-got; !errors.Is(err, svid.ErrForgotten) {
			t.Errorf("the waiter got %v, want ErrForgotten", err)
		}
	})
}

func TestCallsAreBoundedAndWaitersGoFirst(t *testing.T) {
	var slow *slowCA
	managed(t, func(c *svid.Config, ca *svidtest.CA) { slow = newSlow(ca); c.CA = slow }, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		names := strings.Split("abcdefghijklmnopqrst", "")
		for _, n := range names {
			m.Want(ca.ID("warm", n))
		}
		synctest.Wait()
		if n := len(slow.started); n != 7 {
			t.Fatalf("%d warm-up calls at once, want 7: the eighth is for those who wait", n)
		}
		for range 7 {
			<-slow.started
		}
		for _, n := range []string{"x", "t"} { // t waits in the queue already and is raised
			go func() { _, _ = m.Fetch(t.Context(), ca.ID("warm", n)) }()
			synctest.Wait()
		}
		if id := <-slow.started; id != ca.ID("warm", "x") {
			t.Errorf("the kept call went to %v, want x", id)
		}
		synctest.Wait()
		if n := len(slow.started); n != 0 {
			t.Errorf("%d more calls started, want at most 8 at once (C7)", n)
		}
		slow.release <- struct{}{}
		if id := <-slow.started; id != ca.ID("warm", "t") {
			t.Errorf("next was %v, want t, which somebody waits for", id)
		}
		close(slow.release)
		time.Sleep(time.Second)
		if n := len(ca.Calls()); n != len(names)+1 {
			t.Errorf("%d calls, want %d", n, len(names)+1)
		}
	})
}

func TestHangingCAIsGivenUp(t *testing.T) {
	var slow *slowCA
	managed(t, func(c *svid.Config, ca *svidtest.CA) { slow = newSlow(ca); c.CA = slow }, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		start := time.Now()
		_, err := m.Fetch(t.Context(), ca.ID("a", "b"))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("got %v after %v, want DeadlineExceeded after 10s", err, time.Since(start))
		}
	})
}

// TestRootsOverlap is B12: old and new roots are accepted while SVIDs of both are in use, by all identities of the node.
func TestRootsOverlap(t *testing.T) {
	managed(t, nil, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
		a, b := ca.ID("a", "a"), ca.ID("b", "b")
		old := fetch(t, m, a)
		oldPeer := ca.Issue(ca.ID("peer", "old"))
		ca.Rotate(false)
		newPeer := ca.Issue(ca.ID("peer", "new"))
		fetch(t, m, b) // brings the new root to the node
		now := fetch(t, m, a)
		if now.Leaf != old.Leaf || now.Generation == old.Generation {
			t.Error("a's certificate should be the old one with new roots, as a new generation")
		}
		for _, peer := range []*svid.SVID{oldPeer, newPeer} {
			if _, err := peer.Leaf.Verify(verifyOptions(now)); err != nil {
				t.Errorf("peer %v is refused: %v", peer.ID, err)
			}
		}
		// After every SVID with the old root has expired the old root is gone.
		time.Sleep(50 * time.Hour)
		if n := strings.Count(string(fetch(t, m, a).RootPEM), "BEGIN"); n != 1 {
			t.Errorf("%d roots two days later, want 1", n)
		}
	})
}

// badCA answers with what its function makes of the good answer.
type badCA struct {
	*svidtest.CA
	change func([]string) []string
}

func (b badCA) Sign(ctx context.Context, csr []byte, id spiffe.ID, ttl time.Duration) ([]string, error) {
	chain, err := b.CA.Sign(ctx, csr, id, ttl)
	if err != nil {
		return nil, err
	}
	return b.change(chain), nil
}

func TestBadAnswersOfTheCAAreRefused(t *testing.T) {
	tests := []struct {
		name, err string
		change    func(ca *svidtest.CA, chain []string) []string
	}{
		{"nothing", "got 0 elements", func(*svidtest.CA, []string) []string { return nil }},
		{"no roots", "got 1 elements", func(_ *svidtest.CA, c []string) []string { return c[:1] }},
		{"no PEM", "no certificate", func(_ *svidtest.CA, c []string) []string { return []string{"x", c[1]} }},
		{"another identity", "want a certificate for", func(ca *svidtest.CA, c []string) []string {
			return []string{pemOf(ca.Issue(ca.ID("evil", "x"))), c[1]}
		}},
		{"another key", "not for the key", func(ca *svidtest.CA, c []string) []string {
			return []string{pemOf(ca.Issue(ca.ID("a", "b"))), c[1]}
		}},
		{"roots that do not fit", "unknown authority", func(ca *svidtest.CA, c []string) []string {
			return []string{c[0], ca.RootPEM()}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			managed(t, func(c *svid.Config, ca *svidtest.CA) {
				other := svidtest.NewCA(t, "cluster.local")
				from := ca
				if tt.name == "roots that do not fit" {
					from = other
				}
				c.CA = badCA{ca, func(chain []string) []string { return tt.change(from, chain) }}
			}, func(t *testing.T, m *svid.Manager, ca *svidtest.CA) {
				if _, err := m.Fetch(t.Context(), ca.ID("a", "b")); err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want an error with %q", err, tt.err)
				}
			})
		})
	}
}
