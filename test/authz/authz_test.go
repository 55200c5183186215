// Package authz judges authorization at layer 7. Random AuthorizationPolicies go through our control plane into the filters
// of our waypoint and, if ENVOY_BIN names one, of a real Envoy; random requests, many with paths that are written to get
// around a rule, must be decided alike by both, and by an oracle that reads the policies themselves.
//
// It makes 1,000 decisions without Envoy, 2,000 with, and 20,000 if AMBIT_SOAK is 1. What differs by intent is in
// differences_test.go and in docs/differences.md.
package authz

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// perService is how many requests a service's policies are asked about.
const perService = 4

// sizes are how many services a round has, and how many rounds there are.
func sizes(envoy bool) (services, rounds int) {
	switch {
	case os.Getenv("AMBIT_SOAK") == "1":
		return 500, 10
	case envoy:
		return 500, 1
	}
	return 250, 1
}

// envoys says whose decision it was.
const envoys = "Envoy's"

// tally counts what is compared.
type tally struct {
	decisions int
	wrong     int
	by        map[string]int
	excused   map[string]int
}

func TestDecisionsAreThoseOfThePoliciesAndOfEnvoy(t *testing.T) {
	bin := os.Getenv("ENVOY_BIN")
	n, rounds := sizes(bin != "")
	c := &tally{by: map[string]int{}, excused: map[string]int{}}
	for round := range rounds {
		m := &maker{rand.New(rand.NewPCG(43, uint64(round)))}
		tokens, keys := m.tokens(t, 60)
		services := m.services(n)
		main := translated(t, services, keys)
		o := newOurs(t, main)
		var e *theirs
		stop := func() {}
		if bin != "" {
			e, stop = startEnvoy(t, bin, main)
		}
		for _, s := range services {
			for range perService {
				c.compare(t, s, m.request(s, tokens), o, e)
			}
		}
		stop()
	}
	if bin == "" {
		t.Log("no Envoy to compare with: ENVOY_BIN does not name one")
	}
	t.Logf("%d decisions: %v; %d differ; different by intent: %v", c.decisions, c.by, c.wrong, c.excused)
	if c.by[allowed] < c.decisions/5 || c.by[denied] < c.decisions/5 {
		t.Errorf("too few decisions of one kind: %v", c.by)
	}
}

// TestPathsAreMadeCanonicalOnce: what comes out stays as it is, and is what the documentation says (B14).
func TestPathsAreMadeCanonicalOnce(t *testing.T) {
	m := &maker{rand.New(rand.NewPCG(44, 1))}
	policy := route.PathPolicy{Normalize: true}
	for range 20_000 {
		p := m.path(nil)
		for range 3 {
			p = m.disguise(p)
		}
		got, verdict := policy.Apply(p)
		want, ok := normalise(p)
		if ok != (verdict == route.PathGood && message.PathAndQuery(p)) {
			t.Errorf("%q: %q (%d), want %q, %v", p, got, verdict, want, ok)
			continue
		}
		if bare, _, _ := strings.Cut(got, "?"); ok && bare != want {
			t.Errorf("%q: %q, want %q", p, got, want)
		}
		if again, _ := policy.Apply(got); ok && again != got {
			t.Errorf("%q: %q, and then %q", p, got, again)
		}
	}
}

func (c *tally) compare(t *testing.T, s *service, r *request, o *ours, e *theirs) {
	t.Helper()
	c.decisions++
	got, path := o.decide(r)
	want := decide(s.policies, r)
	c.by[want]++
	if got != want {
		c.differ(t, s, r, "the policies'", got, want)
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
		c.differ(t, s, r, envoys, got, want)
	}
}

// differ reports a difference, unless it is there by intent.
func (c *tally) differ(t *testing.T, s *service, r *request, whose, got, want string) {
	t.Helper()
	if why := excuse(r, whose); why != "" {
		c.excused[whose+": "+why]++
		return
	}
	if c.wrong++; c.wrong <= 20 {
		t.Errorf("%v: %s, %s %s\n%s", r, got, whose, want, rulesOf(s))
	}
}
