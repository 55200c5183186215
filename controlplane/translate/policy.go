package translate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// policy is the translation of an AuthorizationPolicy. It depends on the object alone and never changes.
type policy struct {
	// sent is what Istio would send, nil when node proxies do not get the policy.
	sent *securitypb.Authorization
	// failClosed is the second policy of the package comment, nil when it is not needed.
	failClosed *securitypb.Authorization
	// selector selects workloads in reach: a namespace, or all when it is empty. An empty selector selects all.
	selector map[string]string
	reach    string
	// condition is what the user is told, nil for a policy that is none of the node proxy's business.
	condition *Condition
}

func (t *Translator) authorizationPolicy(it *item) {
	p := t.authz[it.key]
	if p.sent != nil {
		it.authorizations = append(it.authorizations, policyResource(p.sent))
	}
	if p.failClosed != nil {
		it.authorizations = append(it.authorizations, policyResource(p.failClosed))
	}
	if p.condition != nil {
		it.status.Conditions = []Condition{*p.condition}
		if p.condition.Status == conditionStatusFalse {
			it.problem(kube.Warning, "spec", p.condition.Message, "")
		}
	}
	o := kube.Get[*securityv1.AuthorizationPolicy](t.objects, it.key.Namespace, it.key.Name.Name)
	t.targeted(o.Spec.TargetRef, o.Spec.TargetRefs, it)
}

// convertPolicy translates an AuthorizationPolicy (controlplane.md 1.8).
func (t *Translator) convertPolicy(o *securityv1.AuthorizationPolicy) *policy {
	p := &policy{selector: o.Spec.GetSelector().GetMatchLabels(), reach: o.Namespace}
	if o.Spec.TargetRef != nil || len(o.Spec.TargetRefs) > 0 {
		return p
	}
	scope := securitypb.Scope_WORKLOAD_SELECTOR
	if len(p.selector) == 0 {
		scope = securitypb.Scope_NAMESPACE
	}
	if o.Namespace == t.cfg.RootNamespace {
		p.reach = ""
		if len(p.selector) == 0 {
			scope = securitypb.Scope_GLOBAL
		}
	}
	dryRun, _ := strconv.ParseBool(o.Annotations[annotationDryRun])
	switch {
	case o.Spec.Action != security.AuthorizationPolicy_ALLOW && o.Spec.Action != security.AuthorizationPolicy_DENY:
		p.condition = unsupported("ztunnel does not support the %s action", o.Spec.Action)
		return p
	case dryRun && !t.cfg.DryRunPolicies:
		p.condition = unsupported("ztunnel is not sent policies with %s: support for them is turned off", annotationDryRun)
		return p
	}
	p.sent = &securitypb.Authorization{Name: o.Name, Namespace: o.Namespace, Scope: scope, DryRun: dryRun}
	lost := map[string]bool{}
	if o.Spec.Action == security.AuthorizationPolicy_ALLOW {
		t.convertAllow(o, p, lost)
	} else {
		p.sent.Action = securitypb.Action_DENY
		t.convertDeny(o, p, lost)
	}
	return p
}

func unsupported(format string, args ...any) *Condition {
	return &Condition{Type: conditionZtunnel, Status: conditionStatusFalse, Reason: reasonUnsupported, Message: fmt.Sprintf(format, args...)}
}

func accepted() *Condition {
	return &Condition{Type: conditionZtunnel, Status: conditionStatusTrue, Reason: reasonAccepted, Message: "attached to ztunnel"}
}

// inAllDomains is a rule in which each principal and trust domain of the mesh stands for its aliases too.
func (t *Translator) inAllDomains(r *security.Rule) *security.Rule {
	domains := append([]string{t.cfg.TrustDomain}, t.cfg.TrustDomainAliases...)
	r = r.DeepCopy()
	all := func(one func([]string, string) []string, lists ...*[]string) {
		for _, l := range lists {
			var out []string
			for _, v := range *l {
				out = append(out, one(domains, v)...)
			}
			*l = out
		}
	}
	for _, f := range r.From {
		s := f.Source
		all(kube.Principals, &s.Principals, &s.NotPrincipals)
		all(kube.TrustDomains, &s.TrustDomains, &s.NotTrustDomains)
	}
	for _, w := range r.When {
		switch w.Key {
		case "source.principal":
			all(kube.Principals, &w.Values, &w.NotValues)
		case "source.trustDomain":
			all(kube.TrustDomains, &w.Values, &w.NotValues)
		}
	}
	return r
}

// convertAllow drops each rule with an attribute that cannot be seen: it would allow what is not written.
func (t *Translator) convertAllow(o *securityv1.AuthorizationPolicy, p *policy, lost map[string]bool) {
	dropped := 0
	for _, r := range o.Spec.Rules {
		c := convertRule(o.Namespace, t.inAllDomains(r), lost)
		if c.lossy {
			dropped++
			continue
		}
		p.sent.Rules = append(p.sent.Rules, c.sent)
	}
	if p.condition = accepted(); dropped > 0 {
		p.condition = unsupported("ztunnel does not support HTTP attributes (found: %s). In ambient mode you must use a waypoint proxy to enforce HTTP rules. "+
			"Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested.", list(lost))
	}
}

// convertDeny keeps all rules; those that lose what made them match get a rule that denies in their stead.
func (t *Translator) convertDeny(o *securityv1.AuthorizationPolicy, p *policy, lost map[string]bool) {
	lossy := false
	var closed []*securitypb.Rule
	for _, r := range o.Spec.Rules {
		c := convertRule(o.Namespace, t.inAllDomains(r), lost)
		p.sent.Rules = append(p.sent.Rules, c.sent)
		if c.closed != nil {
			closed = append(closed, c.closed)
		}
		lossy = lossy || c.lossy
	}
	if p.condition = accepted(); !lossy {
		return
	}
	message := fmt.Sprintf("ztunnel does not support HTTP attributes (found: %s). In ambient mode you must use a waypoint proxy to enforce HTTP rules. "+
		"Within a DENY policy, rules matching HTTP attributes omit those attributes. This will be more restrictive than requested.", list(lost))
	if len(closed) > 0 {
		p.failClosed = &securitypb.Authorization{
			Name: convertedDenyPrefix + o.Name, Namespace: o.Namespace, Scope: securitypb.Scope_WORKLOAD_SELECTOR,
			Action: securitypb.Action_DENY, DryRun: p.sent.DryRun, Rules: closed,
		}
		message += fmt.Sprintf(" %d of %d rules cannot be decided without these attributes: on workloads that no waypoint serves, all connections that "+
			"the rest of such a rule matches are denied (policy %s/%s); on workloads behind a waypoint the rule has no effect here, so attach the policy "+
			"to the waypoint with targetRefs.", len(closed), len(o.Spec.Rules), o.Namespace, p.failClosed.Name)
	}
	p.condition = unsupported("%s", message)
}

// list names the attributes that were found, in order.
func list(lost map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(lost)), ", ") }

// workloadPolicies lists the policies that a workload names, in order: those that select it, that of its
// PeerAuthentications, and the fail-closed ones when no waypoint serves it. Behind is asked only if it matters.
func (t *Translator) workloadPolicies(namespace string, labels map[string]string, behind func() bool) []string {
	var names []string
	if m := t.mtlsPolicy(namespace, labels); m != "" {
		names = append(names, m)
	}
	var closed []string
	add := func(k kube.Key) {
		p := t.authz[k]
		if p.failClosed != nil {
			closed = append(closed, p.failClosed.Namespace+"/"+p.failClosed.Name)
		}
	}
	for _, k := range t.policies.matching(namespace, labels) {
		if p := t.authz[k]; p.sent != nil {
			names = append(names, p.sent.Namespace+"/"+p.sent.Name)
		}
		add(k)
	}
	for k := range t.l7Deny[namespace] {
		add(k)
	}
	if namespace != t.cfg.RootNamespace {
		for k := range t.l7Deny[t.cfg.RootNamespace] {
			add(k)
		}
	}
	if len(closed) > 0 && !behind() {
		names = append(names, closed...)
	}
	slices.Sort(names)
	return names
}
