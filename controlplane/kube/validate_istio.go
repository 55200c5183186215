package kube

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// workloadEntry checks a WorkloadEntry or an inline endpoint of a ServiceEntry.
func (c *checker) workloadEntry(w *networking.WorkloadEntry, at string, addressRequired bool) {
	switch {
	case w.GetAddress() == "" && addressRequired:
		c.add(at+".address", "an address or a host name", "required value is missing")
	case w.GetAddress() == "" || strings.HasPrefix(w.Address, "unix://"):
	default:
		if _, err := netip.ParseAddr(w.Address); err != nil {
			c.hostname(at+".address", w.Address, false)
		}
	}
	names := make([]string, 0, len(w.GetPorts()))
	for name := range w.GetPorts() {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.port(at+".ports."+name, int64(w.Ports[name]))
	}
	c.labels(at+".labels", w.GetLabels())
}

// hostname checks a DNS name, with a leading "*." when wildcards are allowed.
func (c *checker) hostname(field, host string, wildcard bool) {
	name := host
	if wildcard {
		name = strings.TrimPrefix(name, "*.")
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		accepted := "a DNS name"
		if wildcard {
			accepted = `a DNS name, perhaps with a leading "*."`
		}
		c.add(field, accepted, "invalid host name %q", host)
	}
}

var serviceEntryProtocols = []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "MYSQL", "REDIS", "TCP", "TLS", "UDP", "HTTP_PROXY"}

func (c *checker) serviceEntry(s *networkingv1.ServiceEntry) {
	spec := &s.Spec
	if len(spec.Hosts) == 0 {
		c.add("spec.hosts", "at least one host name", "required value is missing")
	}
	seen := map[string]bool{}
	for i, h := range spec.Hosts {
		at := index("spec.hosts", i)
		c.hostname(at, h, true)
		if seen[h] {
			c.add(at, "each host once", "host %q appears twice", h)
		}
		seen[h] = true
		if strings.HasPrefix(h, "*.") && (spec.Resolution == networking.ServiceEntry_DNS || spec.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN) {
			c.add(at, "a host without wildcard, or resolution NONE, STATIC or DYNAMIC_DNS", "wildcard host %q cannot be resolved with %s", h, spec.Resolution)
		}
	}
	for i, a := range spec.Addresses {
		c.cidr(index("spec.addresses", i), a)
	}
	c.serviceEntryPorts(spec.Ports)
	if spec.WorkloadSelector != nil && len(spec.Endpoints) > 0 {
		c.add("spec.workloadSelector", "endpoints or workloadSelector", "both endpoints and workloadSelector are set")
	}
	c.labels("spec.workloadSelector.labels", spec.WorkloadSelector.GetLabels())
	if spec.Resolution == networking.ServiceEntry_NONE && len(spec.Endpoints) > 0 {
		c.add("spec.endpoints", "no endpoints with resolution NONE", "%d endpoints", len(spec.Endpoints))
	}
	for i, e := range spec.Endpoints {
		at := index("spec.endpoints", i)
		if e == nil {
			c.add(at, "an endpoint", "required value is missing")
			continue
		}
		c.workloadEntry(e, at, e.Network == "")
		if _, err := netip.ParseAddr(e.Address); spec.Resolution == networking.ServiceEntry_STATIC && err != nil && e.Address != "" && !strings.HasPrefix(e.Address, "unix://") {
			c.add(at+".address", "an IPv4 or IPv6 address with resolution STATIC", "invalid address %q", e.Address)
		}
	}
	for i, a := range s.Status.Addresses {
		c.cidr(index("status.addresses", i)+".value", a.GetValue())
	}
}

func (c *checker) serviceEntryPorts(ports []*networking.ServicePort) {
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range ports {
		at := index("spec.ports", i)
		if p == nil {
			c.add(at, "a port", "required value is missing")
			continue
		}
		c.port(at+".number", int64(p.Number))
		if p.TargetPort != 0 {
			c.port(at+".targetPort", int64(p.TargetPort))
		}
		if p.Name == "" || names[p.Name] {
			c.add(at+".name", "a name of its own", "port name %q is empty or appears twice", p.Name)
		}
		names[p.Name] = true
		if numbers[p.Number] {
			c.add(at+".number", "a port of its own", "port %d appears twice", p.Number)
		}
		numbers[p.Number] = true
		if p.Protocol != "" {
			oneOf(c, at+".protocol", strings.ToUpper(p.Protocol), serviceEntryProtocols...)
		}
	}
}

func (c *checker) peerAuthentication(p *securityv1.PeerAuthentication) {
	c.labels("spec.selector.matchLabels", p.Spec.GetSelector().GetMatchLabels())
	if len(p.Spec.PortLevelMtls) == 0 {
		return
	}
	if len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
		c.add("spec.portLevelMtls", "together with spec.selector", "port settings need a selector")
	}
	ports := make([]uint32, 0, len(p.Spec.PortLevelMtls))
	for port := range p.Spec.PortLevelMtls {
		ports = append(ports, port)
	}
	slices.Sort(ports)
	for _, port := range ports {
		c.port("spec.portLevelMtls."+strconv.FormatUint(uint64(port), 10), int64(port))
	}
}

func (c *checker) authorizationPolicy(p *securityv1.AuthorizationPolicy) {
	spec := &p.Spec
	c.labels("spec.selector.matchLabels", spec.GetSelector().GetMatchLabels())
	if spec.Selector != nil && (spec.TargetRef != nil || len(spec.TargetRefs) > 0) {
		c.add("spec.selector", "selector or targetRefs", "both selector and targetRefs are set")
	}
	if spec.TargetRef != nil && len(spec.TargetRefs) > 0 {
		c.add("spec.targetRef", "targetRefs", "both targetRef and targetRefs are set")
	}
	if spec.Action == security.AuthorizationPolicy_CUSTOM && spec.GetProvider().GetName() == "" {
		c.add("spec.provider.name", "the name of an extension provider", "action CUSTOM needs a provider")
	}
	if v, ok := p.Annotations["istio.io/dry-run"]; ok {
		if _, err := strconv.ParseBool(v); err != nil {
			c.add("metadata.annotations", "true, false", "invalid value %q of istio.io/dry-run", v)
		}
	}
	for i, r := range spec.Rules {
		at := index("spec.rules", i)
		if r == nil {
			c.add(at, "a rule; {} matches everything", "required value is missing")
			continue
		}
		c.rule(at, r)
	}
}

func (c *checker) rule(at string, r *security.Rule) {
	for i, f := range r.From {
		field := index(at+".from", i) + ".source"
		if f.GetSource() == nil {
			c.add(field, "a source", "required value is missing")
			continue
		}
		c.source(field, f.Source)
	}
	for i, t := range r.To {
		field := index(at+".to", i) + ".operation"
		if t.GetOperation() == nil {
			c.add(field, "an operation", "required value is missing")
			continue
		}
		c.operation(field, t.Operation)
	}
	for i, w := range r.When {
		field := index(at+".when", i)
		if w == nil {
			c.add(field, "a condition", "required value is missing")
			continue
		}
		c.condition(field, w)
	}
}

// namedList is a list of strings and its field.
type namedList struct {
	field  string
	values []string
}

// filled checks that at least one list has values and that no value is empty.
func (c *checker) filled(at string, lists ...namedList) {
	some := false
	for _, l := range lists {
		for i, v := range l.values {
			some = true
			if v == "" {
				c.add(index(at+"."+l.field, i), "a value; * matches any", "empty value")
			}
		}
	}
	if !some {
		c.add(at, "at least one field with values", "nothing is set")
	}
}

func (c *checker) source(at string, s *security.Source) {
	c.filled(at,
		namedList{"principals", s.Principals}, namedList{"notPrincipals", s.NotPrincipals},
		namedList{"requestPrincipals", s.RequestPrincipals}, namedList{"notRequestPrincipals", s.NotRequestPrincipals},
		namedList{"namespaces", s.Namespaces}, namedList{"notNamespaces", s.NotNamespaces},
		namedList{"serviceAccounts", s.ServiceAccounts}, namedList{"notServiceAccounts", s.NotServiceAccounts},
		namedList{"ipBlocks", s.IpBlocks}, namedList{"notIpBlocks", s.NotIpBlocks},
		namedList{"remoteIpBlocks", s.RemoteIpBlocks}, namedList{"notRemoteIpBlocks", s.NotRemoteIpBlocks},
		namedList{"trustDomains", s.TrustDomains}, namedList{"notTrustDomains", s.NotTrustDomains})
	for _, l := range []namedList{
		{"ipBlocks", s.IpBlocks}, {"notIpBlocks", s.NotIpBlocks},
		{"remoteIpBlocks", s.RemoteIpBlocks}, {"notRemoteIpBlocks", s.NotRemoteIpBlocks},
	} {
		for i, v := range l.values {
			c.cidr(index(at+"."+l.field, i), v)
		}
	}
	for _, l := range []namedList{{"serviceAccounts", s.ServiceAccounts}, {"notServiceAccounts", s.NotServiceAccounts}} {
		for i, v := range l.values {
			if strings.Count(v, "/") > 1 || strings.Contains(v, "*") || strings.HasPrefix(v, "/") || strings.HasSuffix(v, "/") {
				c.add(index(at+"."+l.field, i), "namespace/name or name, without wildcards", "invalid service account %q", v)
			}
		}
	}
	if (len(s.ServiceAccounts) > 0 || len(s.NotServiceAccounts) > 0) && (len(s.Principals) > 0 || len(s.NotPrincipals) > 0 || len(s.Namespaces) > 0 || len(s.NotNamespaces) > 0) {
		c.add(at+".serviceAccounts", "service accounts, or principals and namespaces", "service accounts cannot be combined with principals or namespaces")
	}
}

func (c *checker) operation(at string, o *security.Operation) {
	c.filled(at,
		namedList{"hosts", o.Hosts}, namedList{"notHosts", o.NotHosts}, namedList{"ports", o.Ports}, namedList{"notPorts", o.NotPorts},
		namedList{"methods", o.Methods}, namedList{"notMethods", o.NotMethods}, namedList{"paths", o.Paths}, namedList{"notPaths", o.NotPaths})
	for _, l := range []namedList{{"ports", o.Ports}, {"notPorts", o.NotPorts}} {
		for i, v := range l.values {
			c.portText(index(at+"."+l.field, i), v)
		}
	}
}

// conditionKeys are the keys of "when"; those that end with "[" take a name in brackets.
var conditionKeys = []string{
	"request.headers[", "source.ip", "remote.ip", "source.namespace", "source.principal", "source.serviceAccount",
	"source.trustDomain", "request.auth.principal", "request.auth.audiences", "request.auth.presenter",
	"request.auth.claims[", "destination.ip", "destination.port", "connection.sni", "experimental.envoy.filters.",
}

func (c *checker) condition(at string, w *security.Condition) {
	known := slices.ContainsFunc(conditionKeys, func(k string) bool {
		if strings.HasSuffix(k, "[") {
			return strings.HasPrefix(w.Key, k) && strings.HasSuffix(w.Key, "]")
		}
		if strings.HasSuffix(k, ".") {
			return strings.HasPrefix(w.Key, k)
		}
		return w.Key == k
	})
	if !known {
		c.add(at+".key", strings.ReplaceAll(strings.Join(conditionKeys, ", "), "[", "[name]"), "unknown key %q", w.Key)
	}
	c.filled(at, namedList{"values", w.Values}, namedList{"notValues", w.NotValues})
	for _, l := range []namedList{{"values", w.Values}, {"notValues", w.NotValues}} {
		for i, v := range l.values {
			switch w.Key {
			case "source.ip", "remote.ip", "destination.ip":
				c.cidr(index(at+"."+l.field, i), v)
			case "destination.port":
				c.portText(index(at+"."+l.field, i), v)
			}
		}
	}
}
