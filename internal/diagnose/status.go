package diagnose

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Status is a mesh on one screen.
type Status struct {
	ControlPlanes []ControlState  `json:"controlPlanes"`
	Nodes         []NodeState     `json:"nodes"`
	Waypoints     []WaypointState `json:"waypoints"`
	// Findings are those of Check.
	Findings []Finding `json:"findings"`
}

// ControlState is a replica of the control plane.
type ControlState struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Clients int    `json:"clients"`
	// Root is when the first of the roots ends.
	Root string `json:"rootUntil,omitempty"`
}

// NodeState is a node and its ztunnel.
type NodeState struct {
	Name string `json:"name"`
	// Proxy is the state of the ztunnel's stream, or what is wrong with the ztunnel.
	Proxy    string `json:"proxy"`
	Enrolled int    `json:"enrolled"`
	Captured int    `json:"captured"`
	// Certificates are those that are valid, Pending the others.
	Certificates int `json:"certificates"`
	Pending      int `json:"pendingCertificates"`
	Connections  int `json:"connections"`
}

// WaypointState is a waypoint's Gateway.
type WaypointState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	For       string `json:"for"`
	Ready     int    `json:"ready"`
	Instances int    `json:"instances"`
	// Programmed is the condition, with its reason when it does not hold.
	Programmed string `json:"programmed"`
	// Users are the objects that ask for it.
	Users int `json:"users"`
	// Addresses are those of the Gateway's status, Revision its label istio.io/rev.
	Addresses []string `json:"addresses,omitempty"`
	Revision  string   `json:"revision,omitempty"`
	// Pods are its instances.
	Pods []string `json:"pods,omitempty"`
}

// StatusOf sums a mesh up.
func StatusOf(w *World) Status {
	s := Status{ControlPlanes: []ControlState{}, Nodes: []NodeState{}, Waypoints: Waypoints(w, ""), Findings: Check(w)}
	if s.Findings == nil {
		s.Findings = []Finding{}
	}
	a := &analysis{World: w, objects: w.Objects}
	byNode := map[string]*Proxy{}
	for i := range w.Proxies {
		p := &w.Proxies[i]
		switch p.Role {
		case Ztunnel:
			byNode[p.Node] = p
		case ControlPlane:
			c := ControlState{Name: p.Name, Ready: p.Ready}
			if p.Control != nil {
				c.Clients = len(p.Control.Clients)
				for _, r := range parseRoots([]byte(p.Control.Roots)) {
					if end := r.NotAfter.UTC().Format(time.RFC3339); c.Root == "" || end < c.Root {
						c.Root = end
					}
				}
			}
			s.ControlPlanes = append(s.ControlPlanes, c)
		}
	}
	for _, n := range sorted[*corev1.Node](w.Objects) {
		s.Nodes = append(s.Nodes, a.node(n.Name, byNode[n.Name]))
	}
	return s
}

func (a *analysis) node(name string, p *Proxy) NodeState {
	n := NodeState{Name: name, Proxy: "no ztunnel"}
	switch {
	case p == nil:
	case !p.Ready:
		n.Proxy = "not ready"
	default:
		n.Proxy = strings.ToLower(syncOf(a.World, p).Sync)
	}
	for _, pod := range a.sortedPods() {
		if pod.Spec.NodeName != name || pod.Status.Phase != corev1.PodRunning {
			continue
		}
		if a.mode(pod) == modeAmbient && !pod.Spec.HostNetwork && !a.outside(pod) {
			n.Enrolled++
		}
		if pod.Annotations[redirection] == "enabled" {
			n.Captured++
		}
	}
	if p == nil || p.Dump == nil {
		return n
	}
	n.Certificates, n.Connections = p.Dump.available(), p.Dump.open()
	n.Pending = len(p.Dump.Certificates) - n.Certificates
	return n
}

// Waypoints are those of a namespace, or all when it is "".
func Waypoints(w *World, namespace string) []WaypointState {
	out := []WaypointState{}
	for _, g := range sorted[*gatewayv1.Gateway](w.Objects) {
		if g.Spec.GatewayClassName != kube.WaypointClass || namespace != "" && g.Namespace != namespace {
			continue
		}
		x := WaypointState{Namespace: g.Namespace, Name: g.Name, For: "service", Programmed: "Unknown", Revision: g.Labels["istio.io/rev"]}
		for _, a := range g.Status.Addresses {
			x.Addresses = append(x.Addresses, a.Value)
		}
		if v := g.Labels[labelWaypointFor]; v != "" {
			x.For = v
		}
		for _, c := range g.Status.Conditions {
			if c.Type == "Programmed" {
				if x.Programmed = string(c.Status); c.Status != "True" {
					x.Programmed += fmt.Sprintf(" (%s: %s)", c.Reason, c.Message)
				}
			}
		}
		for _, p := range sorted[*corev1.Pod](w.Objects) {
			if p.Namespace == g.Namespace && p.Labels[kube.LabelGateway] == g.Name {
				x.Instances++
				x.Pods = append(x.Pods, p.Name)
				if podReady(p) {
					x.Ready++
				}
			}
		}
		for _, k := range w.Objects.Keys() {
			o, home := w.Objects.Lookup(k), k.Namespace
			if k.Kind == kube.KindNamespace {
				home = k.Name.Name
			}
			if name, ns := waypointOf(o.GetLabels(), home); name == g.Name && ns == g.Namespace {
				x.Users++
			}
		}
		out = append(out, x)
	}
	return out
}

// Text is the status for people.
func (s *Status) Text() string {
	var b strings.Builder
	b.WriteString("control plane\n")
	for _, c := range s.ControlPlanes {
		fmt.Fprintf(&b, "  %s %s: %d clients, root valid until %s\n", mark(c.Ready), c.Name, c.Clients, dash(c.Root))
	}
	b.WriteString("nodes\n")
	for _, n := range s.Nodes {
		ok := n.Proxy == "synced" && n.Enrolled == n.Captured && n.Pending == 0
		fmt.Fprintf(&b, "  %s %s: %s, %d of %d pods captured, %d certificates", mark(ok), n.Name, n.Proxy, n.Captured, n.Enrolled, n.Certificates)
		if n.Pending > 0 {
			fmt.Fprintf(&b, " and %d without", n.Pending)
		}
		fmt.Fprintf(&b, ", %d connections\n", n.Connections)
	}
	if len(s.Waypoints) > 0 {
		b.WriteString("waypoints\n")
	}
	for _, w := range s.Waypoints {
		fmt.Fprintf(&b, "  %s %s/%s: %d of %d instances ready, for %s, %d users", mark(w.Ready > 0 && w.Programmed == "True"), w.Namespace, w.Name, w.Ready, w.Instances, w.For, w.Users)
		if w.Programmed != "True" {
			fmt.Fprintf(&b, ", programmed %s", w.Programmed)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Names are the parts of the mesh: controlplane/NAME, ztunnel/NODE, waypoint/NAME.
func (s *Status) Names() (out []string) {
	for _, c := range s.ControlPlanes {
		out = append(out, ControlPlane+"/"+c.Name)
	}
	for _, n := range s.Nodes {
		out = append(out, Ztunnel+"/"+n.Name)
	}
	return append(out, WaypointNames(s.Waypoints)...)
}

// WaypointNames is waypoint/NAME of each.
func WaypointNames(list []WaypointState) (out []string) {
	for _, w := range list {
		out = append(out, Waypoint+"/"+w.Name)
	}
	return out
}

// WaypointTable is a row for each waypoint.
func WaypointTable(list []WaypointState) Table {
	t := Table{Head: []string{"NAMESPACE", "NAME", "FOR", "READY", "PROGRAMMED", "USERS", "ADDRESS", "REVISION", "PODS"}, Key: 2, Wide: 3}
	for _, x := range list {
		t.Rows = append(t.Rows, []string{x.Namespace, x.Name, x.For, fmt.Sprintf("%d/%d", x.Ready, x.Instances), x.Programmed, fmt.Sprint(x.Users),
			strings.Join(x.Addresses, ","), x.Revision, strings.Join(x.Pods, ",")})
	}
	return t
}

// FindingsTable is a row for each finding, with what its code means for those who ask for more.
func FindingsTable(list []Finding) Table {
	t := Table{Head: []string{"CODE", "SEVERITY", "OBJECT", "CAUSE", "FIX", "PLACE", "MEANING"}}
	for _, f := range list {
		t.Rows = append(t.Rows, []string{f.Code, string(f.Severity), f.Object, f.Cause, f.Fix, f.Place, byCode[f.Code].Title})
	}
	return t
}

// FindingsText is findings for people, and a last line that counts them.
func FindingsText(list []Finding) string {
	var b strings.Builder
	count := map[Severity]int{}
	for _, f := range list {
		sign := map[Severity]string{Error: "✗", Warning: "!", Info: "i"}[f.Severity]
		count[f.Severity]++
		fmt.Fprintf(&b, "%s %s %s: %s\n    fix: %s\n", sign, f.Code, f.Object, f.Cause, f.Fix)
		if f.Place != "" {
			fmt.Fprintf(&b, "    in %s\n", f.Place)
		}
	}
	if len(list) == 0 {
		return "✓ nothing found\n"
	}
	fmt.Fprintf(&b, "%d errors, %d warnings", count[Error], count[Warning])
	if n := count[Info]; n > 0 {
		fmt.Fprintf(&b, ", %d to know", n)
	}
	b.WriteString("\n")
	return b.String()
}

func mark(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
