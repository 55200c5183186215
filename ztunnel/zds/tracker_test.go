package zds

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRunner records calls.
type fakeRunner struct {
	calls []string
	err   error
}

func (r *fakeRunner) StartPod(_ context.Context, w *Workload) error {
	r.calls = append(r.calls, "start "+w.UID)
	return r.err
}

func (r *fakeRunner) StopPod(uid string, drain bool) {
	how := "cut "
	if drain {
		how = "drain "
	}
	r.calls = append(r.calls, how+uid)
}

func (r *fakeRunner) take() []string {
	c := r.calls
	r.calls = nil
	return c
}

// trackerTest drives a Tracker as a Client would.
type trackerTest struct {
	*Tracker
	t *testing.T
	r *fakeRunner
}

func newTrackerTest(t *testing.T) *trackerTest {
	r := &fakeRunner{}
	tt := &trackerTest{t: t, r: r, Tracker: NewTracker(TrackerConfig{Runner: r, Setup: func(s Setup) error { return s.Exempt.Close() }})}
	tt.Connected()
	return tt
}

func (tt *trackerTest) do(r Request) error {
	tt.t.Helper()
	f, err := tt.Handle(tt.t.Context(), r)
	f.Close()
	return err
}

func (tt *trackerTest) add(uid string, f Files) error {
	tt.t.Helper()
	d, err := f.Dup()
	if err != nil {
		tt.t.Fatal(err)
	}
	return tt.do(&Add{Workload{UID: uid, Files: d}})
}

func (tt *trackerTest) ok(err error) {
	tt.t.Helper()
	if err != nil {
		tt.t.Fatal(err)
	}
}

func (tt *trackerTest) want(calls ...string) {
	tt.t.Helper()
	tt.mu.Lock() // which the Tracker holds when it calls the Runner
	defer tt.mu.Unlock()
	if got := tt.r.take(); !slices.Equal(got, calls) {
		tt.t.Fatalf("got %q, want %q", got, calls)
	}
}

func TestAddStartsAPodOnce(t *testing.T) {
	tt := newTrackerTest(t)
	f := tempFiles(t)
	before := openFDs(t)
	tt.ok(tt.add("a", f))
	tt.ok(tt.do(&SnapshotSent{}))
	tt.ok(tt.add("a", f)) // Z5: same namespace
	tt.want("start a")
	if got := tt.State(); got != (State{Connected: true, Synced: true, Active: 1, Started: 1}) {
		t.Errorf("got %+v", got)
	}
	tt.StopAll(true)
	tt.want("drain a")
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors leaked", after-before)
	}
}

func TestAnotherNamespaceReplacesThePodAndAnotherListenerDrainsIt(t *testing.T) {
	tt := newTrackerTest(t)
	f := tempFiles(t)
	tt.ok(tt.add("a", f))
	tt.ok(tt.do(&SnapshotSent{}))
	g := tempFiles(t)
	tt.ok(tt.add("a", g))
	tt.want("start a", "cut a", "start a")
	g.HBONE = tempFile(t)
	tt.ok(tt.add("a", g))
	tt.want("drain a", "start a")
	d, _ := g.Dup()
	tt.ok(tt.do(&Add{Workload{UID: "a", Files: d, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}))
	tt.want("drain a", "start a")
	tt.StopAll(false)
}

func TestUnderIstioCNITheNamespaceAloneCounts(t *testing.T) {
	tt := newTrackerTest(t)
	f := Files{NetNS: tempFile(t)}
	tt.ok(tt.add("a", f))
	tt.ok(tt.add("a", f))
	tt.want("start a")
	tt.StopAll(false)
}

func TestTheSnapshotStopsWhatItDoesNotName(t *testing.T) {
	tt := newTrackerTest(t)
	for _, uid := range []string{"kept", "named", "gone", "deleted"} {
		tt.ok(tt.add(uid, tempFiles(t)))
	}
	tt.ok(tt.do(&SnapshotSent{}))
	tt.r.take()
	tt.Disconnected(nil)
	if s := tt.State(); s.Connected || s.Synced || s.Active != 4 {
		t.Errorf("after the end of the connection (Z7): %+v", s)
	}
	tt.Connected()
	tt.ok(tt.do(&Keep{UID: "kept"}))
	tt.ok(tt.add("deleted", tt.pods["deleted"].w.Files))
	tt.ok(tt.do(&Del{UID: "deleted"})) // Z6: only takes it off the list
	tt.ok(tt.add("named", tt.pods["named"].w.Files))
	tt.want()
	tt.ok(tt.do(&SnapshotSent{}))
	got := tt.r.take()
	slices.Sort(got)
	if !slices.Equal(got, []string{"drain deleted", "drain gone"}) {
		t.Errorf("got %q", got)
	}
	tt.StopAll(false)
}

func TestDelStopsAtOnceOrDrains(t *testing.T) {
	tt := newTrackerTest(t)
	tt.ok(tt.add("a", tempFiles(t)))
	tt.ok(tt.add("b", tempFiles(t)))
	tt.ok(tt.do(&SnapshotSent{}))
	tt.ok(tt.do(&Del{UID: "a"}))
	tt.ok(tt.do(&Del{UID: "b", Drain: true}))
	tt.ok(tt.do(&Del{UID: "unknown", Drain: true}))
	tt.want("start a", "start b", "cut a", "drain b")
	tt.ok(tt.do(&Del{UID: "b"})) // what goes on of it
	tt.want("cut b")
	tt.ok(tt.add("a", tempFiles(t)))
	tt.want("start a")
	tt.StopAll(false)
}

func TestOrderIsPartOfTheProtocol(t *testing.T) {
	tt := newTrackerTest(t)
	tt.ok(tt.do(&SnapshotSent{}))
	for _, r := range []Request{&SnapshotSent{}, &Keep{UID: "a"}} { // Z4
		if err := tt.do(r); !errors.Is(err, ErrProtocol) {
			t.Errorf("%T after the snapshot: %v", r, err)
		}
	}
}

func TestAPodThatDoesNotStartIsPendingAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tt := newTrackerTest(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tt.Run(ctx) }()
		failure := errors.New("port taken")
		tt.r.err = failure
		if err := tt.add("a", tempFiles(t)); !errors.Is(err, failure) || errors.Is(err, ErrProtocol) {
			t.Errorf("got %v", err)
		}
		tt.ok(tt.do(&SnapshotSent{}))
		if s := tt.State(); s.Pending != 1 || s.Active != 0 || !s.Synced {
			t.Errorf("got %+v", s)
		}
		if p := tt.Pending(); !errors.Is(p["a"], failure) {
			t.Errorf("got %v", p)
		}
		tt.want("start a")
		time.Sleep(DefaultRetry + time.Second)
		synctest.Wait()
		tt.want("start a")
		tt.mu.Lock()
		tt.r.err = nil
		tt.mu.Unlock()
		time.Sleep(DefaultRetry)
		synctest.Wait()
		tt.want("start a")
		if s := tt.State(); s.Pending != 0 || s.Active != 1 {
			t.Errorf("got %+v", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		tt.StopAll(false)
	})
}

func TestAPendingPodIsForgottenByDelAndByTheEndOfTheConnection(t *testing.T) {
	tt := newTrackerTest(t)
	tt.r.err = errors.New("no")
	_ = tt.add("a", tempFiles(t))
	tt.ok(tt.do(&Del{UID: "a"})) // before the snapshot (Z6)
	_ = tt.add("b", tempFiles(t))
	tt.Disconnected(nil) // Z7
	tt.want("start a", "start b")
	if s := tt.State(); s.Pending != 0 || s.Stopped != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestListenersAreReturned(t *testing.T) {
	tt := newTrackerTest(t)
	f := tempFiles(t)
	tt.ok(tt.add("a", f))
	got, err := tt.Handle(t.Context(), &Return{UID: "a"})
	if err != nil || !sameListeners(got, f) || !sameFile(got.NetNS, f.NetNS) {
		t.Errorf("got %v, %v", got, err)
	}
	got.Close()
	if _, err := tt.Handle(t.Context(), &Return{UID: "b"}); err == nil || errors.Is(err, ErrProtocol) {
		t.Errorf("unknown pod: %v", err)
	}
	tt.StopAll(false)
}
