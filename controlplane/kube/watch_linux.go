package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watchTree calls changed after events below a directory until ctx ends, with the path or "" for all. New subdirectories are watched as they come.
// It watches directories, not files: an editor's rename over a file and the ..data link of a mounted ConfigMap are
// events of the directory.
func watchTree(ctx context.Context, path string, changed func(path string)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	defer func() { _ = w.Close() }()
	if err := watchBelow(w, path); err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	// What came between the first reading and the watch has no event.
	changed("")
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watch manifests: watcher closed")
			}
			if e.Has(fsnotify.Create) {
				// A directory that is gone again, or that cannot be watched, is read by the periodic comparison.
				_ = watchBelow(w, e.Name)
			}
			if e.Op != fsnotify.Chmod {
				changed(e.Name)
			}
		case _, ok := <-w.Errors:
			if !ok {
				return errors.New("watch manifests: watcher closed")
			}
			// Events were lost: look at everything.
			_ = watchBelow(w, path)
			changed("")
		}
	}
}

// watchBelow watches a directory and all below it. A path that is no directory is left alone.
func watchBelow(w *fsnotify.Watcher, path string) error {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return err
	}
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == root {
				return err
			}
			return nil
		}
		if !d.IsDir() {
			return nil
		}
		if p != root && hidden(d.Name()) {
			return fs.SkipDir
		}
		return w.Add(p)
	})
}
