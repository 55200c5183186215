package filter

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	jose "github.com/go-jose/go-jose/v4"
)

// forge signs claims with any key and header.
func forge(t *testing.T, alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, claims map[string]any) string {
	t.Helper()
	o := &jose.SignerOptions{ExtraHeaders: header}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(claims)
	sig, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestForgedTokensAreRefusedAndNotRepeated(t *testing.T) { // B19
	iss, evil := newIssuer(t, "1"), newIssuer(t, "1")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: iss.key.Public(), KeyID: "1"}, {Key: key.Public(), KeyID: "rsa"}}})
	if err != nil {
		t.Fatal(err)
	}
	f := compile(t, jwtName, istioJWT(t, string(set)))
	attacker := jose.JSONWebKey{Key: evil.key.Public(), KeyID: "1"}
	jwe := strings.Repeat(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","enc":"A256GCM","zip":"DEF"}`))+".", 4) + "AAAA"
	for name, token := range map[string]string{
		"HS256 with the public key as secret": forge(t, jose.HS256, public, map[jose.HeaderKey]any{"kid": "rsa"}, claims()),
		"HS256 with the key's DER":            forge(t, jose.HS256, der, map[jose.HeaderKey]any{"kid": "rsa"}, claims()),
		"a key in the header":                 forge(t, jose.ES256, evil.key, map[jose.HeaderKey]any{"jwk": attacker, "kid": "1"}, claims()),
		"an address of keys in the header":    forge(t, jose.ES256, evil.key, map[jose.HeaderKey]any{"jku": "http://evil.example/jwks", "kid": "1"}, claims()),
		"a certificate in the header":         forge(t, jose.ES256, evil.key, map[jose.HeaderKey]any{"x5u": "http://evil.example/x", "kid": "1"}, claims()),
		"a key's name that is a path":         forge(t, jose.ES256, evil.key, map[jose.HeaderKey]any{"kid": "../../../../dev/null"}, claims()),
		"a key's name that is a query":        forge(t, jose.ES256, evil.key, map[jose.HeaderKey]any{"kid": "1' OR '1'='1"}, claims()),
		"something critical":                  forge(t, jose.ES256, iss.key, map[jose.HeaderKey]any{"kid": "1", "crit": []string{"exp2"}, "exp2": 1}, claims()),
		"an encrypted token":                  jwe,
		"a large token":                       iss.sign(t, claims("x", strings.Repeat("x", 1<<20))),
		"a time that is text":                 iss.sign(t, claims("exp", "tomorrow")),
		"a time before time":                  iss.sign(t, claims("exp", -1)),
		"a time beyond numbers":               iss.sign(t, claims("exp", 1e300)),
		"not yet valid":                       iss.sign(t, claims("nbf", time.Now().Add(time.Hour).Unix())),
		"expired":                             iss.sign(t, claims("exp", time.Now().Add(-time.Hour).Unix())),
		"an audience that is a number":        iss.sign(t, claims("aud", 7)),
		"an audience that is an object":       iss.sign(t, claims("aud", map[string]string{"reviews": "reviews"})),
		"an issuer that is a list":            iss.sign(t, claims("iss", []string{"https://issuer.example.com"})),
	} {
		t.Run(name, func(t *testing.T) {
			x, h := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+token)
			begin := time.Now()
			if a := f.Request(x); a != Stop || x.Reply.Status != 401 && x.Reply.Status != 403 {
				t.Fatalf("%v %+v", a, x.Reply)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			if len(h.calls) > 0 {
				t.Errorf("asked %v because the token says so", h.calls[0].Req.Authority)
			}
			told := x.Reply.Body + x.Details + x.Transport
			for _, f := range x.Reply.Header {
				told += f.Value
			}
			for _, part := range strings.Split(token, ".") {
				if len(part) > 8 && strings.Contains(told, part) {
					t.Errorf("the token is in %q", told)
				}
			}
		})
	}
}

// B20: what a server of keys can do. The request for keys names a cluster of the configuration, so that neither a redirect
// nor a token leads anywhere else.
func TestKeysThatCannotBeHadAreNobodysKeys(t *testing.T) {
	iss := newIssuer(t, "1")
	p := parse(t, &jwtv3.JwtAuthentication{}, `{
	 "providers": {"o": {"issuer": "https://issuer.example.com", "remote_jwks": {"http_uri": {"uri": "http://keys.demo/jwks.json", "cluster": "outbound|80||keys", "timeout": "1s"}, "cache_duration": "60s"}}},
	 "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "o"}}]}`)
	good := func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 200, Body: []byte(iss.jwks(t))}, nil }
	redirect := &CallAnswer{Status: 302}
	redirect.Header.Add("location", "http://169.254.169.254/latest/meta-data/")
	bad := map[string]func(*Call) (*CallAnswer, error){
		"500":        func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 500, Body: []byte(iss.jwks(t))}, nil },
		"slow":       func(*Call) (*CallAnswer, error) { return nil, errors.New("no answer in time") },
		"bad TLS":    func(*Call) (*CallAnswer, error) { return nil, errors.New("certificate signed by unknown authority") },
		"10 MB":      func(*Call) (*CallAnswer, error) { return nil, errors.New("answer too large") },
		"a redirect": func(*Call) (*CallAnswer, error) { return redirect, nil },
		"not JSON":   func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 200, Body: []byte("<html>")}, nil },
		"no set":     func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 200, Body: []byte(`{"keys": 1}`)}, nil },
		"no keys":    func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 200, Body: []byte(`{"keys": []}`)}, nil },
		"a symmetric key": func(*Call) (*CallAnswer, error) {
			return &CallAnswer{Status: 200, Body: []byte(`{"keys": [{"kty": "oct", "kid": "1", "k": "AAAA"}]}`)}, nil
		},
		"somebody else's": func(*Call) (*CallAnswer, error) {
			return &CallAnswer{Status: 200, Body: []byte(newIssuer(t, "1").jwks(t))}, nil
		},
		"an empty document": func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: 200}, nil },
	}
	for name, answer := range bad {
		t.Run(name, func(t *testing.T) {
			f := compile(t, jwtName, p).(*jwt)
			ask := func(answer func(*Call) (*CallAnswer, error)) (Action, *fakeHost) {
				x, h := exchangeOf(t, table(t, nil), "/", "authorization", "Bearer "+iss.sign(t, claims("aud", nil)))
				h.answer = answer
				a := f.Request(x)
				if a == Wait {
					a = h.resumed[0]
				}
				if a == Stop && x.Reply.Status != 401 {
					t.Errorf("status %d", x.Reply.Status)
				}
				return a, h
			}
			a, h := ask(answer)
			if a != Stop || len(h.calls) > 2 || h.calls[0].Cluster != "outbound|80||keys" {
				t.Fatalf("without keys: %v, calls %v", a, h.calls)
			}
			f.providers[0].next.Store(0)
			f.providers[0].keys.Store(nil)
			if a, _ := ask(good); a != Continue {
				t.Fatalf("with keys: %v", a)
			}
			k := *f.providers[0].keys.Load()
			k.until = time.Now().Add(-staleKeys - time.Minute)
			f.providers[0].keys.Store(&k)
			f.providers[0].next.Store(0)
			if a, h := ask(answer); a != Stop || len(h.calls) > 2 {
				t.Errorf("when the keys are too old: %v, %d calls", a, len(h.calls))
			}
			f.providers[0].next.Store(0)
			if a, _ := ask(good); a != Continue && name != "somebody else's" {
				t.Errorf("when they can be had again: %v", a)
			}
		})
	}
}
