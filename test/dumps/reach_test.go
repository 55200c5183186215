package dumps

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// reachable makes policies of a chain such that a test's clients can satisfy them: addresses of clients that are asked for
// become this machine's, and server names are not asked for. It says whether there were any.
func reachable(t *testing.T, m *hcmv3.HttpConnectionManager) bool {
	t.Helper()
	changed := false
	for _, f := range m.GetHttpFilters() {
		var r rbacv3.RBAC
		if !f.GetTypedConfig().MessageIs(&r) {
			continue
		}
		if err := f.GetTypedConfig().UnmarshalTo(&r); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.GetRules().GetPolicies() {
			for _, x := range p.GetPermissions() {
				changed = reachPermission(x) || changed
			}
			for _, x := range p.GetPrincipals() {
				changed = reachPrincipal(x) || changed
			}
		}
		f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &r)}
	}
	return changed
}

func reachPermission(p *rbacconfigv3.Permission) bool {
	changed := false
	for _, x := range append(p.GetAndRules().GetRules(), p.GetOrRules().GetRules()...) {
		changed = reachPermission(x) || changed
	}
	if p.GetRequestedServerName() != nil {
		p.Rule, changed = &rbacconfigv3.Permission_Any{Any: true}, true
	}
	return changed
}

func reachPrincipal(p *rbacconfigv3.Principal) bool {
	changed := false
	for _, x := range append(p.GetAndIds().GetIds(), p.GetOrIds().GetIds()...) {
		changed = reachPrincipal(x) || changed
	}
	for _, r := range []*corev3.CidrRange{p.GetDirectRemoteIp(), p.GetRemoteIp()} {
		if r != nil {
			r.AddressPrefix, r.PrefixLen, changed = "127.0.0.0", wrapperspb.UInt32(8), true
		}
	}
	return changed
}
