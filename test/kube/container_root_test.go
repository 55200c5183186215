package kube

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// confinement is what the kernel lets a process do.
type confinement struct {
	capabilities  string // all of which it has, and none of which it could get others
	seccomp       string // mode of prctl(2): 2 is a filter
	user          string
	noEscalation  bool
	mountsItsRoot string // ro or rw
}

// Bits of capabilities(7).
var capabilityBits = map[int]string{1: "DAC_OVERRIDE", 12: "NET_ADMIN", 13: "NET_RAW", 19: "SYS_PTRACE", 21: "SYS_ADMIN", 39: "BPF"}

// nobody is the confinement of what needs nothing of the kernel.
var nobody = confinement{seccomp: "2", user: "65532", noEscalation: true, mountsItsRoot: "ro"}

// TestRootContainersAreConfined reads what the running containers can do from the kernel.
func TestRootContainersAreConfined(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMeshWorld(t)
	m.apply(waypoint)
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Programmed", "gateway/waypoint", "--timeout=90s")
	for _, c := range []struct {
		namespace, selector, container string
		want                           confinement
	}{
		// bpf(2) and setns(2) are not in the runtime's profile of seccomp, and Kubernetes knows no other without a file on each node.
		{m.system, "app=ztunnel", "capture", confinement{capabilities: "NET_ADMIN SYS_ADMIN SYS_PTRACE", seccomp: "0", user: "0", mountsItsRoot: "ro"}},
		{m.system, "app=ztunnel", "proxy", confinement{capabilities: "NET_RAW SYS_ADMIN", seccomp: "0", user: "0", mountsItsRoot: "ro"}},
		{m.system, "app=ambit-controlplane", "controlplane", nobody},
		{"km-shop", "gateway.networking.k8s.io/gateway-name=waypoint", "istio-proxy", confinement{seccomp: "2", user: "1337", noEscalation: true, mountsItsRoot: "ro"}}, // as Istio's
	} {
		t.Run(c.container, func(t *testing.T) {
			for pod := range strings.FieldsSeq(must(t, "", "-n", c.namespace, "get", "pods", "-l", c.selector, "-o", "jsonpath={.items[*].metadata.name}")) {
				if got := confinementOf(t, processOf(t, c.namespace, pod, c.container)); got != c.want {
					t.Errorf("pod %s: got %+v, want %+v", pod, got, c.want)
				}
			}
		})
	}
}

// runner is a pod of another user than root, outside of the mesh.
const runner = `{apiVersion: v1, kind: Pod, metadata: {name: runner, namespace: km-outside}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1, securityContext: {runAsUser: 65532, runAsNonRoot: true}, containers: [{name: echo, image: IMAGE, args: [echo], securityContext: {capabilities: {drop: [ALL]}}}]}}`

// TestRootEachCapabilityIsNeeded takes each capability of the node's containers away, and something does not work: a new pod
// of the mesh is not there or gets no answers, or a pod that ran before the agent does not come into it.
func TestRootEachCapabilityIsNeeded(t *testing.T) {
	if os.Getenv("AMBIT_SOAK") == "" {
		t.Skip("some minutes: AMBIT_SOAK=1 runs it")
	}
	m := newMeshWorld(t)
	spec := must(t, "", "-n", m.system, "get", "daemonset", "ztunnel", "-o", "jsonpath={.spec.template.spec.containers[*].securityContext.capabilities.add}")
	containers := strings.Split(spec, " ")
	works := func(container int, capabilities string, wait time.Duration) error {
		m.apply(runner)
		defer must(t, "", "-n", "km-outside", "delete", "pod", "runner", "--now")
		m.ready("km-outside", "runner") // before the agent, which must find it
		must(t, "", "-n", m.system, "patch", "daemonset", "ztunnel", "--type=json", "-p",
			fmt.Sprintf(`[{"op": "replace", "path": "/spec/template/spec/containers/%d/securityContext/capabilities/add", "value": %s}]`, container, capabilities))
		if _, err := kubectl(t.Context(), "", "-n", m.system, "rollout", "status", "daemonset/ztunnel", "--timeout="+wait.String()); err != nil {
			return err
		}
		must(t, "", "-n", "km-shop", "delete", "pod", "client", "--now")
		m.apply(strings.Replace(late, "late, namespace: NAMESPACE", "client, namespace: km-shop", 1))
		if _, err := kubectl(t.Context(), "", "-n", "km-shop", "wait", "--for=condition=Ready", "pod/client", "--timeout=20s"); err != nil {
			return err
		}
		out, err := kubectl(t.Context(), "", "-n", "km-shop", "exec", "client", "--", "/ambit", "echo", "client", "--fresh", "--timeout=5s", "--count=10", "http://server.km-shop/")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		must(t, "", "-n", "km-outside", "label", "pod", "runner", "istio.io/dataplane-mode=ambient")
		enrolled := m.redirection("km-outside", "runner", "enabled")
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(500 * time.Millisecond) {
			if err = enrolled(); err == nil || time.Now().After(end) {
				return err
			}
		}
	}
	for i, all := range containers {
		for name := range strings.FieldsFuncSeq(all, func(r rune) bool { return r == '"' || r == ',' || r == '[' || r == ']' }) {
			rest := strings.Replace(strings.Replace(all, `"`+name+`"`, "", 1), ",,", ",", 1)
			if err := works(i, strings.NewReplacer("[,", "[", ",]", "]").Replace(rest), 30*time.Second); err == nil {
				t.Errorf("container %d works without %s", i, name)
			} else {
				t.Logf("container %d without %s: %v", i, name, err)
			}
			if err := works(i, all, 2*time.Minute); err != nil {
				t.Fatalf("it does not work with all any more: %v", err)
			}
		}
	}
}

// processOf is the first process of a container on this machine.
func processOf(t *testing.T, namespace, pod, container string) int {
	t.Helper()
	id := must(t, "", "-n", namespace, "get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="`+container+`")].containerID}`)
	_, id, found := strings.Cut(id, "://")
	if !found {
		t.Fatalf("container %s of pod %s/%s has no id", container, namespace, pod)
	}
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	first := 0
	for _, g := range groups {
		text, err := os.ReadFile(g)
		if err != nil || !strings.Contains(string(text), id) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(g))); err == nil && (first == 0 || pid < first) {
			first = pid
		}
	}
	if first == 0 {
		t.Fatalf("no process of container %s of pod %s/%s is on this machine", container, namespace, pod)
	}
	return first
}

func confinementOf(t *testing.T, pid int) confinement {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	field := map[string]string{}
	for line := range strings.Lines(read("status")) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			field[name] = strings.TrimSpace(value)
		}
	}
	for _, set := range []string{"CapPrm", "CapBnd"} {
		if field[set] != field["CapEff"] {
			t.Errorf("%s is %s, CapEff %s", set, field[set], field["CapEff"])
		}
	}
	bits, err := strconv.ParseUint(field["CapEff"], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, bit := range slices.Sorted(maps.Keys(capabilityBits)) {
		if bits&(1<<bit) != 0 {
			names, bits = append(names, capabilityBits[bit]), bits&^(1<<bit)
		}
	}
	if bits != 0 {
		names = append(names, fmt.Sprintf("others: %x", bits))
	}
	slices.Sort(names)
	c := confinement{capabilities: strings.Join(names, " "), seccomp: field["Seccomp"], noEscalation: field["NoNewPrivs"] == "1"}
	c.user, _, _ = strings.Cut(field["Uid"], "\t")
	for line := range strings.Lines(read("mountinfo")) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == "/" {
			c.mountsItsRoot, _, _ = strings.Cut(f[5], ",")
		}
	}
	return c
}
