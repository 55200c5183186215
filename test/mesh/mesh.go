// Package mesh runs this repository's programs on a bed: a control plane over a directory of manifests, and a ztunnel,
// capture and proxy, on each node that is to have ours. Pods are those of the bed; this package tells the control plane
// and the ztunnel of them, as Kubernetes and a CNI plugin would.
package mesh

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/bed"
)

// A Pod is a pod of the bed with its place in Kubernetes. Its namespace is in the mesh if Captured.
type Pod struct {
	*bed.Pod
	Namespace, ServiceAccount string
	Captured                  bool
}

// UID is the pod's.
func (p Pod) UID() string { return "uid-" + p.Name }

// Config says what to run.
type Config struct {
	Bed *bed.Bed
	// Bin is the directory of our programs.
	Bin string
	// Pods are the pods that exist. A namespace is in the mesh if one of its pods is captured.
	Pods []Pod
	// Fill is the number of further workloads that the control plane knows of, on nodes that do not exist.
	Fill int
}

// A Plane is a running control plane. It runs on the bed's first node. Stop ends it.
type Plane struct {
	Process *bed.Process
	cfg     Config
	dir     string
	key     string
	log     *os.File
}

// port of the control plane.
const port = 15012

// StartPlane starts a control plane and returns when it answers, or when ctx ends.
func StartPlane(ctx context.Context, cfg Config) (*Plane, error) {
	p := &Plane{cfg: cfg, dir: stateDir(cfg.Bed)}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start control plane: %w", err), p.Stop())
	}
	return p, nil
}

// stateDir is where a bed's mesh has its files. It is always the same, so that what a killed run left is found.
func stateDir(b *bed.Bed) string { return filepath.Join("/run", b.Name) }

func (p *Plane) start(ctx context.Context) error {
	if err := removeState(p.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(p.manifests(), 0o755); err != nil {
		return err
	}
	p.key = hex.EncodeToString([]byte(fmt.Sprintf("%016x", time.Now().UnixNano())))
	keyFile := filepath.Join(p.dir, "token-key")
	if err := os.WriteFile(keyFile, []byte(p.key), 0o600); err != nil {
		return err
	}
	if err := p.writeObjects(); err != nil {
		return err
	}
	var err error
	if p.log, err = os.Create(filepath.Join(p.dir, "controlplane.log")); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(p.cfg.Bin, "controlplane"), "--manifests="+p.manifests(), "--listen="+p.addr(),
		"--root-ca-out="+p.RootCA(), "--lab-token-key="+keyFile, "--ca-dir="+filepath.Join(p.dir, "ca"))
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if p.Process, err = p.cfg.Bed.Nodes[0].NS.Start(cmd); err != nil {
		return err
	}
	return await(ctx, p.Process, p.log.Name(), func() error {
		if _, err := os.Stat(p.RootCA()); err != nil {
			return err
		}
		c, err := p.cfg.Bed.Nodes[0].NS.Dial(ctx, "tcp", p.addr())
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// await calls ready until it succeeds, ctx ends or the process does.
func await(ctx context.Context, proc *bed.Process, log string, ready func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("ended (%v); its last words: %s", proc.Err(), tail(log))
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w; its last words: %s", err, tail(log))
		case <-tick.C:
		}
	}
}

// tail is the end of a log, for error texts.
func tail(path string) string {
	const size = 3000
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-size):])
}

// LogTail is the end of the control plane's log.
func (p *Plane) LogTail() string { return tail(filepath.Join(p.dir, "controlplane.log")) }

func (p *Plane) manifests() string { return filepath.Join(p.dir, "manifests") }
func (p *Plane) addr() string {
	return netip.AddrPortFrom(p.cfg.Bed.Nodes[0].Addr, port).String()
}

// Address is the control plane's URL, RootCA the file with the certificate that it is to be checked by.
func (p *Plane) Address() string { return "https://" + p.addr() }

// RootCA is the file with the root certificate.
func (p *Plane) RootCA() string { return filepath.Join(p.dir, "root-ca.pem") }

// Token writes a token for the ztunnel of a node and returns the file.
func (p *Plane) Token(n *bed.Node) (string, error) {
	claims, err := json.Marshal(map[string]any{
		"namespace": "istio-system", "serviceAccount": "ztunnel", "pod": "ztunnel-" + n.Name, "uid": "ztunnel-" + n.Name,
		"node": n.Name, "exp": time.Now().Add(24 * time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.dir, "token-"+n.Name)
	return path, os.WriteFile(path, []byte(lab.Token([]byte(p.key), claims)), 0o600)
}

// PeerEnv is the environment that a foreign ztunnel on a node needs to work under this control plane.
func (p *Plane) PeerEnv(n *bed.Node) ([]string, error) {
	token, err := p.Token(n)
	if err != nil {
		return nil, err
	}
	return []string{
		"XDS_ADDRESS=" + p.Address(), "CA_ADDRESS=" + p.Address(), "XDS_ROOT_CA=" + p.RootCA(), "CA_ROOT_CA=" + p.RootCA(),
		"AUTH_TOKEN=" + token, "POD_NAMESPACE=istio-system", "POD_NAME=ztunnel-" + n.Name,
		"INSTANCE_IP=" + n.Addr.String(),
	}, nil
}

// Apply writes a manifest under a name, in place of an earlier one.
func (p *Plane) Apply(name string, objects ...any) error {
	var b bytes.Buffer
	for _, o := range objects {
		b.WriteString("---\n")
		e := json.NewEncoder(&b) // JSON is YAML
		if err := e.Encode(o); err != nil {
			return fmt.Errorf("encode manifest %q: %w", name, err)
		}
	}
	tmp := filepath.Join(p.dir, name+".tmp")
	if err := os.WriteFile(tmp, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(p.manifests(), name+".yaml"))
}

// Delete removes what Apply has written under a name.
func (p *Plane) Delete(name string) error {
	return os.Remove(filepath.Join(p.manifests(), name+".yaml"))
}

// Stop ends the control plane and removes its files. Ztunnels are stopped before.
func (p *Plane) Stop() error {
	p.Process.Stop(2 * time.Second)
	var errs []error
	if p.log != nil {
		errs = append(errs, p.log.Close())
		p.log = nil
	}
	return errors.Join(append(errs, removeState(p.dir))...)
}

// removeState removes a bed's state directory and what is mounted in it.
func removeState(dir string) error {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", f[1], err)
			}
		}
	}
	return os.RemoveAll(dir)
}
