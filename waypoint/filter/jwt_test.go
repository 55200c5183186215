package filter

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// issuer signs tokens for tests.
type issuer struct {
	key *ecdsa.PrivateKey
	kid string
}

func newIssuer(t *testing.T, kid string) *issuer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{k, kid}
}

func (i *issuer) jwks(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (i *issuer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(claims)
	o, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func claims(change ...any) map[string]any {
	m := map[string]any{"iss": "https://issuer.example.com", "sub": "alice", "aud": "reviews", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read write"}
	for i := 0; i < len(change); i += 2 {
		if change[i+1] == nil {
			delete(m, change[i].(string))
			continue
		}
		m[change[i].(string)] = change[i+1]
	}
	return m
}

// istioJWT is what istiod makes of a RequestAuthentication with one rule.
func istioJWT(t *testing.T, jwks string) *jwtv3.JwtAuthentication {
	q, _ := json.Marshal(jwks)
	return parse(t, &jwtv3.JwtAuthentication{}, `{
	 "providers": {"origins-0": {"issuer": "https://issuer.example.com", "audiences": ["reviews"], "local_jwks": {"inline_string": `+string(q)+`},
	   "payload_in_metadata": "payload", "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
	   "forward_payload_header": "x-payload", "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}], "clear_route_cache": true}},
	 "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}}}],
	 "bypass_cors_preflight": true}`)
}

func TestTokensAreCheckedAsIstioUsersExpect(t *testing.T) { // B19
	iss, other := newIssuer(t, "1"), newIssuer(t, "1")
	f := compile(t, jwtName, istioJWT(t, iss.jwks(t)))
	good := iss.sign(t, claims())
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	hs := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"1"}`)) + "." + parts[1] + "." + parts[2]
	for _, c := range []struct {
		name, token string
		status      int
		body        string
	}{
		{"a good token passes", good, 0, ""},
		{"a missing token passes", "", 0, ""},
		{"an expired token gets 401", iss.sign(t, claims("exp", time.Now().Add(-2*time.Minute).Unix())), 401, "Jwt is expired"},
		{"a token that expired within the clock skew passes", iss.sign(t, claims("exp", time.Now().Add(-30*time.Second).Unix())), 0, ""},
		{"a token from the future gets 401", iss.sign(t, claims("nbf", time.Now().Add(time.Hour).Unix())), 401, "Jwt not yet valid"},
		{"a forged token gets 401", other.sign(t, claims()), 401, "Jwt verification fails"},
		{"a changed payload gets 401", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://issuer.example.com","aud":"reviews","sub":"root"}`)) + "." + parts[2], 401, "Jwt verification fails"},
		{"another issuer gets 401", iss.sign(t, claims("iss", "https://evil.example")), 401, "Jwt issuer is not configured"},
		{"another audience gets 403", iss.sign(t, claims("aud", "ratings")), 403, "Audiences in Jwt are not allowed"},
		{"one of several audiences is enough", iss.sign(t, claims("aud", []string{"ratings", "https://reviews/"})), 0, ""},
		{"alg none gets 401", none + "x", 401, "Jwt signature is an invalid Base64url encoded"},
		{"alg none with a signature gets 401", none + "eHg", 401, "Jwt header [alg] is not supported"},
		{"no signature gets 401", none, 401, errJWTFormat.Error()},
		{"a header that is not JSON gets 401", "eHg.eHg.eHg", 401, "Jwt header is an invalid JSON"},
		{"a symmetric algorithm gets 401", hs, 401, "Jwt header [alg] is not supported"},
		{"garbage gets 401", "abc", 401, errJWTFormat.Error()},
		{"a huge token gets 401", strings.Repeat("a", 20<<10) + ".b.c", 401, errJWTFormat.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h []string
			if c.token != "" {
				h = []string{"authorization", "Bearer " + c.token}
			}
			x, _ := exchangeOf(t, table(t, nil), "/", append(h, "x-sub", "mallory", "x-payload", "forged")...)
			a := f.Request(x)
			if c.status == 0 {
				if a != Continue {
					t.Fatalf("action %v: %+v", a, x.Reply)
				}
				if v := x.Req.Header.Get("x-sub"); v != "" && v != "alice" {
					t.Errorf("x-sub is what the client said: %q", v)
				}
				return
			}
			if a != Stop || x.Reply.Status != c.status || x.Reply.Body != c.body || x.Flags != Unauthorized {
				t.Errorf("action %v, reply %+v, flags %v; want %d %q", a, x.Reply, x.Flags, c.status, c.body)
			}
		})
	}
}

func TestClaimsOfAVerifiedTokenAreMadeKnown(t *testing.T) {
	iss := newIssuer(t, "1")
	f := compile(t, jwtName, istioJWT(t, iss.jwks(t)))
	tok := iss.sign(t, claims())
	x, _ := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+tok)
	if a := f.Request(x); a != Continue {
		t.Fatal(a, x.Reply)
	}
	if v := x.Req.Header.Get("x-sub"); v != "alice" {
		t.Errorf("x-sub: %q", v)
	}
	if v := x.Req.Header.Get("x-payload"); v != strings.Split(tok, ".")[1] {
		t.Errorf("x-payload: %q", v)
	}
	if x.Req.Header.Has("authorization") {
		t.Error("the token was sent on, forward is not set")
	}
	got := x.Metadata(jwtName).GetFields()["payload"].GetStructValue().GetFields()
	if v := got["sub"].GetStringValue(); v != "alice" {
		t.Errorf("metadata: %v", got)
	}
	if v := got["scope"].GetListValue().GetValues(); len(v) != 2 || v[1].GetStringValue() != "write" {
		t.Errorf("scope is not a list: %v", v)
	}
}

func TestKeysAreFetchedOnceAndAgainWhenTheyAreOld(t *testing.T) { // B20
	iss := newIssuer(t, "1")
	p := parse(t, &jwtv3.JwtAuthentication{}, `{
	 "providers": {"o": {"issuer": "https://issuer.example.com", "remote_jwks": {"http_uri": {"uri": "http://keys.demo/jwks.json?v=1", "cluster": "outbound|80||keys", "timeout": "1s"}, "cache_duration": "60s"}}},
	 "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "o"}}]}`)
	f := compile(t, jwtName, p).(*jwt)
	ask := func(answer func(*Call) (*CallAnswer, error)) (*Exchange, *fakeHost) {
		x, h := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+iss.sign(t, claims("aud", nil)))
		h.answer = answer
		if a := f.Request(x); a != Wait {
			h.resumed = append(h.resumed, a)
		}
		return x, h
	}
	down := func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 503}, nil }
	up := func(c *Call) (*CallAnswer, error) {
		if c.Cluster != "outbound|80||keys" || c.Req.Path != "/jwks.json?v=1" || c.Req.Authority != "keys.demo" {
			t.Errorf("call: %+v", c)
		}
		return &CallAnswer{Status: 200, Body: []byte(iss.jwks(t))}, nil
	}
	if x, h := ask(down); h.resumed[0] != Stop || x.Reply.Body != errJWTFetch.Error() {
		t.Errorf("without keys: %v %+v", h.resumed, x.Reply)
	}
	if _, h := ask(up); h.resumed[0] != Continue || len(h.calls) != 1 {
		t.Errorf("first: %v, %d calls", h.resumed, len(h.calls))
	}
	if _, h := ask(down); h.resumed[0] != Continue || len(h.calls) != 0 {
		t.Errorf("with keys: %v, %d calls", h.resumed, len(h.calls))
	}
	k := *f.providers[0].keys.Load()
	k.until = time.Now().Add(-time.Second)
	f.providers[0].keys.Store(&k)
	if _, h := ask(down); h.resumed[0] != Continue || len(h.calls) != 1 {
		t.Errorf("with old keys and no issuer: %v, %d calls", h.resumed, len(h.calls))
	}
	if _, h := ask(down); h.resumed[0] != Continue || len(h.calls) != 0 {
		t.Errorf("right after a failure: %v, %d calls", h.resumed, len(h.calls))
	}
	f.providers[0].next.Store(0)
	if _, h := ask(up); h.resumed[0] != Continue || len(h.calls) != 1 {
		t.Errorf("with old keys: %v, %d calls", h.resumed, len(h.calls))
	}
	f.providers[0].next.Store(0)
	iss = newIssuer(t, "2")
	if _, h := ask(up); h.resumed[0] != Continue || len(h.calls) != 1 {
		t.Errorf("with a new key of the issuer: %v, %d calls", h.resumed, len(h.calls))
	}
	if _, h := ask(up); h.resumed[0] != Continue || len(h.calls) != 0 {
		t.Errorf("after that: %v, %d calls", h.resumed, len(h.calls))
	}
}

// fixedKeys are key pairs that are the same in every run: RFC 7517 appendix A.2, and an Ed25519 key of zeros.
func fixedKeys(t testing.TB) []jose.SigningKey {
	t.Helper()
	d, err := base64.RawURLEncoding.DecodeString("870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		t.Fatal(err)
	}
	return []jose.SigningKey{
		{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: "1"}},
		{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), KeyID: "2"}},
	}
}

// FuzzToken changes tokens that are signed: only what was signed verifies.
func FuzzToken(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFUzI1NiJ9.e30.AAAA")
	var set jose.JSONWebKeySet
	signed := map[string]bool{}
	for _, k := range fixedKeys(f) {
		s, err := jose.NewSigner(k, nil)
		if err != nil {
			f.Fatal(err)
		}
		o, err := s.Sign([]byte(`{"iss":"https://issuer.example.com","sub":"alice","aud":["reviews"],"exp":4102444800,"scope":"read write"}`))
		if err != nil {
			f.Fatal(err)
		}
		text, err := o.CompactSerialize()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		signed[text[:strings.LastIndexByte(text, '.')]] = true
		key := k.Key.(jose.JSONWebKey)
		set.Keys = append(set.Keys, key.Public())
	}
	raw, err := json.Marshal(set)
	if err != nil {
		f.Fatal(err)
	}
	keys, err := parseJWKS(raw)
	if err != nil || len(keys.keys) != 2 {
		f.Fatalf("%d keys: %v", len(keys.keys), err)
	}
	p := &provider{split: []string{"scope"}}
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := parseToken(text)
		if err != nil {
			return
		}
		if keys.verify(tok) == nil && !signed[text[:strings.LastIndexByte(text, '.')]] {
			t.Errorf("verified, and nobody has signed it: %q", text)
		}
		if (&jwks{}).verify(tok) == nil {
			t.Error("verified without a key")
		}
		_ = tok.timely(time.Now(), 0)
		tok.meantFor([]string{"x"})
		if v, err := structpb.NewValue(p.normal(tok.claims)); err == nil && v.GetStructValue() == nil {
			t.Errorf("claims %v become %v", tok.claims, v)
		}
		for name := range tok.claims {
			if v, ok := claimText(tok.claims, []string{name}); ok && !message.Value(v) {
				t.Errorf("claim %q: %q is no value of a header", name, v)
			}
		}
	})
}

// FuzzKeys reads sets of keys: what is left can verify, and is for signatures if any key of the set is.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{
		`{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AA"}]}`, `{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB","use":"enc"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"enc","kid":"1"}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"enc"},{"use":"sig"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseJWKS(b)
		if err != nil {
			return
		}
		enc := 0
		for _, k := range s.keys {
			if !k.Valid() || !k.IsPublic() {
				t.Errorf("%s: key %+v", b, k)
			}
			if !signs(k.Use) {
				enc++
			}
		}
		if enc > 0 && enc < len(s.keys) {
			t.Errorf("%s: keys for encryption beside keys for signatures", b)
		}
	})
}

func TestARequestWithTwoTokensInOneHeaderIsRefused(t *testing.T) { // B19
	iss := newIssuer(t, "1")
	f := compile(t, jwtName, istioJWT(t, iss.jwks(t)))
	good := "Bearer " + iss.sign(t, claims())
	x, _ := exchangeOf(t, table(t, nil), "/", "authorization", good, "authorization", good)
	if a := f.Request(x); a != Stop || x.Reply.Status != 401 || x.Reply.Body != errJWTFormat.Error() {
		t.Errorf("%v %+v", a, x.Reply)
	}
}

func TestAKeyForEncryptionVerifiesAsInEnvoy(t *testing.T) {
	iss := newIssuer(t, "1")
	f := compile(t, jwtName, istioJWT(t, strings.Replace(iss.jwks(t), `"sig"`, `"enc"`, 1)))
	x, _ := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+iss.sign(t, claims()))
	if a := f.Request(x); a != Continue {
		t.Errorf("%+v", x.Reply)
	}
}

// TestAKeyForEncryptionSignsNothingIfThereIsOneForSignatures (RFC 7517 section 4.2, decision 0006).
func TestAKeyForEncryptionSignsNothingIfThereIsOneForSignatures(t *testing.T) {
	const sig, enc, unsaid = "sig", "enc", ""
	for _, c := range []struct {
		name   string
		uses   []string
		status []int // of a token by each key
	}{
		{"a set that tells its keys apart", []string{sig, enc}, []int{0, 401}},
		{"a set in which one key does not say", []string{unsaid, enc}, []int{0, 401}},
		{"a use that nobody knows", []string{sig, "wrap"}, []int{0, 401}},
		{"a set that says nothing", []string{unsaid, unsaid}, []int{0, 0}},
		{"a set that calls all of them keys for encryption", []string{enc, enc}, []int{0, 0}},
	} {
		var set jose.JSONWebKeySet
		var issuers []*issuer
		for i, use := range c.uses {
			iss := newIssuer(t, string(rune('a'+i)))
			issuers = append(issuers, iss)
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: iss.key.Public(), KeyID: iss.kid, Algorithm: "ES256", Use: use})
		}
		text, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		f := compile(t, jwtName, istioJWT(t, string(text)))
		for i, iss := range issuers {
			for _, kid := range []string{iss.kid, ""} { // with its name, or with any key that fits
				iss.kid = kid
				x, _ := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+iss.sign(t, claims()))
				if f.Request(x); x.Reply.Status != c.status[i] {
					t.Errorf("%s: a token by key %d (%q), kid %q: status %d, want %d", c.name, i, c.uses[i], kid, x.Reply.Status, c.status[i])
				}
			}
		}
	}
}

// TestAKeyForEncryptionSignsNothingAlsoIfTheOthersCannotBeUsed: that an issuer has keys for signatures does not depend on
// whether we can verify with them.
func TestAKeyForEncryptionSignsNothingAlsoIfTheOthersCannotBeUsed(t *testing.T) {
	iss := newIssuer(t, "1")
	enc := strings.TrimPrefix(strings.Replace(iss.jwks(t), `"sig"`, `"enc"`, 1), `{"keys":[`)
	f := compile(t, jwtName, istioJWT(t, `{"keys":[{"kty":"EC","crv":"secp256k1","use":"sig","kid":"2","x":"AA","y":"AA"},`+enc))
	x, _ := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+iss.sign(t, claims()))
	if f.Request(x); x.Reply.Status != 401 {
		t.Errorf("status %d, want 401", x.Reply.Status)
	}
}
