package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// notebook is a Cluster that notes what is written.
type notebook struct {
	leading chan bool

	mu       sync.Mutex
	roots    []string
	webhook  []string // roots that it was given
	problems int
	fail     error

	gateway.Writer // of which there is no need without Gateways
}

func (n *notebook) Lead(ctx context.Context, lead func(context.Context)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.leading:
		}
		leading, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); lead(leading) }()
		select {
		case <-ctx.Done():
		case <-n.leading:
		}
		stop()
		<-done
	}
}

func (n *notebook) PublishRoot(_ context.Context, _ *kube.Objects, root []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.roots = append(n.roots, string(root))
	return n.fail
}

func (n *notebook) Report(_ context.Context, problems []kube.Problem) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problems = len(problems)
	return nil
}

// written is what was written so far: roots and problems.
func (n *notebook) written() ([]string, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.roots), n.problems
}

// fails makes writing fail, or work again.
func (n *notebook) fails(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

func (n *notebook) PublishStatus(context.Context, []status.Status) error { return nil }

func (n *notebook) PublishWebhook(_ context.Context, name string, root []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.webhook = append(n.webhook, name+" "+string(root))
	return n.fail
}

func TestTheWebhookHasTheRootsOfTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notebook{leading: make(chan bool)}
		w := newWriter(n, "hook", slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.run(ctx) }()
		wrote := func(why string, want ...string) {
			t.Helper()
			synctest.Wait()
			n.mu.Lock()
			defer n.mu.Unlock()
			if !slices.Equal(n.webhook, want) {
				t.Errorf("%s: wrote %q, want %q", why, n.webhook, want)
			}
			n.webhook = nil
		}
		w.takeRoot([]byte("one"))
		wrote("before it leads")
		n.leading <- true
		synctest.Wait()
		n.webhook = slices.Compact(n.webhook)
		wrote("when it leads, without waiting for objects", "hook one")
		w.takeRoot([]byte("two"))
		wrote("after another root", "hook two")
		n.fails(errors.New("too busy"))
		time.Sleep(checkWebhook)
		wrote("when nothing changed here, but perhaps there", "hook two")
		n.fails(nil)
		time.Sleep(retryWrite)
		wrote("after a failure", "hook two")
		n.leading <- false
		synctest.Wait()
		time.Sleep(checkWebhook)
		wrote("when it does not lead any more")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestOnlyALeaderWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notebook{leading: make(chan bool)}
		w := newWriter(n, "", slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.run(ctx) }()
		written := func(why string, want int) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			if roots, _ := n.written(); len(roots) != want {
				t.Errorf("%s: wrote %q, want %d", why, roots, want)
			}
		}
		w.takeRoot([]byte("one"))
		w.take(kube.NewObjects(), make([]kube.Problem, 2), nil, &gateway.Plan{})
		written("before it leads", 0)
		n.leading <- true
		time.Sleep(time.Second)
		synctest.Wait()
		roots, problems := n.written()
		first := len(roots)
		if first == 0 || problems != 2 {
			t.Fatalf("wrote %q and %d problems", roots, problems)
		}
		w.takeRoot([]byte("two"))
		written("after another root", first+1)
		n.fails(errors.New("too busy"))
		w.takeRoot([]byte("three"))
		written("when it fails", first+2)
		time.Sleep(retryWrite)
		synctest.Wait()
		n.fails(nil)
		written("when it has been tried again", first+3)
		time.Sleep(time.Minute)
		written("when that went well", first+4)
		n.leading <- false
		synctest.Wait()
		w.takeRoot([]byte("four"))
		written("when it does not lead any more", first+4)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
