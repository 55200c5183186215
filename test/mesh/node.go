package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/test/bed"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// NodeConfig says how to run our ztunnel on a node.
type NodeConfig struct {
	Plane *Plane
	Node  *bed.Node
	// ProxyArgs are further flags of `ztunnel proxy`.
	ProxyArgs []string
	// Program is the ztunnel. Empty: that of the plane's Bin.
	Program string
}

// A Node is our ztunnel at work. Stop ends it and removes every trace of it.
type Node struct {
	Capture, Proxy *bed.Process
	cfg            NodeConfig
	dir            string
	logs           []*os.File
	mounted        bool
}

// StartNode starts capture and proxy on a node, has the node's captured pods captured, and returns when the proxy is
// ready, or when ctx ends.
func StartNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	n := &Node{cfg: cfg, dir: filepath.Join(cfg.Plane.dir, "node-"+cfg.Node.Name)}
	if cfg.Program == "" {
		n.cfg.Program = filepath.Join(cfg.Plane.cfg.Bin, "ztunnel")
	}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start ztunnel of node %q: %w", cfg.Node.Name, err), n.Stop())
	}
	return n, nil
}

func (n *Node) bpf() string { return filepath.Join(n.dir, "bpf") }
func (n *Node) run() string { return filepath.Join(n.dir, "run") }

func (n *Node) start(ctx context.Context) error {
	for _, d := range []string{n.bpf(), n.run()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("bpf", n.bpf(), "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	n.mounted = true
	var err error
	n.Capture, err = n.program("capture", "--node="+n.cfg.Node.Name, "--run-dir="+n.run(), "--pin-dir="+filepath.Join(n.bpf(), "pins"))
	if err != nil {
		return err
	}
	pods := podsock.NewClient(filepath.Join(n.run(), "pods.sock"))
	err = await(ctx, n.Capture, n.log("capture"), func() error { _, err := pods.List(ctx); return err })
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if err := n.startProxy(ctx); err != nil {
		return err
	}
	for _, p := range n.cfg.Plane.cfg.Pods {
		if p.Node != n.cfg.Node || !p.Captured {
			continue
		}
		r, err := pods.Add(ctx, &podsock.Pod{
			UID: p.UID(), Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.ServiceAccount, Netns: p.NS.File(),
			Addresses: []netip.Addr{p.Addr, p.Addr6}, NamespaceLabels: map[string]string{modeLabel: "ambient"},
		})
		if err == nil && r.Result != podsock.Captured {
			err = errors.New(r.Result + ": " + r.Reason)
		}
		if err != nil {
			return fmt.Errorf("capture pod %q: %w", p.Name, err)
		}
	}
	return nil
}

func (n *Node) startProxy(ctx context.Context) error {
	token, err := n.cfg.Plane.Token(n.cfg.Node)
	if err != nil {
		return err
	}
	args := append([]string{
		"--node=" + n.cfg.Node.Name, "--run-dir=" + n.run(), "--xds-address=" + n.cfg.Plane.Address(), "--root-ca=" + n.cfg.Plane.RootCA(),
		"--token=" + token,
	}, n.cfg.ProxyArgs...)
	if n.Proxy, err = n.program("proxy", args...); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: n.cfg.Node.NS.Dial, DisableKeepAlives: true}, Timeout: time.Second}
	err = await(ctx, n.Proxy, n.log("proxy"), func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15021/healthz/ready", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New("readiness: " + resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// RestartProxy stops the proxy, gracefully or by SIGKILL if grace is zero, and starts it again.
func (n *Node) RestartProxy(ctx context.Context, grace time.Duration) error {
	n.Proxy.Stop(grace)
	return n.startProxy(ctx)
}

func (n *Node) log(verb string) string { return filepath.Join(n.dir, verb+".log") }

// LogTail is the end of the logs of both processes.
func (n *Node) LogTail() string {
	return "capture:\n" + tail(n.log("capture")) + "\nproxy:\n" + tail(n.log("proxy"))
}

func (n *Node) program(verb string, args ...string) (*bed.Process, error) {
	log, err := os.OpenFile(n.log(verb), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	n.logs = append(n.logs, log)
	cmd := exec.Command(n.cfg.Program, append([]string{verb}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return n.cfg.Node.NS.Start(cmd)
}

// Stop ends both processes and unloads what they left. It may be called twice.
func (n *Node) Stop() error {
	n.Proxy.Stop(2 * time.Second)
	n.Capture.Stop(2 * time.Second)
	var errs []error
	if n.mounted {
		p, err := n.program("unload", "--node="+n.cfg.Node.Name, "--run-dir="+n.run(), "--pin-dir="+filepath.Join(n.bpf(), "pins"))
		errs = append(errs, err)
		if err == nil {
			<-p.Done()
			if p.Err() != nil {
				errs = append(errs, fmt.Errorf("unload: %w: %s", p.Err(), tail(n.log("unload"))))
			}
		}
		errs = append(errs, unix.Unmount(n.bpf(), unix.MNT_DETACH))
		n.mounted = false
	}
	for _, l := range n.logs {
		errs = append(errs, l.Close())
	}
	n.logs = nil
	return errors.Join(errs...)
}
