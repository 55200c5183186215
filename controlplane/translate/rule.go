package translate

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// convertedRule is the translation of one rule.
type convertedRule struct {
	// sent has what can be seen of each condition; a condition of which nothing can be seen is a match without
	// attributes, which never fires (I12).
	sent *securitypb.Rule
	// closed has unseen conditions taken as true instead. It is nil when it would say the same as sent.
	closed *securitypb.Rule
	// lossy says whether a condition, or a part of one, cannot be seen.
	lossy bool
}

// convertRule translates a rule. The clauses are in Istio's order: to, from, when. Lost collects the names of what cannot
// be seen.
func convertRule(namespace string, r *security.Rule, lost map[string]bool) convertedRule {
	c := convertedRule{sent: &securitypb.Rule{}}
	closed := &securitypb.Rule{}
	clause := func(matches []*securitypb.Match, lossy bool) {
		if len(matches) == 0 {
			return
		}
		c.lossy = c.lossy || lossy
		c.sent.Clauses = append(c.sent.Clauses, &securitypb.Clause{Matches: matches})
		for _, m := range matches {
			if proto.Size(m) == 0 {
				// One alternative cannot be seen: taken as true, it makes the clause true, and the clause goes.
				c.closed = closed
				return
			}
		}
		closed.Clauses = append(closed.Clauses, &securitypb.Clause{Matches: matches})
	}

	var matches []*securitypb.Match
	lossy := false
	for _, to := range r.To {
		m, l := convertOperation(to.Operation, lost)
		matches, lossy = append(matches, m), lossy || l
	}
	clause(matches, lossy)
	matches, lossy = nil, false
	for _, from := range r.From {
		m, l := convertSource(namespace, from.Source, lost)
		matches, lossy = append(matches, m), lossy || l
	}
	clause(matches, lossy)
	for _, when := range r.When {
		// Values and notValues of one condition must both hold, hence a clause each.
		for _, part := range []struct {
			values []string
			not    bool
		}{{when.Values, false}, {when.NotValues, true}} {
			if len(part.values) == 0 {
				continue
			}
			m := &securitypb.Match{}
			seen := convertCondition(namespace, when.Key, part.values, part.not, m)
			if !seen {
				lost["when "+when.Key] = true
			}
			clause([]*securitypb.Match{m}, !seen)
		}
	}
	return c
}

// note writes down the names of the lists that have values and says whether there are any.
func note(lost map[string]bool, lists map[string][]string) bool {
	found := false
	for name, values := range lists {
		if len(values) > 0 {
			lost[name], found = true, true
		}
	}
	return found
}

func convertOperation(o *security.Operation, lost map[string]bool) (*securitypb.Match, bool) {
	lossy := note(lost, map[string][]string{
		"hosts": o.Hosts, "notHosts": o.NotHosts, "methods": o.Methods, "notMethods": o.NotMethods, "paths": o.Paths, "notPaths": o.NotPaths,
	})
	m := &securitypb.Match{}
	for _, l := range []struct {
		name string
		from []string
		to   *[]uint32
	}{{"ports", o.Ports, &m.DestinationPorts}, {"notPorts", o.NotPorts, &m.NotDestinationPorts}} {
		var ok bool
		if *l.to, ok = ports(l.from); !ok {
			lost[l.name], lossy = true, true
		}
	}
	return m, lossy
}

func convertSource(namespace string, s *security.Source, lost map[string]bool) (*securitypb.Match, bool) {
	lossy := note(lost, map[string][]string{
		"requestPrincipals": s.RequestPrincipals, "notRequestPrincipals": s.NotRequestPrincipals,
		"remoteIpBlocks": s.RemoteIpBlocks, "notRemoteIpBlocks": s.NotRemoteIpBlocks,
	})
	m := &securitypb.Match{
		Namespaces: stringMatches(s.Namespaces), NotNamespaces: stringMatches(s.NotNamespaces),
		Principals: stringMatches(s.Principals), NotPrincipals: stringMatches(s.NotPrincipals),
		ServiceAccounts: accounts(namespace, s.ServiceAccounts), NotServiceAccounts: accounts(namespace, s.NotServiceAccounts),
	}
	for _, l := range []struct {
		name string
		from []string
		to   *[]*securitypb.Address
	}{{"ipBlocks", s.IpBlocks, &m.SourceIps}, {"notIpBlocks", s.NotIpBlocks, &m.NotSourceIps}} {
		var ok bool
		if *l.to, ok = cidrs(l.from); !ok {
			lost[l.name], lossy = true, true
		}
	}
	// A trust domain is the beginning of a principal. Both lists of one kind are ORed, so that trust domains and
	// principals together cannot be said; exclusions can.
	domains, ok := domainMatches(s.TrustDomains)
	if ok && len(m.Principals) == 0 {
		m.Principals = domains
	} else if len(s.TrustDomains) > 0 {
		lost["trustDomains"], lossy = true, true
	}
	domains, ok = domainMatches(s.NotTrustDomains)
	if ok {
		m.NotPrincipals = append(m.NotPrincipals, domains...)
	} else {
		lost["notTrustDomains"], lossy = true, true
	}
	return m, lossy
}

// domainMatches matches the trust domain of a principal. Patterns that begin with a wildcard cannot be said.
func domainMatches(domains []string) ([]*securitypb.StringMatch, bool) {
	var out []*securitypb.StringMatch
	for _, d := range domains {
		switch {
		case d == "*":
			out = append(out, stringMatch("*"))
		case strings.HasPrefix(d, "*"):
			return nil, false
		case strings.HasSuffix(d, "*"):
			out = append(out, stringMatch(d))
		default:
			out = append(out, stringMatch(d+"/*"))
		}
	}
	return out, true
}

// convertCondition fills in the match of a condition. It returns false for a key or values that cannot be seen.
func convertCondition(namespace, key string, values []string, not bool, m *securitypb.Match) bool {
	switch key {
	case "source.ip":
		v, ok := cidrs(values)
		set(not, &m.SourceIps, &m.NotSourceIps, v)
		return ok
	case "destination.ip":
		v, ok := cidrs(values)
		set(not, &m.DestinationIps, &m.NotDestinationIps, v)
		return ok
	case "destination.port":
		v, ok := ports(values)
		set(not, &m.DestinationPorts, &m.NotDestinationPorts, v)
		return ok
	case "source.namespace":
		set(not, &m.Namespaces, &m.NotNamespaces, stringMatches(values))
	case "source.principal":
		set(not, &m.Principals, &m.NotPrincipals, stringMatches(values))
	case "source.serviceAccount":
		set(not, &m.ServiceAccounts, &m.NotServiceAccounts, accounts(namespace, values))
	case "source.trustDomain":
		domains, ok := domainMatches(values)
		set(not, &m.Principals, &m.NotPrincipals, domains)
		return ok
	default:
		return false
	}
	return true
}

func set[T any](not bool, positive, negative *[]T, values []T) {
	if not {
		positive = negative
	}
	*positive = values
}

// stringMatch reads "*", "x*", "*x" or "x".
func stringMatch(s string) *securitypb.StringMatch {
	switch {
	case s == "*":
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence_{Presence: &securitypb.StringMatch_Presence{}}}
	case strings.HasPrefix(s, "*"):
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Suffix{Suffix: s[1:]}}
	case strings.HasSuffix(s, "*"):
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Prefix{Prefix: s[:len(s)-1]}}
	}
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
}

func stringMatches(values []string) []*securitypb.StringMatch {
	var out []*securitypb.StringMatch
	for _, v := range values {
		out = append(out, stringMatch(v))
	}
	return out
}

// accounts reads "namespace/name" or "name", which is in the policy's namespace.
func accounts(namespace string, values []string) []*securitypb.ServiceAccountMatch {
	var out []*securitypb.ServiceAccountMatch
	for _, v := range values {
		m := &securitypb.ServiceAccountMatch{Namespace: namespace, ServiceAccount: v}
		if ns, name, ok := strings.Cut(v, "/"); ok {
			m.Namespace, m.ServiceAccount = ns, name
		}
		out = append(out, m)
	}
	return out
}

// cidrs reads addresses and CIDRs. A list with one that cannot be read is treated as an attribute that cannot be seen:
// without that one it would deny less, or allow more, than is written (I14).
func cidrs(values []string) ([]*securitypb.Address, bool) {
	var out []*securitypb.Address
	for _, v := range values {
		p, err := kube.ParseCIDR(v)
		if err != nil {
			return nil, false
		}
		out = append(out, &securitypb.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out, true
}

// ports reads port numbers, as cidrs reads CIDRs.
func ports(values []string) ([]uint32, bool) {
	var out []uint32
	for _, v := range values {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return nil, false
		}
		out = append(out, uint32(n))
	}
	return out, true
}
