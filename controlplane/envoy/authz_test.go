//lint:file-ignore SA1019 what takes the place of istiod fills the fields that istiod does

package envoy

import (
	"fmt"
	"slices"
	"testing"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// matched are the texts that principals ask for.
func matched(ids []*rbacconfigv3.Principal) []string {
	var out []string
	for _, p := range ids {
		m := p.GetFilterState().GetStringMatch()
		switch {
		case m.GetExact() != "":
			out = append(out, m.GetExact())
		case m.GetPrefix() != "":
			out = append(out, m.GetPrefix()+"*")
		case m.GetSuffix() != "":
			out = append(out, "*"+m.GetSuffix())
		default:
			out = append(out, m.GetSafeRegex().GetRegex())
		}
	}
	return out
}

// TestATrustDomainAndItsAliasesAreTheSame: whichever of them a policy names, as with Istio; cluster.local stands for the
// mesh's own.
func TestATrustDomainAndItsAliasesAreTheSame(t *testing.T) {
	b := &builder{Index: &Index{cfg: Config{TrustDomain: "new.td", TrustDomainAliases: []string{"old.td"}}}}
	for v, want := range map[string][]string{
		"new.td/ns/a/sa/b":        {"spiffe://new.td/ns/a/sa/b", "spiffe://old.td/ns/a/sa/b"},
		"old.td/ns/a/sa/b":        {"spiffe://new.td/ns/a/sa/b", "spiffe://old.td/ns/a/sa/b"},
		"cluster.local/ns/a/sa/b": {"spiffe://new.td/ns/a/sa/b", "spiffe://old.td/ns/a/sa/b"},
		"other.td/ns/a/sa/b":      {"spiffe://other.td/ns/a/sa/b"},
		"old.td/ns/a/*":           {"spiffe://new.td/ns/a/*", "spiffe://old.td/ns/a/*"},
		"*.td/ns/a/sa/b":          {"*.td/ns/a/sa/b"},
		"*ew.td/ns/a/sa/b":        {"*ew.td/ns/a/sa/b", "spiffe://old.td/ns/a/sa/b"},
		"*/ns/a/sa/b":             {"*/ns/a/sa/b"},
		"*":                       {".+"},
		"new*":                    {"spiffe://new*"},
	} {
		if got := matched(b.principalID(v)); !slices.Equal(got, want) {
			t.Errorf("principal %s: %q, want %q", v, got, want)
		}
	}
	for v, want := range map[string][]string{
		"new.td":   {`spiffe://new\.td/.*`, `spiffe://old\.td/.*`},
		"old.td":   {`spiffe://new\.td/.*`, `spiffe://old\.td/.*`},
		"other.td": {`spiffe://other\.td/.*`},
		"*.td":     {`spiffe://.*\.td/.*`},
	} {
		if got := matched(b.trustDomainID(v)); !slices.Equal(got, want) {
			t.Errorf("trust domain %s: %q, want %q", v, got, want)
		}
	}
}

// TestAPrefixOfARequestPrincipalMayEndWithinTheIssuersURL: the slashes behind its scheme do not end the issuer.
func TestAPrefixOfARequestPrincipalMayEndWithinTheIssuersURL(t *testing.T) {
	for v, want := range map[string][2]string{
		"https://idp*":              {"https://idp*", ".+"},
		"https://*":                 {"https://*", ".+"},
		"https://idp.example.com/*": {"https://idp.example.com", ".+"},
		"https://idp.example/al*":   {"https://idp.example", "al*"},
		"https://idp.example/alice": {"https://idp.example", "alice"},
		"idp*":                      {"idp*", ".+"},
		"*ice":                      {".+", "*ice"},
		"*":                         {".+", ".+"},
	} {
		ids := requestPrincipalID(v)[0].GetAndIds().GetIds()
		got := [2]string{}
		for i, p := range ids {
			m := p.GetMetadata().GetValue().GetStringMatch()
			got[i] = matched([]*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
				Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: m},
			}}}})[0]
		}
		if got != want {
			t.Errorf("%s: %q, want %q", v, got, want)
		}
	}
}

// TestPathsAreMadeCanonicalAsMeshConfigSays for every value of pathNormalization.
func TestPathsAreMadeCanonicalAsMeshConfigSays(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "normalize true, merge false, KEEP_UNCHANGED",
		"DEFAULT":                  "normalize true, merge false, KEEP_UNCHANGED",
		"NONE":                     "normalize false, merge false, KEEP_UNCHANGED",
		"BASE":                     "normalize true, merge false, KEEP_UNCHANGED",
		"MERGE_SLASHES":            "normalize true, merge true, KEEP_UNCHANGED",
		"DECODE_AND_MERGE_SLASHES": "normalize true, merge true, UNESCAPE_AND_FORWARD",
	} {
		m := &meshconfig.MeshConfig{}
		if text != "" {
			var err error
			if m, err = ParseMesh([]byte("pathNormalization: {normalization: " + text + "}")); err != nil {
				t.Fatal(err)
			}
		}
		b := &builder{Index: &Index{cfg: Config{}.withDefaults(), mesh: meshSettings{config: m}}}
		var got hcmv3.HttpConnectionManager
		if err := b.httpManager(target{}, 80, nil).GetTypedConfig().UnmarshalTo(&got); err != nil {
			t.Fatal(err)
		}
		is := fmt.Sprintf("normalize %v, merge %v, %v", got.GetNormalizePath().GetValue(), got.GetMergeSlashes(), got.GetPathWithEscapedSlashesAction())
		if is != want {
			t.Errorf("%q: %s, want %s", text, is, want)
		}
	}
}
