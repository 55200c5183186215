package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	security "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/secret"
)

// spaceDelimited claims are lists in one text.
var spaceDelimited = []string{"permission", "scope"}

// noKeys verifies nothing, so that a token of a provider without keys fails rather than passing unchecked: nobody has the
// private half of its key. A set without any key would be refused by the client, and the whole listener with it.
const noKeys = `{"keys":[{"kty":"EC","crv":"P-256","kid":"nobody","x":"B1ydT-dWuI048SIMdXJsWbfYYlJZg13AaRB8xCCJuqI","y":"pfJVhd3O-QCxx1R6zm6OUEPe3bxF_yasvY_xjIyMfoc"}]}`

// jwtFilter verifies tokens as RequestAuthentications for a chain want it. A request without a token passes, one with a
// bad token does not (3.8).
func (b *builder) jwtFilter(at target) []*hcmv3.HttpFilter {
	config := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	var names []string
	for _, r := range b.requests {
		if !b.targets(r.Namespace, r.Spec.TargetRef, r.Spec.TargetRefs, at) {
			continue
		}
		for i, rule := range r.Spec.JwtRules {
			name := "origins-" + strconv.Itoa(len(names))
			config.Providers[name] = b.jwtProvider(kube.KeyOf(r), indexed("spec.jwtRules", i), rule)
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	config.Rules = []*jwtv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtv3.RequirementRule_Requires{Requires: requirement(names)},
	}}
	return []*hcmv3.HttpFilter{httpFilter("envoy.filters.http.jwt_authn", config)}
}

// requirement is one good token, or for each provider a good token or none.
func requirement(names []string) *jwtv3.JwtRequirement {
	provider := func(n string) *jwtv3.JwtRequirement {
		return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: n}}
	}
	anyOne := func(list ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
		return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: list}}}
	}
	missing := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
	if len(names) == 1 {
		return anyOne(provider(names[0]), missing)
	}
	var list, each []*jwtv3.JwtRequirement
	for _, n := range names {
		list = append(list, provider(n))
		each = append(each, anyOne(provider(n), missing))
	}
	all := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: each}}}
	return anyOne(append(list, all)...)
}

func (b *builder) jwtProvider(object kube.Key, field string, r *security.JWTRule) *jwtv3.JwtProvider {
	claims := slices.Concat(spaceDelimited, r.SpaceDelimitedClaims)
	slices.Sort(claims)
	p := &jwtv3.JwtProvider{
		Issuer: r.Issuer, Audiences: r.Audiences, Forward: r.ForwardOriginalToken, FromParams: r.FromParams, FromCookies: r.FromCookies,
		ForwardPayloadHeader: r.OutputPayloadToHeader, PayloadInMetadata: "payload", ClearRouteCache: true,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{SpaceDelimitedClaims: slices.Compact(claims)},
	}
	for _, h := range r.FromHeaders {
		p.FromHeaders = append(p.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range r.OutputClaimToHeaders {
		p.ClaimToHeaders = append(p.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	switch {
	case r.Jwks != "":
		p.JwksSourceSpecifier = localKeys(r.Jwks)
		if why := keysFlaw(r.Jwks); why != "" {
			b.problem(kube.Warning, object, field+".jwks", why+": every token of the issuer fails", "a JSON Web Key Set with RSA, EC or OKP keys")
			p.JwksSourceSpecifier = localKeys(noKeys)
		}
	case r.JwksUri != "":
		remote, why := b.remoteKeys(r)
		if why == "" {
			p.JwksSourceSpecifier = remote
			break
		}
		b.problem(kube.Warning, object, field+".jwksUri", why+": every token of the issuer fails", "https://host/path")
		p.JwksSourceSpecifier = localKeys(noKeys)
	default:
		b.problem(kube.Warning, object, field, "there is neither jwks nor jwksUri: every token of the issuer fails", "jwks, jwksUri")
		p.JwksSourceSpecifier = localKeys(noKeys)
	}
	return p
}

// keysFlaw says what is wrong with a key set, "" when some key of it can be used.
func keysFlaw(text string) string {
	var set struct {
		Keys []struct{ Kty, N, E, Crv, X, Y string }
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return err.Error()
	}
	for _, k := range set.Keys {
		switch k.Kty {
		case "RSA":
			if k.N != "" && k.E != "" {
				return ""
			}
		case "EC":
			if slices.Contains([]string{"P-256", "P-384", "P-521"}, k.Crv) && k.X != "" && k.Y != "" {
				return ""
			}
		case "OKP":
			if k.Crv == "Ed25519" && k.X != "" {
				return ""
			}
		}
	}
	return "there is no key that can be used"
}

func localKeys(text string) *jwtv3.JwtProvider_LocalJwks {
	return &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}}
}

// remoteKeys has the waypoint fetch the keys: from a service of the mesh, or from outside, with the system's roots.
func (b *builder) remoteKeys(r *security.JWTRule) (*jwtv3.JwtProvider_RemoteJwks, string) {
	u, err := url.Parse(r.JwksUri)
	if err != nil {
		var parse *url.Error // whose text has the whole address
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, err.Error()
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, fmt.Sprintf("%q is no address of a web server", secret.URL(r.JwksUri))
	}
	number := uint32(443)
	if u.Scheme == "http" {
		number = 80
	}
	if u.Port() != "" {
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return nil, fmt.Sprintf("%q has an invalid port", secret.URL(r.JwksUri))
		}
		number = uint32(n)
	}
	cluster := outboundName(number, "", u.Hostname())
	if s := b.service(u.Hostname(), b.gateway.Namespace); s != nil {
		b.others[s] = true
		b.outboundClusters(s)
	} else {
		b.clusters[cluster] = outsideCluster(cluster, u.Hostname(), number, u.Scheme == "https")
	}
	return &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: &jwtv3.RemoteJwks{
		HttpUri:       &corev3.HttpUri{Uri: r.JwksUri, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: timeoutOr(r.Timeout, 5*time.Second)},
		CacheDuration: durationpb.New(5 * time.Minute), AsyncFetch: &jwtv3.JwksAsyncFetch{},
	}}, ""
}

// outsideCluster leads to a host that no service has.
func outsideCluster(name, host string, number uint32, secure bool) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS},
		ConnectTimeout: durationpb.New(10 * time.Second), CircuitBreakers: unlimited(), DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED,
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, number)}}}},
		}}},
	}
	if secure {
		names := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exactMatcher(host)}}}
		c.TransportSocket = socket("envoy.transport_sockets.tls", &tlsv3.UpstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{TlsParams: tls12(), ValidationContextType: combined(names, sds("file-root:system", false))}, Sni: host,
		})
	}
	return c
}
