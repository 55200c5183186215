package filter

import (
	"maps"
	"slices"
	"strings"

	configv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

// rbacName is the filter's name, under which it leaves metadata.
const rbacName = "envoy.filters.http.rbac"

// RBAC decides by Envoy's role-based access control rules. It is immutable; nil admits everything.
type RBAC struct {
	action   configv3.RBAC_Action
	policies []policy // in order of name, as in Envoy
}

type policy struct {
	name                    string
	permissions, principals rule // alternatives
}

// Verdict is what rules say about a request.
type Verdict struct {
	Allowed bool
	// Policy is the name of the first policy that matches, or "".
	Policy string
}

// CompileRules compiles rules. nil rules give nil.
func CompileRules(p *configv3.RBAC) (*RBAC, error) {
	if p == nil {
		return nil, nil
	}
	if _, ok := configv3.RBAC_Action_name[int32(p.GetAction())]; !ok {
		return nil, field.Errorf("action", "unknown action %d", p.GetAction())
	}
	r := &RBAC{action: p.GetAction()}
	for _, n := range slices.Sorted(maps.Keys(p.GetPolicies())) {
		c, err := compilePolicy(n, p.GetPolicies()[n])
		if err != nil {
			return nil, field.Key(err, "policies", n)
		}
		r.policies = append(r.policies, c)
	}
	return r, nil
}

func compilePolicy(name string, p *configv3.Policy) (policy, error) {
	c := policy{name: name}
	if p.GetCondition() != nil || p.GetCheckedCondition() != nil {
		return c, field.Errorf("condition", "CEL conditions are not supported")
	}
	if len(p.GetPermissions()) == 0 {
		return c, field.Errorf("permissions", "at least one is required")
	}
	if len(p.GetPrincipals()) == 0 {
		return c, field.Errorf("principals", "at least one is required")
	}
	var err error
	if c.permissions, err = compileSet("permissions", p.GetPermissions(), false, 0, compilePermission); err != nil {
		return c, err
	}
	c.principals, err = compileSet("principals", p.GetPrincipals(), false, 0, compilePrincipal)
	return c, err
}

// Check applies the rules to a request, or to a connection whose request is empty. A path with parameters is looked at without
// them too: "/admin;x=1" is "/admin" to many servers, and "/admin;.css" does not end in ".css" there. One of the two is enough to
// deny, and both are needed to allow.
func (r *RBAC) Check(x *Exchange) Verdict {
	name, hit := r.first(x)
	if x.Req != nil && strings.IndexByte(x.Req.Path, ';') >= 0 {
		switch {
		case r.action == configv3.RBAC_DENY && !hit:
			name, hit = r.firstWithout(x)
		case r.action == configv3.RBAC_ALLOW && hit:
			x.written = x.Req.Path
			if _, hit = r.firstWithout(x); !hit {
				name = ""
			}
			x.written = ""
		}
	}
	switch r.action {
	case configv3.RBAC_ALLOW:
		return Verdict{hit, name}
	case configv3.RBAC_DENY:
		return Verdict{!hit, name}
	}
	return Verdict{true, name} // LOG never refuses
}

// first is the first policy that matches.
func (r *RBAC) first(x *Exchange) (name string, hit bool) {
	for i := range r.policies {
		p := &r.policies[i]
		if p.permissions.match(x) && p.principals.match(x) {
			return p.name, true
		}
	}
	return "", false
}

// firstWithout is first for the path without its parameters.
func (r *RBAC) firstWithout(x *Exchange) (name string, hit bool) {
	path := x.Req.Path
	x.Req.Path = withoutParameters(path)
	name, hit = r.first(x)
	x.Req.Path = path
	return name, hit
}

// withoutParameters is a path without the parameters of its segments (RFC 3986 section 3.3), and with its query.
func withoutParameters(path string) string {
	path, query, ok := strings.Cut(path, "?")
	var b strings.Builder
	for path != "" {
		segment, rest := path, ""
		if i := strings.IndexByte(path[1:], '/'); i >= 0 {
			segment, rest = path[:1+i], path[1+i:]
		}
		bare, _, _ := strings.Cut(segment, ";")
		b.WriteString(bare)
		path = rest
	}
	if ok {
		b.WriteString("?" + query)
	}
	return b.String()
}

// rbacFilter is the HTTP filter.
type rbacFilter struct {
	name
	rbacRules
}

// rbacRules are what a chain, or a route, sets.
type rbacRules struct {
	rules, shadow             *RBAC
	rulesPrefix, shadowPrefix string
}

func compileRBACRules(p *rbacv3.RBAC) (r rbacRules, err error) {
	if p.GetMatcher() != nil || p.GetShadowMatcher() != nil {
		return r, field.Errorf("matcher", "matcher trees are not supported, rules are")
	}
	if r.rules, err = CompileRules(p.GetRules()); err != nil {
		return r, field.At(err, "rules")
	}
	if r.shadow, err = CompileRules(p.GetShadowRules()); err != nil {
		return r, field.At(err, "shadow_rules")
	}
	r.rulesPrefix, r.shadowPrefix = p.GetRulesStatPrefix(), p.GetShadowRulesStatPrefix()
	return r, nil
}

func compileRBAC(p *rbacv3.RBAC) (Filter, error) {
	r, err := compileRBACRules(p)
	return &rbacFilter{rbacRules: r}, err
}

func compileRBACPart(p *rbacv3.RBACPerRoute) (any, error) {
	r, err := compileRBACRules(p.GetRbac())
	return &r, field.At(err, "rbac")
}

// Request implements Filter.
func (f *rbacFilter) Request(x *Exchange) Action {
	r := &f.rbacRules
	if v, off := x.settings(f.name.name); off {
		return Continue
	} else if own, ok := v.(*rbacRules); ok {
		r = own
	}
	r.note(x)
	if r.rules == nil {
		return Continue
	}
	v := r.rules.Check(x)
	if r.rules.action == configv3.RBAC_LOG {
		x.SetMetadata("envoy.common", "access_log_hint", structpb.NewBoolValue(v.Policy != ""))
	}
	if v.Allowed {
		return Continue
	}
	return x.Answered(403, "RBAC: access denied", denial(v), Unauthorized)
}

// denial is %RESPONSE_CODE_DETAILS% of a refusal.
func denial(v Verdict) string {
	if v.Policy == "" {
		return "rbac_access_denied_matched_policy[none]"
	}
	return "rbac_access_denied_matched_policy[" + v.Policy + "]"
}

// note leaves what the shadow rules say, for other filters and logs.
func (r *rbacRules) note(x *Exchange) {
	if r.shadow == nil {
		return
	}
	v := r.shadow.Check(x)
	if v.Policy != "" {
		x.SetMetadata(rbacName, r.shadowPrefix+"shadow_effective_policy_id", structpb.NewStringValue(v.Policy))
	}
	result := "denied"
	if v.Allowed {
		result = "allowed"
	}
	x.SetMetadata(rbacName, r.shadowPrefix+"shadow_engine_result", structpb.NewStringValue(result))
}

// rbacGate is the network filter.
type rbacGate struct{ rbacRules }

func compileNetworkRBAC(p *networkv3.RBAC) (Gate, error) {
	if p.GetMatcher() != nil || p.GetShadowMatcher() != nil {
		return nil, field.Errorf("matcher", "matcher trees are not supported, rules are")
	}
	g := &rbacGate{}
	var err error
	if g.rules, err = CompileRules(p.GetRules()); err != nil {
		return nil, field.At(err, "rules")
	}
	g.shadow, err = CompileRules(p.GetShadowRules())
	g.shadowPrefix = p.GetShadowRulesStatPrefix()
	return g, field.At(err, "shadow_rules")
}

// Admit implements Gate.
func (g *rbacGate) Admit(x *Exchange) bool {
	g.note(x)
	if g.rules == nil {
		return true
	}
	v := g.rules.Check(x)
	if !v.Allowed {
		x.Details = denial(v)
		x.Flags |= Unauthorized
	}
	return v.Allowed
}
