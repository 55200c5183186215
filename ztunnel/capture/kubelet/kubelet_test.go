package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// process is what a directory of a /proc has.
type process struct {
	name, started string
	net           string // another file than ours
	nspid         string // its number in a PID namespace of its own
	uid           string // "" is 0
	cgroup        string // "" is the root
}

func fakeProc(t *testing.T, list map[string]process) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := list["1"]; !ok {
		list["1"] = process{name: "systemd", started: "1"}
	}
	for pid, p := range list {
		at := func(name string) string { return filepath.Join(dir, pid, name) }
		must(os.MkdirAll(at("ns"), 0o755))
		link := func(name, file, otherwise string) {
			if file == "" {
				must(os.Symlink(otherwise, at(name)))
				return
			}
			must(os.WriteFile(at(name), nil, 0o644))
		}
		link("ns/net", p.net, "/proc/thread-self/ns/net")
		if p.uid == "" {
			p.uid = "0"
		}
		if p.cgroup == "" {
			p.cgroup = "/"
		}
		must(os.WriteFile(at("stat"), fmt.Appendf(nil, "%s (%s) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %s 1 1\n", pid, p.name, p.started), 0o644))
		must(os.WriteFile(at("status"), fmt.Appendf(nil, "Name:\t%s\nUid:\t%s\t%s\t%s\t%s\nNSpid:\t%s%s\nX:\ty\n", p.name, p.uid, p.uid, p.uid, p.uid, pid, p.nspid), 0o644))
		must(os.WriteFile(at("cgroup"), []byte("0::"+p.cgroup+"\n"), 0o644))
	}
	must(os.Mkdir(filepath.Join(dir, "sys"), 0o755))
	return dir
}

func TestTheKubeletIsFoundAmongProcesses(t *testing.T) {
	unit := "/system.slice/kubelet.service"
	id := strings.Repeat("0123456789abcdef", 4)
	for name, c := range map[string]struct {
		list map[string]process
		want int
		why  string // of the error
	}{
		"by its name":                     {map[string]process{"8": {name: "kubelet", started: "5", cgroup: unit}, "9": {name: "kubectl", started: "3"}}, 8, ""},
		"as part of another program":      {map[string]process{"8": {name: "k3s-server", started: "5"}}, 8, ""},
		"of several the oldest":           {map[string]process{"8": {name: "k3s", started: "50"}, "9": {name: "k3s", started: "6"}}, 9, ""},
		"not that of another node":        {map[string]process{"8": {name: "kubelet", started: "5", net: "x"}}, 0, "process 8 is in another network namespace"},
		"not one of a container":          {map[string]process{"8": {name: "kubelet", started: "5", nspid: "\t1"}}, 0, "process 8 is in a PID namespace of its own"},
		"not that of another user":        {map[string]process{"8": {name: "kubelet", started: "5", uid: "1000"}}, 0, "process 8 is not root's"},
		"not one of a pod":                {map[string]process{"8": {name: "kubelet", started: "5", cgroup: "/kubepods.slice/x"}}, 0, "process 8 is in a container"},
		"not one of a container's id":     {map[string]process{"8": {name: "kubelet", started: "5", cgroup: "/k8s.io/" + id}}, 0, "process 8 is in a container"},
		"but where the node is one":       {map[string]process{"1": {name: "init", started: "1", cgroup: "/docker/" + id}, "8": {name: "kubelet", started: "5", cgroup: "/docker/" + id + unit}}, 8, ""},
		"the older one beside a fake":     {map[string]process{"8": {name: "kubelet", started: "1", cgroup: "/kubepods/x"}, "9": {name: "kubelet", started: "5"}}, 9, ""},
		"and if there is none it is said": {map[string]process{}, 0, "by the names kubelet, kubelite, k3s"},
	} {
		t.Run(name, func(t *testing.T) {
			pid, _, err := New(Config{Proc: fakeProc(t, c.list)}).find()
			if pid != c.want || (err == nil) != (c.why == "") {
				t.Fatalf("got %d, %v, want %d", pid, err, c.want)
			}
			if c.why != "" && (!errors.Is(err, errNotFound) || !strings.Contains(err.Error(), c.why)) {
				t.Errorf("got %v, want %q", err, c.why)
			}
		})
	}
}
