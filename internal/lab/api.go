package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
)

// File is a manifest file as it is sent to a lab.
type File = manifest.File

// Access is how a process gets into a pod or node.
type Access struct {
	// NetNS is the namespace's name for `ip netns exec`.
	NetNS string `json:"netns"`
	// Mnt, UTS and IPC are paths of the other namespaces; empty for a node.
	Mnt string `json:"mnt,omitempty"`
	UTS string `json:"uts,omitempty"`
	IPC string `json:"ipc,omitempty"`
	// Cgroup is the directory of the group the process belongs into.
	Cgroup string   `json:"cgroup"`
	Env    []string `json:"env,omitempty"`
	Dir    string   `json:"dir,omitempty"`
}

// serve answers the lab's socket until ctx ends.
func (l *Lab) serve(ctx context.Context) error {
	ln, err := net.Listen("unix", l.paths.socket())
	if err != nil {
		return fmt.Errorf("listen on the lab's socket: %w", err)
	}
	if err := os.Chmod(l.paths.socket(), 0o600); err != nil {
		ln.Close()
		return fmt.Errorf("protect the lab's socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/apply", handle(l.handleApply))
	mux.HandleFunc("POST /v1/delete", handle(l.handleDelete))
	mux.HandleFunc("POST /v1/objects", handle(l.handleObjects))
	mux.HandleFunc("POST /v1/pending", handle(func(context.Context, struct{}) ([]string, error) { return l.pending(), nil }))
	mux.HandleFunc("POST /v1/access", handle(l.handleAccess))
	mux.HandleFunc("POST /v1/log", handle(l.handleLog))
	mux.HandleFunc("POST /v1/program", handle(l.handleProgram))
	mux.HandleFunc("POST /v1/fetch", handle(l.handleFetch))
	mux.HandleFunc("POST /v1/release", handle(l.handleRelease))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	l.wg.Go(func() { _ = srv.Serve(ln) })
	l.wg.Go(func() {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
	})
	return nil
}

type apiError struct {
	Error string `json:"error"`
}

// handle makes an endpoint of a function: JSON in, JSON out, errors as text with status 422.
func handle[Q, A any](f func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a, err := f(r.Context(), q)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(apiError{err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(a)
	}
}

func (l *Lab) handleApply(_ context.Context, files []File) ([]Result, error) {
	objs, err := manifest.ParseAll(files...)
	if err != nil {
		return nil, err
	}
	return l.Apply(objs)
}

type deleteRequest struct {
	Files []File `json:"files"`
	Keys  []key  `json:"keys"`
}

func (l *Lab) handleDelete(_ context.Context, q deleteRequest) ([]Result, error) {
	objs, err := manifest.ParseAll(q.Files...)
	if err != nil {
		return nil, err
	}
	keys := q.Keys
	for _, o := range slices.Backward(objs) { // what was made last goes first
		keys = append(keys, o.Key())
	}
	return l.Delete(keys)
}

type objectsRequest struct {
	Kind      string `json:"kind"`      // any of its names
	Namespace string `json:"namespace"` // all if empty
	Name      string `json:"name"`      // all if empty
}

func (l *Lab) handleObjects(ctx context.Context, q objectsRequest) ([]json.RawMessage, error) {
	kind := manifest.Lookup(q.Kind)
	if kind == nil {
		return nil, fmt.Errorf("unknown kind %q; accepted: %s", q.Kind, strings.Join(manifest.Names(), ", "))
	}
	l.mu.Lock()
	docs := l.render()
	l.mu.Unlock()
	var keys []key
	for k := range docs {
		if k.Kind == kind.Name && (q.Namespace == "" || k.Namespace == "" || k.Namespace == q.Namespace) && (q.Name == "" || q.Name == k.Name) {
			keys = append(keys, k)
		}
	}
	if q.Name != "" && len(keys) == 0 {
		return nil, fmt.Errorf("%s %q not found in namespace %q", kind.Plural, q.Name, q.Namespace)
	}
	slices.SortFunc(keys, compareKeys)
	l.withStatus(ctx, kind.Name, keys, docs)
	out := []json.RawMessage{}
	for _, k := range keys {
		out = append(out, docs[k])
	}
	return out, nil
}

type podRequest struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"` // a pod, or a node
	Container string `json:"container"`
}

// findPod takes a pod's name; with Lab.mu held.
func (l *Lab) findPod(q podRequest) (*pod, error) {
	p := l.pods[podKey(q.Namespace, strings.TrimPrefix(q.Name, "pod/"))]
	if p != nil {
		return p, nil
	}
	var names []string
	for k := range l.pods {
		if k.Namespace == q.Namespace {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	return nil, fmt.Errorf("no pod %q in namespace %q; accepted: %s", q.Name, q.Namespace, strings.Join(names, ", "))
}

func (l *Lab) handleAccess(_ context.Context, q podRequest) (*Access, error) {
	for _, n := range l.nodes {
		if q.Name == n.name || q.Name == "node/"+n.name {
			return &Access{NetNS: l.paths.nodeNS(n.name), Cgroup: l.cg.dir}, nil
		}
	}
	if strings.HasPrefix(q.Name, "ztunnel/") {
		p, err := l.program(q.Name, "proxy")
		if err != nil {
			return nil, err
		}
		home, err := p.homeNow()
		if err != nil {
			return nil, err
		}
		return &Access{NetNS: home.name, Cgroup: l.cg.dir}, nil
	}
	if q.Name == "controlplane" {
		return &Access{NetNS: l.paths.controlNS(), Cgroup: l.cg.dir}, nil
	}
	l.mu.Lock()
	p, err := l.findPod(q)
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	sb, c := p.sandbox, p.containers[len(p.containers)-1]
	for _, x := range p.containers {
		if x.spec.Name == q.Container || q.Container == "" && !x.init {
			c = x
			break
		}
	}
	l.mu.Unlock()
	if q.Container != "" && c.spec.Name != q.Container {
		return nil, fmt.Errorf("pod %q has no container %q", q.Name, q.Container)
	}
	if sb == nil {
		return nil, fmt.Errorf("pod %q is not up yet", q.Name)
	}
	self := func(fd uintptr) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }
	return &Access{
		NetNS: p.nsName(), Cgroup: sb.cg.dir, Env: c.environ(), Dir: c.spec.WorkingDir,
		Mnt: self(sb.spaces.mnt.Fd()), UTS: self(sb.spaces.uts.Fd()), IPC: self(sb.spaces.ipc.Fd()),
	}, nil
}

// handleLog names the file with the log of a pod's container, of ztunnel/NODE (Container: part) or of the control plane.
func (l *Lab) handleLog(_ context.Context, q podRequest) (string, error) {
	if q.Name == "controlplane" || strings.HasPrefix(q.Name, "ztunnel/") {
		if q.Container == "" {
			q.Container = "proxy"
		}
		p, err := l.program(q.Name, q.Container)
		if err != nil {
			return "", err
		}
		return p.log, nil
	}
	if q.Name == "supervisor" {
		return l.paths.supervisorLog(), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := l.findPod(q)
	if err != nil {
		return "", err
	}
	var names []string
	for _, c := range p.containers {
		names = append(names, c.spec.Name)
		if c.spec.Name == q.Container || q.Container == "" && !c.init {
			return p.logOf(c.spec.Name), nil
		}
	}
	return "", fmt.Errorf("pod %q has no container %q; accepted: %s", q.Name, q.Container, strings.Join(names, ", "))
}

// program finds a program of the mesh; part is capture or proxy.
func (l *Lab) program(target, part string) (*program, error) {
	if l.opts.NoMesh {
		return nil, errors.New("the lab runs without mesh: it has no ztunnel and no control plane")
	}
	accepted := []string{"controlplane"}
	for _, n := range l.nodes {
		accepted = append(accepted, "ztunnel/"+n.name)
		if target == "ztunnel/"+n.name {
			switch part {
			case "capture":
				return n.capture, nil
			case "proxy":
				return n.proxy, nil
			}
			return nil, fmt.Errorf("ztunnel has no part %q; accepted: capture, proxy", part)
		}
	}
	if target == "controlplane" {
		return l.ctl, nil
	}
	return nil, fmt.Errorf("unknown program %q; accepted: %s", target, strings.Join(accepted, ", "))
}

type fetchRequest struct {
	Target string `json:"target"`
	URL    string `json:"url"`
}

// handleFetch gets a URL from inside of a program's namespace.
func (l *Lab) handleFetch(ctx context.Context, q fetchRequest) (string, error) {
	p, err := l.program(q.Target, "proxy")
	if err != nil {
		return "", err
	}
	home, err := p.homeNow()
	if err != nil {
		return "", err
	}
	return home.get(ctx, q.URL)
}

type programRequest struct {
	Action string `json:"action"`
	Target string `json:"target"`
	Part   string `json:"part"`
}

func (l *Lab) handleProgram(ctx context.Context, q programRequest) (struct{}, error) {
	none := struct{}{}
	part := q.Part
	if part == "" {
		part = "proxy"
	}
	p, err := l.program(q.Target, part)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	l.log.Info("program is told", "program", p.name, "action", q.Action)
	switch q.Action {
	case "restart":
		return none, p.restart(ctx)
	case "kill":
		return none, p.kill()
	case "stop":
		return none, p.halt(ctx)
	case "start":
		return none, p.resume(ctx)
	}
	return none, fmt.Errorf("unknown action %q; accepted: restart, kill, stop, start", q.Action)
}

// handleRelease makes a supervisor that lives in somebody's process (a test) stop, since the lab is about to be removed.
func (l *Lab) handleRelease(context.Context, struct{}) (struct{}, error) {
	l.release()
	return struct{}{}, nil
}

// Client returns a client of this lab.
func (l *Lab) Client() *Client { return newClient(l.paths) }

// NodeDir is the run directory of a node's ztunnel: its sockets, token and logs.
func (l *Lab) NodeDir(node string) string { return l.paths.run(node) }
