package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cespare/xxhash/v2"
)

// maxFileSize is the largest manifest that is read.
const maxFileSize = 64 << 20

// tree is the state of a directory of manifests. One goroutine at a time.
type tree struct {
	root    string
	logger  *slog.Logger
	files   map[string]*file
	objects *Objects
	// problems as of the last scan; rootProblem stands while the directory itself cannot be read.
	problems []Problem
	// changed says whether the last scan changed objects or problems.
	changed bool

	defs    map[Key][]definition // by path, the first is used
	shared  map[Key]struct{}     // keys with several definitions
	touched map[Key]struct{}     // keys whose definitions changed since the last rebuild
}

// definition is an object as one file has it.
type definition struct {
	path   string
	line   int
	object Object
}

// file is one manifest.
type file struct {
	stamp stamp
	// documents are the parsed documents by the hash of their text, so that a change of one object in a large file does
	// not parse the others again.
	documents map[uint64]*parsed
	// entries is the last good content, in order; lines count from the start of the file.
	entries []entry
	// problems are those of the newest content.
	problems []Problem
}

// parsed is the content of one document. Lines count from the document's start.
type parsed struct {
	entries  []entry
	problems []Problem
}

// stamp tells whether a file may have changed since it was read.
type stamp struct {
	size         int64
	mtime, ctime int64
	inode        uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode, s.ctime = st.Ino, st.Ctim.Nano()
	}
	return s
}

func newTree(root string, logger *slog.Logger) *tree {
	return &tree{
		root: root, logger: logger, files: map[string]*file{}, objects: NewObjects(),
		defs: map[Key][]definition{}, shared: map[Key]struct{}{}, touched: map[Key]struct{}{},
	}
}

// snapshot is the state after the last scan.
func (t *tree) snapshot() Snapshot {
	return Snapshot{Objects: t.objects, Problems: slices.Clone(t.problems)}
}

// hidden says whether a name is skipped: editors and ConfigMap mounts use names with a leading dot.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// manifest says whether a name is that of a manifest.
func manifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !hidden(name)
	}
	return false
}

// scan compares the directory with the state and reads what changed. When it returns an error the state is as before.
func (t *tree) scan() error { return t.scanAfter(false) }

// scanAfter is scan after files may already have been read: dirty says that some have changed.
func (t *tree) scanAfter(dirty bool) error {
	found, err := t.walk()
	if err != nil {
		t.finish(dirty)
		return err
	}
	for path := range t.files {
		if _, ok := found[path]; !ok {
			dirty = t.drop(path) || dirty
		}
	}
	for path, s := range found {
		dirty = t.load(path, s) || dirty
	}
	t.finish(dirty)
	return nil
}

// drop takes a file away and says whether there was one.
func (t *tree) drop(path string) bool {
	f := t.files[path]
	if f == nil {
		return false
	}
	t.redefine(path, f.entries, nil)
	delete(t.files, path)
	return true
}

// load reads a file if its stamp is another one, and says whether it did.
func (t *tree) load(path string, s stamp) bool {
	f := t.files[path]
	if f != nil && f.stamp == s {
		return false
	}
	if f == nil {
		f = &file{}
		t.files[path] = f
	}
	f.stamp = s
	old := f.entries
	f.read(path)
	t.redefine(path, old, f.entries)
	return true
}

// finish ends a scan or update.
func (t *tree) finish(dirty bool) {
	t.changed = false
	if dirty || t.objects.Len() == 0 || len(t.problems) > 0 {
		t.rebuild()
	}
}

// trouble reports that the directory cannot be read; the objects stay.
func (t *tree) trouble(err error) {
	t.setProblems(append(t.fileProblems(), Problem{File: t.root, Cause: fmt.Sprintf("read manifests: %v; the last state stays in force", err)}))
}

// walk lists the manifests and their stamps.
func (t *tree) walk() (map[string]stamp, error) {
	// The root may be a link; below it only links to files are followed.
	root, err := filepath.EvalSymlinks(t.root)
	if err != nil {
		return nil, err
	}
	found := map[string]stamp{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != root:
			return nil
		case err != nil:
			return err
		case d.IsDir():
			if path != root && hidden(d.Name()) {
				return fs.SkipDir
			}
			return nil
		case !manifest(d.Name()):
			return nil
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			rel, _ := filepath.Rel(root, path)
			found[filepath.Join(t.root, rel)] = stampOf(info)
		}
		return nil
	})
	return found, err
}

// read parses a file. When something in it is rejected the last good entries stay.
func (f *file) read(path string) {
	if f.stamp.size > maxFileSize {
		f.problems = []Problem{{File: path, Cause: fmt.Sprintf("file has %d bytes", f.stamp.size), Accepted: fmt.Sprintf("at most %d", maxFileSize)}}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.problems = []Problem{{File: path, Cause: err.Error()}}
		return
	}
	if len(bytes.TrimSpace(data)) == 0 && len(f.entries) > 0 {
		// Somebody writes in place and has only truncated yet. To take away policies for that moment would open doors.
		f.problems = []Problem{{File: path, Line: 1, Cause: "file became empty; its last content stays in force", Accepted: "objects, a comment, or no file at all"}}
		return
	}
	documents := map[uint64]*parsed{}
	var entries []entry
	var problems []Problem
	lines := map[Key]int{}
	for _, d := range splitDocuments(data) {
		h := xxhash.Sum64(d.text)
		p := f.documents[h]
		if p == nil {
			p = &parsed{}
			p.entries, p.problems = decodeDocument(d)
		}
		documents[h] = p
		problems = append(problems, place(p.problems, path, d)...)
		for _, e := range p.entries {
			e.line += d.line - 1
			if first, ok := lines[e.key]; ok {
				problems = append(problems, Problem{File: path, Line: e.line, Object: e.key, Cause: fmt.Sprintf("object appears twice, first in line %d", first)})
				continue
			}
			lines[e.key] = e.line
			entries = append(entries, e)
		}
	}
	f.problems = problems
	if !slices.ContainsFunc(problems, func(p Problem) bool { return p.Severity == Rejected }) {
		f.entries, f.documents = entries, documents
		return
	}
	// Keep the documents of the good content too: the next content will be mostly like it.
	if f.documents == nil {
		f.documents = map[uint64]*parsed{}
	}
	maps.Copy(documents, f.documents)
	f.documents = documents
}

// fileProblems lists the problems of all files, those of objects that several files define included.
func (t *tree) fileProblems() []Problem {
	var problems []Problem
	for _, f := range t.files {
		problems = append(problems, f.problems...)
	}
	for k := range t.shared {
		defs := t.defs[k]
		for _, d := range defs[1:] {
			problems = append(problems, Problem{File: d.path, Line: d.line, Object: k, Cause: fmt.Sprintf("object is defined in %s too, which is used", defs[0].path)})
		}
	}
	return problems
}

// redefine replaces what a file defines and notes the keys that this touches.
func (t *tree) redefine(path string, old, now []entry) {
	if slices.Equal(old, now) {
		return
	}
	for _, e := range old {
		t.touched[e.key] = struct{}{}
		t.defs[e.key] = slices.DeleteFunc(t.defs[e.key], func(d definition) bool { return d.path == path })
	}
	for _, e := range now {
		t.touched[e.key] = struct{}{}
		defs := append(t.defs[e.key], definition{path: path, line: e.line, object: e.object})
		slices.SortFunc(defs, func(a, b definition) int { return strings.Compare(a.path, b.path) })
		t.defs[e.key] = defs
	}
}

// rebuild makes the set of objects anew from what the touched keys' files define: of an object in several files that of
// the first path is used. It costs what was touched.
func (t *tree) rebuild() {
	var put []Object
	var remove []Key
	for k := range t.touched {
		defs, current := t.defs[k], t.objects.Lookup(k)
		switch {
		case len(defs) == 0:
			delete(t.defs, k)
			if current != nil {
				remove = append(remove, k)
			}
		case defs[0].object != current:
			put = append(put, defs[0].object)
		}
		if len(defs) > 1 {
			t.shared[k] = struct{}{}
		} else {
			delete(t.shared, k)
		}
	}
	clear(t.touched)
	if len(put)+len(remove) > 0 {
		t.objects = t.objects.With(put, remove)
		t.changed = true
	}
	t.setProblems(t.fileProblems())
}

// setProblems replaces the problems and logs the difference.
func (t *tree) setProblems(problems []Problem) {
	SortProblems(problems)
	problems = slices.Compact(problems)
	if slices.Equal(problems, t.problems) {
		return
	}
	LogProblems(t.logger, t.problems, problems)
	t.problems = problems
	t.changed = true
}
