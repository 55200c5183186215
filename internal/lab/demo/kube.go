package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns"
)

// KubeConfig says where RunInKubernetes finds what it needs.
type KubeConfig struct {
	// Image is that of the program ambit, on every node.
	Image string
	// Manifests is the directory deploy/examples/demo.
	Manifests string
	// Out takes the report.
	Out io.Writer
}

// RunInKubernetes shows the claims in the cluster of kubectl, where the mesh is installed. The nodes node1 and node2 must be
// network namespaces of this machine, as test/kube/cluster makes them. It removes what it made, and returns ErrFailed unless
// all claims hold. Certificates live a day there and DaemonSets are not replaced process by process, so that the claims about
// rotation and planned restarts are the lab's alone.
func RunInKubernetes(ctx context.Context, cfg KubeConfig) (err error) {
	begin := time.Now()
	k := &kubePlace{image: cfg.Image}
	d := &demo{cfg: Config{Manifests: cfg.Manifests, Out: cfg.Out}, c: k}
	if err := k.clean(ctx); err != nil { // of a demo that was killed
		return err
	}
	defer func() { err = errors.Join(err, k.clean(context.WithoutCancel(ctx))) }()
	if err := d.apply(ctx, "start"); err != nil {
		return err
	}
	err = poll(ctx, 30*time.Second, func() error { // the pods are ready, and the nodes may not know yet where their service is
		sum, err := d.load(ctx, "shop", "client", web, "--count=10", "--fresh", "--timeout=2s")
		if err == nil && sum.Failed > 0 {
			err = fmt.Errorf("the shop's service does not answer: %s", failures(sum))
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "The shop runs after %.1f s.\n", time.Since(begin).Seconds())
	d.check(ctx, d.connectionClaims())
	d.check(ctx, d.waypointClaims())
	return d.end(ctx, begin)
}

// kubePlace is a cluster whose nodes are namespaces of this machine.
type kubePlace struct{ image string }

const meshNamespace = "istio-system"

// node is the cluster's name of a node.
func node(name string) string { return strings.ReplaceAll(name, "node-", "node") }

func (k *kubePlace) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "kubectl", args...)
	var stderr bytes.Buffer
	c.Stdin, c.Stderr = strings.NewReader(input), &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), err
}

func (k *kubePlace) clean(ctx context.Context) error {
	_, err := k.kubectl(ctx, "", "delete", "--ignore-not-found", "namespace", "shop", "outside")
	_, e := k.kubectl(ctx, "", "-n", meshNamespace, "delete", "--ignore-not-found", "configmap", "istio")
	return errors.Join(err, e)
}

func (k *kubePlace) applyYAML(ctx context.Context, text string) error {
	_, err := k.kubectl(ctx, text, "apply", "--server-side", "-f", "-")
	return err
}

func (k *kubePlace) apply(ctx context.Context, files []manifest.File) error {
	var all []*unstructured.Unstructured
	for _, f := range files {
		for doc := range strings.SplitSeq(string(f.Data), "\n---\n") {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
				return fmt.Errorf("read %s: %w", f.Name, err)
			}
			if len(o.Object) > 0 {
				all = append(all, o)
			}
		}
	}
	var text strings.Builder
	for _, o := range all {
		if err := k.adapt(o); err != nil {
			return fmt.Errorf("adapt %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		b, err := yaml.Marshal(o.Object)
		if err != nil {
			return err
		}
		text.WriteString("---\n" + string(b))
	}
	if err := k.applyYAML(ctx, text.String()); err != nil {
		return err
	}
	for _, o := range all {
		if err := k.ready(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// adapt makes of an object for the lab one for a cluster: names of nodes, the image, and what a container has by itself there.
func (k *kubePlace) adapt(o *unstructured.Unstructured) error {
	at := []string{"spec"}
	switch o.GetKind() {
	case "Deployment":
		at = []string{"spec", "template", "spec"}
	case "Pod":
	default:
		return nil
	}
	spec, _, err := unstructured.NestedMap(o.Object, at...)
	if err != nil {
		return err
	}
	if s, ok := spec["nodeSelector"].(map[string]any); ok {
		for key, v := range s {
			s[key] = node(fmt.Sprint(v))
		}
	}
	containers, _ := spec["containers"].([]any)
	for _, v := range containers {
		c, ok := v.(map[string]any)
		if !ok || c["image"] != "ambit/echo" {
			continue
		}
		args := []any{"echo"}
		given, _ := c["args"].([]any)
		for _, a := range given {
			args = append(args, strings.ReplaceAll(fmt.Sprint(a), "$(AMBIT_LAB_DIR)", ""))
		}
		c["image"], c["args"] = k.image, args
		field := func(name, path string) any {
			return map[string]any{"name": name, "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": path}}}
		}
		c["env"] = []any{field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")}
	}
	return unstructured.SetNestedMap(o.Object, spec, at...)
}

func (k *kubePlace) ready(ctx context.Context, o *unstructured.Unstructured) (err error) {
	switch o.GetKind() {
	case "Pod":
		_, err = k.kubectl(ctx, "", "-n", o.GetNamespace(), "wait", "--for=condition=Ready", "pod/"+o.GetName(), "--timeout=60s")
	case "Deployment":
		_, err = k.kubectl(ctx, "", "-n", o.GetNamespace(), "rollout", "status", "deployment/"+o.GetName(), "--timeout=60s")
	case "Gateway":
		_, err = k.kubectl(ctx, "", "-n", o.GetNamespace(), "wait", "--for=condition=Programmed", "gateway/"+o.GetName(), "--timeout=60s")
	}
	return err
}

func (k *kubePlace) remove(ctx context.Context, kind, namespace, name string) error {
	_, err := k.kubectl(ctx, "", "-n", namespace, "delete", kind, name)
	return err
}

func (k *kubePlace) objects(ctx context.Context, kind, namespace, name string) ([]json.RawMessage, error) {
	args := []string{"-n", namespace, "get", kind, "-o", "json"}
	if name != "" {
		args = append(args, "--field-selector=metadata.name="+name)
	}
	text, err := k.kubectl(ctx, "", args...)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []json.RawMessage }
	err = json.Unmarshal([]byte(text), &list)
	if err == nil && name != "" && len(list.Items) == 0 {
		err = fmt.Errorf("no %s %s/%s", kind, namespace, name)
	}
	return list.Items, err
}

// process is the first process of a pod, found by the cgroup of its container.
func (k *kubePlace) process(ctx context.Context, namespace, pod string) (string, error) {
	id, err := k.kubectl(ctx, "", "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		return "", err
	}
	_, id, _ = strings.Cut(id, "://")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && id != "" && strings.Contains(string(text), id) {
			return filepath.Base(filepath.Dir(f)), nil
		}
	}
	return "", fmt.Errorf("no process of pod %s/%s on this machine", namespace, pod)
}

func (k *kubePlace) inside(ctx context.Context, namespace, pod string) (func(func() error) error, error) {
	path := filepath.Join("/run/netns", node(pod))
	if namespace != "" {
		pid, err := k.process(ctx, namespace, pod)
		if err != nil {
			return nil, err
		}
		path = filepath.Join("/proc", pid, "ns/net")
	}
	return func(f func() error) error {
		ns, err := netns.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		return ns.Do(f)
	}, nil
}

func (k *kubePlace) echo() []string { return []string{"/ambit", "echo"} }

// start runs a program of the pod's image in its namespaces.
func (k *kubePlace) start(ctx context.Context, namespace, pod string, cmd *exec.Cmd) error {
	pid, err := k.process(ctx, namespace, pod)
	if err != nil {
		return err
	}
	if cmd.Path, err = exec.LookPath("nsenter"); err != nil {
		return err
	}
	cmd.Err = nil // its program is in the pod, and was not to be found here
	cmd.Args = append([]string{"nsenter", "--target", pid, "--net", "--mount", "--"}, cmd.Args...)
	return cmd.Start()
}

func (k *kubePlace) log(ctx context.Context, namespace, pod string) (string, error) {
	if program, on, ok := strings.Cut(pod, "/"); ok && namespace == "" {
		name, err := k.kubectl(ctx, "", "-n", meshNamespace, "get", "pods", "-l", "app="+program, "--field-selector=spec.nodeName="+node(on), "-o", "jsonpath={.items[0].metadata.name}")
		if err != nil {
			return "", err
		}
		return k.kubectl(ctx, "", "-n", meshNamespace, "logs", name, "-c", "proxy")
	}
	return k.kubectl(ctx, "", "-n", namespace, "logs", pod)
}

func (k *kubePlace) fetch(ctx context.Context, program, url string) (string, error) {
	_, on, _ := strings.Cut(program, "/")
	inside, err := k.inside(ctx, "", on)
	if err != nil {
		return "", err
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = inside(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(text), err
}

func (k *kubePlace) program(ctx context.Context, action, program, part string) error {
	scale := func(n int, wait ...string) error {
		_, err := k.kubectl(ctx, "", "-n", meshNamespace, "scale", "deployment/ambit-controlplane", fmt.Sprintf("--replicas=%d", n))
		if err == nil {
			_, err = k.kubectl(ctx, "", append([]string{"-n", meshNamespace, "--timeout=30s"}, wait...)...)
		}
		return err
	}
	switch action + " " + program {
	case "stop controlplane":
		return scale(0, "wait", "--for=delete", "pod", "-l", "app=ambit-controlplane")
	case "start controlplane":
		return scale(1, "rollout", "status", "deployment/ambit-controlplane")
	}
	name, on, _ := strings.Cut(program, "/")
	if action != "kill" {
		return fmt.Errorf("%s %s: not in a cluster", action, program)
	}
	return kill(node(on), "/"+name, part)
}

// kill kills the processes of a program on a node: those with its arguments in the node's network namespace.
func kill(on string, args ...string) error {
	want, err := inode(filepath.Join("/run/netns", on))
	if err != nil {
		return err
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	prefix, n := strings.Join(args, "\x00")+"\x00", 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(text), prefix) {
			continue
		}
		if id, err := inode(filepath.Join(filepath.Dir(f), "ns/net")); err != nil || id != want {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
		n++
	}
	if n == 0 {
		return fmt.Errorf("no process %q on %s", args, on)
	}
	return nil
}

func inode(path string) (uint64, error) {
	var st syscall.Stat_t
	err := syscall.Stat(path, &st)
	return st.Ino, err
}

func (k *kubePlace) failFile(ctx context.Context, pod string) (string, error) {
	pid, err := k.process(ctx, "shop", pod)
	return filepath.Join("/proc", pid, "root/fails"), err
}

// podRange has the pods of the cluster that test/kube/cluster makes.
var podRange = netip.MustParsePrefix("10.244.0.0/16")

// watched leaves out the cluster's own traffic, names, and what the control plane says.
func (k *kubePlace) watched(s wire.Segment) bool {
	own := func(a netip.AddrPort) bool {
		return podRange.Contains(a.Addr().Unmap()) && a.Port() != 53 && a.Port() != 15012
	}
	return own(s.Src) && own(s.Dst)
}
