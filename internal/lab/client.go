package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client talks to a running lab, in this process or another. Safe for concurrent use.
type Client struct {
	paths paths
	http  *http.Client
}

// ErrNoLab is returned by Dial when no lab of that name runs.
var ErrNoLab = errors.New("no such lab")

// Dial finds the lab of that name.
func Dial(name string) (*Client, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	p := paths{name}
	if !exists(p.dir()) {
		labs, _ := Labs()
		have := "none is up"
		if len(labs) > 0 {
			have = "there are: " + strings.Join(labs, ", ")
		}
		return nil, fmt.Errorf("lab %q: %w (%s)", name, ErrNoLab, have)
	}
	return newClient(p), nil
}

func newClient(p paths) *Client { return &Client{p, unixClient(p.socket())} }

func (c *Client) call(ctx context.Context, path string, q, a any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("reach lab %q (it may have crashed; remove it with: ambit lab down --name %s): %w", c.paths.lab, c.paths.lab, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read answer of lab %q: %w", c.paths.lab, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e apiError
		if json.Unmarshal(b, &e) == nil && e.Error != "" {
			return errors.New(e.Error)
		}
		return fmt.Errorf("lab %q: %s: %s", c.paths.lab, resp.Status, b)
	}
	if err := json.Unmarshal(b, a); err != nil {
		return fmt.Errorf("read answer of lab %q: %w", c.paths.lab, err)
	}
	return nil
}

// Apply creates or changes the objects of manifest files: all, or with an error none.
func (c *Client) Apply(ctx context.Context, files ...File) ([]Result, error) {
	var out []Result
	return out, c.call(ctx, "/v1/apply", files, &out)
}

// ApplyYAML applies manifests from memory.
func (c *Client) ApplyYAML(ctx context.Context, yaml string) error {
	_, err := c.Apply(ctx, File{Name: "inline", Data: []byte(yaml)})
	return err
}

// Delete removes the objects that the files name.
func (c *Client) Delete(ctx context.Context, files ...File) ([]Result, error) {
	var out []Result
	return out, c.call(ctx, "/v1/delete", deleteRequest{Files: files}, &out)
}

// DeleteObject removes one object; kind is as in a manifest.
func (c *Client) DeleteObject(ctx context.Context, kind, namespace, name string) error {
	var out []Result
	return c.call(ctx, "/v1/delete", deleteRequest{Keys: []key{{Kind: kind, Namespace: namespace, Name: name}}}, &out)
}

// Objects lists objects as JSON in the order of namespace and name. kind may be any of its names; empty namespace and
// name mean all.
func (c *Client) Objects(ctx context.Context, kind, namespace, name string) ([]json.RawMessage, error) {
	var out []json.RawMessage
	return out, c.call(ctx, "/v1/objects", objectsRequest{kind, namespace, name}, &out)
}

// Pending says what is not yet as the manifests want it, a line each; empty when all pods are Ready.
func (c *Client) Pending(ctx context.Context) ([]string, error) {
	var out []string
	return out, c.call(ctx, "/v1/pending", struct{}{}, &out)
}

// WaitReady blocks until all pods are Ready. progress, if not nil, is called when what is pending changed. The error
// at the end of ctx names what is still pending.
func (c *Client) WaitReady(ctx context.Context, progress func(pending []string)) error {
	last := ""
	for {
		pending, err := c.Pending(ctx)
		if err != nil {
			return err
		}
		if len(pending) == 0 {
			return nil
		}
		if now := strings.Join(pending, "\n"); now != last && progress != nil {
			last = now
			progress(pending)
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("not ready: %s: %w", strings.Join(pending, ", "), ctx.Err())
		}
	}
}

// Access tells how to get into a pod, or into a node (name node-N, namespace without meaning).
func (c *Client) Access(ctx context.Context, namespace, name, container string) (*Access, error) {
	a := &Access{}
	return a, c.call(ctx, "/v1/access", podRequest{namespace, name, container}, a)
}

// LogFile names the file that holds the log of a pod's container, of ztunnel/NODE (container: capture or proxy), of
// controlplane or supervisor.
func (c *Client) LogFile(ctx context.Context, namespace, name, container string) (string, error) {
	var f string
	return f, c.call(ctx, "/v1/log", podRequest{namespace, name, container}, &f)
}

// Program does action (restart, kill, stop, start) to target (ztunnel/NODE or controlplane). part is capture or proxy;
// empty means proxy. It blocks until done: after restart and start the program is ready.
func (c *Client) Program(ctx context.Context, action, target, part string) error {
	return c.call(ctx, "/v1/program", programRequest{action, target, part}, &struct{}{})
}

// Fetch gets a URL as a program (ztunnel/NODE or controlplane) would see it: http://127.0.0.1:15000/config_dump is the
// ztunnel's own. Status codes other than 200 are errors.
func (c *Client) Fetch(ctx context.Context, target, url string) (string, error) {
	var body string
	return body, c.call(ctx, "/v1/fetch", fetchRequest{target, url}, &body)
}

func (c *Client) release(ctx context.Context) {
	_ = c.call(ctx, "/v1/release", struct{}{}, &struct{}{})
}

func (a *Access) open() (spaces, error) {
	ns, err := openNS(a.NetNS)
	if err != nil {
		return spaces{}, err
	}
	s := spaces{net: ns}
	for _, x := range []struct {
		path string
		to   **os.File
	}{{a.Mnt, &s.mnt}, {a.UTS, &s.uts}, {a.IPC, &s.ipc}} {
		if x.path == "" {
			continue
		}
		if *x.to, err = os.Open(x.path); err != nil {
			s.Close()
			return spaces{}, fmt.Errorf("open namespace: %w", err)
		}
	}
	return s, nil
}

// Start starts cmd inside of the pod or node, with the container's environment unless it has one. The caller waits for
// it. It must not ask for Pdeathsig.
func (a *Access) Start(cmd *exec.Cmd) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	cg, err := openCgroup(a.Cgroup)
	if err != nil {
		return err
	}
	defer cg.fd.Close()
	if cmd.Env == nil {
		cmd.Env = a.Env
	}
	if cmd.Dir == "" {
		cmd.Dir = a.Dir
	}
	return s.start(cmd, cg)
}

// Do runs f on a thread inside of the network namespace.
func (a *Access) Do(f func() error) error {
	ns, err := openNS(a.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// Exec replaces this process by argv inside of the pod or node, so that its files, signals and exit status are the
// command's own. extra is added to the environment (NAME=value). It returns only on an error.
func (a *Access) Exec(argv []string, extra ...string) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	if err := (&cgroup{dir: a.Cgroup}).join(); err != nil {
		return err
	}
	env := a.Env
	if env == nil {
		env = os.Environ()
	}
	env = append(env, extra...)
	runtime.LockOSThread()
	if err := s.enter(); err != nil {
		return err
	}
	if a.Dir != "" {
		if err := unix.Chdir(a.Dir); err != nil {
			return fmt.Errorf("change to working directory: %w", err)
		}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, argv, env))
}

// Run runs argv in a pod (or node) and returns its standard output. The error of a command that failed holds its
// standard error.
func (c *Client) Run(ctx context.Context, namespace, name string, argv ...string) (string, error) {
	a, err := c.Access(ctx, namespace, name, "")
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := a.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("run %s in %s: %w: %s", argv[0], name, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}
