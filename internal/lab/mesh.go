package lab

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// A ztunnel's proxy answers here, inside of its namespace.
const (
	adminAddress = "127.0.0.1:15000"
	readyAddress = "127.0.0.1:15021"
)

// startMesh starts the control plane, then each node's capture and proxy, and waits until all are ready. The programs
// end with run.
func (l *Lab) startMesh(ctx, run context.Context) error {
	for _, p := range []struct{ name, path string }{{"ztunnel", l.opts.Programs.Ztunnel}, {"controlplane", l.opts.Programs.Controlplane}} {
		if _, err := os.Stat(p.path); err != nil {
			return fmt.Errorf("find program %s: %w", p.name, err)
		}
	}
	random := make([]byte, 32)
	rand.Read(random)
	secret := []byte(hex.EncodeToString(random))
	l.mu.Lock()
	l.secret = secret
	l.mu.Unlock()
	if err := os.WriteFile(l.paths.tokenKey(), secret, 0o600); err != nil {
		return fmt.Errorf("write token key: %w", err)
	}
	if err := l.prepareControlplane(); err != nil {
		return err
	}
	l.wake() // the manifests are there before the control plane reads them
	l.wg.Go(func() { l.ctl.run(run) })
	for _, n := range l.nodes {
		if err := l.prepareZtunnel(n); err != nil {
			return err
		}
	}
	l.wg.Go(func() { l.renewTokens(run, secret) })
	if err := l.writeTokens(secret); err != nil {
		return err
	}
	l.log.Info("waiting for the control plane")
	if err := l.ctl.awaitReady(ctx); err != nil {
		return err
	}
	for _, n := range l.nodes {
		l.wg.Go(func() { n.capture.run(run) })
		l.wg.Go(func() { n.proxy.run(run) })
	}
	for _, n := range l.nodes {
		l.log.Info("waiting for ztunnel", "node", n.name)
		if err := errors.Join(n.capture.awaitReady(ctx), n.proxy.awaitReady(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// controlAddress is of a family that the ztunnels have.
func (l *Lab) controlAddress() string {
	if l.opts.Families == "ipv6" {
		return at(fabricV6, controlIndex).String()
	}
	return at(fabricV4, controlIndex).String()
}

func (l *Lab) prepareControlplane() error {
	ns, err := openNS(l.paths.controlNS())
	if err != nil {
		return err
	}
	l.ctl = &program{
		changed: make(chan struct{}, 1),
		l:       l, name: "controlplane", home: ns, path: l.opts.Programs.Controlplane,
		log: filepath.Join(l.paths.control(), "controlplane.log"),
		args: append([]string{
			"--manifests=" + l.paths.manifests(), "--listen=" + net.JoinHostPort(l.controlAddress(), "15012"),
			"--root-ca-out=" + l.paths.rootCA(), "--ca-dir=" + filepath.Join(l.paths.control(), "ca"),
			"--lab-token-key=" + l.paths.tokenKey(), "--trust-domain=cluster.local", "--cluster-id=Kubernetes",
			// On every address: what changes something is only for callers by loopback.
			"--root-namespace=" + systemNS, "--admin-address=[::]:15014",
		}, l.opts.Programs.ControlplaneArgs...),
		ready: func(ctx context.Context, ns *netNS) error {
			if !exists(l.paths.rootCA()) {
				return errors.New("no root certificate yet")
			}
			conn, err := ns.dial(ctx, net.JoinHostPort(l.controlAddress(), "15012"))
			if err == nil {
				conn.Close()
			}
			return err
		},
	}
	return nil
}

func (l *Lab) prepareZtunnel(n *node) error {
	run := l.paths.run(n.name)
	for _, d := range []string{run, l.paths.pin(n.name)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("create run directory: %w", err)
		}
	}
	path := l.opts.Programs.Ztunnel
	if p := l.opts.Programs.ZtunnelOf[n.name]; p != "" {
		path = p
	}
	cp := "https://" + net.JoinHostPort(l.controlAddress(), "15012")
	n.capture = &program{
		changed: make(chan struct{}, 1),
		l:       l, name: "ztunnel/" + n.name + " capture", home: n.ns, path: path, log: filepath.Join(run, "capture.log"),
		args: append([]string{"capture", "--node=" + n.name, "--run-dir=" + run, "--pin-dir=" + l.paths.pin(n.name)},
			l.opts.Programs.CaptureArgs...),
		ready: func(ctx context.Context, _ *netNS) error { return dialUnix(ctx, filepath.Join(run, "pods.sock")) },
		again: func() { n.recapture(l) },
	}
	n.proxy = &program{
		changed: make(chan struct{}, 1),
		l:       l, name: "ztunnel/" + n.name + " proxy", path: path, log: filepath.Join(run, "proxy.log"),
		args: append([]string{
			"proxy", "--node=" + n.name, "--run-dir=" + run, "--xds-address=" + cp, "--ca-address=" + cp,
			"--root-ca=" + l.paths.rootCA(), "--token=" + l.tokenFile(n), "--cluster-id=Kubernetes", "--network=",
			"--trust-domain=cluster.local", "--admin-address=" + adminAddress, "--metrics-address=:15020", "--ready-address=:15021",
		}, l.opts.Programs.ProxyArgs...),
		newHome: func() (*netNS, func(), error) { return l.proxyHome(n) },
		ready: func(ctx context.Context, home *netNS) error {
			_, err := home.get(ctx, "http://"+readyAddress+"/healthz/ready")
			return err
		},
	}
	return nil
}

// proxyHome makes a namespace for a process of the node's proxy, as a pod of a DaemonSet has one: so that two of them
// can run side by side while one takes over from the other.
func (l *Lab) proxyHome(n *node) (*netNS, func(), error) {
	l.mu.Lock()
	n.links++
	link := "ztunnel" + itoa(n.links)
	addrs, err := n.pods.take()
	l.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	name := l.paths.prefix() + "ztunnel-" + n.name + "." + itoa(n.links)
	leave := func() {
		if err := errors.Join(n.ns.DeleteLink(link), netns.Delete(name)); err != nil && l.ctxAlive() {
			l.log.Warn("ztunnel leaves something behind", "node", n.name, "err", err)
		}
		l.mu.Lock()
		n.pods.free(addrs)
		l.mu.Unlock()
	}
	ns, err := createNS(name)
	if err == nil {
		err = n.plugPod(ns, link, addrs)
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	return ns, func() { ns.Close(); leave() }, nil
}

// get fetches a URL from inside of the namespace.
func (n *netNS) get(ctx context.Context, url string) (string, error) {
	client := n.httpClient()
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b[:min(len(b), 512)])
	}
	return string(b), nil
}

func dialUnix(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return err
}

func (l *Lab) tokenFile(n *node) string { return filepath.Join(l.paths.run(n.name), "token") }

const tokenLife = 24 * time.Hour

// renewTokens replaces the nodes' tokens long before they expire.
func (l *Lab) renewTokens(ctx context.Context, secret []byte) {
	for sleep(ctx, tokenLife/4) {
		if err := l.writeTokens(secret); err != nil {
			l.log.Error("tokens are not renewed", "err", err)
		}
	}
}

func (l *Lab) writeTokens(secret []byte) error {
	for _, n := range l.nodes {
		if err := writeToken(secret, l.tokenFile(n), systemNS, "ztunnel", "ztunnel-"+n.name, "ztunnel-"+n.name, n.name); err != nil {
			return err
		}
	}
	l.mu.Lock()
	pods := slices.Collect(maps.Values(l.pods))
	l.mu.Unlock()
	for _, p := range pods {
		if err := p.writeToken(secret); err != nil && p.ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// writeToken gives the pod the token of its service account, where a cluster would project one.
func (p *pod) writeToken(secret []byte) error {
	if secret == nil {
		return nil
	}
	return writeToken(secret, filepath.Join(p.dir(), "token"), p.key.Namespace, p.account(), p.key.Name, p.uid, p.node.name)
}

func writeToken(secret []byte, path, namespace, account, pod, uid, node string) error {
	claims, err := json.Marshal(map[string]any{
		"namespace": namespace, "serviceAccount": account, "pod": pod, "uid": uid, "node": node, "exp": time.Now().Add(tokenLife).Unix(),
	})
	if err != nil {
		return fmt.Errorf("encode token: %w", err)
	}
	if err := os.WriteFile(path+".tmp", []byte(Token(secret, claims)), 0o600); err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	return nil
}

// Token signs claims (JSON) as the lab's stand-in for a service account token: base64url(claims) "."
// base64url(HMAC-SHA256(key, first part)). key is the content of the key file, without white space around it.
func Token(key, claims []byte) string {
	first := base64.RawURLEncoding.EncodeToString(claims)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(first))
	return first + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}
