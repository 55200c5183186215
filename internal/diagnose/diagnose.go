// Package diagnose says what is wrong with a mesh and what it does with a connection, from the objects of a cluster and
// what its proxies and its control plane tell of themselves.
//
// It is pure: a World goes in, findings and tables come out. Who asks the cluster, or a lab, is somebody else. What the
// control plane itself would say about an object is said in its words: translate, envoy and gateway are asked, and their
// problems and conditions become findings with a code.
package diagnose

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	networkv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/secret"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// World is all that is known of a cluster at one moment. Nothing in it is changed.
type World struct {
	// Objects are those of the kinds that the control plane reads, and Deployments.
	Objects *kube.Objects
	// Problems are those of objects that could not be read.
	Problems []kube.Problem
	// NetworkPolicies are read for diagnosis alone.
	NetworkPolicies []networkv1.NetworkPolicy
	// Unread says why some objects could not be listed.
	Unread []string
	// Missing are the kinds that the API server does not know.
	Missing []kube.Kind
	// Proxies are the programs of the mesh, those that could not be asked too.
	Proxies []Proxy
	// System is the namespace of the mesh; "" = istio-system.
	System string
	// Now is the time here, ServerTime that of the API server (zero = not known).
	Now, ServerTime time.Time
	// KubeVersion is that of the API server, Version that of this program; "" = not known.
	KubeVersion, Version string
	// Manifests says that the objects are manifests of users: nothing runs, and nothing of the cluster is known.
	Manifests bool
	// Lab says that the mesh is a lab's: its programs are no pods, and no CNI plugin is needed.
	Lab bool
}

func (w *World) system() string { return cmp.Or(w.System, "istio-system") }

// Roles of the programs of the mesh.
const (
	// Ztunnel is the proxy of a node.
	Ztunnel = "ztunnel"
	// Waypoint is the proxy of a Gateway.
	Waypoint = "waypoint"
	// ControlPlane serves both.
	ControlPlane = "controlplane"
)

// Proxy is a program of the mesh: a Ztunnel, a Waypoint or a ControlPlane.
type Proxy struct {
	Role string `json:"role"`
	// Namespace and Name are those of its pod; a lab's has no namespace but a waypoint's.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Node      string `json:"node,omitempty"`
	// Gateway is the one that a waypoint is of.
	Gateway string `json:"gateway,omitempty"`
	Ready   bool   `json:"ready"`
	// Plugin says that a ztunnel installs the CNI plugin.
	Plugin bool `json:"plugin,omitempty"`
	// Error says why it could not be asked; Dump and Control are nil then.
	Error string `json:"error,omitempty"`
	// Dump is a proxy's /config_dump.
	Dump *Dump `json:"dump,omitempty"`
	// Control is what a control plane says.
	Control *Control `json:"control,omitempty"`
}

// String is "role namespace/name".
func (p *Proxy) String() string {
	return p.Role + " " + kube.Name{Namespace: p.Namespace, Name: p.Name}.String()
}

// Dump is what /config_dump of a proxy has in our own words. Parts that a proxy does not have are nil.
type Dump struct {
	Workloads    []Told[workload.WorkloadDump]  `json:"workloads,omitempty"`
	Services     []Told[workload.ServiceDump]   `json:"services,omitempty"`
	Policies     []Told[rbac.PolicyDump]        `json:"policies,omitempty"`
	Certificates []Told[admin.Certificate]      `json:"certificates,omitempty"`
	States       map[string]admin.WorkloadState `json:"workloadState,omitempty"`
	Version      admin.Version                  `json:"version"`
	Config       struct {
		Node        string `json:"localNode,omitempty"`
		TrustDomain string `json:"trustDomain,omitempty"`
		Gateway     string `json:"gateway,omitempty"`
		MTU         int    `json:"mtu,omitempty"`
		Version     string `json:"version,omitempty"` // a waypoint's
	} `json:"config"`
	// Listeners and Clusters are a waypoint's.
	Listeners json.RawMessage `json:"listeners,omitempty"`
	Clusters  json.RawMessage `json:"clusters,omitempty"`
	// Envoy says that it is an Envoy's dump.
	Envoy bool `json:"-"`
	// Bootstrap is all of the program's configuration, without secrets.
	Bootstrap json.RawMessage `json:"-"`
}

// ReadDump reads /config_dump: of our programs, of a Rust ztunnel, which has the same words, or of an Envoy.
func ReadDump(body []byte) (*Dump, error) {
	d := &Dump{}
	if err := json.Unmarshal(body, d); err != nil {
		return nil, fmt.Errorf("read config_dump: %w", err)
	}
	var raw struct{ Config json.RawMessage }
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, fmt.Errorf("read config_dump: %w", err)
	}
	d.Bootstrap = raw.Config
	if d.Listeners == nil && d.Workloads == nil {
		if err := d.readEnvoy(body); err != nil {
			return nil, fmt.Errorf("read config_dump: %w", err)
		}
	}
	if d.Bootstrap != nil {
		d.Bootstrap = secret.JSON(d.Bootstrap) // a Rust ztunnel has headers in it, with their tokens
	}
	return d, nil
}

// Control is what a control plane says of its clients and of its authority.
type Control struct {
	// Clients are those of /debug/syncz.
	Clients []discovery.ClientStatus `json:"clients"`
	// Phase of the root's rotation, and Roots in PEM, are those of /debug/ca.
	Phase string `json:"phase,omitempty"`
	Roots string `json:"roots,omitempty"`
	// Version of the program; "" = not known.
	Version string `json:"version,omitempty"`
}

// Severity of a finding.
type Severity string

// Severities.
const (
	// Error means that traffic fails, or that something asked for is not in force.
	Error Severity = "error"
	// Warning means that it works, and perhaps not as meant or not for long.
	Warning Severity = "warning"
	// Info means that it works as it was set up, which not everybody wants.
	Info Severity = "info"
)

// rank orders severities, the worst first.
func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Info}, s) }

// Finding is one thing that is wrong.
type Finding struct {
	// Code is stable and stands in Codes.
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Object is "Kind namespace/name", or a program of the mesh.
	Object string `json:"object"`
	// Place is a file and a line, of an object of a manifest.
	Place string `json:"place,omitempty"`
	Cause string `json:"cause"`
	Fix   string `json:"fix"`
}

// String is the finding on one line.
func (f Finding) String() string {
	return fmt.Sprintf("%s %s %s: %s", f.Code, f.Severity, f.Object, f.Cause)
}

// findings collects findings.
type findings struct {
	list []Finding
}

// add adds a finding. The fix is the code's unless one is given.
func (f *findings) add(code, object, cause string, args ...any) {
	c := byCode[code]
	f.list = append(f.list, Finding{Code: code, Severity: c.Severity, Object: object, Cause: fmt.Sprintf(cause, args...), Fix: c.Fix})
}

// sorted are the findings in order, each once.
func (f *findings) sorted() []Finding {
	slices.SortFunc(f.list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Cause, b.Cause))
	})
	return slices.Compact(f.list)
}

// Chosen are the findings about objects that have the labels of a selector.
func Chosen(w *World, list []Finding, selector labels.Selector) (out []Finding) {
	chosen := map[string]bool{}
	for _, k := range w.Objects.Keys() {
		chosen[k.String()] = selector.Matches(labels.Set(w.Objects.Lookup(k).GetLabels()))
	}
	for _, f := range list {
		if chosen[f.Object] {
			out = append(out, f)
		}
	}
	return out
}
