package rbac

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/xds"
)

func policy(name string, action pb.Action, rules ...*pb.Rule) *pb.Authorization {
	return &pb.Authorization{Name: name, Namespace: "ns", Scope: pb.Scope_NAMESPACE, Action: action, Rules: rules}
}

func rules(m ...*pb.Match) *pb.Rule { return &pb.Rule{Clauses: []*pb.Clause{{Matches: m}}} }

func clauses(c ...*pb.Clause) *pb.Rule { return &pb.Rule{Clauses: c} }

func of(m ...*pb.Match) *pb.Clause { return &pb.Clause{Matches: m} }

func eq(s string) []*pb.StringMatch {
	return []*pb.StringMatch{{MatchType: &pb.StringMatch_Exact{Exact: s}}}
}

func present() []*pb.StringMatch {
	return []*pb.StringMatch{{MatchType: &pb.StringMatch_Presence_{Presence: &pb.StringMatch_Presence{}}}}
}

func cidr(s string) []*pb.Address {
	p := netip.MustParsePrefix(s)
	return []*pb.Address{{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}}
}

// conn is a connection from account ns-a/sa-a at 10.0.0.1 to 10.0.0.2:80.
func conn(f ...func(*Attributes)) *Attributes {
	id, _ := spiffe.New("td", "ns-a", "sa-a")
	a := &Attributes{Source: id, SourceIP: netip.MustParseAddr("10.0.0.1"), Dest: netip.MustParseAddrPort("10.0.0.2:80")}
	for _, g := range f {
		g(a)
	}
	return a
}

func plaintext(a *Attributes) { a.Source = spiffe.ID{} }

func port(p uint16) func(*Attributes) {
	return func(a *Attributes) { a.Dest = netip.AddrPortFrom(a.Dest.Addr(), p) }
}

func TestStructureOfAPolicy(t *testing.T) { // I12: empty_policy, nesting, multi_rule and the edge cases
	yes, no := &pb.Match{DestinationPorts: []uint32{80}}, &pb.Match{DestinationPorts: []uint32{1}}
	empty := &pb.Match{}
	tests := map[string]struct {
		rules []*pb.Rule
		want  bool
	}{
		"no rules never match":                     {nil, false},
		"a rule without clauses matches":           {[]*pb.Rule{{}}, true},
		"a clause without matches is true":         {[]*pb.Rule{clauses(of())}, true},
		"and does not hide a false one":            {[]*pb.Rule{clauses(of(), of(no))}, false},
		"an empty match is skipped":                {[]*pb.Rule{clauses(of(empty, yes))}, true},
		"a clause of empty matches is false":       {[]*pb.Rule{clauses(of(empty))}, false},
		"of two empty matches too":                 {[]*pb.Rule{clauses(of(empty, empty))}, false},
		"and makes its rule false":                 {[]*pb.Rule{clauses(of(yes), of(empty))}, false},
		"rules are ORed":                           {[]*pb.Rule{rules(no), rules(yes)}, true},
		"clauses are ANDed":                        {[]*pb.Rule{clauses(of(yes), of(no))}, false},
		"matches are ORed":                         {[]*pb.Rule{clauses(of(no, yes), of(yes))}, true},
		"attributes are ANDed":                     {[]*pb.Rule{rules(&pb.Match{DestinationPorts: []uint32{80}, Namespaces: eq("x")})}, false},
		"values are ORed":                          {[]*pb.Rule{rules(&pb.Match{DestinationPorts: []uint32{1, 80}})}, true},
		"a not list with one hit fails":            {[]*pb.Rule{rules(&pb.Match{NotDestinationPorts: []uint32{1, 80}})}, false},
		"a not list without hit holds":             {[]*pb.Rule{rules(&pb.Match{NotDestinationPorts: []uint32{1, 2}})}, true},
		"positive and negative lists are combined": {[]*pb.Rule{rules(&pb.Match{DestinationPorts: []uint32{80}, NotDestinationPorts: []uint32{80}})}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := FromProto(policy("p", pb.Action_ALLOW, tc.rules...))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Matches(conn()); got != tc.want {
				t.Errorf("Matches = %v, want %v", got, tc.want)
			}
			// The index must see it the same way.
			list := slices.Repeat([]*Policy{p}, indexAbove+1)
			if got := newMatcher(list).first(conn()) != nil; got != tc.want {
				t.Errorf("indexed match = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAttributes(t *testing.T) { // I13: positive and negative forms of every attribute
	sa := func(ns, name string) []*pb.ServiceAccountMatch {
		return []*pb.ServiceAccountMatch{{Namespace: ns, ServiceAccount: name}}
	}
	tests := map[string]struct {
		m                  *pb.Match
		mtls, plain, other bool // from sa-a with mTLS; without identity; from another account and address with mTLS to port 81
	}{
		"namespaces":          {&pb.Match{Namespaces: eq("ns-a")}, true, false, false},
		"not_namespaces":      {&pb.Match{NotNamespaces: eq("ns-a")}, false, true, true},
		"service_accounts":    {&pb.Match{ServiceAccounts: sa("ns-a", "sa-a")}, true, false, false},
		"not_serviceaccounts": {&pb.Match{NotServiceAccounts: sa("ns-a", "sa-a")}, false, true, true},
		"principals":          {&pb.Match{Principals: eq("td/ns/ns-a/sa/sa-a")}, true, false, false},
		"not_principals":      {&pb.Match{NotPrincipals: eq("td/ns/ns-a/sa/sa-a")}, false, true, true},
		"principal present":   {&pb.Match{Principals: present()}, true, false, true},
		"no principal":        {&pb.Match{NotPrincipals: present()}, false, true, false},
		"source_ips":          {&pb.Match{SourceIps: cidr("10.0.0.0/24")}, true, true, false},
		"not_source_ips":      {&pb.Match{NotSourceIps: cidr("10.0.0.0/24")}, false, false, true},
		"destination_ips":     {&pb.Match{DestinationIps: cidr("10.0.0.2/32")}, true, true, false},
		"not_destination_ips": {&pb.Match{NotDestinationIps: cidr("10.0.0.2/32")}, false, false, true},
		"destination_ports":   {&pb.Match{DestinationPorts: []uint32{80}}, true, true, false},
		"not_dest_ports":      {&pb.Match{NotDestinationPorts: []uint32{80}}, false, false, true},
		"any IPv4":            {&pb.Match{SourceIps: cidr("0.0.0.0/0")}, true, true, false},
		"cidr_range boundary": {&pb.Match{SourceIps: cidr("10.0.0.0/31")}, true, true, false},
	}
	id, _ := spiffe.New("td", "ns-b", "sa-b")
	other := &Attributes{Source: id, SourceIP: netip.MustParseAddr("fd00::1"), Dest: netip.MustParseAddrPort("[fd00::2]:81")}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := FromProto(policy("p", pb.Action_ALLOW, rules(tc.m)))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				who  string
				a    *Attributes
				want bool
			}{{"mtls", conn(), tc.mtls}, {"plain", conn(plaintext), tc.plain}, {"other", other, tc.other}} {
				if got := p.Matches(c.a); got != c.want {
					t.Errorf("%s: Matches = %v, want %v", c.who, got, c.want)
				}
			}
		})
	}
}

func TestStringMatch(t *testing.T) { // the table of 11
	for _, tc := range []struct {
		kind     stringKind
		value, s string
		want     bool
	}{
		{exact, "abc", "abc", true}, {exact, "abc", "abcd", false}, {exact, "abc", "", false},
		{prefix, "abc", "abcd", true}, {prefix, "abc", "xabc", false}, {prefix, "abc", "", false},
		{suffix, "abc", "xabc", true}, {suffix, "abc", "abcx", false}, {suffix, "abc", "", false},
		{presence, "", "x", true}, {presence, "", "", false},
	} {
		if got := (&stringMatch{tc.kind, tc.value}).hit(tc.s); got != tc.want {
			t.Errorf("kind %d %q on %q = %v, want %v", tc.kind, tc.value, tc.s, got, tc.want)
		}
	}
}

func TestAlgorithm(t *testing.T) { // I11: assert_rbac_logic_deny_allow, dry_run_with_real_policies
	always, never := &pb.Rule{}, rules(&pb.Match{DestinationPorts: []uint32{1}})
	dry := func(p *pb.Authorization) *pb.Authorization { p.DryRun = true; return p }
	tests := map[string]struct {
		list   []*pb.Authorization
		reason Reason
		policy string
		dry    string // deny, allow, none
	}{
		"nothing allows":                        {nil, NoPolicy, "", ""},
		"a deny that does not match":            {[]*pb.Authorization{policy("d", pb.Action_DENY, never)}, NoPolicy, "", ""},
		"a deny that matches":                   {[]*pb.Authorization{policy("d", pb.Action_DENY, always)}, DeniedBy, "ns/d", ""},
		"deny beats allow":                      {[]*pb.Authorization{policy("a", pb.Action_ALLOW, always), policy("d", pb.Action_DENY, always)}, DeniedBy, "ns/d", ""},
		"the first deny is named":               {[]*pb.Authorization{policy("d2", pb.Action_DENY, always), policy("d1", pb.Action_DENY, always)}, DeniedBy, "ns/d1", ""},
		"an allow that matches":                 {[]*pb.Authorization{policy("a", pb.Action_ALLOW, always)}, AllowedBy, "ns/a", ""},
		"an allow that does not match":          {[]*pb.Authorization{policy("a", pb.Action_ALLOW, never)}, NotInAllowList, "", ""},
		"an allow without rules allows nothing": {[]*pb.Authorization{policy("a", pb.Action_ALLOW)}, NotInAllowList, "", ""},
		"one of several allows is enough":       {[]*pb.Authorization{policy("a", pb.Action_ALLOW, never), policy("b", pb.Action_ALLOW, always)}, AllowedBy, "ns/b", ""},
		"dry-run deny is only noted":            {[]*pb.Authorization{dry(policy("d", pb.Action_DENY, always))}, NoPolicy, "", "deny"},
		"dry-run allow is only noted":           {[]*pb.Authorization{dry(policy("a", pb.Action_ALLOW, always))}, NoPolicy, "", "allow"},
		"dry-run allow would deny":              {[]*pb.Authorization{dry(policy("a", pb.Action_ALLOW, never))}, NoPolicy, "", "none"},
		"dry-run beside a real allow":           {[]*pb.Authorization{dry(policy("a", pb.Action_ALLOW, never)), policy("b", pb.Action_ALLOW, never)}, NotInAllowList, "", ""},
		"dry-run deny beside a real one":        {[]*pb.Authorization{dry(policy("a", pb.Action_DENY, always)), policy("b", pb.Action_DENY, always)}, DeniedBy, "ns/b", "deny"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d := storeOf(t, tc.list...).View().Set("ns", nil, nil).Check(conn())
			key := ""
			if d.Policy != nil {
				key = d.Policy.Key
			}
			if d.Reason != tc.reason || key != tc.policy || d.Allowed != (tc.reason == NoPolicy || tc.reason == AllowedBy) {
				t.Errorf("Check = %+v by %q, want reason %d by %q", d, key, tc.reason, tc.policy)
			}
			if got := map[string]bool{"deny": d.DryRunDeny != nil, "allow": d.DryRunAllow != nil, "none": d.DryRunNoMatch}; got[tc.dry] != (tc.dry != "") {
				t.Errorf("dry run = %v, want %q", got, tc.dry)
			}
			if (d.Error() == "") != d.Allowed {
				t.Errorf("Error = %q", d.Error())
			}
		})
	}
}

func TestScopes(t *testing.T) { // I10, I15: assert_rbac_with_dest_workload_info, rbac_change_scope
	scoped := func(name, ns string, s pb.Scope) *pb.Authorization {
		return &pb.Authorization{Name: name, Namespace: ns, Scope: s, Action: pb.Action_DENY, Rules: []*pb.Rule{{}}}
	}
	denied := func(s *Store, ns string, names ...string) bool {
		return !s.View().Set(ns, names, nil).Check(conn()).Allowed
	}
	s := storeOf(t, scoped("p", "a", pb.Scope_NAMESPACE))
	if !denied(s, "a") || denied(s, "b") {
		t.Error("a NAMESPACE policy must apply to its namespace only")
	}
	apply := func(p *pb.Authorization, removed ...string) {
		var up []xds.Resource[*Policy]
		if p != nil {
			c, err := FromProto(p)
			if err != nil {
				t.Fatal(err)
			}
			up = append(up, xds.Resource[*Policy]{Name: c.Key, Value: c})
		}
		if err := s.Apply(up, removed); err != nil {
			t.Fatal(err)
		}
	}
	apply(scoped("p", "a", pb.Scope_GLOBAL))
	if !denied(s, "a") || !denied(s, "b") {
		t.Error("a GLOBAL policy must apply everywhere")
	}
	apply(scoped("p", "a", pb.Scope_WORKLOAD_SELECTOR))
	if denied(s, "a") || denied(s, "b") || !denied(s, "b", "a/p") {
		t.Error("a WORKLOAD_SELECTOR policy must apply to those that list it only")
	}
	apply(nil, "a/p", "never/was")
}

func TestAListedPolicyThatNeverCameDeniesAndOneThatWasRemovedIsSkipped(t *testing.T) { // style 20: unknown policy = deny
	all := &pb.Authorization{
		Name: "none", Namespace: "a", Scope: pb.Scope_WORKLOAD_SELECTOR, Action: pb.Action_DENY, Rules: []*pb.Rule{{}},
	}
	s := storeOf(t, all)
	names := []string{"a/none", "a/late"}
	set := s.View().Set("a", names, nil)
	if d := set.Check(conn()); d.Allowed || d.Reason != DeniedBy || d.Policy.Key != "a/none" {
		t.Errorf("a DENY that matches must be the reason even with another policy missing: %+v", d)
	}
	s.Apply(nil, []string{"a/none"})
	late := s.View().Set("a", names, set)
	d := late.Check(conn())
	if d.Allowed || d.Reason != UnknownPolicy || d.Missing != "a/late" || late.Empty() {
		t.Errorf("a policy that never came must deny: %+v", d)
	}
	if want := "policy rejection: policy a/late applies, but the control plane has not delivered it"; d.Error() != want {
		t.Errorf("got %q, want %q", d.Error(), want)
	}
	s.Apply([]xds.Resource[*Policy]{{Name: "a/late", Value: &Policy{Key: "a/late", Name: "late", Namespace: "a", Scope: WorkloadSelector, Action: Deny}}}, nil)
	came := s.View().Set("a", names, late)
	if d := came.Check(conn()); !d.Allowed {
		t.Errorf("the policy came and the removed one is to be skipped: %+v", d)
	}
	if again := s.View().Set("a", names, came); !again.Check(conn()).Allowed {
		t.Error("a removed policy must stay skipped while the workload lists it")
	}
	without := s.View().Set("a", names[1:], came)
	if anew := s.View().Set("a", names, without); anew.Check(conn()).Reason != UnknownPolicy {
		t.Error("a name that the workload lists anew must not be taken for the policy that was removed")
	}
}

func TestStrictMTLSAsTheControlPlaneSaysIt(t *testing.T) { // I17
	strict := &pb.Authorization{
		Name: "istio_converted_static_strict", Namespace: "istio-system", Scope: pb.Scope_WORKLOAD_SELECTOR, Action: pb.Action_DENY,
		Rules: []*pb.Rule{rules(&pb.Match{NotPrincipals: present()})},
	}
	except := &pb.Authorization{ // STRICT but for port 8080
		Name: "converted_peer_authentication_pa", Namespace: "ns", Scope: pb.Scope_WORKLOAD_SELECTOR, Action: pb.Action_DENY,
		Rules: []*pb.Rule{clauses(of(&pb.Match{NotPrincipals: present()}), of(&pb.Match{NotDestinationPorts: []uint32{8080}}))},
	}
	v := storeOf(t, strict, except).View()
	for name, tc := range map[string]struct {
		policy string
		a      *Attributes
		want   bool
	}{
		"mTLS passes":                 {"istio-system/istio_converted_static_strict", conn(), true},
		"plaintext is denied":         {"istio-system/istio_converted_static_strict", conn(plaintext), false},
		"plaintext on the excepted":   {"ns/converted_peer_authentication_pa", conn(plaintext, port(8080)), true},
		"plaintext on another port":   {"ns/converted_peer_authentication_pa", conn(plaintext), false},
		"mTLS anywhere, port or none": {"ns/converted_peer_authentication_pa", conn(), true},
	} {
		if got := v.Set("ns", []string{tc.policy}, nil).Check(tc.a).Allowed; got != tc.want {
			t.Errorf("%s: Allowed = %v, want %v", name, got, tc.want)
		}
	}
}

func TestDecodeRejectsMalformedPolicies(t *testing.T) { // I14
	m := func(m *pb.Match) *pb.Authorization { return policy("p", pb.Action_ALLOW, rules(m)) }
	unknown := &pb.Match{}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	for name, tc := range map[string]struct {
		p    *pb.Authorization
		want string
	}{
		"address of 3 bytes":         {m(&pb.Match{SourceIps: []*pb.Address{{Address: []byte{1, 2, 3}}}}), "3 bytes"},
		"empty address":              {m(&pb.Match{NotSourceIps: []*pb.Address{{}}}), "0 bytes"},
		"length 33":                  {m(&pb.Match{DestinationIps: []*pb.Address{{Address: make([]byte, 4), Length: 33}}}), "prefix length 33"},
		"length 129":                 {m(&pb.Match{NotDestinationIps: []*pb.Address{{Address: make([]byte, 16), Length: 129}}}), "prefix length 129"},
		"port 65536":                 {m(&pb.Match{DestinationPorts: []uint32{65536}}), "port 65536"},
		"not port 65536":             {m(&pb.Match{NotDestinationPorts: []uint32{65536}}), "port 65536"},
		"string match without type":  {m(&pb.Match{Principals: []*pb.StringMatch{{}}}), "without a type"},
		"a condition we do not know": {m(unknown), "unknown fields"},
		"unknown scope":              {&pb.Authorization{Scope: 3}, "scope"},
		"unknown action":             {&pb.Authorization{Action: 2}, "action"},
	} {
		b, _ := proto.Marshal(tc.p)
		if _, err := Decode("ns/p", b); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), `"ns/p"`) {
			t.Errorf("%s: err = %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestMappedRangesMeanIPv4(t *testing.T) {
	p, err := FromProto(policy("p", pb.Action_DENY, rules(&pb.Match{SourceIps: cidr("::ffff:10.0.0.0/120")})))
	if err != nil || !p.Matches(conn()) {
		t.Errorf("Matches = false, %v", err)
	}
}

func TestChangesSayWhomTheyAffect(t *testing.T) { // I18, B6
	s := storeOf(t, policy("p", pb.Action_DENY, &pb.Rule{}))
	var got []bool
	s.Watch(func(c *Change) {
		got = append(got, c.Affects("ns", nil), c.Affects("other", nil), c.Affects("other", []string{"ns/p"}), c.New == s.View())
	})
	before := s.View().Set("other", nil, nil).base
	_ = s.Apply(nil, []string{"ns/p"})
	if want := []bool{true, false, true, true}; !slices.Equal(got, want) {
		t.Errorf("Affects = %v, want %v", got, want)
	}
	if s.View().Set("other", nil, nil).base != before {
		t.Error("the policies of an untouched namespace were compiled again")
	}
}

func TestCheckAllocatesNothing(t *testing.T) {
	var ranges []*pb.Authorization
	for i := range 100 {
		ranges = append(ranges, policy(fmt.Sprint("p", i), pb.Action_DENY, rules(&pb.Match{SourceIps: cidr(fmt.Sprintf("10.0.0.0/%d", 8+i%16)), Namespaces: eq("x")})))
	}
	for name, set := range map[string]*Set{"principals": benchSet(t, 1000), "source ranges": storeOf(t, ranges...).View().Set("ns", nil, nil)} {
		a := conn()
		if n := testing.AllocsPerRun(100, func() { _ = set.Check(a) }); n != 0 {
			t.Errorf("%s: allocations = %v, want 0", name, n)
		}
	}
}

func TestDumpIsGolden(t *testing.T) { // 9.2, A1
	v := storeOf(t,
		policy("z", pb.Action_DENY, rules(&pb.Match{
			Namespaces: eq("a"), NotPrincipals: present(), SourceIps: cidr("10.0.0.0/8"), DestinationPorts: []uint32{80},
			ServiceAccounts: []*pb.ServiceAccountMatch{{Namespace: "a", ServiceAccount: "b"}},
			Principals:      []*pb.StringMatch{{MatchType: &pb.StringMatch_Prefix{Prefix: "td/"}}, {MatchType: &pb.StringMatch_Suffix{Suffix: "/b"}}},
		})),
		&pb.Authorization{Name: "a", Namespace: "root", Scope: pb.Scope_GLOBAL, DryRun: true},
		&pb.Authorization{Name: "sel", Namespace: "ns", Scope: pb.Scope_WORKLOAD_SELECTOR, Rules: []*pb.Rule{{}}},
	).View()
	got, err := json.MarshalIndent(v.Dump(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dump.json", append(got, '\n'))
}

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != string(got) {
		t.Errorf("%s differs (%v); got\n%s", path, err, got)
	}
}

func benchSet(t testing.TB, n int) *Set {
	var list []*pb.Authorization
	for i := range n {
		var rs []*pb.Rule
		for j := range 10 {
			rs = append(rs, clauses(of(&pb.Match{Principals: eq(fmt.Sprintf("td/ns/n%d/sa/s%d", i, j))}), of(&pb.Match{DestinationPorts: []uint32{80}})))
		}
		list = append(list, policy(fmt.Sprintf("p%05d", i), pb.Action_ALLOW, rs...))
	}
	return storeOf(t, list...).View().Set("ns", nil, nil)
}

// BenchmarkCheck is the reference's: n policies of 10 rules each.
func BenchmarkCheck(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		set := benchSet(b, n)
		hit, _ := spiffe.New("td", fmt.Sprint("n", n-1), "s9")
		for name, a := range map[string]*Attributes{"miss": conn(), "hit": conn(func(a *Attributes) { a.Source = hit })} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					set.Check(a)
				}
			})
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, p := range []*pb.Authorization{
		policy("p", pb.Action_ALLOW, rules(&pb.Match{Principals: eq("a"), SourceIps: cidr("10.0.0.0/8")})), policy("q", pb.Action_DENY, &pb.Rule{}),
	} {
		b, _ := proto.Marshal(p)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode("x", b)
		if err != nil {
			return
		}
		s := NewStore()
		_ = s.Apply([]xds.Resource[*Policy]{{Name: p.Key, Value: p}}, nil)
		set := s.View().Set(p.Namespace, []string{p.Key}, nil)
		d := set.Check(conn())
		if d.Allowed && p.Action == Deny && !p.DryRun && p.Matches(conn()) {
			t.Fatal("a matching DENY allowed")
		}
		if _, err := json.Marshal(s.View().Dump()); err != nil {
			t.Fatal(err)
		}
	})
}
