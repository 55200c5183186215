package envoy

import (
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Prefixes of what shadow rules leave in metadata.
const (
	prefixDryAllow = "istio_dry_run_allow_"
	prefixDryDeny  = "istio_dry_run_deny_"
	prefixCustom   = "istio_ext_authz_"
)

// policySet are the policies for a chain, by action, each list oldest first.
type policySet struct {
	audit, deny, allow []*securityv1.AuthorizationPolicy
	dryDeny, dryAllow  []*securityv1.AuthorizationPolicy
	custom             []*securityv1.AuthorizationPolicy
}

// targets says whether target references lead to a chain: to the waypoint, to its class from the root namespace, or to
// the chain's service (3.8). References are to objects of the policy's own namespace.
func (b *builder) targets(namespace string, one *typev1beta1.PolicyTargetReference, many []*typev1beta1.PolicyTargetReference, at target) bool {
	if one != nil {
		many = append([]*typev1beta1.PolicyTargetReference{one}, many...)
	}
	for _, r := range many {
		switch {
		case r.Group == "gateway.networking.k8s.io" && r.Kind == "Gateway":
			if namespace == b.gateway.Namespace && r.Name == b.gateway.Name {
				return true
			}
		case r.Group == "gateway.networking.k8s.io" && r.Kind == "GatewayClass":
			if namespace == b.cfg.RootNamespace && r.Name == kube.WaypointClass && (b.object == nil || b.object.Spec.GatewayClassName == kube.WaypointClass) {
				return true
			}
		case at.service == nil:
		case (r.Group == "" || r.Group == "core") && r.Kind == "Service":
			if at.service.key == (kube.Key{Kind: kube.KindService, Name: kube.Name{Namespace: namespace, Name: r.Name}}) {
				return true
			}
		case r.Group == "networking.istio.io" && r.Kind == "ServiceEntry":
			if at.service.key == (kube.Key{Kind: kube.KindServiceEntry, Name: kube.Name{Namespace: namespace, Name: r.Name}}) {
				return true
			}
		}
	}
	return false
}

func (b *builder) policiesFor(at target) policySet {
	var set policySet
	for _, p := range b.policies {
		if !b.targets(p.Namespace, p.Spec.TargetRef, p.Spec.TargetRefs, at) {
			continue
		}
		dry, _ := strconv.ParseBool(p.Annotations["istio.io/dry-run"])
		switch p.Spec.Action {
		case security.AuthorizationPolicy_ALLOW:
			if dry {
				set.dryAllow = append(set.dryAllow, p)
			} else {
				set.allow = append(set.allow, p)
			}
		case security.AuthorizationPolicy_DENY:
			if dry {
				set.dryDeny = append(set.dryDeny, p)
			} else {
				set.deny = append(set.deny, p)
			}
		case security.AuthorizationPolicy_AUDIT:
			set.audit = append(set.audit, p)
		case security.AuthorizationPolicy_CUSTOM:
			if dry {
				b.problem(kube.Ignored, kube.KeyOf(p), "metadata.annotations[istio.io/dry-run]", "action CUSTOM has no dry run: the policy is left out", "ALLOW, DENY")
			} else {
				set.custom = append(set.custom, p)
			}
		}
	}
	return set
}

// enforce makes the rules of policies of one action; nil when there are no policies. prefix begins their names.
func (b *builder) enforce(action rbacconfigv3.RBAC_Action, policies []*securityv1.AuthorizationPolicy, prefix string, tcp bool) *rbacconfigv3.RBAC {
	if len(policies) == 0 {
		return nil
	}
	out := &rbacconfigv3.RBAC{Action: action}
	for _, p := range policies {
		for i, r := range p.Spec.Rules {
			if r == nil {
				continue
			}
			made := b.policyRule(p, i, r, action, tcp)
			if made == nil {
				continue
			}
			if out.Policies == nil {
				out.Policies = map[string]*rbacconfigv3.Policy{}
			}
			out.Policies[prefix+"ns["+p.Namespace+"]-policy["+p.Name+"]-rule["+strconv.Itoa(i)+"]"] = made
		}
	}
	return out
}

// step is one filter: what it enforces, and what it only would.
type step struct {
	rules, shadow *rbacconfigv3.RBAC
	prefix        string
}

func (b *builder) steps(set policySet, tcp bool) []step {
	var out []step
	add := func(s step) {
		if s.rules != nil || s.shadow != nil {
			out = append(out, s)
		}
	}
	deny := step{
		rules:  b.enforce(rbacconfigv3.RBAC_DENY, set.deny, "", tcp),
		shadow: b.enforce(rbacconfigv3.RBAC_DENY, set.dryDeny, "", tcp), prefix: prefixDryAllow,
	}
	if deny.shadow != nil {
		deny.prefix = prefixDryDeny
	}
	add(step{rules: b.enforce(rbacconfigv3.RBAC_LOG, set.audit, "", tcp), prefix: prefixDryAllow})
	add(deny)
	add(step{
		rules:  b.enforce(rbacconfigv3.RBAC_ALLOW, set.allow, "", tcp),
		shadow: b.enforce(rbacconfigv3.RBAC_ALLOW, set.dryAllow, "", tcp), prefix: prefixDryAllow,
	})
	return out
}

// networkAuthorization are the filters of a TCP chain.
func (b *builder) networkAuthorization(at target) []*listenerv3.Filter {
	set := b.policiesFor(at)
	var out []*listenerv3.Filter
	if r := b.enforce(rbacconfigv3.RBAC_DENY, set.custom, "", true); r != nil {
		// Who decides about connections cannot be asked: what the policy would ask about is denied.
		for _, p := range set.custom {
			b.problem(kube.Warning, kube.KeyOf(p), "spec.action", "CUSTOM is served for HTTP only: TCP connections that it selects are denied", "ALLOW, DENY, or an HTTP port")
		}
		out = append(out, networkFilter("envoy.filters.network.rbac", &netrbacv3.RBAC{Rules: r, ShadowRulesStatPrefix: prefixDryAllow, StatPrefix: "tcp."}))
	}
	for _, s := range b.steps(set, true) {
		out = append(out, networkFilter("envoy.filters.network.rbac", &netrbacv3.RBAC{
			Rules: s.rules, ShadowRules: s.shadow, ShadowRulesStatPrefix: s.prefix, StatPrefix: "tcp.",
		}))
	}
	return out
}

// httpAuthentication are the filters of an HTTP chain that decide who may do what, in the order of 3.8.
func (b *builder) httpAuthentication(at target) []*hcmv3.HttpFilter {
	set := b.policiesFor(at)
	var out []*hcmv3.HttpFilter
	out = append(out, b.clientIdentity()...)
	out = append(out, b.customFilters(set.custom)...)
	out = append(out, b.jwtFilter(at)...)
	for _, s := range b.steps(set, false) {
		out = append(out, httpFilter("envoy.filters.http.rbac", &httprbacv3.RBAC{Rules: s.rules, ShadowRules: s.shadow, ShadowRulesStatPrefix: s.prefix}))
	}
	return out
}
