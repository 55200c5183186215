package envoy

import (
	"strconv"
	"strings"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// condition is what one attribute of a rule must be: one of values, none of not.
type condition struct {
	values, not []string
	// principal or permission makes the matcher of all values together; one of the two is set.
	principal  func(values []string) *rbacconfigv3.Principal
	permission func(values []string) *rbacconfigv3.Permission
	// http says that only requests have the attribute.
	http bool
}

func (c condition) empty() bool { return len(c.values)+len(c.not) == 0 }

// policyRule makes one rule, nil when it matches nothing. On a TCP chain a condition about requests cannot be seen: an
// ALLOW rule with one then allows nothing, another rule is broader without it, as with istiod.
func (b *builder) policyRule(p *securityv1.AuthorizationPolicy, index int, r *security.Rule, action rbacconfigv3.RBAC_Action, tcp bool) *rbacconfigv3.Policy {
	when, ok := b.whenConditions(p, index, r)
	if !ok {
		// What cannot be read must not allow anything, nor let anything pass that it would deny.
		if action == rbacconfigv3.RBAC_ALLOW {
			return nil
		}
		when = nil
	}
	allow := action == rbacconfigv3.RBAC_ALLOW
	if !b.templates(p, index, r) {
		if allow {
			return nil
		}
		r = &security.Rule{From: r.From, When: r.When} // without the paths, which nobody can read
	}
	out := &rbacconfigv3.Policy{}
	froms := r.From
	if len(froms) == 0 {
		froms = []*security.Rule_From{nil}
	}
	for _, f := range froms {
		list := append(b.sourceConditions(p.Namespace, f.GetSource()), when...)
		if ids, ok := principals(list, tcp, allow); ok {
			out.Principals = append(out.Principals, andIDs(ids))
		}
	}
	tos := r.To
	if len(tos) == 0 {
		tos = []*security.Rule_To{nil}
	}
	for _, t := range tos {
		list := append(operationConditions(t.GetOperation()), when...)
		if rules, ok := permissions(list, tcp, allow); ok {
			out.Permissions = append(out.Permissions, andRules(rules))
		}
	}
	if len(out.Principals) == 0 || len(out.Permissions) == 0 {
		return nil
	}
	return out
}

// templates reports path templates that cannot be matched; false when there is one.
func (b *builder) templates(p *securityv1.AuthorizationPolicy, index int, r *security.Rule) bool {
	ok := true
	for i, to := range r.To {
		for _, path := range append(to.GetOperation().GetPaths(), to.GetOperation().GetNotPaths()...) {
			if !strings.Contains(path, "{") {
				continue
			}
			if why := templateFlaw(path); why != "" {
				ok = false
				b.problem(kube.Warning, kube.KeyOf(p), indexed(indexed("spec.rules", index)+".to", i)+".operation.paths",
					"template "+strconv.Quote(path)+": "+why+": an ALLOW rule with it allows nothing, another holds for all requests of its sources", "segments that are text, {*} or, as the last operator, {**}")
			}
		}
	}
	return ok
}

// principals are the matchers of the conditions about the client; false when, on a TCP chain, they can never hold.
func principals(list []condition, tcp, allow bool) ([]*rbacconfigv3.Principal, bool) {
	var out []*rbacconfigv3.Principal
	for _, c := range list {
		if c.principal == nil || c.empty() {
			continue
		}
		if c.http && tcp {
			if allow {
				return nil, false
			}
			continue
		}
		if len(c.values) > 0 {
			out = append(out, c.principal(c.values))
		}
		if len(c.not) > 0 {
			out = append(out, &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_NotId{NotId: c.principal(c.not)}})
		}
	}
	if len(out) == 0 {
		out = append(out, &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_Any{Any: true}})
	}
	return out, true
}

func permissions(list []condition, tcp, allow bool) ([]*rbacconfigv3.Permission, bool) {
	var out []*rbacconfigv3.Permission
	for _, c := range list {
		if c.permission == nil || c.empty() {
			continue
		}
		if c.http && tcp {
			if allow {
				return nil, false
			}
			continue
		}
		if len(c.values) > 0 {
			out = append(out, c.permission(c.values))
		}
		if len(c.not) > 0 {
			out = append(out, &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: c.permission(c.not)}})
		}
	}
	if len(out) == 0 {
		out = append(out, &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Any{Any: true}})
	}
	return out, true
}

// sourceConditions are in istiod's order.
func (b *builder) sourceConditions(namespace string, s *security.Source) []condition {
	if s == nil {
		return nil
	}
	return []condition{
		{values: s.Principals, not: s.NotPrincipals, principal: orIDs(b.principalID)},
		{values: s.RequestPrincipals, not: s.NotRequestPrincipals, principal: oneOrIDs(requestPrincipalID), http: true},
		{values: s.ServiceAccounts, not: s.NotServiceAccounts, principal: orIDs(serviceAccountID(namespace))},
		{values: s.Namespaces, not: s.NotNamespaces, principal: orIDs(namespaceID)},
		{values: s.TrustDomains, not: s.NotTrustDomains, principal: orIDs(b.trustDomainID)},
		{values: s.RemoteIpBlocks, not: s.NotRemoteIpBlocks, principal: orIDs(remoteIP)},
		{values: s.IpBlocks, not: s.NotIpBlocks, principal: orIDs(directIP)},
	}
}

func operationConditions(o *security.Operation) []condition {
	if o == nil {
		return nil
	}
	return []condition{
		{values: o.Hosts, not: o.NotHosts, permission: orRules(hostRule), http: true},
		{values: o.Methods, not: o.NotMethods, permission: orRules(methodRule), http: true},
		{values: o.Paths, not: o.NotPaths, permission: orRules(pathRule), http: true},
		{values: o.Ports, not: o.NotPorts, permission: orRules(portRule)},
	}
}

// whenConditions are in the order in which they are written. False when one is not understood.
func (b *builder) whenConditions(p *securityv1.AuthorizationPolicy, index int, r *security.Rule) ([]condition, bool) {
	var out []condition
	ok := true
	for i, w := range r.When {
		c, known := b.whenCondition(p.Namespace, w)
		if !known {
			ok = false
			b.problem(kube.Warning, kube.KeyOf(p), indexed(indexed("spec.rules", index)+".when", i)+".key",
				"key "+strconv.Quote(w.Key)+" is not served: an ALLOW rule with it allows nothing, another is taken without its conditions",
				"request.headers[NAME], request.auth.*, source.*, remote.ip, destination.ip, destination.port, connection.sni")
			continue
		}
		c.values, c.not = w.Values, w.NotValues
		out = append(out, c)
	}
	return out, ok
}

func (b *builder) whenCondition(namespace string, w *security.Condition) (condition, bool) {
	switch w.Key {
	case "source.ip":
		return condition{principal: orIDs(directIP)}, true
	case "remote.ip":
		return condition{principal: orIDs(remoteIP)}, true
	case "source.namespace":
		return condition{principal: orIDs(namespaceID)}, true
	case "source.serviceAccount":
		return condition{principal: orIDs(serviceAccountID(namespace))}, true
	case "source.principal":
		return condition{principal: orIDs(b.principalID)}, true
	case "source.trustDomain":
		return condition{principal: orIDs(b.trustDomainID)}, true
	case "request.auth.principal":
		return condition{principal: oneOrIDs(requestPrincipalID), http: true}, true
	case "request.auth.audiences":
		return condition{principal: claimID("aud"), http: true}, true
	case "request.auth.presenter":
		return condition{principal: claimID("azp"), http: true}, true
	case "destination.ip":
		return condition{permission: orRules(destinationIP)}, true
	case "destination.port":
		return condition{permission: orRules(portRule)}, true
	case "connection.sni":
		return condition{permission: orRules(sniRule)}, true
	}
	if name, ok := bracketed(w.Key, "request.headers"); ok {
		return condition{principal: orIDs(headerID(name)), http: true}, true
	}
	if rest, ok := strings.CutPrefix(w.Key, "request.auth.claims"); ok {
		if path := claimPath(rest); len(path) > 0 {
			return condition{principal: claimID(path...), http: true}, true
		}
	}
	return condition{}, false
}

// bracketed takes NAME out of prefix[NAME].
func bracketed(s, prefix string) (string, bool) {
	s, ok := strings.CutPrefix(s, prefix+"[")
	if !ok || !strings.HasSuffix(s, "]") || len(s) < 2 {
		return "", false
	}
	return s[:len(s)-1], true
}

// claimPath reads [a][b], nil when it is no such text.
func claimPath(s string) []string {
	var out []string
	for s != "" {
		end := strings.IndexByte(s, ']')
		if s[0] != '[' || end < 2 {
			return nil
		}
		out = append(out, s[1:end])
		s = s[end+1:]
	}
	return out
}
