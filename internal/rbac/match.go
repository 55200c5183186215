package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// The structure of a policy (I12): rules are ORed, clauses of a rule ANDed, matches of a clause ORed, attributes of a match
// ANDed, values of an attribute ORed. A rule without clauses always matches; so does a clause without matches; a match
// without any attribute never does, so a clause made only of such matches is false.
type rule struct{ clauses []clause }

type clause struct{ matches []match }

type match struct {
	namespaces, notNamespaces           []stringMatch
	principals, notPrincipals           []stringMatch
	serviceAccounts, notServiceAccounts []account
	sourceIPs, notSourceIPs             []netip.Prefix
	destIPs, notDestIPs                 []netip.Prefix
	destPorts, notDestPorts             []uint16
}

type account struct{ namespace, name string }

type stringKind uint8

const (
	exact stringKind = iota
	prefix
	suffix
	presence
)

type stringMatch struct {
	kind  stringKind
	value string
}

func (m *stringMatch) hit(s string) bool {
	switch m.kind {
	case exact:
		return s == m.value
	case prefix:
		return strings.HasPrefix(s, m.value)
	case suffix:
		return strings.HasSuffix(s, m.value)
	}
	return s != ""
}

func (r *rule) matches(a *Attributes) bool {
	for i := range r.clauses {
		if !r.clauses[i].holds(a) {
			return false
		}
	}
	return true
}

func (c *clause) holds(a *Attributes) bool {
	if len(c.matches) == 0 {
		return true
	}
	for i := range c.matches {
		if m := &c.matches[i]; !m.empty() && m.hit(a) {
			return true
		}
	}
	return false
}

// empty tells whether the match names no attribute at all.
func (m *match) empty() bool {
	return len(m.namespaces) == 0 && len(m.notNamespaces) == 0 && len(m.principals) == 0 && len(m.notPrincipals) == 0 &&
		len(m.serviceAccounts) == 0 && len(m.notServiceAccounts) == 0 && len(m.sourceIPs) == 0 && len(m.notSourceIPs) == 0 &&
		len(m.destIPs) == 0 && len(m.notDestIPs) == 0 && len(m.destPorts) == 0 && len(m.notDestPorts) == 0
}

// hit evaluates the cheap attributes first. A list that is absent does not restrict.
func (m *match) hit(a *Attributes) bool {
	if len(m.destPorts) > 0 && !slices.Contains(m.destPorts, a.Dest.Port()) || slices.Contains(m.notDestPorts, a.Dest.Port()) {
		return false
	}
	if len(m.principals) > 0 && !anyPrincipal(m.principals, a.Source) || anyPrincipal(m.notPrincipals, a.Source) {
		return false
	}
	if len(m.namespaces) > 0 || len(m.notNamespaces) > 0 {
		ns := sourceNamespace(a)
		if len(m.namespaces) > 0 && !anyString(m.namespaces, ns) || anyString(m.notNamespaces, ns) {
			return false
		}
	}
	if len(m.serviceAccounts) > 0 && !anyAccount(m.serviceAccounts, a.Source) || anyAccount(m.notServiceAccounts, a.Source) {
		return false
	}
	if len(m.sourceIPs) > 0 && !anyPrefix(m.sourceIPs, a.SourceIP) || anyPrefix(m.notSourceIPs, a.SourceIP) {
		return false
	}
	return (len(m.destIPs) == 0 || anyPrefix(m.destIPs, a.Dest.Addr())) && !anyPrefix(m.notDestIPs, a.Dest.Addr())
}

// sourceNamespace is "" without identity (I13).
func sourceNamespace(a *Attributes) string {
	if a.Source.IsZero() {
		return ""
	}
	return a.Source.Namespace()
}

func anyString(list []stringMatch, s string) bool {
	for i := range list {
		if list[i].hit(s) {
			return true
		}
	}
	return false
}

// anyPrincipal is false without identity, whatever the list; that makes not_principals{presence} mean "no identity", which
// is how STRICT mTLS is said (I13, I17).
func anyPrincipal(list []stringMatch, id spiffe.ID) bool {
	return len(list) > 0 && !id.IsZero() && anyString(list, id.Principal())
}

func anyAccount(list []account, id spiffe.ID) bool {
	if len(list) == 0 || id.IsZero() {
		return false
	}
	return slices.Contains(list, account{id.Namespace(), id.ServiceAccount()})
}

func anyPrefix(list []netip.Prefix, ip netip.Addr) bool {
	for _, p := range list {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
