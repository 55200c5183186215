package features

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// keys are what tokens are signed with, and the tokens by name.
type keys struct {
	certificates
	set    string
	tokens map[string]string
	// published is what the pod helper serves on port 9004; rotate puts the key of the token "next" in the place of the other.
	published publisher
	rotated   string
}

func (k *keys) rotate() { k.published.rotating.Store(&k.rotated) }

func newKeys(t *testing.T) *keys {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(t, err)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
	netnstest.Must(t, err)
	next, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(t, err)
	rotated, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: next.Public(), KeyID: "two", Algorithm: "ES256", Use: "sig"}}})
	netnstest.Must(t, err)
	sign := func(key *ecdsa.PrivateKey, claims map[string]any) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: map[bool]string{true: "two", false: "one"}[key == next]}}, nil)
		netnstest.Must(t, err)
		all := map[string]any{"iss": "https://issuer.example", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
		for k, v := range claims {
			all[k] = v
		}
		body, err := json.Marshal(all)
		netnstest.Must(t, err)
		sig, err := s.Sign(body)
		netnstest.Must(t, err)
		text, err := sig.CompactSerialize()
		netnstest.Must(t, err)
		return text
	}
	type claims = map[string]any
	k := &keys{certificates: newCertificates(t), set: string(set), rotated: string(rotated), tokens: map[string]string{
		"good":    sign(key, nil),
		"bob":     sign(key, claims{"sub": "bob"}),
		"expired": sign(key, claims{"exp": time.Now().Add(-time.Hour).Unix()}),
		"early":   sign(key, claims{"nbf": time.Now().Add(time.Hour).Unix()}),
		"forged":  sign(other, nil),
		"foreign": sign(key, claims{"iss": "https://other.example"}),
		"shop":    sign(key, claims{"aud": "shop"}),
		"list":    sign(key, claims{"aud": []string{"x", "shop"}}),
		"bank":    sign(key, claims{"aud": "bank"}),
		"admin":   sign(key, claims{"groups": []string{"dev", "admin"}, "role": "admin", "azp": "app", "scope": "read write", "level": 3, "org": claims{"unit": "red"}}),
		"guest":   sign(key, claims{"groups": []string{"guest"}, "role": "guest", "azp": "web", "scope": "read", "org": claims{"unit": "blue"}}),
		"next":    sign(next, nil),
		"none":    "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYWxpY2UifQ.",
	}}
	k.published.set = k.set
	k.published.rotating.Store(&k.set)
	return k
}
