package kube

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// maxPaths is the number of paths up to which they are looked at one by one.
const maxPaths = 1024

// touchedPaths collects the paths of events until they are looked at. For any goroutine.
type touchedPaths struct {
	mu    sync.Mutex
	all   bool                // guarded by mu
	paths map[string]struct{} // guarded by mu
}

// add notes a path, "" for all.
func (p *touchedPaths) add(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path == "" || len(p.paths) >= maxPaths {
		p.all = true
		return
	}
	if p.paths == nil {
		p.paths = map[string]struct{}{}
	}
	p.paths[path] = struct{}{}
}

// take returns the paths since the last call, and whether anything may have changed.
func (p *touchedPaths) take() (paths map[string]struct{}, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	paths, all = p.paths, p.all
	p.paths, p.all = nil, false
	return paths, all
}

// look compares some paths, or all, with the state and reads what changed.
func (t *tree) look(paths map[string]struct{}, all bool) error {
	if all {
		return t.scan()
	}
	return t.update(paths)
}

// update is scan for some paths, as the watcher names them. What is not about plain files leads to a scan: directories,
// links, names of which it cannot be told any more what they were.
func (t *tree) update(paths map[string]struct{}) error {
	root, err := filepath.EvalSymlinks(t.root)
	if err != nil {
		t.changed = false
		return err
	}
	dirty := false
	for p := range paths {
		rel, err := filepath.Rel(root, p)
		if err != nil || !filepath.IsLocal(rel) || rel == "." {
			return t.scanAfter(dirty)
		}
		path := filepath.Join(t.root, rel)
		info, err := os.Lstat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// A ConfigMap's ..data is a link that all files go through.
			if strings.HasPrefix(filepath.Base(p), "..") || t.wasDirectory(path) {
				return t.scanAfter(dirty)
			}
			dirty = t.drop(path) || dirty
		case err != nil || !info.Mode().IsRegular():
			return t.scanAfter(dirty)
		case manifest(filepath.Base(p)):
			dirty = t.load(path, stampOf(info)) || dirty
		}
	}
	t.finish(dirty)
	return nil
}

// wasDirectory says whether files are known below a path.
func (t *tree) wasDirectory(path string) bool {
	for known := range t.files {
		if strings.HasPrefix(known, path+string(filepath.Separator)) {
			return true
		}
	}
	return false
}
