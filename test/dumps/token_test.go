package dumps

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"
)

// signer is the key of RFC 7517 appendix A.2, whose public half the recorded providers have.
func signer(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	d, err := base64.RawURLEncoding.DecodeString("870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// token is a signed token with claims.
func token(t *testing.T, key *ecdsa.PrivateKey, kid string, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "ES256", "typ": "JWT", "kid": kid}) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// tokens are tokens of all kinds for an issuer, by what is right or wrong with them.
func tokens(t *testing.T, issuer, kid string, audiences []string) map[string]string {
	t.Helper()
	key := signer(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	aud := "any"
	if len(audiences) > 0 {
		aud = audiences[0]
	}
	now := time.Now()
	claims := func(more map[string]any) map[string]any {
		c := map[string]any{"iss": issuer, "sub": "alice", "aud": []string{aud}, "exp": now.Add(time.Hour).Unix(), "groups": []string{"x", "admin"},
			"nested": map[string]any{"claim": "x"}, "azp": "p", "scope": "read write"}
		for k, v := range more {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	good := token(t, key, kid, claims(nil))
	return map[string]string{
		"good": good, "text audience": token(t, key, kid, claims(map[string]any{"aud": aud})),
		"no key ID": token(t, key, "", claims(nil)), "no subject": token(t, key, kid, claims(map[string]any{"sub": nil})),
		"no expiry": token(t, key, kid, claims(map[string]any{"exp": nil})), "group as text": token(t, key, kid, claims(map[string]any{"groups": "dev-1"})),
		"expired":         token(t, key, kid, claims(map[string]any{"exp": now.Add(-time.Hour).Unix()})),
		"not yet":         token(t, key, kid, claims(map[string]any{"nbf": now.Add(time.Hour).Unix()})),
		"other audience":  token(t, key, kid, claims(map[string]any{"aud": "nobody"})),
		"other issuer":    token(t, key, kid, claims(map[string]any{"iss": "https://nobody.example.com"})),
		"other key":       token(t, other, kid, claims(nil)),
		"unknown key ID":  token(t, key, "unknown", claims(nil)),
		"cut":             good[:len(good)-4],
		"garbage":         "garbage",
		"three parts":     "a.b.c",
		"empty signature": good[:len(good)-86],
	}
}
