// Package podsock is the small HTTP protocol by which the CNI plugin and the lab tell capture of the pods of the node:
// JSON over a unix socket.
//
//	POST /v1/pods/add     Pod       -> Result   when the pod is captured, or is none of ours
//	POST /v1/pods/update  Pod       -> Result   labels or annotations changed: enrol or un-enrol
//	POST /v1/pods/remove  {"uid"}   -> Result   the pod is gone; unknown pods too
//	GET  /v1/pods                   -> []State
//	POST /v1/sandboxes/add     Sandbox -> Result   a pod is being started: as for pods/add, when capture knows the pod itself
//	POST /v1/sandboxes/remove  Sandbox -> Result   this sandbox of the pod is gone; a later one is not touched
//	GET  /metrics                   -> Prometheus text
//
// Every request may be repeated. What cannot be done is answered with a status of 400 or above and {"error","retry"}.
package podsock

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Pod describes a pod.
type Pod struct {
	// UID is the pod's UID: 1 to 64 printable ASCII characters.
	UID string `json:"uid"`
	// Namespace, Name and ServiceAccount are the pod's.
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
	// Netns is the path of the pod's network namespace.
	Netns string `json:"netns"`
	// Addresses are the pod's.
	Addresses []netip.Addr `json:"addresses"`
	// Labels and Annotations are the pod's, NamespaceLabels those of its namespace.
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	// ProbePorts are the TCP ports that the kubelet asks whether the pod is well. Only a capture that cannot recognise the
	// kubelet needs them.
	ProbePorts []uint16 `json:"probePorts,omitempty"`
	// HostNetwork pods are never captured.
	HostNetwork bool `json:"hostNetwork,omitempty"`
}

const (
	// LabelMode is the label of pods and namespaces by which they are in the mesh or not (redirection.md 1.2).
	LabelMode = "istio.io/dataplane-mode"
	// LabelIn is the value of LabelMode that asks for the mesh.
	LabelIn = "ambient"
	// LabelOut is the value of LabelMode that keeps a pod out, whatever its namespace asks for.
	LabelOut = "none"
)

// WantsMesh says that the pod's labels, or those of its namespace, ask for the mesh (redirection.md 1.2). What else keeps a
// pod out is not looked at.
func (p *Pod) WantsMesh() bool {
	own := p.Labels[LabelMode]
	return own == LabelIn || own != LabelOut && p.NamespaceLabels[LabelMode] == LabelIn
}

// Sandbox is what a CNI plugin knows of a pod that is being started. The rest capture asks the cluster.
type Sandbox struct {
	// UID is the pod's UID; "" from container runtimes that do not tell it.
	UID string `json:"uid,omitempty"`
	// Namespace and Name are the pod's.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Netns is the path of the sandbox's network namespace.
	Netns string `json:"netns"`
	// Addresses are the pod's, which the cluster does not know yet.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Begun is when the plugin was first asked to let the pod in, by the node's clock. The zero value: with this request.
	Begun time.Time `json:"begun,omitzero"`
}

// Results of a request.
const (
	Captured = "captured"
	Skipped  = "skipped"
	Removed  = "removed"
)

// Result is the answer to add, update and remove.
type Result struct {
	// Result is Captured, Skipped or Removed.
	Result string `json:"result"`
	// Reason says why a pod is skipped.
	Reason string `json:"reason,omitempty"`
	// Problem says what of the pod's labels and annotations is wrong, and what comes of that.
	Problem string `json:"problem,omitempty"`
}

// State is a pod as GET /v1/pods lists it.
type State struct {
	UID       string       `json:"uid"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Netns     string       `json:"netns"`
	Addresses []netip.Addr `json:"addresses"`
	// State is skipped, captured, pending (it is to be captured and cannot be yet: Error says why) or draining (it left the
	// mesh and old connections are not all over).
	State string `json:"state"`
	// Reason and Problem are those of Result.
	Reason  string `json:"reason,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Error is the last failure.
	Error string `json:"error,omitempty"`
}

// Error is a request that capture refused.
type Error struct {
	// Status is the HTTP status.
	Status int `json:"-"`
	// Text says why.
	Text string `json:"error"`
	// Retry says that the same request may succeed later.
	Retry bool `json:"retry"`
}

// Error implements error.
func (e *Error) Error() string { return e.Text }

// Client talks to capture. It is safe for concurrent use.
type Client struct {
	h http.Client
}

// NewClient returns a client of the socket at path. It holds no connection between calls.
func NewClient(path string) *Client {
	return &Client{h: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Add has a pod captured, or skipped if its labels say so. Blocks until it is. A refusal is an *Error.
func (c *Client) Add(ctx context.Context, p *Pod) (Result, error) { return c.post(ctx, "add", p) }

// Update tells of changed labels or annotations. Otherwise it is Add.
func (c *Client) Update(ctx context.Context, p *Pod) (Result, error) { return c.post(ctx, "update", p) }

// Remove tells that a pod is gone.
func (c *Client) Remove(ctx context.Context, uid string) (Result, error) {
	return c.post(ctx, "remove", &Pod{UID: uid})
}

// AddSandbox has a pod that is being started captured, or skipped if the cluster says so. Blocks until it is. A refusal is
// an *Error.
func (c *Client) AddSandbox(ctx context.Context, s *Sandbox) (Result, error) {
	var out Result
	err := c.do(ctx, http.MethodPost, "/v1/sandboxes/add", s, &out)
	return out, err
}

// RemoveSandbox tells that a pod's sandbox is gone. One that took its place is not touched.
func (c *Client) RemoveSandbox(ctx context.Context, s *Sandbox) error {
	return c.do(ctx, http.MethodPost, "/v1/sandboxes/remove", s, &Result{})
}

// List returns all pods that capture knows.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var out []State
	err := c.do(ctx, http.MethodGet, "/v1/pods", nil, &out)
	return out, err
}

func (c *Client) post(ctx context.Context, verb string, p *Pod) (Result, error) {
	var out Result
	err := c.do(ctx, http.MethodPost, "/v1/pods/"+verb, p, &out)
	return out, err
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://capture"+path, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.h.Do(req)
	if err != nil {
		return fmt.Errorf("ask capture: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read answer of capture: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &Error{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Text == "" {
			e.Text = fmt.Sprintf("capture answered %s", resp.Status)
		}
		return e
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer of capture: %w", err)
	}
	return nil
}
