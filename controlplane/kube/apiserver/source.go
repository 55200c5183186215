package apiserver

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// SourceConfig configures a Source.
type SourceConfig struct {
	// Client. Required.
	Client *Client
	// Quiet is how long changes are collected before they are delivered. Default 10 ms.
	Quiet time.Duration
	// Recheck is how often it is looked which kinds the API server has: a definition that is installed later is found
	// then. Default 5 s.
	Recheck time.Duration
	// Logger takes one line per problem that appears or goes. Default: none.
	Logger *slog.Logger
}

// Source is a kube.Source that mirrors the objects of an API server. One Run at a time.
type Source struct{ cfg SourceConfig }

// NewSource makes a source.
func NewSource(cfg SourceConfig) *Source {
	if cfg.Quiet <= 0 {
		cfg.Quiet = 10 * time.Millisecond
	}
	if cfg.Recheck <= 0 {
		cfg.Recheck = 5 * time.Second
	}
	cfg.Logger = discard(cfg.Logger)
	return &Source{cfg: cfg}
}

// Run implements kube.Source. The first snapshot comes when every kind that the API server has was listed; as long as
// it cannot be reached, or refuses to list one, there is none, and the log says why. It returns nil when ctx ends.
func (s *Source) Run(ctx context.Context, deliver func(kube.Snapshot)) error {
	ctx, cancel := context.WithCancel(s.quietLibraries(ctx))
	m := newMirror()
	var catalog sync.WaitGroup
	catalog.Go(func() { s.catalog(ctx, m) })
	defer catalog.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last kube.Snapshot
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.dirty:
		}
		timer.Reset(s.cfg.Quiet)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		snap, complete := m.take()
		kube.LogProblems(s.cfg.Logger, last.Problems, snap.Problems)
		if complete && (snap.Objects != last.Objects || !slices.Equal(snap.Problems, last.Problems)) {
			deliver(snap)
			last = snap
		} else {
			last.Problems = snap.Problems
		}
	}
}

// quietLibraries makes client-go log through our logger, at level debug: what matters of it becomes a problem.
func (s *Source) quietLibraries(ctx context.Context) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(debugHandler{s.cfg.Logger.Handler()}))
}

// debugHandler lowers every record to level debug. logr does not ask Enabled for errors, hence Handle does.
type debugHandler struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h debugHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (h debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h debugHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return debugHandler{h.Handler.WithAttrs(a)}
}

// WithGroup implements slog.Handler.
func (h debugHandler) WithGroup(n string) slog.Handler { return debugHandler{h.Handler.WithGroup(n)} }

// follower is a kind that is watched.
type follower struct {
	gvr    schema.GroupVersionResource
	cancel context.CancelFunc
	done   chan struct{}
}

func (f follower) stop() { f.cancel(); <-f.done }

// catalog keeps a follower running for every kind that the API server has. It returns after all of them ended.
func (s *Source) catalog(ctx context.Context, m *mirror) {
	running := map[kube.Kind]follower{}
	defer func() {
		for _, f := range running {
			f.stop()
		}
	}()
	timer := time.NewTimer(s.cfg.Recheck)
	defer timer.Stop()
	for {
		served, err := s.cfg.Client.served(ctx)
		if err == nil {
			s.compare(ctx, m, running, served)
		}
		if ctx.Err() == nil {
			m.trouble("", err)
		}
		timer.Reset(s.cfg.Recheck)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// compare starts and stops followers.
func (s *Source) compare(ctx context.Context, m *mirror, running map[kube.Kind]follower, served map[kube.Kind]schema.GroupVersionResource) {
	for kind, f := range running {
		switch gvr, ok := served[kind]; {
		case ok && gvr == f.gvr:
			continue
		case !ok && (kind.BuiltIn() || !s.cfg.Client.undefined(ctx, f.gvr)):
			continue // its follower says what is wrong
		case !ok:
			f.stop()
			m.forget(kind)
			s.cfg.Logger.Info("kind is not served any more", slog.String("kind", string(kind)))
		default:
			f.stop() // the objects stay until the other version is listed
		}
		delete(running, kind)
	}
	for kind, gvr := range served {
		if _, ok := running[kind]; ok {
			continue
		}
		fctx, cancel := context.WithCancel(ctx)
		f := follower{gvr: gvr, cancel: cancel, done: make(chan struct{})}
		running[kind] = f
		go s.follow(fctx, m, kind, f)
		s.cfg.Logger.Debug("kind is served", slog.String("kind", string(kind)), slog.String("version", gvr.GroupVersion().String()))
	}
	m.expect(slices.Collect(maps.Keys(running)))
}

// follow mirrors one kind until ctx ends.
func (s *Source) follow(ctx context.Context, m *mirror, kind kube.Kind, f follower) {
	defer close(f.done)
	resource := s.cfg.Client.dynamic.Resource(f.gvr)
	note := func(err error) {
		if ctx.Err() == nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			m.trouble(kind, err)
		}
	}
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := resource.List(ctx, o)
			note(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := resource.Watch(ctx, o)
			// A server that has no streaming lists says so this way, and is asked in the old way.
			if !apierrors.IsInvalid(err) || !isTrue(o.SendInitialEvents) {
				note(err)
			}
			return w, err
		},
	}, s.cfg.Client.dynamic)
	expected := &unstructured.Unstructured{}
	group, _ := kind.Versions()
	expected.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: f.gvr.Version, Kind: string(kind)})
	logger := klog.FromContext(ctx)
	cache.NewReflectorWithOptions(lw, expected, shelf{m: m, kind: kind}, cache.ReflectorOptions{
		Name: string(kind), Logger: &logger,
	}).RunWithContext(ctx)
}

func isTrue(b *bool) bool { return b != nil && *b }
