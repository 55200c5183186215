package filter

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// algorithms are the signatures that are accepted: asymmetric ones only. A key set is public, so that a symmetric key in it
// would let everybody sign.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

// maxToken is the longest token that is looked at, in bytes, as in Envoy.
const maxToken = 16 << 10

// jwks is a set of keys. It is immutable.
type jwks struct{ keys []jose.JSONWebKey }

// parseJWKS reads a JSON Web Key Set (RFC 7517 section 5). Keys that cannot verify anything here are left out; a set in
// which there is none is an error only if it is not a set at all. A key whose "use" is not signatures is left out if there
// is another (decision 0006).
func parseJWKS(b []byte) (*jwks, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New("not a JSON Web Key Set: no keys")
	}
	s := &jwks{}
	divided := false // the issuer has keys for signatures, whether or not they can be used here
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		var about struct{ Use string }
		divided = divided || json.Unmarshal(raw, &about) == nil && signs(about.Use)
		if k.UnmarshalJSON(raw) != nil || !k.Valid() || !k.IsPublic() {
			continue
		}
		s.keys = append(s.keys, k)
	}
	if divided {
		s.keys = slices.DeleteFunc(s.keys, func(k jose.JSONWebKey) bool { return !signs(k.Use) })
	}
	return s, nil
}

// signs says that a key of that use may be for signatures (RFC 7517 section 4.2).
func signs(use string) bool { return use == "" || use == "sig" }

// refusal is why a token is refused, in Envoy's words: clients see them.
type refusal string

// Error implements error.
func (r refusal) Error() string { return string(r) }

// The usual reasons.
const (
	errJWTMissing   = refusal("Jwt is missing")
	errJWTFormat    = refusal("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")
	errJWTIssuer    = refusal("Jwt issuer is not configured")
	errJWTSubject   = refusal("Jwt subject is not allowed")
	errJWTAudience  = refusal("Audiences in Jwt are not allowed")
	errJWTExpired   = refusal("Jwt is expired")
	errJWTNotYet    = refusal("Jwt not yet valid")
	errJWTSignature = refusal("Jwt verification fails")
	errJWTNoKey     = refusal("Jwks doesn't have key to match kid or alg from Jwt")
	errJWTFetch     = refusal("Jwks remote fetch is failed")
)

// token is one that was parsed and not yet verified.
type token struct {
	sig    *jose.JSONWebSignature
	claims map[string]any
	raw    string // the payload as it stands in the token
}

// parseToken reads a compact JWS whose payload is a JSON object.
func parseToken(s string) (*token, error) {
	if len(s) > maxToken {
		return nil, errJWTFormat
	}
	if err := wellFormed(s); err != nil {
		return nil, err
	}
	sig, err := jose.ParseSignedCompact(s, algorithms)
	if err != nil {
		if errors.As(err, new(*jose.ErrUnexpectedSignatureAlgorithm)) {
			return nil, refusal("Jwt header [alg] is not supported")
		}
		return nil, errJWTFormat
	}
	t := &token{sig: sig}
	if err := json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &t.claims); err != nil || t.claims == nil {
		return nil, refusal("Jwt payload is an invalid JSON")
	}
	_, rest, _ := cutByte(s, '.')
	t.raw, _, _ = cutByte(rest, '.')
	return t, nil
}

// wellFormed says what is wrong with a token's form, as Envoy does.
func wellFormed(s string) error {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || slices.Contains(parts, "") {
		return errJWTFormat
	}
	for i, name := range [...]string{"header", "payload", "signature"} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return refusal("Jwt " + name + " is an invalid Base64url encoded")
		}
		if i < 2 && !json.Valid(b) {
			return refusal("Jwt " + name + " is an invalid JSON")
		}
	}
	return nil
}

func cutByte(s string, c byte) (before, after string, found bool) {
	for i := range len(s) {
		if s[i] == c {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// verify checks the signature against the keys that may have made it.
func (s *jwks) verify(t *token) error {
	h := t.sig.Signatures[0].Header
	tried := false
	for i := range s.keys {
		k := &s.keys[i]
		if h.KeyID != "" && k.KeyID != "" && h.KeyID != k.KeyID || k.Algorithm != "" && k.Algorithm != h.Algorithm {
			continue
		}
		tried = true
		if _, err := t.sig.Verify(k); err == nil {
			return nil
		}
	}
	if !tried {
		return errJWTNoKey
	}
	return errJWTSignature
}

// text is a claim that is a string.
func (t *token) text(claim string) string {
	s, _ := t.claims[claim].(string)
	return s
}

// when is a claim that is a time; ok is false if it is there and is none.
func (t *token) when(claim string) (at time.Time, there, ok bool) {
	v, there := t.claims[claim]
	if !there {
		return at, false, true
	}
	f, isNumber := v.(float64)
	if !isNumber || f < 0 || f > 1<<53 {
		return at, true, false
	}
	return time.Unix(int64(f), 0), true, true
}

// timely checks exp and nbf.
func (t *token) timely(now time.Time, skew time.Duration) error {
	exp, there, ok := t.when("exp")
	if !ok {
		return refusal("Jwt payload [exp] field is not a positive integer")
	}
	if there && !now.Before(exp.Add(skew)) {
		return errJWTExpired
	}
	nbf, there, ok := t.when("nbf")
	if !ok {
		return refusal("Jwt payload [nbf] field is not a positive integer")
	}
	if there && now.Add(skew).Before(nbf) {
		return errJWTNotYet
	}
	return nil
}

// meantFor says whether one of the audiences is the token's. Envoy compares without scheme and trailing slash.
func (t *token) meantFor(audiences []string) bool {
	if len(audiences) == 0 {
		return true
	}
	switch v := t.claims["aud"].(type) {
	case string:
		return slices.Contains(audiences, bareAudience(v))
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && slices.Contains(audiences, bareAudience(s)) {
				return true
			}
		}
	}
	return false
}
