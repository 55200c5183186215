package authz

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"testing"
	"time"
)

// token is a good token.
type token struct {
	claims map[string]any
	text   string
}

// tokens are good tokens with many kinds of claims, and the set of the key that signed them.
func (m *maker) tokens(t *testing.T, n int) ([]*token, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out []*token
	for range n {
		c := map[string]any{"iss": pick(m, issuers)}
		for _, k := range []struct {
			name   string
			values []any
		}{
			{"sub", []any{"alice", "bob", "team/carol"}},
			{"aud", []any{"reviews", []string{"other", "reviews"}, []string{}}},
			{"azp", []any{"p1", "p2"}},
			{"groups", []any{"admin", []string{"x", "dev-1"}, []string{"dev-2", "admin"}, 5, ""}},
			{"nested", []any{map[string]any{"claim": "x", "list": []string{"x", "y"}}, map[string]any{"claim": []string{"y"}, "list": 7}, "x"}},
			{"scope", []any{"read", "read write", ""}},
			{"level", []any{5, true, "5", []string{"5"}}},
			{"a.b", []any{"x"}},
		} {
			if !m.chance(4) {
				c[k.name] = pick(m, k.values)
			}
		}
		out = append(out, &token{c, sign(t, key, c)})
	}
	return out, keySet(t, key)
}

func sign(t *testing.T, key *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	full := map[string]any{"exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		full[k] = v
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "ES256", "kid": "1"}) + "." + part(full)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func keySet(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	number := func(b []byte) string {
		return base64.RawURLEncoding.EncodeToString(new(big.Int).SetBytes(b).FillBytes(make([]byte, 32)))
	}
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"%s","y":"%s"}]}`, number(raw[1:33]), number(raw[33:]))
}
