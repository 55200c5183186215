// Package authz judges authorization at layer 7. Random AuthorizationPolicies go through our control plane into the filters
// of our waypoint and, if ENVOY_BIN names one, of a real Envoy; random requests, many with paths that are written to get
// around a rule, must be decided alike by both, and by an oracle that reads the policies themselves. Clients with identities
// of the mesh's trust domain ask our whole waypoint too, through tunnels.
//
// It makes 1,000 decisions without Envoy, 2,000 with, and 24,000 if AMBIT_SOAK is 1, a quarter for each way of making paths
// canonical. What differs by intent is in differences_test.go and in docs/differences.md.
package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/waypoint/forward/forwardtest"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// perService is how many requests a service's policies are asked about.
const perService = 4

// sizes are how many services a round has, and how many rounds there are.
func sizes(envoy bool) (services, rounds int) {
	switch {
	case os.Getenv("AMBIT_SOAK") == "1":
		return 500, 12
	case envoy:
		return 125, 4
	}
	return 63, 4
}

// envoys says whose decision it was.
const envoys = "Envoy's"

// tally counts what is compared.
type tally struct {
	decisions int
	wrong     int
	tunnels   int
	wire      *wire
	by        map[string]int
	excused   map[string]int
}

func TestDecisionsAreThoseOfThePoliciesAndOfEnvoy(t *testing.T) {
	bin := os.Getenv("ENVOY_BIN")
	n, rounds := sizes(bin != "")
	c := &tally{by: map[string]int{}, excused: map[string]int{}, wire: &wire{forwardtest.Start(t)}}
	for round := range rounds {
		m := &maker{rand.New(rand.NewPCG(43, uint64(round)))}
		tokens, keys := m.tokens(t, 60)
		services := m.services(n)
		as := normalizations[round%len(normalizations)]
		main := translated(t, services, keys, as)
		o := newOurs(t, main)
		c.wire.Serve(t, main, nil)
		var e *theirs
		stop := func() {}
		if bin != "" {
			e, stop = startEnvoy(t, bin, main)
		}
		for _, s := range services {
			for range perService {
				c.compare(t, s, m.request(s, tokens), as, o, e)
			}
		}
		stop()
	}
	if bin == "" {
		t.Log("no Envoy to compare with: ENVOY_BIN does not name one")
	}
	t.Logf("%d decisions: %v; %d of them through tunnels; %d differ; different by intent: %v", c.decisions, c.by, c.tunnels, c.wrong, c.excused)
	if c.by[allowed] < c.decisions/5 || c.by[denied] < c.decisions/5 {
		t.Errorf("too few decisions of one kind: %v", c.by)
	}
}

// TestPathsAreMadeCanonicalOnce: what comes out stays as it is, and is what the documentation says (B14).
func TestPathsAreMadeCanonicalOnce(t *testing.T) {
	m := &maker{rand.New(rand.NewPCG(44, 1))}
	policies := map[normalization]route.PathPolicy{
		none: {}, base: {Normalize: true}, merge: {Normalize: true, MergeSlashes: true}, decode: {Normalize: true, MergeSlashes: true, Escaped: route.UnescapeAndForward},
	}
	for range 10_000 {
		p := m.path(nil)
		for range 3 {
			p = m.disguise(p)
		}
		for as, policy := range policies {
			got, verdict := policy.Apply(p)
			want, ok := as.normalise(p)
			if ok != (verdict == route.PathGood && message.PathAndQuery(p)) {
				t.Errorf("%s: %q: %q (%d), want %q, %v", as, p, got, verdict, want, ok)
				continue
			}
			if bare, _, _ := strings.Cut(got, "?"); ok && bare != want {
				t.Errorf("%s: %q: %q, want %q", as, p, got, want)
			}
			if again, _ := policy.Apply(got); ok && again != got {
				t.Errorf("%s: %q: %q, and then %q", as, p, got, again)
			}
		}
	}
}

// TestEveryWayToWriteADeniedPathIsDenied asks the whole waypoint, by HTTP/1.1, for a path that a policy denies, written in all the
// ways that are known: none gets through, unless MeshConfig says that it is another path; then the endpoint gets what the policy saw.
func TestEveryWayToWriteADeniedPathIsDenied(t *testing.T) { // B14
	s := &service{name: "s0", dest: netip.MustParseAddrPort("10.200.9.1:80")}
	p := &securityv1.AuthorizationPolicy{}
	p.APIVersion, p.Kind, p.Name, p.Namespace = "security.istio.io/v1", "AuthorizationPolicy", "admin", "demo"
	p.Spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: s.name}}
	p.Spec.Action = security.AuthorizationPolicy_DENY
	p.Spec.Rules = []*security.Rule{{To: []*security.Rule_To{{Operation: &security.Operation{Paths: []string{"/admin", "/admin/*"}}}}}}
	s.policies = []*securityv1.AuthorizationPolicy{p}
	_, keys := (&maker{rand.New(rand.NewPCG(45, 1))}).tokens(t, 1)
	w := &wire{forwardtest.Start(t)}
	open := map[normalization][]string{ // what is another path, as in Istio
		base:   {"//admin", "///admin", "/a/..%2fadmin", "/a/..%5cadmin", "/%2fadmin", `/\admin`, "/a/..%2f..%2fadmin"},
		merge:  {"/a/..%2fadmin", "/a/..%5cadmin", "/%2fadmin", "/a/..%2f..%2fadmin"},
		decode: nil,
	}
	for as, other := range open {
		w.Serve(t, translated(t, []*service{s}, keys, as), nil)
		for _, path := range []string{
			"/admin", "/admin/", "/admin/x", "//admin", "///admin", "/%61dmin", "/%61%64%6D%69%6E", "/a/..%2fadmin", "/a/..%5cadmin", "/%2fadmin", "/a/..%2f..%2fadmin",
			"/admin;x=1", "/admin;", "/admin;x=1/y", "/;x/../admin", "/a/..;x=1/admin", "/a/%2e%2e;/admin", "/admin#f", "/.%2e/admin", "/%2e/admin", "/./admin", "/a/../admin",
			"/a/%2e%2E/admin", "/..;/admin", `\admin`, `/\admin`, `/a\..\admin`, "/admin%00", "/admin\x00", "/admin?x", "/admin/.", "/admin/b/..", "/admin;x?y=/public",
			"/\xc0\xaeadmin", "/admin\t", "/admin%20/../../admin",
		} {
			r := &request{service: s.name, identity: "cluster.local/ns/demo/sa/a", source: netip.MustParseAddr("127.0.0.1"), dest: s.dest, method: "GET", path: path, host: "h"}
			got, seen, err := w.decide(t, r)
			if err != nil {
				t.Errorf("%s: %q: %v", as, path, err)
			}
			if slices.Contains(other, path) {
				if strings.HasPrefix(seen, "/admin") || got != allowed {
					t.Errorf("%s: %q: %s, the endpoint sees %q", as, path, got, seen)
				}
			} else if got == allowed {
				t.Errorf("%s: %q is allowed, and the endpoint sees %q", as, path, seen)
			}
		}
		if got, seen, err := w.decide(t, &request{service: s.name, identity: "cluster.local/ns/demo/sa/a", source: netip.MustParseAddr("127.0.0.1"), dest: s.dest, method: "GET", path: "/administration;x", host: "h"}); got != allowed || seen != "/administration;x" {
			t.Errorf("%s: another path: %s, %q, %v", as, got, seen, err)
		}
	}
}

// TestParametersGetNoPathPastAnAllowRule: what an ALLOW rule excepts, or allows by its end, is what the server takes for the path, not
// what the client wrote behind a semicolon. A rule that names parameters is about these.
func TestParametersGetNoPathPastAnAllowRule(t *testing.T) {
	_, keys := (&maker{rand.New(rand.NewPCG(45, 1))}).tokens(t, 1)
	w := &wire{forwardtest.Start(t)}
	for _, c := range []struct {
		name            string
		operation       *security.Operation
		allowed, denied []string
	}{
		{
			"notPaths", &security.Operation{NotPaths: []string{"/admin", "/admin/*", "/t/{*}/secret"}},
			[]string{"/", "/public", "/public;x=1", "/administration;x", "/public;x/admin", "/t/a/open;x"},
			[]string{"/admin", "/admin;x=1", "/admin;", "/admin;x/y", "/admin/y;x", "/;x/../admin;y", "/admin;x?q=/public", "/t/a/secret;x", "/t/a;x/secret"},
		},
		{
			"the end of a path", &security.Operation{Paths: []string{"*.css"}},
			[]string{"/a.css", "/a;v=2/b.css"}, []string{"/admin", "/admin;.css", "/admin;/x;.css"},
		},
		{
			"paths with parameters", &security.Operation{Paths: []string{"/cars;color=red", "/seats;row=*", "/v;x/{*}"}},
			[]string{"/cars;color=red", "/seats;row=1", "/seats;row=1/x", "/v;x/a"}, []string{"/cars", "/cars;color=blue", "/v/a", "/v;y/a"},
		},
		{
			"paths and their beginnings", &security.Operation{Paths: []string{"/info", "/api/*"}},
			[]string{"/info", "/api/x", "/api/x;y=1"}, []string{"/info;x", "/api;x/y"},
		},
	} {
		s := &service{name: "s0", dest: netip.MustParseAddrPort("10.200.9.1:80")}
		p := &securityv1.AuthorizationPolicy{}
		p.APIVersion, p.Kind, p.Name, p.Namespace = "security.istio.io/v1", "AuthorizationPolicy", "most", "demo"
		p.Spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: s.name}}
		p.Spec.Rules = []*security.Rule{{To: []*security.Rule_To{{Operation: c.operation}}}}
		s.policies = []*securityv1.AuthorizationPolicy{p}
		w.Serve(t, translated(t, []*service{s}, keys, base), nil)
		for want, paths := range map[string][]string{allowed: c.allowed, denied: c.denied} {
			for _, path := range paths {
				r := &request{service: s.name, identity: "cluster.local/ns/demo/sa/a", source: netip.MustParseAddr("127.0.0.1"), dest: s.dest, method: "GET", path: path, host: "h"}
				if oracle := decide(s.policies, r, base); oracle != want {
					t.Errorf("%s: %q: the oracle says %s, want %s", c.name, path, oracle, want)
				}
				if got, _, err := w.decide(t, r); err != nil || got != want {
					t.Errorf("%s: %q is %s, want %s (%v)", c.name, path, got, want, err)
				}
			}
		}
	}
}

func (c *tally) compare(t *testing.T, s *service, r *request, as normalization, o *ours, e *theirs) {
	t.Helper()
	c.decisions++
	got, path := o.decide(r)
	want := decide(s.policies, r, as)
	c.by[want]++
	if got != want {
		c.differ(t, s, r, as, "the policies'", got, want)
	}
	if c.wire.takes(r) {
		c.tunnels++
		asked, askedPath, err := c.wire.decide(t, r)
		if err != nil || asked != got || askedPath != path {
			c.differ(t, s, r, as, "the whole waypoint's", got+" "+path, fmt.Sprint(asked, " ", askedPath, err))
		}
	}
	if e == nil {
		return
	}
	want, wantPath, err := e.decide(r)
	if err != nil {
		t.Errorf("%v: Envoy: %v", r, err)
		return
	}
	if got != want || path != wantPath {
		got, want = got+" "+path, want+" "+wantPath
		c.differ(t, s, r, as, envoys, got, want)
	}
}

// differ reports a difference, unless it is there by intent.
func (c *tally) differ(t *testing.T, s *service, r *request, as normalization, whose, got, want string) {
	t.Helper()
	if why := excuse(r, as, whose, got); why != "" {
		c.excused[whose+": "+why]++
		return
	}
	if c.wrong++; c.wrong <= 20 {
		t.Errorf("%s: %v: %s, %s %s\n%s", as, r, got, whose, want, rulesOf(s))
	}
}
