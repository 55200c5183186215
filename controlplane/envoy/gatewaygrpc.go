package envoy

import (
	"regexp"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// grpcRouteRules adds the rules of a GRPCRoute, one for each match.
func (b *builder) grpcRouteRules(src *ruleSource, o *gatewayv1.GRPCRoute) {
	key := kube.KeyOf(o)
	for i, rule := range o.Spec.Rules {
		field := indexed("spec.rules", i)
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for _, m := range matches {
			match := grpcRouteMatch(m)
			r := &httpRule{HTTPRoute: &networking.HTTPRoute{Name: ruleName(key, i, rule.Name), Match: []*networking.HTTPMatchRequest{match}}, object: key, field: field}
			filters := make([]gatewayv1.HTTPRouteFilter, len(rule.Filters))
			for j, f := range rule.Filters {
				filters[j] = grpcFilter(f)
			}
			b.httpFiltersOf(r, filters, match)
			refs := make([]gatewayv1.HTTPBackendRef, len(rule.BackendRefs))
			for j, ref := range rule.BackendRefs {
				refs[j].BackendRef = ref.BackendRef
				for _, f := range ref.Filters {
					refs[j].Filters = append(refs[j].Filters, grpcFilter(f))
				}
			}
			b.httpBackends(r, refs)
			src.http = append(src.http, r)
		}
	}
}

// grpcFilter is the filter as an HTTPRoute has it.
func grpcFilter(f gatewayv1.GRPCRouteFilter) gatewayv1.HTTPRouteFilter {
	return gatewayv1.HTTPRouteFilter{
		Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
		ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
	}
}

// grpcRouteMatch turns service and method into the path that gRPC makes of them.
func grpcRouteMatch(m gatewayv1.GRPCRouteMatch) *networking.HTTPMatchRequest {
	out := &networking.HTTPMatchRequest{Uri: grpcPath(m.Method)}
	for _, h := range m.Headers {
		text := exactText(h.Value)
		if h.Type != nil && *h.Type == gatewayv1.GRPCHeaderMatchRegularExpression {
			text = regexText(h.Value)
		}
		putText(&out.Headers, strings.ToLower(string(h.Name)), text)
	}
	return out
}

func grpcPath(m *gatewayv1.GRPCMethodMatch) *networking.StringMatch {
	service, method := "", ""
	if m != nil && m.Service != nil {
		service = *m.Service
	}
	if m != nil && m.Method != nil {
		method = *m.Method
	}
	isRegex := m != nil && m.Type != nil && *m.Type == gatewayv1.GRPCMethodMatchRegularExpression
	switch {
	case service == "" && method == "":
		return prefixText("/")
	case isRegex && method == "":
		return regexText("/" + service + "/.+")
	case isRegex && service == "":
		return regexText("/[^/]+/" + method)
	case isRegex:
		return regexText("/" + service + "/" + method)
	case method == "":
		return prefixText("/" + service + "/")
	case service == "":
		return regexText("/[^/]+/" + regexp.QuoteMeta(method))
	}
	return exactText("/" + service + "/" + method)
}
