package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func podManifest(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nstatus: {podIP: %s}\n", name, ip)
}

// folder is a directory of manifests and the tree that reads it.
type folder struct {
	t    *testing.T
	path string
	tree *tree
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	path := t.TempDir()
	return &folder{t: t, path: path, tree: newTree(path, NewDirectory(DirectoryConfig{}).cfg.Logger)}
}

func (f *folder) write(name, content string) {
	f.t.Helper()
	path := filepath.Join(f.path, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path+".tmp", []byte(content), 0o644), os.Rename(path+".tmp", path)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.path, name)); err != nil {
		f.t.Fatal(err)
	}
}

// scan reads the folder and returns the names of the objects.
func (f *folder) scan() string {
	f.t.Helper()
	if err := f.tree.scan(); err != nil {
		f.t.Fatal(err)
	}
	var names []string
	for _, k := range f.tree.objects.Keys() {
		names = append(names, k.Name.Name)
	}
	return strings.Join(names, " ")
}

func (f *folder) problems() string {
	var out []string
	for _, p := range f.tree.problems {
		rel, _ := filepath.Rel(f.path, p.File)
		p.File = rel
		out = append(out, p.Error())
	}
	return strings.Join(out, "\n")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestDirectoryIsReadRecursively(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1"))
	f.write("deep/er/b.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}`)
	f.write("notes.txt", "not a manifest")
	f.write(".hidden.yaml", podManifest("hidden", "10.0.0.9"))
	f.write(".git/c.yaml", podManifest("c", "10.0.0.9"))
	expect(t, "objects", f.scan(), "a b")
	expect(t, "problems", f.problems(), "")
}

func TestBadFileKeepsItsLastGoodStateAndOthersGoOn(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1")+"---\n"+podManifest("a2", "10.0.0.2"))
	f.write("b.yaml", podManifest("b", "10.0.0.3"))
	f.scan()
	f.write("a.yaml", podManifest("a", "10.0.0.77")+"---\n"+podManifest("a2", "bad"))
	f.write("b.yaml", podManifest("b", "10.0.0.4"))
	expect(t, "objects", f.scan(), "a a2 b")
	expect(t, "problems", f.problems(), `a.yaml:9: Pod default/a2: status.podIPs[0].ip: invalid address "bad" (accepted: an IPv4 or IPv6 address)`)
	expect(t, "pod of the bad file", Get[*corev1.Pod](f.tree.objects, "default", "a").Status.PodIP, "10.0.0.1")
	expect(t, "pod of the good file", Get[*corev1.Pod](f.tree.objects, "default", "b").Status.PodIP, "10.0.0.4")

	f.write("a.yaml", podManifest("a", "10.0.0.77"))
	expect(t, "objects", f.scan(), "a b")
	expect(t, "problems", f.problems(), "")
}

func TestTruncatedFileKeepsItsLastContentUntilItIsGone(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1"))
	f.scan()
	f.write("a.yaml", "\n")
	expect(t, "objects", f.scan(), "a")
	expect(t, "problems", f.problems(), "a.yaml:1: file became empty; its last content stays in force (accepted: objects, a comment, or no file at all)")
	f.write("a.yaml", "# nothing\n")
	expect(t, "objects", f.scan(), "")
	expect(t, "problems", f.problems(), "")
}

func TestUnchangedObjectsKeepTheirIdentity(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1")+"---\n"+podManifest("b", "10.0.0.2")+"---\n"+podManifest("c", "10.0.0.3"))
	f.scan()
	before := f.tree.objects
	f.write("a.yaml", "# one line more\n---\n"+podManifest("a", "10.0.0.1")+"---\n"+podManifest("b", "10.0.0.22")+"---\n"+podManifest("c", "10.0.0.3"))
	f.scan()
	if d := f.tree.objects.Diff(before); !slices.Equal(d, []Key{{Kind: KindPod, Name: Name{"default", "b"}}}) {
		t.Errorf("got changes %v", d)
	}
}

func TestObjectInTwoFilesIsReportedAndTheFirstIsUsed(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1"))
	f.write("b.yaml", podManifest("a", "10.0.0.2"))
	f.scan()
	expect(t, "address", Get[*corev1.Pod](f.tree.objects, "default", "a").Status.PodIP, "10.0.0.1")
	if !strings.Contains(f.problems(), "object is defined in "+filepath.Join(f.path, "a.yaml")+" too, which is used") {
		t.Errorf("got problems %s", f.problems())
	}
	f.remove("a.yaml")
	f.scan()
	expect(t, "address", Get[*corev1.Pod](f.tree.objects, "default", "a").Status.PodIP, "10.0.0.2")
	expect(t, "problems", f.problems(), "")
}

func TestDirectoryThatVanishesLeavesTheLastState(t *testing.T) {
	f := newFolder(t)
	f.write("a.yaml", podManifest("a", "10.0.0.1"))
	f.scan()
	if err := os.RemoveAll(f.path); err != nil {
		t.Fatal(err)
	}
	err := f.tree.scan()
	if err == nil {
		t.Fatal("no error")
	}
	f.tree.trouble(err)
	if s := f.tree.snapshot(); s.Objects.Len() != 1 || len(s.Problems) != 1 {
		t.Errorf("got %d objects, problems %v", s.Objects.Len(), s.Problems)
	}
}

func TestDirectoryDeliversAfterEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFolder(t)
		f.write("a.yaml", podManifest("a", "10.0.0.1"))
		d := NewDirectory(DirectoryConfig{Path: f.path, Rescan: -1})
		var event func()
		d.watch = func(ctx context.Context, _ string, changed func(string)) error {
			event = func() { changed("") }
			<-ctx.Done()
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		var got []int
		go func() { done <- d.Run(ctx, func(s Snapshot) { got = append(got, s.Objects.Len()) }) }()
		synctest.Wait()
		event()
		time.Sleep(time.Minute) // nothing changed: nothing is delivered
		for i := range 40 {
			f.write(fmt.Sprintf("b%d.yaml", i), podManifest(fmt.Sprintf("b%d", i), "10.0.0.2"))
			event()
			time.Sleep(40 * time.Millisecond) // never quiet: MaxDelay ends the wait, after 1 s
		}
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(got) != 3 || got[0] != 1 || got[1] < 20 || got[2] != 41 {
			t.Errorf("got deliveries of %v objects", got)
		}
	})
}

func TestDirectoryRunFailsWithoutDirectory(t *testing.T) {
	d := NewDirectory(DirectoryConfig{Path: filepath.Join(t.TempDir(), "none")})
	if err := d.Run(t.Context(), func(Snapshot) { t.Error("delivered") }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestDirectoryIsWatched(t *testing.T) {
	f := newFolder(t)
	ctx, cancel := context.WithCancel(t.Context())
	snapshots := make(chan Snapshot)
	done := make(chan error)
	d := NewDirectory(DirectoryConfig{Path: f.path, Quiet: -1, Rescan: -1})
	go func() {
		done <- d.Run(ctx, func(s Snapshot) {
			select {
			case snapshots <- s:
			case <-ctx.Done():
			}
		})
	}()
	await := func(names ...string) {
		t.Helper()
		for s := range snapshots {
			var got []string
			for _, k := range s.Objects.Keys() {
				got = append(got, k.Name.Name)
			}
			if slices.Equal(got, names) {
				return
			}
		}
	}
	await()
	f.write("a.yaml", podManifest("a", "10.0.0.1"))
	await("a")
	f.write("sub/b.yaml", podManifest("b", "10.0.0.2"))
	await("a", "b")
	f.write("sub/b.yaml", podManifest("c", "10.0.0.2"))
	await("a", "c")
	f.remove("a.yaml")
	await("c")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAFileReadBeforeTheScanOfItsNewDirectoryIsNotLost(t *testing.T) {
	// events name both; whichever is looked at first, the object must be there. The order is the map's, so try some.
	for range 32 {
		f := newFolder(t)
		f.scan()
		f.write("sub/b.yaml", podManifest("b", "10.0.0.2"))
		paths := map[string]struct{}{filepath.Join(f.path, "sub"): {}, filepath.Join(f.path, "sub/b.yaml"): {}}
		if err := f.tree.look(paths, false); err != nil {
			t.Fatal(err)
		}
		if f.tree.objects.Len() != 1 || !f.tree.changed {
			t.Fatalf("%d objects, changed %v", f.tree.objects.Len(), f.tree.changed)
		}
	}
}

func TestConfigMapMountIsFollowed(t *testing.T) {
	f := newFolder(t)
	f.write("..v1/a.yaml", podManifest("a", "10.0.0.1"))
	f.write("..v2/a.yaml", podManifest("b", "10.0.0.1"))
	link := func(target, name string) {
		t.Helper()
		if err := errors.Join(os.Symlink(target, filepath.Join(f.path, name+".new")), os.Rename(filepath.Join(f.path, name+".new"), filepath.Join(f.path, name))); err != nil {
			t.Fatal(err)
		}
	}
	link("..v1", "..data")
	link("..data/a.yaml", "a.yaml")
	expect(t, "objects", f.scan(), "a")
	link("..v2", "..data")
	expect(t, "objects", f.scan(), "b")
}

// TestUpdateOfPathsIsAScan changes a tree in many ways, tells one reader which paths had events, and compares it with
// one that looks at everything.
func TestUpdateOfPathsIsAScan(t *testing.T) {
	f := newFolder(t)
	whole := newTree(f.path, f.tree.logger)
	link := func(target, name string) {
		t.Helper()
		if err := errors.Join(os.Symlink(target, filepath.Join(f.path, name+".new")), os.Rename(filepath.Join(f.path, name+".new"), filepath.Join(f.path, name))); err != nil {
			t.Fatal(err)
		}
	}
	f.scan()
	for _, step := range []struct {
		name   string
		do     func()
		events []string
	}{
		{"a new file", func() { f.write("a.yaml", podManifest("a", "10.0.0.1")) }, []string{"a.yaml.tmp", "a.yaml"}},
		{"a changed file", func() { f.write("a.yaml", podManifest("a", "10.0.0.99")) }, []string{"a.yaml.tmp", "a.yaml"}},
		{"another file with the object", func() { f.write("0.yaml", podManifest("a", "10.0.0.3")) }, []string{"0.yaml"}},
		{"a wrong file", func() { f.write("b.yaml", "kind: [") }, []string{"b.yaml"}},
		{"the first definition gone", func() { f.remove("0.yaml") }, []string{"0.yaml"}},
		{"a directory", func() { f.write("sub/c.yaml", podManifest("c", "10.0.0.3")) }, []string{"sub"}},
		{"the directory renamed", func() { os.Rename(filepath.Join(f.path, "sub"), filepath.Join(f.path, "dub")) }, []string{"sub", "dub"}},
		{"the directory gone", func() { os.RemoveAll(filepath.Join(f.path, "dub")) }, []string{"dub"}},
		{"the wrong file gone", func() { f.remove("b.yaml") }, []string{"b.yaml"}},
		{"a mounted ConfigMap", func() {
			f.write("..v1/m.yaml", podManifest("m", "10.0.0.1"))
			f.write("..v2/m.yaml", podManifest("n", "10.0.0.1"))
			link("..v1", "..data")
			link("..data/m.yaml", "m.yaml")
		}, []string{"..v1", "..v2", "..data", "m.yaml"}},
		{"its next version", func() { link("..v2", "..data") }, []string{"..data"}},
		{"its end", func() { f.remove("..data") }, []string{"..data"}},
		{"other files", func() { f.write("notes.txt", "x"); f.write(".hidden.yaml", "x") }, []string{"notes.txt", ".hidden.yaml"}},
	} {
		step.do()
		paths := map[string]struct{}{}
		for _, e := range step.events {
			paths[filepath.Join(f.path, e)] = struct{}{}
		}
		if err := errors.Join(f.tree.look(paths, false), whole.scan()); err != nil {
			t.Fatal(err)
		}
		got, want := f.tree.objects.Keys(), whole.objects.Keys()
		if !slices.Equal(got, want) || !slices.Equal(f.tree.problems, whole.problems) {
			t.Errorf("%s: got %v and %v, want %v and %v", step.name, got, f.tree.problems, want, whole.problems)
		}
	}
}
