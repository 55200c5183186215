package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Lookup says how names are read. It is not changed once in use.
type Lookup struct {
	// Domain is the cluster's: "cluster.local".
	Domain string
	// Network is the clients' network: addresses of services in others are of no use to them (D6).
	Network string
	// Prefer is a namespace whose services win over other namespaces' of the same name (D5); may be empty.
	Prefer string
	// NoIPv6 leaves out addresses of IPv6 (D6).
	NoIPv6 bool
}

// Answer is what the mesh has to say about a name.
type Answer struct {
	// Known says that the name is one of the mesh's. Without a nameserver's word it has no records of the type; it never
	// does not exist (D7).
	Known bool
	// Forward says that the nameserver is to be asked.
	Forward bool
	// Exists says that the name exists whatever the nameserver says: it has addresses.
	Exists bool
	// Addrs are the addresses of the type that was asked for.
	Addrs []netip.Addr
	// Alias is the name that the records have, where it is not the one that was asked for (D8); without the last dot.
	Alias string
	// Service is whom the name means; nil if it is not known.
	Service *workload.Service
}

// Find looks up a name, in lower case and without the dot at the end, for a client of namespace ns. Only A and AAAA are
// the mesh's to answer (D3). It does not block.
func (l *Lookup) Find(v *workload.View, ns, name string, qtype uint16) Answer {
	m, ok := l.match(v, ns, name)
	if !ok {
		return Answer{Forward: true}
	}
	a := Answer{Known: true, Exists: true, Service: m.svc, Alias: m.alias}
	switch {
	case m.pod != nil:
		a.Addrs = l.take(m.svc, qtype, m.pod.Addrs)
	case len(m.svc.VIPs) > 0:
		for _, vip := range m.svc.VIPs {
			if vip.Network == l.Network && vip.Prefix.IsSingleIP() {
				a.Addrs = append(a.Addrs, vip.Prefix.Addr())
			}
		}
		a.Addrs = l.take(m.svc, qtype, a.Addrs)
	default:
		a.Addrs, a.Exists = l.members(v, m.svc, qtype)
	}
	// Of a headless service without endpoints the nameserver may know more than we do, and says if it does not exist.
	a.Forward = !a.Exists || qtype != dns.TypeA && qtype != dns.TypeAAAA
	return a
}

// members are the addresses of a headless service's endpoints; any says that there are some of whatever family.
func (l *Lookup) members(v *workload.View, s *workload.Service, qtype uint16) (out []netip.Addr, any bool) {
	for w := range v.Endpoints(s) {
		if w.Network != l.Network || len(w.Addrs) == 0 {
			continue
		}
		any = true
		if addrs := l.take(s, qtype, w.Addrs); len(addrs) > 0 {
			out = append(out, addrs[0]) // D6: one of each
		}
	}
	return out, any
}

// take returns those addresses that are of the type and of the service's families.
func (l *Lookup) take(s *workload.Service, qtype uint16, addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if qtype == dns.TypeA && a.Is4() || qtype == dns.TypeAAAA && a.Is6() && !l.NoIPv6 {
			if s.Families.Allows(a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// match is what a name means: a service, or one pod of a headless one.
type match struct {
	svc   *workload.Service
	pod   *workload.Workload
	alias string
}

func (l *Lookup) match(v *workload.View, ns, name string) (match, bool) {
	for c := range candidates(name, ns, l.Domain) {
		if s := l.service(v, ns, c.host); s != nil {
			return match{svc: s, alias: c.alias}, true
		}
		for pattern := range wildcards(c.host) {
			if s := l.service(v, ns, pattern); s != nil {
				return match{svc: s}, true
			}
		}
		label, host, _ := strings.Cut(c.host, ".")
		if s := l.service(v, ns, host); s != nil && l.ofKubernetes(host) {
			// The name of an endpoint. Those that we do not know may have it by the pod's spec, which only the nameserver
			// has seen; the name means nothing else.
			pod := endpoint(v, s, label)
			return match{svc: s, pod: pod, alias: c.alias}, pod != nil
		}
	}
	return match{}, false
}

// service returns the service of a hostname if the mesh answers for it (D5): it has addresses, or is a headless one of
// Kubernetes.
func (l *Lookup) service(v *workload.View, ns, host string) *workload.Service {
	s := v.ServiceByHostname(host, ns, l.Prefer)
	if s == nil {
		return nil
	}
	for _, vip := range s.VIPs {
		if vip.Prefix.IsSingleIP() {
			return s
		}
	}
	if len(s.VIPs) == 0 && l.ofKubernetes(host) {
		return s
	}
	return nil
}

// ofKubernetes says whether a hostname is that of a Service of this cluster.
func (l *Lookup) ofKubernetes(host string) bool { return strings.HasSuffix(host, ".svc."+l.Domain) }

// endpoint returns the endpoint of a headless service that CoreDNS calls by a label: a pod of a StatefulSet by its name, any
// other by its address with dashes.
func endpoint(v *workload.View, s *workload.Service, label string) *workload.Workload {
	if len(s.VIPs) > 0 {
		return nil
	}
	for w := range v.Endpoints(s) {
		if w.Name == label && ordinal(label, w.WorkloadName) {
			return w
		}
		for _, a := range w.Addrs {
			if strings.NewReplacer(".", "-", ":", "-").Replace(a.String()) == label {
				return w
			}
		}
	}
	return nil
}

// ordinal says whether a pod's name is that of a StatefulSet's pod: the set's name and a number.
func ordinal(pod, set string) bool {
	n, ok := strings.CutPrefix(pod, set+"-")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}
