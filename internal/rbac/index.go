package rbac

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// matcher evaluates a list of policies. Long lists are indexed: each rule that can only match if some attribute has one of
// a few values is filed under those values, so that a check looks at the rules of its own principal, account, namespace,
// port and address only, and at those that cannot be filed. The index leaves out rules that cannot match; those it finds
// are still evaluated whole. Immutable.
type matcher struct {
	policies []*Policy

	indexed     bool
	byPrincipal map[string][]ruleRef
	byAccount   map[account][]ruleRef
	byNamespace map[string][]ruleRef
	byPort      map[uint16][]ruleRef
	bySource    *bart.Table[[]ruleRef]
	rest        []ruleRef
}

// ruleRef is one rule and the place of its policy in the list.
type ruleRef struct {
	policy int
	rule   *rule
}

// indexAbove is how many rules a list has before an index pays.
const indexAbove = 32

func newMatcher(policies []*Policy) *matcher {
	m := &matcher{policies: policies}
	n := 0
	for _, p := range policies {
		n += len(p.rules)
	}
	if n <= indexAbove {
		return m
	}
	m.indexed = true
	m.byPrincipal = make(map[string][]ruleRef)
	m.byAccount = make(map[account][]ruleRef)
	m.byNamespace = make(map[string][]ruleRef)
	m.byPort = make(map[uint16][]ruleRef)
	m.bySource = new(bart.Table[[]ruleRef])
	for i, p := range policies {
		for j := range p.rules {
			m.file(ruleRef{i, &p.rules[j]})
		}
	}
	return m
}

// attribute is a way to file a match; better ones are rarer in traffic and come first.
type attribute uint8

const (
	attrPrincipal attribute = iota
	attrAccount
	attrSource
	attrNamespace
	attrPort
	attrNone
)

// file puts a rule under the clause that narrows it best.
func (m *matcher) file(r ruleRef) {
	best, bestAttr := -1, attrNone
	for i := range r.rule.clauses {
		if a := r.rule.clauses[i].attribute(); a < bestAttr {
			best, bestAttr = i, a
		}
	}
	if best < 0 {
		m.rest = append(m.rest, r)
		return
	}
	for i := range r.rule.clauses[best].matches {
		if mt := &r.rule.clauses[best].matches[i]; !mt.empty() {
			m.fileMatch(mt, r)
		}
	}
}

// attribute returns the worst of the matches' best attributes, or attrNone if one of them cannot be filed. A clause of
// empty matches only can never be true and is none either.
func (c *clause) attribute() attribute {
	worst, some := attrPrincipal, false
	for i := range c.matches {
		if m := &c.matches[i]; !m.empty() {
			some = true
			worst = max(worst, m.attribute())
		}
	}
	if !some {
		return attrNone
	}
	return worst
}

func (m *match) attribute() attribute {
	switch {
	case allExact(m.principals):
		return attrPrincipal
	case len(m.serviceAccounts) > 0:
		return attrAccount
	case len(m.sourceIPs) > 0:
		return attrSource
	case allExact(m.namespaces):
		return attrNamespace
	case len(m.destPorts) > 0:
		return attrPort
	}
	return attrNone
}

func allExact(list []stringMatch) bool {
	for i := range list {
		if list[i].kind != exact {
			return false
		}
	}
	return len(list) > 0
}

func (m *matcher) fileMatch(mt *match, r ruleRef) {
	switch mt.attribute() {
	case attrPrincipal:
		for _, s := range mt.principals {
			m.byPrincipal[s.value] = append(m.byPrincipal[s.value], r)
		}
	case attrAccount:
		for _, a := range mt.serviceAccounts {
			m.byAccount[a] = append(m.byAccount[a], r)
		}
	case attrSource:
		for _, p := range mt.sourceIPs {
			list, _ := m.bySource.Get(p)
			m.bySource.Insert(p, append(list, r))
		}
	case attrNamespace:
		for _, s := range mt.namespaces {
			m.byNamespace[s.value] = append(m.byNamespace[s.value], r)
		}
	case attrPort:
		for _, p := range mt.destPorts {
			m.byPort[p] = append(m.byPort[p], r)
		}
	}
}

// first returns the first policy of the list that matches, or nil.
func (m *matcher) first(a *Attributes) *Policy {
	if !m.indexed {
		for _, p := range m.policies {
			if p.Matches(a) {
				return p
			}
		}
		return nil
	}
	best := scan(m.rest, a, len(m.policies))
	if !a.Source.IsZero() {
		best = scan(m.byPrincipal[a.Source.Principal()], a, best)
		best = scan(m.byAccount[account{a.Source.Namespace(), a.Source.ServiceAccount()}], a, best)
	}
	best = scan(m.byNamespace[sourceNamespace(a)], a, best)
	best = scan(m.byPort[a.Dest.Port()], a, best)
	if a.SourceIP.IsValid() && m.bySource.Size() > 0 {
		for _, list := range m.bySource.Supernets(netip.PrefixFrom(a.SourceIP, a.SourceIP.BitLen())) {
			best = scan(list, a, best)
		}
	}
	if best == len(m.policies) {
		return nil
	}
	return m.policies[best]
}

// scan returns the lowest policy below limit that has a matching rule in list, or limit. Lists are in order of policy.
func scan(list []ruleRef, a *Attributes, limit int) int {
	for _, r := range list {
		if r.policy >= limit {
			return limit
		}
		if r.rule.matches(a) {
			return r.policy
		}
	}
	return limit
}
