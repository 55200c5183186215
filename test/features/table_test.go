package features

import (
	"fmt"
	"slices"
	"strings"
)

// feature is one case: what a user can do, by which field, and how it shows.
type feature struct {
	name  string // as the user would name it
	field string // of the API
	// yaml are the case's objects besides its Service; $S is the Service's name, for the other words see (*bed).fill.
	yaml string
	asks []ask
	// ports replace the Service's ports, pods its selector.
	ports, pods string
	// labels and annotations are the Service's.
	labels, annotations string
	// spec is more of it, with a comma at its end.
	spec string
	// logged are texts that a line of a waypoint's, a ztunnel's or the control plane's log must have.
	logged []string
	// copies are how many requests v2 must have got besides.
	copies copies
	// envoy, if not "", is why Envoy does not do so: the case is ours only.
	envoy string
	// slow cases wait; they run at the same time as others.
	slow bool

	group, service, address string
}

// copies are requests to a path.
type copies struct {
	path     string
	min, max int
}

// group is a chapter of docs/features.md.
type group struct {
	title    string
	features []feature
}

// groups is the table.
func groups() []group {
	out := slices.Concat(matching(), actions(), resilience(), balancing(), gatewayRoutes(), policies(), tokens(), externalAuthorization(), protocols(), wire(), serviceEntries(), originate(), binding(), rateLimits(), tracing())
	n := 0
	for i := range out {
		for j := range out[i].features {
			n++
			f := &out[i].features[j]
			f.group, f.service = out[i].title, fmt.Sprintf("f%03d", n)
			f.address = fmt.Sprintf("10.96.%d.%d", 1+n/250, 1+n%250) // the lab itself has fewer to give
		}
	}
	return out
}

// manifest is the case's Service and its other objects.
func (f *feature) manifest() string {
	ports, pods, labels := f.ports, f.pods, f.labels
	if ports == "" {
		ports = "{name: http, port: 80, targetPort: 8080}"
	}
	if pods == "" {
		pods = "app: web"
	}
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: $S, namespace: shop, labels: {%s}, annotations: {%s}}, spec: {clusterIP: %s, %s selector: {%s}, ports: [%s]}}\n---\n%s",
		labels, f.annotations, f.address, f.spec, pods, ports, f.yaml)
}

const istio = "{apiVersion: networking.istio.io/v1, kind: %s, metadata: {name: $S, namespace: shop}, spec: {%s}}"

// virtual is the case's VirtualService with these rules for HTTP; a rule without a destination goes to v1, as does what no
// rule matches.
func virtual(rules ...string) string {
	for i, r := range rules {
		if !strings.Contains(r, "route:") && !strings.Contains(r, "redirect:") && !strings.Contains(r, "directResponse:") && !strings.Contains(r, "delegate:") {
			rules[i] = r + ", " + toV1
		}
	}
	return fmt.Sprintf(istio, "VirtualService", "hosts: [$S], http: [{"+strings.Join(append(rules, toV1), "}, {")+"}]") + "\n---\n"
}

// only is a rule with a match that leads to v2, where everything else leads to v1.
func only(match string) string { return virtual("match: [" + match + "], " + toV2) }

const (
	toV1   = "route: [{destination: {host: v1}}]"
	toV2   = "route: [{destination: {host: v2}}]"
	toSelf = "route: [{destination: {host: $S}}]"
	atV1   = "pod=v1-*"
	atV2   = "pod=v2-*"
	ok     = "status=200"
)

// destination is the case's DestinationRule.
func destination(policy string) string {
	return fmt.Sprintf(istio, "DestinationRule", "host: $S, trafficPolicy: {"+policy+"}") + "\n---\n"
}

// subsets is the case's DestinationRule with the subsets v1 and v2.
func subsets(more string) string {
	return fmt.Sprintf(istio, "DestinationRule", "host: $S, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}"+more+"}]") + "\n---\n"
}

// route is the case's route of the Gateway API; rules without back ends go to v1, as does what no rule matches.
func route(kind string, rules ...string) string {
	for i, r := range rules {
		if !strings.Contains(r, "backendRefs:") && !strings.Contains(r, "RequestRedirect") {
			rules[i] = r + ", " + refs("v1")
		}
	}
	if kind == "HTTPRoute" {
		rules = append(rules, refs("v1"))
	}
	return fmt.Sprintf("{apiVersion: gateway.networking.k8s.io/%s, kind: %s, metadata: {name: $S, namespace: shop}, spec: {parentRefs: [{group: \"\", kind: Service, name: $S}], rules: [{%s}]}}\n---\n",
		map[bool]string{true: "v1", false: "v1alpha2"}[kind == "HTTPRoute" || kind == "GRPCRoute"], kind, strings.Join(rules, "}, {"))
}

func httpRoute(rules ...string) string { return route("HTTPRoute", rules...) }

// httpOnly is a rule with a match that leads to v2, where everything else leads to v1.
func httpOnly(match string) string { return httpRoute("matches: [" + match + "], " + refs("v2")) }

func refs(names ...string) string {
	var list []string
	for _, n := range names {
		name, weight, _ := strings.Cut(n, "=")
		if weight == "" {
			weight = "1"
		}
		list = append(list, fmt.Sprintf("{name: %s, port: 80, weight: %s}", name, weight))
	}
	return "backendRefs: [" + strings.Join(list, ", ") + "]"
}

const security = "{apiVersion: security.istio.io/v1, kind: %s, metadata: {name: $S%s, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], %s}}\n---\n"

// allow, deny and audit are AuthorizationPolicies of one rule for the case's Service.
func allow(rule string) string { return authorize("-allow", "ALLOW", rule) }
func deny(rule string) string  { return authorize("-deny", "DENY", rule) }

func authorize(suffix, action, rule string) string {
	return fmt.Sprintf(security, "AuthorizationPolicy", suffix, "action: "+action+", rules: [{"+rule+"}]")
}

// jwt is a RequestAuthentication with one rule for the case's Service.
func jwt(more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf(security, "RequestAuthentication", "", `jwtRules: [{issuer: "https://issuer.example", jwks: '$JWKS'`+more+"}]")
}

// split makes two asks for one condition: one that it takes and one that it does not.
func split(yes, no ask) []ask { return []ask{yes.want(ok, atV2), no.want(ok, atV1)} }

// refused makes two asks: one that is allowed and one that is not.
func refused(yes, no ask) []ask { return []ask{yes.want(ok), no.want("status=403")} }
