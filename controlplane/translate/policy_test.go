package translate

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// TestNodeProxiesTakeATrustDomainAndItsAliasesAsTheSame: a DENY rule that names one of them must not let the others pass.
func TestNodeProxiesTakeATrustDomainAndItsAliasesAsTheSame(t *testing.T) {
	objects, problems := kube.Decode("p.yaml", []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec:
  action: DENY
  rules:
  - from:
    - source: {principals: [old.td/ns/a/sa/b, other.td/ns/a/sa/b], notTrustDomains: [new.td]}
    when:
    - {key: source.principal, notValues: ["cluster.local/ns/c/sa/d"]}
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	set := kube.NewObjects(objects...)
	r := Build(Config{TrustDomain: "new.td", TrustDomainAliases: []string{"old.td"}}, set)
	if len(r.Authorizations) != 1 {
		t.Fatalf("%d policies", len(r.Authorizations))
	}
	clauses := r.Authorizations["demo/p"].Message.(*securitypb.Authorization).GetRules()[0].GetClauses()
	texts := func(list []*securitypb.StringMatch) (out []string) {
		for _, m := range list {
			out = append(out, m.GetExact()+m.GetPrefix())
		}
		return out
	}
	from, when := clauses[0].GetMatches()[0], clauses[1].GetMatches()[0]
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"principals", texts(from.GetPrincipals()), []string{"new.td/ns/a/sa/b", "old.td/ns/a/sa/b", "other.td/ns/a/sa/b"}},
		{"notTrustDomains", texts(from.GetNotPrincipals()), []string{"new.td/", "old.td/"}},
		{"source.principal", texts(when.GetNotPrincipals()), []string{"new.td/ns/c/sa/d", "old.td/ns/c/sa/d"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}
