package envoy

import (
	"math"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// httpRouteRules adds the rules of an HTTPRoute, one for each match.
func (b *builder) httpRouteRules(src *ruleSource, o *gatewayv1.HTTPRoute) {
	key := kube.KeyOf(o)
	for i, rule := range o.Spec.Rules {
		field := indexed("spec.rules", i)
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for _, m := range matches {
			match := httpRouteMatch(m)
			r := &httpRule{HTTPRoute: &networking.HTTPRoute{Name: ruleName(key, i, rule.Name), Match: []*networking.HTTPMatchRequest{match}}, object: key, field: field}
			b.httpFiltersOf(r, rule.Filters, match)
			b.httpBackends(r, rule.BackendRefs)
			b.httpTimeouts(r, rule)
			src.http = append(src.http, r)
		}
	}
}

func httpRouteMatch(m gatewayv1.HTTPRouteMatch) *networking.HTTPMatchRequest {
	out := &networking.HTTPMatchRequest{Uri: prefixText("/")}
	if p := m.Path; p != nil && p.Value != nil {
		switch {
		case p.Type == nil || *p.Type == gatewayv1.PathMatchPathPrefix:
			out.Uri = prefixText(*p.Value)
		case *p.Type == gatewayv1.PathMatchExact:
			out.Uri = exactText(*p.Value)
		case *p.Type == gatewayv1.PathMatchRegularExpression:
			out.Uri = regexText(*p.Value)
		}
	}
	for _, h := range m.Headers {
		text := exactText(h.Value)
		if h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression {
			text = regexText(h.Value)
		}
		putText(&out.Headers, strings.ToLower(string(h.Name)), text)
	}
	for _, q := range m.QueryParams {
		text := exactText(q.Value)
		if q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression {
			text = regexText(q.Value)
		}
		putText(&out.QueryParams, string(q.Name), text)
	}
	if m.Method != nil {
		out.Method = exactText(string(*m.Method))
	}
	return out
}

// putText adds a match; of two for one name the first counts.
func putText(to *map[string]*networking.StringMatch, name string, m *networking.StringMatch) {
	if *to == nil {
		*to = map[string]*networking.StringMatch{}
	}
	if _, ok := (*to)[name]; !ok {
		(*to)[name] = m
	}
}

func exactText(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
}

func prefixText(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: s}}
}

func regexText(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: s}}
}

// httpFiltersOf applies the filters of a rule. A rule with a filter that is not served answers with 500, as the Gateway
// API wants it: to leave the filter out would do something else than is written.
func (b *builder) httpFiltersOf(r *httpRule, filters []gatewayv1.HTTPRouteFilter, match *networking.HTTPMatchRequest) {
	for i, f := range filters {
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			requestHeaders(&r.Headers, f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			responseHeaders(&r.Headers, f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			r.Redirect = gatewayRedirect(f.RequestRedirect, match)
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			r.Rewrite = gatewayRewrite(f.URLRewrite, match)
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			b.gatewayMirror(r, f.RequestMirror, indexed(r.field+".filters", i))
		case f.Type == gatewayv1.HTTPRouteFilterCORS && f.CORS != nil:
			r.CorsPolicy = gatewayCORS(f.CORS)
		default:
			b.problem(kube.Warning, r.object, indexed(r.field+".filters", i), "filter "+string(f.Type)+" is not served: requests get 500", servedFilters)
			r.DirectResponse = &networking.HTTPDirectResponse{Status: 500}
		}
	}
}

const servedFilters = "RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite, RequestMirror, CORS"

func headerOperations(f *gatewayv1.HTTPHeaderFilter) *networking.Headers_HeaderOperations {
	o := &networking.Headers_HeaderOperations{Remove: f.Remove}
	for _, h := range f.Set {
		if o.Set == nil {
			o.Set = map[string]string{}
		}
		o.Set[string(h.Name)] = h.Value
	}
	for _, h := range f.Add {
		if o.Add == nil {
			o.Add = map[string]string{}
		}
		o.Add[string(h.Name)] = h.Value
	}
	return o
}

func requestHeaders(to **networking.Headers, f *gatewayv1.HTTPHeaderFilter) {
	if *to == nil {
		*to = &networking.Headers{}
	}
	(*to).Request = headerOperations(f)
}

func responseHeaders(to **networking.Headers, f *gatewayv1.HTTPHeaderFilter) {
	if *to == nil {
		*to = &networking.Headers{}
	}
	(*to).Response = headerOperations(f)
}

func gatewayRedirect(f *gatewayv1.HTTPRequestRedirectFilter, match *networking.HTTPMatchRequest) *networking.HTTPRedirect {
	out := &networking.HTTPRedirect{RedirectCode: 302}
	if f.StatusCode != nil {
		out.RedirectCode = uint32(*f.StatusCode)
	}
	if f.Scheme != nil {
		out.Scheme = *f.Scheme
	}
	if f.Hostname != nil {
		out.Authority = string(*f.Hostname)
	}
	switch {
	case f.Port != nil:
		out.RedirectPort = &networking.HTTPRedirect_Port{Port: uint32(*f.Port)}
	case f.Scheme != nil:
		out.RedirectPort = &networking.HTTPRedirect_DerivePort{DerivePort: networking.HTTPRedirect_FROM_PROTOCOL_DEFAULT}
	default:
		out.RedirectPort = &networking.HTTPRedirect_DerivePort{DerivePort: networking.HTTPRedirect_FROM_REQUEST_PORT}
	}
	if p := f.Path; p != nil {
		switch {
		case p.ReplaceFullPath != nil:
			out.Uri = *p.ReplaceFullPath
		case p.ReplacePrefixMatch != nil:
			out.Uri = replacePrefix + prefixFor(match, *p.ReplacePrefixMatch)
		}
	}
	return out
}

// prefixFor is what takes the place of a matched prefix: the match leaves out a trailing slash, except for the root.
func prefixFor(match *networking.HTTPMatchRequest, replacement string) string {
	trimmed := strings.TrimSuffix(replacement, "/")
	if match.GetUri().GetPrefix() == "/" {
		return trimmed + "/"
	}
	if trimmed == "" {
		return "/"
	}
	return trimmed
}

// withoutPrefix is an expression that takes a prefix away, and what takes its place.
func withoutPrefix(prefix string) (expression, by string) {
	return "^" + regexp.QuoteMeta(prefix) + "/?(.*)", `/\1`
}

func gatewayRewrite(f *gatewayv1.HTTPURLRewriteFilter, match *networking.HTTPMatchRequest) *networking.HTTPRewrite {
	out := &networking.HTTPRewrite{}
	if f.Hostname != nil {
		out.Authority = string(*f.Hostname)
	}
	if f.Path == nil {
		return out
	}
	switch {
	case f.Path.ReplaceFullPath != nil:
		out.UriRegexRewrite = &networking.RegexRewrite{Match: "/.*", Rewrite: strings.ReplaceAll(*f.Path.ReplaceFullPath, `\`, `\\`)}
	case f.Path.ReplacePrefixMatch != nil:
		prefix := strings.TrimSuffix(match.GetUri().GetPrefix(), "/")
		if strings.Trim(*f.Path.ReplacePrefixMatch, "/") == "" && prefix != "" {
			// The prefix goes away: its replacement must not leave two slashes.
			expression, by := withoutPrefix(prefix)
			out.UriRegexRewrite = &networking.RegexRewrite{Match: expression, Rewrite: by}
		} else {
			out.Uri = prefixFor(match, *f.Path.ReplacePrefixMatch)
		}
	}
	return out
}

func (b *builder) gatewayMirror(r *httpRule, f *gatewayv1.HTTPRequestMirrorFilter, field string) {
	d, flaw := b.backendOf(r.object, f.BackendRef)
	if flaw != nil {
		b.problem(kube.Warning, r.object, field, flaw.text+": nothing is mirrored", acceptedBackends)
		return
	}
	m := &networking.HTTPMirrorPolicy{Destination: d}
	switch {
	case f.Percent != nil:
		m.Percentage = &networking.Percent{Value: float64(*f.Percent)}
	case f.Fraction != nil:
		of := int32(100)
		if f.Fraction.Denominator != nil {
			of = *f.Fraction.Denominator
		}
		m.Percentage = &networking.Percent{Value: 100 * float64(f.Fraction.Numerator) / math.Max(float64(of), 1)}
	}
	r.Mirrors = append(r.Mirrors, m)
}

func gatewayCORS(f *gatewayv1.HTTPCORSFilter) *networking.CorsPolicy {
	out := &networking.CorsPolicy{}
	for _, o := range f.AllowOrigins {
		if text := string(o); strings.Contains(text, "*") {
			out.AllowOrigins = append(out.AllowOrigins, regexText(strings.ReplaceAll(regexp.QuoteMeta(text), `\*`, ".*")))
		} else {
			out.AllowOrigins = append(out.AllowOrigins, exactText(text))
		}
	}
	for _, m := range f.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.AllowHeaders = append(out.AllowHeaders, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.ExposeHeaders = append(out.ExposeHeaders, string(h))
	}
	if f.MaxAge > 0 {
		out.MaxAge = durationpb.New(time.Duration(f.MaxAge) * time.Second)
	}
	if f.AllowCredentials != nil && *f.AllowCredentials {
		out.AllowCredentials = wrapperspb.Bool(true)
	}
	return out
}

func (b *builder) httpBackends(r *httpRule, refs []gatewayv1.HTTPBackendRef) {
	if r.Redirect != nil || r.DirectResponse != nil {
		return
	}
	plain := make([]gatewayv1.BackendRef, len(refs))
	for i, ref := range refs {
		plain[i] = ref.BackendRef
	}
	good, index, refused := b.backends(r.object, r.field, plain)
	for n, g := range good {
		d := &networking.HTTPRouteDestination{Destination: g.destination, Weight: g.weight}
		for j, f := range refs[index[n]].Filters {
			switch {
			case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
				requestHeaders(&d.Headers, f.RequestHeaderModifier)
			case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
				responseHeaders(&d.Headers, f.ResponseHeaderModifier)
			default:
				b.problem(kube.Warning, r.object, indexed(indexed(r.field+".backendRefs", index[n])+".filters", j), "filter "+string(f.Type)+" of a back end is not served: its share of the requests fails", "RequestHeaderModifier, ResponseHeaderModifier")
				refused += g.weight
				d = nil
			}
			if d == nil {
				break
			}
		}
		if d != nil {
			r.Route = append(r.Route, d)
		}
	}
	if r.refused = refused; len(r.Route) == 0 {
		r.refused, r.DirectResponse = 0, &networking.HTTPDirectResponse{Status: 500}
	}
}

func (b *builder) httpTimeouts(r *httpRule, rule gatewayv1.HTTPRouteRule) {
	if retry := rule.Retry; retry != nil {
		r.Retries = &networking.HTTPRetry{Attempts: 1}
		if retry.Attempts != nil {
			r.Retries.Attempts = int32(*retry.Attempts)
		}
		conditions := retryDefaults
		for _, c := range retry.Codes {
			conditions += "," + portText(uint32(c))
		}
		r.Retries.RetryOn = conditions
		if retry.Backoff != nil {
			r.Retries.Backoff = b.duration(r, ".retry.backoff", *retry.Backoff)
		}
	}
	t := rule.Timeouts
	if t == nil {
		return
	}
	if t.Request != nil {
		r.Timeout = b.duration(r, ".timeouts.request", *t.Request)
	}
	if t.BackendRequest != nil {
		if d := b.duration(r, ".timeouts.backendRequest", *t.BackendRequest); d != nil {
			if r.Retries != nil {
				r.Retries.PerTryTimeout = d
			} else if r.Timeout == nil || d.AsDuration() < r.Timeout.AsDuration() {
				// Without retries there is one attempt, which may take as long as the request.
				r.Timeout = d
			}
		}
	}
}

// duration reads one; 0 and what is none stand for no limit.
func (b *builder) duration(r *httpRule, field string, d gatewayv1.Duration) *durationpb.Duration {
	v, err := time.ParseDuration(string(d))
	if err != nil {
		b.problem(kube.Ignored, r.object, r.field+field, err.Error(), "a duration such as 1.5s or 200ms")
		return nil
	}
	if v <= 0 {
		return nil
	}
	return durationpb.New(v)
}
