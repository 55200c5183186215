package diagnose

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Told is one thing that a program told of, and its own words for it: a Rust ztunnel says what ours leaves out, and a later
// one may say what is not known here.
type Told[T any] struct {
	Value T

	words json.RawMessage // nil = it was not read from JSON
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Told[T]) UnmarshalJSON(body []byte) error {
	t.words = bytes.Clone(body)
	return json.Unmarshal(body, &t.Value)
}

// MarshalJSON implements json.Marshaler.
func (t Told[T]) MarshalJSON() ([]byte, error) {
	if t.words != nil {
		return t.words, nil
	}
	return json.Marshal(t.Value)
}

func (b *builder) workloads(p *Proxy) error {
	states := map[string]string{}
	for _, s := range p.Dump.States {
		states[s.Info.Namespace+"/"+s.Info.Name] = s.State
	}
	for _, told := range p.Dump.Workloads {
		w := &told.Value
		if b.skip(w.Namespace) || !b.s.pod(w.Namespace, w.Name) {
			continue
		}
		owner, locality, canonical := "", "", w.CanonicalName
		if w.WorkloadName != "" {
			owner = strings.ToLower(w.WorkloadType) + "/" + w.WorkloadName
		}
		if l := w.Locality; l != nil {
			locality = strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.Subzone, "/")
		}
		if w.CanonicalRevision != "" {
			canonical += "/" + w.CanonicalRevision
		}
		b.add(p, told, w.Name, w.Namespace, w.Name, addresses(w), w.Node, gatewayText(w.Waypoint), w.Protocol, w.Status,
			w.ServiceAccount, owner, strings.Join(w.Services, ","), strings.Join(w.Policies, ","), w.Network, locality,
			gatewayText(w.NetworkGateway), cmp.Or(w.NetworkMode, "Standard"), tunnel(w), w.TrustDomain, w.ClusterID, canonical,
			fmt.Sprint(w.Capacity), states[w.Namespace+"/"+w.Name], w.UID)
	}
	return nil
}

// addresses are those of a workload, and the name of one that is found by DNS.
func addresses(w *workload.WorkloadDump) string {
	var out []string
	for _, a := range w.WorkloadIPs {
		out = append(out, a.String())
	}
	if w.Hostname != "" {
		out = append(out, w.Hostname)
	}
	return strings.Join(out, ",")
}

// gatewayText is a waypoint or the gateway of a network, with its port if that is not the usual one.
func gatewayText(g *workload.GatewayDump) string {
	switch {
	case g == nil:
		return ""
	case g.HBONEMTLSPort != portHBONE:
		return fmt.Sprintf("%s port %d", g.Destination, g.HBONEMTLSPort)
	}
	return g.Destination
}

// tunnel is how a workload wants its connections: "native" HBONE, and the protocol and the port of an application tunnel.
func tunnel(w *workload.WorkloadDump) string {
	var out []string
	if w.NativeTunnel {
		out = append(out, "native")
	}
	if t := w.AppTunnel; t != nil {
		text := t.Protocol
		if t.Port != 0 {
			text += fmt.Sprintf(":%d", t.Port)
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

func (b *builder) services(p *Proxy) error {
	for _, told := range p.Dump.Services {
		s := &told.Value
		if b.skip(s.Namespace) || !b.s.service(s.Namespace, s.Name) {
			continue
		}
		healthy := 0
		for _, e := range s.Endpoints {
			if e.Status == "Healthy" {
				healthy++
			}
		}
		balancing := ""
		if l := s.LoadBalancer; l != nil {
			balancing = strings.Join(append(append([]string{l.Mode}, l.Preferences...), l.HealthPolicy), ",")
		}
		b.add(p, told, s.Name, s.Namespace, s.Hostname, vips(s), waypoints(s), fmt.Sprintf("%d/%d", healthy, len(s.Endpoints)),
			portPairs(s), balancing, s.Visibility, strings.Join(s.SANs, ","), s.Name, s.IPFamilies, fmt.Sprint(s.Canonical))
	}
	return nil
}

// vips are the virtual addresses of a service and its ranges of them, those of a named network after its name.
func vips(s *workload.ServiceDump) string {
	var out []string
	for _, v := range s.VIPs {
		out = append(out, strings.TrimPrefix(v, "/"))
	}
	for _, r := range s.CIDRs {
		out = append(out, strings.TrimPrefix(r.Network+"/"+r.CIDR.String(), "/"))
	}
	return strings.Join(out, ",")
}

// waypoints are the waypoint of a service, or those that share its connections, with their weights.
func waypoints(s *workload.ServiceDump) string {
	if len(s.Weighted) == 0 {
		return gatewayText(s.Waypoint)
	}
	var out []string
	for i := range s.Weighted {
		out = append(out, fmt.Sprintf("%s weight %d", gatewayText(&s.Weighted[i].Destination), s.Weighted[i].Weight))
	}
	return strings.Join(out, ",")
}

// portPairs are "port:target port" of a service, by number. A target port that has a name is each endpoint's own: all that
// there are, divided by "|", or none.
func portPairs(s *workload.ServiceDump) string {
	out := make([]string, 0, len(s.Ports))
	for _, port := range slices.SortedFunc(maps.Keys(s.Ports), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}) {
		targets := map[uint16]bool{}
		if t := s.Ports[port]; t != 0 {
			targets[t] = true
		} else {
			for _, e := range s.Endpoints {
				if t := e.Port[port]; t != 0 {
					targets[t] = true
				}
			}
		}
		text, divider := port, ":"
		for _, t := range slices.Sorted(maps.Keys(targets)) {
			text, divider = text+divider+fmt.Sprint(t), "|"
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

func (b *builder) policies(p *Proxy) error {
	used, users := map[string]bool{}, map[string]int{}
	for _, told := range p.Dump.Workloads {
		w := &told.Value
		for _, name := range w.Policies {
			used[name] = used[name] || b.s.pod(w.Namespace, w.Name)
			users[name]++
		}
	}
	for _, told := range p.Dump.Policies {
		x := &told.Value
		switch {
		case b.skip(x.Namespace) && x.Scope != "Global":
		case b.s == nil, x.Scope == "Global", x.Scope == "Namespace" && b.s.in(x.Namespace), used[x.Namespace+"/"+x.Name]:
			workloads := "all of them"
			switch x.Scope {
			case "WorkloadSelector":
				workloads = fmt.Sprint(users[x.Namespace+"/"+x.Name])
			case "Namespace":
				workloads = "all of " + x.Namespace
			}
			b.add(p, told, x.Name, x.Namespace, x.Name, x.Action, x.Scope, fmt.Sprint(len(x.Rules)), fmt.Sprint(x.DryRun), workloads, cell(x.Rules))
		}
	}
	return nil
}

func (b *builder) certs(p *Proxy) error {
	for _, told := range p.Dump.Certificates {
		c := &told.Value
		if p.Role == Ztunnel && !b.s.identity(c.Identity) || b.ns != "" && !strings.Contains(c.Identity, "/ns/"+b.ns+"/") {
			continue
		}
		serial, whole, from, until, root := "", "", "", "", ""
		if len(c.CertChain) > 0 {
			leaf := c.CertChain[0]
			serial, whole, from, until = leaf.SerialNumber, leaf.SerialNumber, leaf.ValidFrom, leaf.ExpirationTime
			if len(serial) > 12 {
				serial = "..." + serial[len(serial)-9:]
			}
		}
		var roots []string
		for _, r := range c.RootCerts {
			if root == "" || r.ExpirationTime < root {
				root = r.ExpirationTime
			}
			roots = append(roots, r.SerialNumber)
		}
		b.add(p, told, c.Identity, c.Identity, c.State, serial, until, root,
			from, fmt.Sprint(len(c.CertChain)), fmt.Sprint(len(c.RootCerts)), whole, strings.Join(roots, ","))
	}
	return nil
}

func (b *builder) connections(p *Proxy) error {
	for _, s := range p.Dump.States {
		if b.skip(s.Info.Namespace) || !b.s.pod(s.Info.Namespace, s.Info.Name) {
			continue
		}
		pod := s.Info.Namespace + "/" + s.Info.Name
		for direction, list := range map[string][]admin.Connection{"inbound": s.Connections.Inbound, "outbound": s.Connections.Outbound} {
			for _, c := range list {
				dst := ""
				if c.OriginalDst != nil {
					dst = *c.OriginalDst
				}
				b.add(p, map[string]any{"pod": pod, "direction": direction, "connection": c}, "",
					pod, direction, c.Src, dst, c.ActualDst, c.Protocol, s.Info.ServiceAccount, p.Node)
			}
		}
	}
	return nil
}
