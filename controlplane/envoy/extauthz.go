package envoy

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// customFilters ask external services: for each provider a filter that finds out whether a policy wants it to be asked,
// and one that asks.
func (b *builder) customFilters(policies []*securityv1.AuthorizationPolicy) []*hcmv3.HttpFilter {
	byProvider := map[string][]*securityv1.AuthorizationPolicy{}
	for _, p := range policies {
		byProvider[p.Spec.GetProvider().GetName()] = append(byProvider[p.Spec.GetProvider().GetName()], p)
	}
	var out []*hcmv3.HttpFilter
	for _, name := range sortedKeys(byProvider) {
		list := byProvider[name]
		ask, why := b.extAuthz(name)
		if why != "" {
			for _, p := range list {
				b.problem(kube.Warning, kube.KeyOf(p), "spec.provider.name", why+": requests that the policy selects are denied", b.mesh.providerNames())
			}
			out = append(out, httpFilter("envoy.filters.http.rbac", &httprbacv3.RBAC{
				Rules: b.enforce(rbacconfigv3.RBAC_DENY, list, "", false), ShadowRulesStatPrefix: prefixDryAllow,
			}))
			continue
		}
		prefix := "istio-ext-authz-" + name
		out = append(out, httpFilter("envoy.filters.http.rbac", &httprbacv3.RBAC{
			ShadowRules: b.enforce(rbacconfigv3.RBAC_DENY, list, prefix+"-", false), ShadowRulesStatPrefix: prefixCustom,
		}))
		ask.FilterEnabledMetadata = &matcherv3.MetadataMatcher{
			Filter: "envoy.filters.http.rbac",
			Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: prefixCustom + "shadow_effective_policy_id"}}},
			Value:  textValue(prefixMatcher(prefix)),
		}
		out = append(out, httpFilter("envoy.filters.http.ext_authz", ask))
	}
	return out
}

// extAuthz makes the filter of a provider; why says what is missing.
func (b *builder) extAuthz(name string) (f *extauthzv3.ExtAuthz, why string) {
	p := b.mesh.provider(name)
	switch {
	case p.GetEnvoyExtAuthzHttp() != nil:
		return b.extAuthzHTTP(p.GetEnvoyExtAuthzHttp())
	case p.GetEnvoyExtAuthzGrpc() != nil:
		return b.extAuthzGRPC(p.GetEnvoyExtAuthzGrpc())
	case p != nil:
		return nil, "provider " + strconv.Quote(name) + " does not authorize"
	}
	return nil, "there is no extension provider " + strconv.Quote(name)
}

const unlimitedTimeout = 600 * time.Second

// providerCluster is the cluster of a provider's service.
func (b *builder) providerCluster(name string, number uint32) (cluster, host, why string) {
	host = serviceHost(name)
	s := b.service(host, b.cfg.RootNamespace)
	if s == nil {
		return "", host, "no Service or ServiceEntry has the host " + host
	}
	if _, ok := s.port(number); !ok {
		return "", host, host + " has no port " + portText(number)
	}
	b.others[s] = true
	return outboundName(number, "", host), host, ""
}

func (b *builder) extAuthzHTTP(p *meshconfig.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) (*extauthzv3.ExtAuthz, string) {
	cluster, host, why := b.providerCluster(p.Service, p.Port)
	if why != "" {
		return nil, why
	}
	service := &extauthzv3.HttpService{
		ServerUri: &corev3.HttpUri{
			Uri: (&url.URL{Scheme: "http", Host: host}).String(), HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: timeoutOr(p.Timeout, unlimitedTimeout),
		},
		PathPrefix: p.PathPrefix,
	}
	if len(p.IncludeAdditionalHeadersInCheck) > 0 {
		service.AuthorizationRequest = &extauthzv3.AuthorizationRequest{}
		for _, k := range sortedKeys(p.IncludeAdditionalHeadersInCheck) {
			service.AuthorizationRequest.HeadersToAdd = append(service.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: k, Value: p.IncludeAdditionalHeadersInCheck[k]})
		}
	}
	response := &extauthzv3.AuthorizationResponse{
		AllowedUpstreamHeaders: headerNames(p.HeadersToUpstreamOnAllow), AllowedClientHeaders: headerNames(p.HeadersToDownstreamOnDeny),
		AllowedClientHeadersOnSuccess: headerNames(p.HeadersToDownstreamOnAllow),
	}
	if response.AllowedUpstreamHeaders != nil || response.AllowedClientHeaders != nil || response.AllowedClientHeadersOnSuccess != nil {
		service.AuthorizationResponse = response
	}
	f := &extauthzv3.ExtAuthz{
		Services: &extauthzv3.ExtAuthz_HttpService{HttpService: service}, TransportApiVersion: corev3.ApiVersion_V3,
		FailureModeAllow: p.FailOpen, AllowedHeaders: headerNames(p.IncludeRequestHeadersInCheck),
	}
	return f, extAuthzRest(f, p.StatusOnError, p.IncludeRequestBodyInCheck)
}

func (b *builder) extAuthzGRPC(p *meshconfig.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) (*extauthzv3.ExtAuthz, string) {
	cluster, host, why := b.providerCluster(p.Service, p.Port)
	if why != "" {
		return nil, why
	}
	f := &extauthzv3.ExtAuthz{
		Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster, Authority: host}},
			Timeout:         timeoutOr(p.Timeout, unlimitedTimeout),
		}},
		TransportApiVersion: corev3.ApiVersion_V3, FailureModeAllow: p.FailOpen,
	}
	return f, extAuthzRest(f, p.StatusOnError, p.IncludeRequestBodyInCheck)
}

func extAuthzRest(f *extauthzv3.ExtAuthz, status string, body *meshconfig.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) string {
	if status != "" {
		n, err := strconv.ParseInt(status, 10, 32)
		if err != nil || n < 400 || n > 599 {
			return "statusOnError " + strconv.Quote(status) + " of the provider is no status of an error"
		}
		f.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(n)}
	}
	if body != nil {
		f.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: body.MaxRequestBytes, AllowPartialMessage: body.AllowPartialMessage, PackAsBytes: body.PackAsBytes}
	}
	return ""
}

func timeoutOr(d *durationpb.Duration, otherwise time.Duration) *durationpb.Duration {
	if d == nil {
		return durationpb.New(otherwise)
	}
	return clone(d)
}

// headerNames match names of headers in any case; one may end or begin with *.
func headerNames(names []string) *matcherv3.ListStringMatcher {
	if len(names) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, n := range names {
		m := textMatcher(strings.ToLower(n), "")
		m.IgnoreCase = m.GetSafeRegex() == nil
		out.Patterns = append(out.Patterns, m)
	}
	return out
}

// clientIdentity hands the client's identity on to the application, when the Gateway asks for it.
func (b *builder) clientIdentity() []*hcmv3.HttpFilter {
	const annotation = "ambient.istio.io/xfcc-include-client-identity"
	if b.object == nil {
		return nil
	}
	value := b.object.Annotations[annotation]
	if i := b.object.Spec.Infrastructure; i != nil && value == "" {
		value = string(i.Annotations[annotation])
	}
	if value != "true" {
		return nil
	}
	set := &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: "x-forwarded-client-cert", Value: "By=%FILTER_STATE(" + stateOwn + ":PLAIN)%;URI=%FILTER_STATE(" + statePeer + ":PLAIN)%"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
	return []*hcmv3.HttpFilter{httpFilter("istio.waypoint.xfcc_client_identity", &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Append{Append: set}}},
	}})}
}
