package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// captureRequest is the body of the pods API of `ztunnel capture`.
type captureRequest struct {
	UID             string            `json:"uid"`
	Namespace       string            `json:"namespace,omitempty"`
	Name            string            `json:"name,omitempty"`
	ServiceAccount  string            `json:"serviceAccount,omitempty"`
	NetNS           string            `json:"netns,omitempty"`
	Addresses       []string          `json:"addresses,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	HostNetwork     bool              `json:"hostNetwork,omitempty"`
}

type captureAnswer struct {
	Result string `json:"result"`
	Reason string `json:"reason"`
}

// captureRequestLocked says what capture is to know of a pod; with Lab.mu held.
func (p *pod) captureRequestLocked() captureRequest {
	r := captureRequest{
		UID: p.uid, Namespace: p.key.Namespace, Name: p.key.Name, ServiceAccount: p.account(),
		NetNS:  filepath.Join(netnsDir, p.nsName()),
		Labels: p.labels, Annotations: p.annotations, HostNetwork: p.spec.HostNetwork,
	}
	for _, a := range p.addrs {
		r.Addresses = append(r.Addresses, a.String())
	}
	if ns := p.l.objects[key{Kind: "Namespace", Name: p.key.Namespace}]; ns != nil {
		r.NamespaceLabels = ns.m.Labels()
	}
	return r
}

func (r captureRequest) signature() string {
	b, _ := json.Marshal([]any{r.Labels, r.Annotations, r.NamespaceLabels})
	return string(b)
}

// captureNow has capture take the pod (or say that it is none of its business); no process of the pod runs before.
func (p *pod) captureNow() error { return p.tellCapture("add") }

// captureUpdate tells capture what changed about a running pod, and tries again until it takes it or the pod ends.
func (p *pod) captureUpdate() {
	p.retry(p.ctx, "capture", func() error { return p.tellCapture("update") })
	p.update(func() {
		if strings.HasPrefix(p.reason, "capture:") {
			p.reason = ""
		}
		p.capturing--
	})
}

func (p *pod) tellCapture(verb string) error {
	if p.node.capture == nil || p.spec.HostNetwork {
		return nil
	}
	p.captureMu.Lock()
	defer p.captureMu.Unlock()
	p.l.mu.Lock()
	req := p.captureRequestLocked()
	p.captureSent = req.signature()
	p.l.mu.Unlock()
	var ans captureAnswer
	if err := p.node.askCapture(p.ctx, p.l.paths, verb, req, &ans); err != nil {
		return err
	}
	p.update(func() { p.captured = ans.Result == "captured" })
	return nil
}

// captureRemove is told after the pod's processes ended. Capture may be down: it also notices by itself.
func (p *pod) captureRemove() {
	if p.node.capture == nil || p.spec.HostNetwork {
		return
	}
	p.captureMu.Lock()
	defer p.captureMu.Unlock()
	if !p.l.ctxAlive() {
		return // the whole lab goes
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), 5*time.Second)
	defer cancel()
	if err := p.node.askCapture(ctx, p.l.paths, "remove", captureRequest{UID: p.uid}, nil); err != nil {
		p.l.log.Warn("capture was not told that a pod ended", "pod", p.key.String(), "err", err)
	}
}

// captureUpdates lists the pods about which capture knows something else than what holds; with Lab.mu held.
func (l *Lab) captureUpdates() []*pod {
	var out []*pod
	for _, p := range l.pods {
		if p.captureSent == "" || p.stopping || p.sandbox == nil || p.spec.HostNetwork {
			continue
		}
		if sig := p.captureRequestLocked().signature(); sig != p.captureSent {
			p.captureSent = sig
			p.capturing++
			out = append(out, p)
		}
	}
	return out
}

// captureStale tells whether capture does not know yet what holds; with Lab.mu held.
func (p *pod) captureStale() bool {
	return p.capturing > 0 || p.captureSent != "" && !p.spec.HostNetwork && p.captureRequestLocked().signature() != p.captureSent
}

// recapture has all pods of the node told to capture again: it started anew.
func (n *node) recapture(l *Lab) {
	l.mu.Lock()
	for _, p := range l.pods {
		if p.node == n && p.captureSent != "" {
			p.captureSent = "anew"
		}
	}
	l.mu.Unlock()
	l.wake()
}

// askCapture posts to the node's capture.
func (n *node) askCapture(ctx context.Context, ps paths, verb string, req captureRequest, ans *captureAnswer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode pod: %w", err)
	}
	client := unixClient(filepath.Join(ps.run(n.name), "pods.sock"))
	defer client.CloseIdleConnections()
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://capture/v1/pods/"+verb, bytes.NewReader(body))
	if err != nil {
		return err
	}
	hr.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(hr)
	if err != nil {
		return fmt.Errorf("ask capture of %s: %w", n.name, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("capture of %s: %s: %s", n.name, resp.Status, strings.TrimSpace(string(b)))
	}
	if ans == nil {
		return nil
	}
	if err := json.Unmarshal(b, ans); err != nil {
		return fmt.Errorf("read answer of capture: %w", err)
	}
	return nil
}

// unixClient speaks HTTP over a unix socket.
func unixClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}
