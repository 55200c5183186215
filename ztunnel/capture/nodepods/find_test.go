package nodepods

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const uid = "1f4c3a52-9d1e-4c57-8a5b-0c9a1de2f311"

// process is a directory of a /proc.
type process struct{ cgroup, stat, addr string }

func proc(t *testing.T, list map[string]process) func(Running) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for pid, p := range list {
		if err := os.MkdirAll(filepath.Join(dir, pid, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"cgroup": p.cgroup, "stat": p.stat, "ns/net": p.addr} {
			if err := os.WriteFile(filepath.Join(dir, pid, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	find := NewFinder(dir, func(path string) ([]netip.Addr, error) {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return nil, errors.New("gone")
		}
		return []netip.Addr{netip.MustParseAddr(string(b))}, nil
	})
	return func(r Running) (string, error) {
		path, err := find(r)
		rel, _ := filepath.Rel(dir, path)
		return rel, err
	}
}

// stat is a line of proc_pid_stat(5) of a process with a name that tries to be one.
func stat(started string) string {
	return "7 (a) 1 (b) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 " + started + " 1 1\n"
}

func TestAPodsNamespaceIsThatOfItsOldestProcess(t *testing.T) {
	running := Running{UID: uid, Containers: []string{"c0ffee"}, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
	systemd := "0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-1.scope\n"
	for name, tc := range map[string]struct {
		list map[string]process
		want string
	}{
		"by the UID with underscores":        {map[string]process{"7": {systemd, stat("5"), "10.1.0.1"}}, "7/ns/net"},
		"by the UID with dashes":             {map[string]process{"7": {"5:cpu:/kubepods/pod" + uid + "/x\n", stat("5"), "10.1.0.1"}}, "7/ns/net"},
		"by a container":                     {map[string]process{"7": {"0::/k8s.io/c0ffee\n", stat("5"), "10.1.0.1"}}, "7/ns/net"},
		"of several the oldest":              {map[string]process{"7": {systemd, stat("50"), "10.1.0.1"}, "8": {systemd, stat("9"), "10.1.0.1"}}, "8/ns/net"},
		"not one that looks into another":    {map[string]process{"7": {systemd, stat("1"), "10.1.0.2"}, "8": {systemd, stat("9"), "10.1.0.1"}}, "8/ns/net"},
		"not another pod's":                  {map[string]process{"7": {"0::/k8s.io/beef\n", stat("1"), "10.1.0.1"}}, "no process on the node"},
		"only others' namespaces":            {map[string]process{"7": {systemd, stat("1"), "10.1.0.2"}}, "none of the 1 network namespaces"},
		"a process that ends is passed over": {map[string]process{"7": {systemd, "", "10.1.0.1"}, "8": {systemd, stat("9"), "10.1.0.1"}}, "8/ns/net"},
		"what is no process is none":         {map[string]process{"self": {systemd, stat("1"), "10.1.0.1"}}, "no process on the node"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := proc(t, tc.list)(running)
			if err != nil {
				got = err.Error()
			}
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
