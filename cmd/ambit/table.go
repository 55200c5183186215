package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// columns are the headers of a kind's table between NAME and AGE, and those that -o wide adds.
type columns struct {
	normal, wide []string
	row          func(raw []byte) (normal, wide []string, err error)
}

var tables = map[string]columns{
	"Pod":        {[]string{"READY", "STATUS", "RESTARTS"}, []string{"IP", "NODE", "MESH"}, rowOf(podRow)},
	"Node":       {[]string{"STATUS"}, []string{"INTERNAL-IP", "PODS", "ZONE"}, rowOf(nodeRow)},
	"Service":    {[]string{"TYPE", "CLUSTER-IP", "PORT(S)"}, []string{"SELECTOR"}, rowOf(serviceRow)},
	"Deployment": {[]string{"READY", "UP-TO-DATE", "AVAILABLE"}, []string{"SELECTOR"}, rowOf(deploymentRow)},
	"Namespace":  {[]string{"STATUS"}, []string{"LABELS"}, rowOf(namespaceRow)},

	"HTTPRoute": routeTable, "GRPCRoute": routeTable, "TCPRoute": routeTable, "TLSRoute": routeTable,
	"AuthorizationPolicy": policyTable, "RequestAuthentication": policyTable, "Telemetry": policyTable, "EnvoyFilter": policyTable,
	"Gateway": {[]string{"CLASS", "PROGRAMMED"}, []string{"ADDRESS", "ACCEPTED"}, rowOf(gatewayRow)},
}

func rowOf[T any](f func(*T) (normal, wide []string)) func([]byte) ([]string, []string, error) {
	return func(raw []byte) ([]string, []string, error) {
		v := new(T)
		if err := json.Unmarshal(raw, v); err != nil {
			return nil, nil, fmt.Errorf("decode object: %w", err)
		}
		n, w := f(v)
		return n, w, nil
	}
}

// printTable writes a table as kubectl does; of all namespaces if all.
func printTable(w io.Writer, kind *manifest.Kind, objs []json.RawMessage, wide, all bool) error {
	if len(objs) == 0 {
		fmt.Fprintln(w, "No resources found.")
		return nil
	}
	cols := tables[kind.Name]
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	withNS := all && !kind.Cluster
	head := []string{"NAME"}
	if withNS {
		head = []string{"NAMESPACE", "NAME"}
	}
	head = append(append(head, cols.normal...), "AGE")
	if wide {
		head = append(head, cols.wide...)
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, raw := range objs {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(raw, &o); err != nil {
			return fmt.Errorf("decode object: %w", err)
		}
		line := []string{o.Name}
		if withNS {
			line = []string{o.Namespace, o.Name}
		}
		var normal, more []string
		if cols.row != nil {
			var err error
			if normal, more, err = cols.row(raw); err != nil {
				return err
			}
		}
		line = append(append(line, normal...), age(o.CreationTimestamp.Time))
		if wide {
			line = append(line, more...)
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	return tw.Flush()
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	default:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
}

func podRow(p *corev1.Pod) (normal, wide []string) {
	ready, restarts := 0, int32(0)
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready {
			ready++
		}
		restarts += c.RestartCount
	}
	status := p.Status.Reason
	if status == "" {
		status = string(p.Status.Phase)
	}
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	mesh := "-"
	if p.Annotations["ambient.istio.io/redirection"] == "enabled" {
		mesh = "captured"
	}
	return []string{fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), status, fmt.Sprint(restarts)},
		[]string{orNone(strings.Join(ips, ",")), orNone(p.Spec.NodeName), mesh}
}

func nodeRow(n *corev1.Node) (normal, wide []string) {
	var ips []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			ips = append(ips, a.Address)
		}
	}
	return []string{"Ready"}, []string{strings.Join(ips, ","), strings.Join(n.Spec.PodCIDRs, ","), n.Labels[corev1.LabelTopologyZone]}
}

func serviceRow(s *corev1.Service) (normal, wide []string) {
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	ip := s.Spec.ClusterIP
	if len(s.Spec.ClusterIPs) > 0 {
		ip = strings.Join(s.Spec.ClusterIPs, ",")
	}
	return []string{string(s.Spec.Type), orNone(ip), orNone(strings.Join(ports, ","))}, []string{pairs(s.Spec.Selector)}
}

func deploymentRow(d *appsv1.Deployment) (normal, wide []string) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	var sel map[string]string
	if d.Spec.Selector != nil {
		sel = d.Spec.Selector.MatchLabels
	}
	return []string{fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, want), fmt.Sprint(d.Status.UpdatedReplicas), fmt.Sprint(d.Status.AvailableReplicas)},
		[]string{pairs(sel)}
}

// Tables of what the control plane judges: -o wide says what it says.
var (
	routeTable  = columns{nil, []string{"PARENTS", "ACCEPTED", "RESOLVED-REFS"}, rowOf(routeRow)}
	policyTable = columns{nil, []string{"ACCEPTED"}, rowOf(policyRow)}
)

// routeLike is what all kinds of routes have.
type routeLike struct {
	Status struct {
		Parents []gatewayv1.RouteParentStatus `json:"parents"`
	} `json:"status"`
}

func routeRow(r *routeLike) (normal, wide []string) {
	var parents []string
	var all []metav1.Condition
	for _, p := range r.Status.Parents {
		kind := "Gateway"
		if p.ParentRef.Kind != nil {
			kind = string(*p.ParentRef.Kind)
		}
		parents = append(parents, strings.ToLower(kind)+"/"+string(p.ParentRef.Name))
		all = append(all, p.Conditions...)
	}
	return nil, []string{orNone(strings.Join(parents, ",")), verdict(all, "Accepted"), verdict(all, "ResolvedRefs")}
}

// policyLike is what all policies have.
type policyLike struct {
	Status struct {
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

func policyRow(p *policyLike) (normal, wide []string) {
	return nil, []string{verdict(p.Status.Conditions, "WaypointAccepted", "ZtunnelAccepted")}
}

func gatewayRow(g *gatewayv1.Gateway) (normal, wide []string) {
	var addresses []string
	for _, a := range g.Status.Addresses {
		addresses = append(addresses, a.Value)
	}
	return []string{string(g.Spec.GatewayClassName), verdict(g.Status.Conditions, "Programmed")},
		[]string{orNone(strings.Join(addresses, ",")), verdict(g.Status.Conditions, "Accepted")}
}

// verdict is the first reason why a condition of some type does not hold, else "True", and "Unknown" when there is none.
func verdict(list []metav1.Condition, kinds ...string) string {
	out := "Unknown"
	for _, c := range list {
		switch {
		case !slices.Contains(kinds, c.Type):
		case c.Status != metav1.ConditionTrue:
			return string(c.Status) + " (" + c.Reason + ")"
		default:
			out = string(c.Status)
		}
	}
	return out
}

func namespaceRow(n *corev1.Namespace) (normal, wide []string) {
	return []string{"Active"}, []string{pairs(n.Labels)}
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return orNone(strings.Join(out, ","))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
