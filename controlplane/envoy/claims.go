package envoy

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// claimPrefix begins the names of headers that stand for claims of the verified token.
const claimPrefix = "@request.auth.claims"

// routeClaim is the path of a claim in a name such as @request.auth.claims.groups or @request.auth.claims[a.b][c]; nil
// for a name of a header.
func routeClaim(name string) []string {
	rest, ok := strings.CutPrefix(name, claimPrefix)
	switch {
	case !ok || rest == "":
		return nil
	case rest[0] == '[':
		return claimPath(rest)
	case rest[0] == '.':
		return strings.Split(rest[1:], ".")
	}
	return nil
}

// claimMatches takes claims out of the headers of a match and matches them on what jwt_authn left.
func claimMatches(match *routev3.RouteMatch, m *networking.HTTPMatchRequest) {
	add := func(headers map[string]*networking.StringMatch, invert bool) {
		for _, name := range sortedKeys(headers) {
			path := routeClaim(name)
			if path == nil {
				continue
			}
			text := stringMatch(headers[name])
			if text == nil {
				text = regexMatcher(".+")
			}
			one := textValue(text)
			inList := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
				MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: one},
			}}}
			c := &matcherv3.MetadataMatcher{Filter: "envoy.filters.http.jwt_authn", Value: orValues([]*matcherv3.ValueMatcher{clone(one), inList}), Invert: invert}
			for _, k := range append([]string{"payload"}, path...) {
				c.Path = append(c.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: k}})
			}
			match.DynamicMetadata = append(match.DynamicMetadata, c)
		}
	}
	add(m.Headers, false)
	add(m.WithoutHeaders, true)
}
