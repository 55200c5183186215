package lab

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fakeProgram stands for a program of the mesh: it serves what the lab asks of it, and writes down what it was told.
func fakeProgram(args []string) error {
	fs := flag.NewFlagSet("fake", flag.ContinueOnError)
	flags := map[string]*string{}
	for _, n := range []string{"node", "run-dir", "pin-dir", "manifests", "listen", "root-ca-out", "ca-dir", "lab-token-key", "trust-domain",
		"cluster-id", "root-namespace", "admin-address", "xds-address", "ca-address", "root-ca", "token", "network", "metrics-address", "ready-address"} {
		flags[n] = fs.String(n, "", "")
	}
	verb := args[0]
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch verb {
	case "controlplane":
		ln, err := net.Listen("tcp", *flags["listen"])
		if err != nil {
			return err
		}
		defer ln.Close()
		if err := os.WriteFile(*flags["root-ca-out"], []byte("root"), 0o644); err != nil {
			return err
		}
	case "capture":
		path := filepath.Join(*flags["run-dir"], "pods.sock")
		os.Remove(path)
		ln, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		go http.Serve(ln, fakeCapture(*flags["run-dir"]))
	case "proxy":
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ready") })
		mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
		ln, err := net.Listen("tcp", *flags["ready-address"])
		if err != nil {
			return err
		}
		go http.Serve(ln, mux)
	}
	<-ctx.Done()
	return nil
}

// fakeCapture writes a line per request into DIR/told, with the number of processes in the pod's namespace, and takes
// pods of namespaces with the label.
func fakeCapture(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q captureRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ans := captureAnswer{Result: "skipped"}
		if q.NamespaceLabels["istio.io/dataplane-mode"] == "ambient" {
			ans.Result = "captured"
		}
		f, err := os.OpenFile(filepath.Join(dir, "told"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err == nil {
			fmt.Fprintf(f, "%s %s processes=%d %s\n", filepath.Base(r.URL.Path), q.Name, inside(q.NetNS), ans.Result)
			f.Close()
		}
		_ = json.NewEncoder(w).Encode(ans)
	})
}

func inside(netns string) (n int) {
	want, err := os.Stat(netns)
	if err != nil {
		return 0
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, d := range dirs {
		if got, err := os.Stat(d); err == nil && os.SameFile(got, want) {
			n++
		}
	}
	return n
}

// script makes the test binary a program: its path is started with the lab's arguments.
func script(t *testing.T, verb string) string {
	t.Helper()
	self, _ := os.Executable()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec "+self+" fake "+verb+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func upMesh(t *testing.T, name, manifests string) *Lab {
	t.Helper()
	requireRoot(t)
	o := testOptions(name)
	o.NoMesh = false
	o.Programs.Ztunnel, o.Programs.Controlplane = script(t, ""), script(t, "controlplane")
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	apply(t, l.Client(), manifests)
	return l
}

func told(t *testing.T, l *Lab) (out []string) {
	t.Helper()
	for _, n := range l.nodes {
		b, err := os.ReadFile(filepath.Join(l.NodeDir(n.name), "told"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out = append(out, strings.Split(strings.TrimSpace(string(b)), "\n")...)
	}
	slices.Sort(out)
	return out
}

func TestRootCaptureIsAskedBeforeAnyProcessOfAPod(t *testing.T) {
	l := upMesh(t, "meshlab", strings.Replace(twoPods, "{name: shop}", "{name: shop, labels: {istio.io/dataplane-mode: ambient}}", 1))
	got := told(t, l)
	if len(got) != 3 {
		t.Fatalf("got %q, want a request for each of three pods", got)
	}
	for _, line := range got {
		if !strings.HasPrefix(line, "add ") || !strings.HasSuffix(line, " processes=0 captured") {
			t.Errorf("got %q, want an add without processes inside, answered captured", line)
		}
	}
	p := object1[struct {
		Metadata struct{ Annotations map[string]string }
	}](t, l.Client(), "pod", "shop", "client")
	if p.Metadata.Annotations[redirectionAnnotation] != "enabled" {
		t.Errorf("annotations of a captured pod are %v", p.Metadata.Annotations)
	}
}

func TestRootLabellingANamespaceTellsCapture(t *testing.T) {
	l := upMesh(t, "meshlab", twoPods)
	label := func(mode string) {
		apply(t, l.Client(), "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: "+mode+"}}}")
	}
	annotated := func() string {
		b, err := os.ReadFile(filepath.Join(l.paths.manifests(), "pod_shop_client.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	label("ambient")
	waitFor(t, "the annotation", func() bool { return strings.Contains(annotated(), redirectionAnnotation) })
	label("none")
	waitFor(t, "the annotation to go", func() bool { return !strings.Contains(annotated(), redirectionAnnotation) })
}

func TestRootProgramsAreRestarted(t *testing.T) {
	l := upMesh(t, "meshlab", twoPods)
	c := l.Client()
	pid := func() string {
		out, err := c.Fetch(t.Context(), "ztunnel/node-1", "http://127.0.0.1:15021/pid")
		if err != nil {
			return ""
		}
		return out
	}
	first := pid()
	if err := c.Program(t.Context(), "restart", "ztunnel/node-1", "proxy"); err != nil {
		t.Fatal(err)
	}
	second := pid()
	if second == first || second == "" {
		t.Errorf("pid is %q after a restart, was %q", second, first)
	}
	if err := c.Program(t.Context(), "kill", "ztunnel/node-1", "proxy"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the proxy to come back", func() bool { return pid() != "" && pid() != second })
	if err := c.Program(t.Context(), "stop", "ztunnel/node-1", "proxy"); err != nil {
		t.Fatal(err)
	}
	if p := pid(); p != "" {
		t.Errorf("a stopped proxy answers: %s", p)
	}
	if err := c.Program(t.Context(), "start", "ztunnel/node-1", "proxy"); err != nil {
		t.Fatal(err)
	}
	if pid() == "" {
		t.Error("a started proxy does not answer")
	}
	before := len(told(t, l))
	if err := c.Program(t.Context(), "kill", "ztunnel/node-1", "capture"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "capture to be told again", func() bool { return len(told(t, l)) > before })
	if err := c.Program(t.Context(), "restart", "ztunnel/node-9", ""); err == nil || !strings.Contains(err.Error(), "accepted: controlplane, ztunnel/node-1, ztunnel/node-2") {
		t.Errorf("unknown program: got %v, want what is accepted", err)
	}
	if names, _ := l.paths.namespaces(); len(names) != 2+2+2+3 {
		t.Errorf("namespaces: %q, want fabric, control, 2 nodes, 2 ztunnels, 3 pods", names)
	}
}
