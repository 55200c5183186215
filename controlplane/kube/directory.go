package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// DirectoryConfig configures a Directory.
type DirectoryConfig struct {
	// Path is the directory. It is read recursively: files that end in .yaml, .yml or .json; names that begin with a dot
	// are skipped. Required.
	Path string
	// Quiet is how long the directory must be without events before it is read. Default 50 ms, negative: at once.
	Quiet time.Duration
	// MaxDelay bounds how long a stream of events can put off reading. Default 1 s.
	MaxDelay time.Duration
	// Rescan is how often the directory is compared without an event, in case one was lost. Default 30 s, negative: never.
	Rescan time.Duration
	// Logger takes one line per problem that appears or goes. Default: none.
	Logger *slog.Logger
}

// Directory is a Source that reads manifests from a directory and watches it. One Run at a time.
type Directory struct {
	cfg DirectoryConfig
	// watch is a test seam: it reports events until ctx ends, each with the path it is about, "" when that is not known.
	watch func(ctx context.Context, path string, changed func(path string)) error
}

// NewDirectory makes a directory source.
func NewDirectory(cfg DirectoryConfig) *Directory {
	if cfg.Quiet == 0 {
		cfg.Quiet = 50 * time.Millisecond
	}
	if cfg.MaxDelay <= 0 {
		cfg.MaxDelay = time.Second
	}
	if cfg.Rescan == 0 {
		cfg.Rescan = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Directory{cfg: cfg, watch: watchTree}
}

// Run implements Source. The first snapshot comes after the first reading; when files of it are wrong, it has those
// that are right. It fails when the directory cannot be read or watched at the start; later, the last state stays in
// force and a problem says why.
func (d *Directory) Run(ctx context.Context, deliver func(Snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan struct{}, 1)
	watched := make(chan error, 1)
	paths := new(touchedPaths)
	go func() {
		watched <- d.watch(ctx, d.cfg.Path, func(path string) {
			paths.add(path)
			select {
			case events <- struct{}{}:
			default:
			}
		})
	}()
	err := d.loop(ctx, events, paths, watched, deliver)
	cancel()
	if werr := <-watched; err == nil && werr != nil && !errors.Is(werr, context.Canceled) {
		err = werr
	}
	return err
}

// loop reads the directory at the start, after events and from time to time. It puts an early end of the watcher back
// into watched, where Run takes it from.
func (d *Directory) loop(ctx context.Context, events <-chan struct{}, paths *touchedPaths, watched chan error, deliver func(Snapshot)) error {
	t := newTree(d.cfg.Path, d.cfg.Logger)
	if err := t.scan(); err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	deliver(t.snapshot())
	var rescan <-chan time.Time
	if d.cfg.Rescan > 0 {
		ticker := time.NewTicker(d.cfg.Rescan)
		defer ticker.Stop()
		rescan = ticker.C
	}
	for {
		some, all := map[string]struct{}(nil), true
		select {
		case <-ctx.Done():
			return nil
		case err := <-watched:
			watched <- err
			return nil
		case <-events:
			if !d.settle(ctx, events) {
				return nil
			}
			some, all = paths.take()
		case <-rescan:
		}
		if err := t.look(some, all); err != nil {
			t.trouble(err)
		}
		if t.changed {
			deliver(t.snapshot())
		}
	}
}

// settle waits until events pause for Quiet, MaxDelay at most. It returns false when ctx ended.
func (d *Directory) settle(ctx context.Context, events <-chan struct{}) bool {
	if d.cfg.Quiet < 0 {
		return true
	}
	last := time.NewTimer(d.cfg.MaxDelay)
	defer last.Stop()
	quiet := time.NewTimer(d.cfg.Quiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-events:
			quiet.Reset(d.cfg.Quiet)
		case <-quiet.C:
			return true
		case <-last.C:
			return true
		}
	}
}
