package rbac

import (
	"net/netip"
	"slices"
	"strings"
)

// PolicyDump is a policy as config_dump shows it (9.2).
type PolicyDump struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	Rules     [][][]MatchDump `json:"rules"` // rules, clauses, matches
	DryRun    bool            `json:"dryRun,omitempty"`
}

// MatchDump is one match of a PolicyDump.
type MatchDump struct {
	Namespaces         []any          `json:"namespaces,omitempty"`
	NotNamespaces      []any          `json:"notNamespaces,omitempty"`
	Principals         []any          `json:"principals,omitempty"`
	NotPrincipals      []any          `json:"notPrincipals,omitempty"`
	SourceIPs          []netip.Prefix `json:"sourceIps,omitempty"`
	NotSourceIPs       []netip.Prefix `json:"notSourceIps,omitempty"`
	DestinationIPs     []netip.Prefix `json:"destinationIps,omitempty"`
	NotDestinationIPs  []netip.Prefix `json:"notDestinationIps,omitempty"`
	DestinationPorts   []uint16       `json:"destinationPorts,omitempty"`
	NotDestPorts       []uint16       `json:"notDestinationPorts,omitempty"`
	ServiceAccounts    []AccountDump  `json:"serviceAccounts,omitempty"`
	NotServiceAccounts []AccountDump  `json:"notServiceAccounts,omitempty"`
}

// AccountDump is one service account of a MatchDump.
type AccountDump struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Dump returns all policies, sorted by key (A1).
func (v *View) Dump() []PolicyDump {
	list := slices.SortedFunc(v.Policies(), func(a, b *Policy) int { return strings.Compare(a.Key, b.Key) })
	out := make([]PolicyDump, 0, len(list))
	for _, p := range list {
		out = append(out, p.Dump())
	}
	return out
}

// Dump returns the policy as config_dump shows it.
func (p *Policy) Dump() PolicyDump {
	d := PolicyDump{
		Name: p.Name, Namespace: p.Namespace, Scope: p.Scope.String(), Action: p.Action.String(), DryRun: p.DryRun,
		Rules: make([][][]MatchDump, 0, len(p.rules)),
	}
	for _, r := range p.rules {
		clauses := make([][]MatchDump, 0, len(r.clauses))
		for _, c := range r.clauses {
			matches := make([]MatchDump, 0, len(c.matches))
			for i := range c.matches {
				matches = append(matches, c.matches[i].dump())
			}
			clauses = append(clauses, matches)
		}
		d.Rules = append(d.Rules, clauses)
	}
	return d
}

func (m *match) dump() MatchDump {
	return MatchDump{
		Namespaces: dumpStrings(m.namespaces), NotNamespaces: dumpStrings(m.notNamespaces),
		Principals: dumpStrings(m.principals), NotPrincipals: dumpStrings(m.notPrincipals),
		SourceIPs: m.sourceIPs, NotSourceIPs: m.notSourceIPs, DestinationIPs: m.destIPs, NotDestinationIPs: m.notDestIPs,
		DestinationPorts: m.destPorts, NotDestPorts: m.notDestPorts,
		ServiceAccounts: dumpAccounts(m.serviceAccounts), NotServiceAccounts: dumpAccounts(m.notServiceAccounts),
	}
}

func dumpStrings(list []stringMatch) []any {
	var out []any
	for _, m := range list {
		switch m.kind {
		case exact:
			out = append(out, map[string]string{"Exact": m.value})
		case prefix:
			out = append(out, map[string]string{"Prefix": m.value})
		case suffix:
			out = append(out, map[string]string{"Suffix": m.value})
		case presence:
			out = append(out, map[string][]string{"Presence": {}})
		}
	}
	return out
}

func dumpAccounts(list []account) []AccountDump {
	var out []AccountDump
	for _, a := range list {
		out = append(out, AccountDump{a.namespace, a.name})
	}
	return out
}
