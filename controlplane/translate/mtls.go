package translate

import (
	"maps"
	"slices"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Names of policies that are made here. They have underscores, which no object's name can have.
const (
	staticStrictName     = "istio_converted_static_strict"
	convertedMTLSPrefix  = "converted_peer_authentication_"
	convertedDenyPrefix  = "converted_l7_deny_"
	reasonAccepted       = "Accepted"
	reasonUnsupported    = "UnsupportedValue"
	conditionZtunnel     = "ZtunnelAccepted"
	annotationDryRun     = "istio.io/dry-run"
	conditionStatusTrue  = "True"
	conditionStatusFalse = "False"
)

// noIdentity matches connections without a peer certificate (I13).
func noIdentity() *securitypb.Match {
	return &securitypb.Match{NotPrincipals: []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Presence_{Presence: &securitypb.StringMatch_Presence{}}}}}
}

func clauseOf(m *securitypb.Match) *securitypb.Clause {
	return &securitypb.Clause{Matches: []*securitypb.Match{m}}
}

// staticStrict makes the policy that a STRICT workload lists: deny what has no identity. It exists while any
// PeerAuthentication does (controlplane.md 1.7).
func (t *Translator) staticStrict(it *item) {
	if t.mtlsCount == 0 {
		return
	}
	it.authorizations = append(it.authorizations, policyResource(&securitypb.Authorization{
		Name: staticStrictName, Namespace: t.cfg.RootNamespace, Scope: securitypb.Scope_WORKLOAD_SELECTOR, Action: securitypb.Action_DENY,
		Rules: []*securitypb.Rule{{Clauses: []*securitypb.Clause{clauseOf(noIdentity())}}},
	}))
}

// policyResource makes the resource of a policy.
func policyResource(a *securitypb.Authorization) *Resource {
	return newResource(a.Namespace+"/"+a.Name, a)
}

// oldestMTLS is the PeerAuthentication in force among several at one level, nil for none.
func (t *Translator) oldestMTLS(keys []kube.Key) *securityv1.PeerAuthentication {
	var best *securityv1.PeerAuthentication
	for _, k := range keys {
		p := kube.Get[*securityv1.PeerAuthentication](t.objects, k.Namespace, k.Name.Name)
		if best == nil || older(p, best) {
			best = p
		}
	}
	return best
}

// inherit is the strictness that a mode comes to under a parent's. DISABLE cannot be had and is PERMISSIVE.
func inherit(mode security.PeerAuthentication_MutualTLS_Mode, parent bool) bool {
	switch mode {
	case security.PeerAuthentication_MutualTLS_UNSET:
		return parent
	case security.PeerAuthentication_MutualTLS_STRICT:
		return true
	}
	return false
}

// namespaceStrict says whether workloads of a namespace are STRICT when nothing selects them.
func (t *Translator) namespaceStrict(namespace string) bool {
	strict := false
	for _, ns := range []string{t.cfg.RootNamespace, namespace} {
		if p := t.oldestMTLS(slices.Collect(maps.Keys(t.wideMTLS[ns]))); p != nil {
			strict = inherit(p.Spec.GetMtls().GetMode(), strict)
		}
	}
	return strict
}

// peerAuthentication makes the policy that a PeerAuthentication with port settings needs. It is sent whether or not a
// workload lists it.
func (t *Translator) peerAuthentication(p *securityv1.PeerAuthentication, it *item) {
	k := it.key
	if a := t.portPolicy(k, p); a != nil {
		it.authorizations = append(it.authorizations, policyResource(a))
	}
	if k.Namespace == t.cfg.RootNamespace && len(p.Spec.GetSelector().GetMatchLabels()) > 0 {
		it.problem(kube.Ignored, "spec.selector", "a selector in the root namespace selects nothing", "no selector, or another namespace")
	}
}

// portPolicy is the policy for the ports of a PeerAuthentication that differ from the rest, nil when none does.
func (t *Translator) portPolicy(k kube.Key, p *securityv1.PeerAuthentication) *securitypb.Authorization {
	if k.Namespace == t.cfg.RootNamespace || len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
		return nil
	}
	strict := inherit(p.Spec.GetMtls().GetMode(), t.namespaceStrict(k.Namespace))
	var differ []uint32
	for _, port := range slices.Sorted(maps.Keys(p.Spec.PortLevelMtls)) {
		if inherit(p.Spec.PortLevelMtls[port].GetMode(), strict) != strict {
			differ = append(differ, port)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	a := &securitypb.Authorization{
		Name: convertedMTLSPrefix + k.Name.Name, Namespace: k.Namespace, Scope: securitypb.Scope_WORKLOAD_SELECTOR, Action: securitypb.Action_DENY,
	}
	if strict {
		// Deny without identity, except on these ports.
		a.Rules = []*securitypb.Rule{{Clauses: []*securitypb.Clause{
			clauseOf(noIdentity()), clauseOf(&securitypb.Match{NotDestinationPorts: differ}),
		}}}
		return a
	}
	for _, port := range differ {
		m := noIdentity()
		m.DestinationPorts = []uint32{port}
		a.Rules = append(a.Rules, &securitypb.Rule{Clauses: []*securitypb.Clause{clauseOf(m)}})
	}
	return a
}

// mtlsPolicy is the policy that a workload lists for its PeerAuthentications, empty for none.
func (t *Translator) mtlsPolicy(namespace string, labels map[string]string) string {
	static := t.cfg.RootNamespace + "/" + staticStrictName
	strict := t.namespaceStrict(namespace)
	if namespace != t.cfg.RootNamespace {
		if p := t.oldestMTLS(t.peerAuths.matching(namespace, labels)); p != nil {
			if a := t.portPolicy(kube.KeyOf(p), p); a != nil {
				return a.Namespace + "/" + a.Name
			}
			strict = inherit(p.Spec.GetMtls().GetMode(), strict)
		}
	}
	if strict {
		return static
	}
	return ""
}
