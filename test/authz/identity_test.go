package authz

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// TestIdentitiesAreComparedLetterByLetter: nothing in a principal, a namespace or a service account is a pattern but a star at its
// beginning or its end, on waypoints, Envoys and ztunnels alike; as a rule that denies, and as one that allows.
func TestIdentitiesAreComparedLetterByLetter(t *testing.T) { // B17
	type source = security.Source
	principal := func(p string) *source { return &source{Principals: []string{p}} }
	namespace := func(n string) *source { return &source{Namespaces: []string{n}} }
	account := func(a string) *source { return &source{ServiceAccounts: []string{a}} }
	cases := []struct {
		what   string
		source *source
		yes    []string // accounts of cluster.local, as namespace/name, that it is about
		no     []string
	}{
		{"a dot is a dot", principal("cluster.local/ns/foo/sa/a.b"), []string{"foo/a.b"}, []string{"foo/axb", "foo/a-b", "foo/ab", "foo/a.bc", "foo/xa.b"}},
		{"a dot of the trust domain", principal("clusterxlocal/ns/foo/sa/a"), nil, []string{"foo/a"}},
		{"a bracket opens nothing", principal("cluster.local/ns/foo/sa/a[b"), nil, []string{"foo/a", "foo/b", "foo/ab"}},
		{"a class is none", principal("cluster.local/ns/foo/sa/[ab]"), nil, []string{"foo/a", "foo/b"}},
		{"a plus repeats nothing", principal("cluster.local/ns/foo/sa/a+"), nil, []string{"foo/a", "foo/aa"}},
		{"dot star is a prefix that ends in a dot", principal("cluster.local/ns/foo/sa/a.*"), []string{"foo/a.b", "foo/a."}, []string{"foo/a", "foo/ab"}},
		{"an alternative is none", principal("cluster.local/ns/foo/sa/a|b"), nil, []string{"foo/a", "foo/b"}},
		{"anchors are letters", principal("^cluster.local/ns/foo/sa/a$"), nil, []string{"foo/a"}},
		{"a question mark is one", principal("cluster.local/ns/foo/sa/ab?"), nil, []string{"foo/a", "foo/ab"}},
		{"a backslash is one", principal(`cluster.local/ns/foo/sa/\w`), nil, []string{"foo/a", "foo/w"}},
		{"letters have their case", principal("cluster.local/ns/foo/sa/A"), nil, []string{"foo/a"}},
		{"a prefix", principal("cluster.local/ns/foo/*"), []string{"foo/a", "foo/a.b"}, []string{"foo-bar/a", "fo/a", "xfoo/a"}},
		{"a prefix within a word", principal("cluster.local/ns/foo*"), []string{"foo/a", "foo-bar/a"}, []string{"fo/a"}},
		{"a suffix", principal("*/sa/a"), []string{"foo/a", "bar/a"}, []string{"foo/ba", "foo/ab"}},
		{"a suffix within a word", principal("*a"), []string{"foo/a", "foo/ba"}, []string{"foo/ab"}},
		{"a star in the middle is a letter", principal("cluster.local/ns/*/sa/a"), nil, []string{"foo/a", "bar/a"}},
		{"anybody", principal("*"), []string{"foo/a", "bar/b"}, nil},
		{"nobody of the name", principal("cluster.local/ns/foo/sa/"), nil, []string{"foo/a"}},
		{"a namespace is not the beginning of another", namespace("foo"), []string{"foo/a"}, []string{"foo-bar/a", "xfoo/a", "fo/a", "bar/foo"}},
		{"a longer namespace", namespace("foo-bar"), []string{"foo-bar/a"}, []string{"foo/a", "foo/bar"}},
		{"a prefix of namespaces", namespace("foo*"), []string{"foo/a", "foo-bar/a"}, []string{"xfoo/a", "bar/foo"}},
		{"a suffix of namespaces", namespace("*-bar"), []string{"foo-bar/a"}, []string{"foo/a", "bar/a", "foo-bar-x/a"}},
		{"a dot in a namespace", namespace("f.o"), nil, []string{"foo/a"}},
		{"a slash does not get into the account", namespace("foo/sa/a"), nil, []string{"foo/a"}},
		{"an account with its namespace", account("foo/a.b"), []string{"foo/a.b"}, []string{"foo/axb", "bar/a.b", "foo-bar/a.b", "foo/a"}},
		{"an account of the policy's namespace", account("a"), []string{"demo/a"}, []string{"foo/a", "demo/ab", "demo-x/a"}},
		{"not a principal", &source{NotPrincipals: []string{"cluster.local/ns/foo/sa/a.b"}}, []string{"foo/axb", "bar/a"}, []string{"foo/a.b"}},
		{"not a namespace", &source{NotNamespaces: []string{"foo"}}, []string{"foo-bar/a", "bar/a"}, []string{"foo/a"}},
	}
	var services []*service
	var nodes []func(t *testing.T, namespace, account string) string
	for i, c := range cases {
		for j, action := range []security.AuthorizationPolicy_Action{security.AuthorizationPolicy_DENY, security.AuthorizationPolicy_ALLOW} {
			s := &service{name: fmt.Sprintf("s%d-%d", i, j), dest: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 201, byte(i), byte(j + 1)}), 80)}
			p := &securityv1.AuthorizationPolicy{
				TypeMeta:   metav1.TypeMeta{APIVersion: "security.istio.io/v1", Kind: "AuthorizationPolicy"},
				ObjectMeta: metav1.ObjectMeta{Name: s.name, Namespace: "demo"},
			}
			p.Spec.Action, p.Spec.Rules = action, []*security.Rule{{From: []*security.Rule_From{{Source: c.source}}}}
			nodes = append(nodes, nodePolicies(t, p))
			p.Spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: s.name}}
			s.policies = []*securityv1.AuthorizationPolicy{p}
			services = append(services, s)
		}
	}
	_, keys := (&maker{rand.New(rand.NewPCG(45, 1))}).tokens(t, 1)
	main := translated(t, services, keys, base)
	o := newOurs(t, main)
	var e *theirs
	if bin := os.Getenv("ENVOY_BIN"); bin != "" {
		var stop func()
		e, stop = startEnvoy(t, bin, main)
		defer stop()
	}
	n := 0
	for i, c := range cases {
		for j := range 2 {
			s := services[2*i+j]
			for k, who := range append(c.yes[:len(c.yes):len(c.yes)], c.no...) {
				want := denied
				if (k < len(c.yes)) == (j == 1) { // what it is about is let in by an ALLOW, and what it is not about by a DENY
					want = allowed
				}
				ns, name, _ := strings.Cut(who, "/")
				r := &request{service: s.name, identity: "cluster.local/ns/" + ns + "/sa/" + name, source: netip.MustParseAddr("127.0.0.1"), dest: s.dest, method: "GET", path: "/", host: "h"}
				got := map[string]string{"the waypoint": "", "the ztunnel": nodes[2*i+j](t, ns, name), "the oracle": decide(s.policies, r, base)}
				got["the waypoint"], _ = o.decide(r)
				if e != nil {
					d, _, err := e.decide(r)
					if err != nil {
						t.Fatal(err)
					}
					got["Envoy"] = d
				}
				for of, decision := range got {
					if n++; decision != want {
						t.Errorf("%s, %s of %v: %s for %s by %s, want %s", c.what, s.policies[0].Spec.Action, c.source, decision, who, of, want)
					}
				}
			}
		}
	}
	t.Logf("%d decisions", n)
}

// nodePolicies is what a ztunnel decides of accounts of cluster.local, by a policy of the pod's namespace.
func nodePolicies(t *testing.T, p *securityv1.AuthorizationPolicy) func(t *testing.T, namespace, account string) string {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	objects, problems := kube.Decode("p.json", text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	store := rbac.NewStore()
	for key, a := range translate.Build(translate.Config{}, kube.NewObjects(objects...)).Authorizations {
		b, err := proto.Marshal(a.Message.(*securitypb.Authorization)) // as it comes over the wire
		if err != nil {
			t.Fatal(err)
		}
		q, err := rbac.Decode(key, b)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Apply([]xds.Resource[*rbac.Policy]{{Name: key, Value: q}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set := store.View().Set("demo", nil, nil)
	return func(t *testing.T, namespace, account string) string {
		id, err := spiffe.New("cluster.local", namespace, account)
		if err != nil {
			t.Fatalf("%s/%s: %v", namespace, account, err)
		}
		if set.Check(&rbac.Attributes{Source: id, SourceIP: netip.MustParseAddr("10.0.0.1"), Dest: netip.MustParseAddrPort("10.0.0.2:80")}).Allowed {
			return allowed
		}
		return denied
	}
}
