package rbac

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// The oracle evaluates the messages themselves, written from the text of I11-I13 and sharing nothing with the package.

type oracleConn struct {
	identity  string // without spiffe://; "" for none
	ns, sa    string
	src, dest netip.Addr
	port      uint32
}

func oracle(all []*pb.Authorization, ns string, names []string, c oracleConn) (allowed bool) {
	var deny, allow []*pb.Authorization
	for _, p := range all {
		applies := p.Scope == pb.Scope_GLOBAL || p.Scope == pb.Scope_NAMESPACE && p.Namespace == ns ||
			slices.Contains(names, p.Namespace+"/"+p.Name)
		if !applies || p.DryRun {
			continue
		}
		if p.Action == pb.Action_DENY {
			deny = append(deny, p)
		} else {
			allow = append(allow, p)
		}
	}
	for _, p := range deny {
		if oraclePolicy(p, c) {
			return false
		}
	}
	if len(allow) == 0 {
		return true
	}
	for _, p := range allow {
		if oraclePolicy(p, c) {
			return true
		}
	}
	return false
}

func oraclePolicy(p *pb.Authorization, c oracleConn) bool {
	for _, r := range p.Rules {
		all := true
		for _, cl := range r.Clauses {
			any := len(cl.Matches) == 0
			for _, m := range cl.Matches {
				any = any || oracleMatch(m, c)
			}
			all = all && any
		}
		if all {
			return true
		}
	}
	return false
}

func oracleMatch(m *pb.Match, c oracleConn) bool {
	groups := 0
	ok := true
	try := func(n int, not bool, hit func(int) bool) {
		if n == 0 {
			return
		}
		groups++
		any := false
		for i := range n {
			any = any || hit(i)
		}
		if any == not {
			ok = false
		}
	}
	str := func(s *pb.StringMatch, v string) bool {
		switch t := s.MatchType.(type) {
		case *pb.StringMatch_Exact:
			return v == t.Exact
		case *pb.StringMatch_Prefix:
			return strings.HasPrefix(v, t.Prefix)
		case *pb.StringMatch_Suffix:
			return strings.HasSuffix(v, t.Suffix)
		}
		return v != ""
	}
	cidr := func(a *pb.Address, ip netip.Addr) bool {
		net, _ := netip.AddrFromSlice(a.Address)
		return netip.PrefixFrom(net, int(a.Length)).Contains(ip)
	}
	try(len(m.Namespaces), false, func(i int) bool { return str(m.Namespaces[i], c.ns) })
	try(len(m.NotNamespaces), true, func(i int) bool { return str(m.NotNamespaces[i], c.ns) })
	try(len(m.Principals), false, func(i int) bool { return c.identity != "" && str(m.Principals[i], c.identity) })
	try(len(m.NotPrincipals), true, func(i int) bool { return c.identity != "" && str(m.NotPrincipals[i], c.identity) })
	try(len(m.SourceIps), false, func(i int) bool { return cidr(m.SourceIps[i], c.src) })
	try(len(m.NotSourceIps), true, func(i int) bool { return cidr(m.NotSourceIps[i], c.src) })
	try(len(m.DestinationIps), false, func(i int) bool { return cidr(m.DestinationIps[i], c.dest) })
	try(len(m.NotDestinationIps), true, func(i int) bool { return cidr(m.NotDestinationIps[i], c.dest) })
	try(len(m.DestinationPorts), false, func(i int) bool { return m.DestinationPorts[i] == c.port })
	try(len(m.NotDestinationPorts), true, func(i int) bool { return m.NotDestinationPorts[i] == c.port })
	sa := func(s *pb.ServiceAccountMatch) bool {
		return c.identity != "" && s.Namespace == c.ns && s.ServiceAccount == c.sa
	}
	try(len(m.ServiceAccounts), false, func(i int) bool { return sa(m.ServiceAccounts[i]) })
	try(len(m.NotServiceAccounts), true, func(i int) bool { return sa(m.NotServiceAccounts[i]) })
	return ok && groups > 0
}

// random makes random policies and connections from few values, so that matches are frequent.
type random struct{ *rand.Rand }

func (r random) name() string { return fmt.Sprint("n", r.IntN(3)) }

func (r random) ip() netip.Addr {
	if r.IntN(4) == 0 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%d", r.IntN(3)))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", r.IntN(2), r.IntN(3)))
}

func (r random) str(principal bool) *pb.StringMatch {
	v := r.name()
	if principal {
		v = fmt.Sprintf("td/ns/%s/sa/%s", r.name(), r.name())
	}
	switch r.IntN(8) {
	case 0:
		return &pb.StringMatch{MatchType: &pb.StringMatch_Prefix{Prefix: v[:r.IntN(len(v)+1)]}}
	case 1:
		return &pb.StringMatch{MatchType: &pb.StringMatch_Suffix{Suffix: v[r.IntN(len(v)+1):]}}
	case 2:
		return &pb.StringMatch{MatchType: &pb.StringMatch_Presence_{Presence: &pb.StringMatch_Presence{}}}
	}
	return &pb.StringMatch{MatchType: &pb.StringMatch_Exact{Exact: v}}
}

func (r random) cidr() *pb.Address {
	ip := r.ip()
	return &pb.Address{Address: ip.AsSlice(), Length: uint32(ip.BitLen() - r.IntN(3)*4)}
}

func some[T any](r random, odds int, f func() T) []T {
	if r.IntN(odds) != 0 {
		return nil
	}
	out := []T{}
	for range 1 + r.IntN(2) {
		out = append(out, f())
	}
	return out
}

func (r random) match() *pb.Match {
	port := func() uint32 { return uint32(80 + r.IntN(2)) }
	sa := func() *pb.ServiceAccountMatch {
		return &pb.ServiceAccountMatch{Namespace: r.name(), ServiceAccount: r.name()}
	}
	ns, pr := func() *pb.StringMatch { return r.str(false) }, func() *pb.StringMatch { return r.str(true) }
	return &pb.Match{
		Namespaces: some(r, 5, ns), NotNamespaces: some(r, 9, ns), Principals: some(r, 5, pr), NotPrincipals: some(r, 9, pr),
		SourceIps: some(r, 5, r.cidr), NotSourceIps: some(r, 9, r.cidr), DestinationIps: some(r, 9, r.cidr), NotDestinationIps: some(r, 9, r.cidr),
		DestinationPorts: some(r, 5, port), NotDestinationPorts: some(r, 9, port), ServiceAccounts: some(r, 5, sa), NotServiceAccounts: some(r, 9, sa),
	}
}

func (r random) policy(i int) *pb.Authorization {
	p := &pb.Authorization{
		Name: fmt.Sprint("p", i), Namespace: r.name(), Scope: pb.Scope(r.IntN(3)), Action: pb.Action(r.IntN(2)), DryRun: r.IntN(6) == 0,
	}
	for range r.IntN(4) {
		rule := &pb.Rule{}
		for range r.IntN(4) {
			cl := &pb.Clause{}
			for range r.IntN(3) {
				cl.Matches = append(cl.Matches, r.match())
			}
			rule.Clauses = append(rule.Clauses, cl)
		}
		if len(rule.Clauses) == 0 && r.IntN(8) != 0 {
			continue // rules that always match would drown everything else
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func (r random) conn() (oracleConn, *Attributes) {
	c := oracleConn{src: r.ip(), dest: r.ip(), port: uint32(80 + r.IntN(2))}
	a := &Attributes{SourceIP: c.src, Dest: netip.AddrPortFrom(c.dest, uint16(c.port))}
	if r.IntN(4) != 0 {
		c.ns, c.sa = r.name(), r.name()
		a.Source, _ = spiffe.New("td", c.ns, c.sa)
		c.identity = a.Source.Principal()
	}
	return c, a
}

func storeOf(t testing.TB, list ...*pb.Authorization) *Store {
	t.Helper()
	var up []xds.Resource[*Policy]
	for _, m := range list {
		p, err := FromProto(m)
		if err != nil {
			t.Fatal(err)
		}
		up = append(up, xds.Resource[*Policy]{Name: p.Key, Value: p})
	}
	s := NewStore()
	if err := s.Apply(up, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestChecksAgreeWithTheOracle(t *testing.T) { // I10-I13, 10,000 policies and connections
	r := random{rand.New(rand.NewPCG(42, 7))}
	policies, checks, denied := 0, 0, 0
	for policies < 10000 {
		// Small sets are evaluated one by one, large ones through the index.
		var list []*pb.Authorization
		for i := range 1 + r.IntN(1+r.IntN(40)) {
			list = append(list, r.policy(i))
		}
		policies += len(list)
		v := storeOf(t, list...).View()
		ns := r.name()
		var names []string
		for _, p := range list {
			if p.Scope == pb.Scope_WORKLOAD_SELECTOR && r.IntN(2) == 0 {
				names = append(names, p.Namespace+"/"+p.Name)
			}
		}
		set := v.Set(ns, names, nil)
		for range 20 {
			c, a := r.conn()
			want := oracle(list, ns, names, c)
			d := set.Check(a)
			if d.Allowed != want {
				t.Fatalf("Check(%+v) = %+v, oracle says %v\npolicies %v\nns %s names %v", c, d, want, list, ns, names)
			}
			checks++
			if !want {
				denied++
			}
			if d.Policy != nil && !d.Policy.Matches(a) {
				t.Fatalf("decision names %s, which does not match", d.Policy.Key)
			}
		}
	}
	if denied < checks/10 || denied > checks*9/10 {
		t.Errorf("%d of %d connections denied: the test is one-sided", denied, checks)
	}
	t.Logf("%d policies, %d checks, %d denied", policies, checks, denied)
}

func TestTheIndexFindsWhatALinearScanFinds(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 9))}
	for range 100 {
		var list []*Policy
		for i := range 40 {
			p, err := FromProto(r.policy(i))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		indexed, plain := newMatcher(list), &matcher{policies: list}
		for range 100 {
			_, a := r.conn()
			if got, want := indexed.first(a), plain.first(a); got != want {
				t.Fatalf("index finds %v, scan finds %v", got, want)
			}
		}
	}
}
