package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// B20: a server of keys over the wire, as bad as it may be. What it does costs a bounded time and no memory, opens nothing,
// and keys that are there stay good meanwhile.
func TestAServerOfKeysThatMisbehavesOpensNothing(t *testing.T) {
	set, token := keysAndToken(t)
	head := func(length int, more string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n", length, more)
	}
	var metadata atomic.Int64
	cloud := backend(t, func(http.ResponseWriter, *http.Request) { metadata.Add(1) })
	answers := []struct {
		name   string
		answer func(net.Conn)
	}{
		{"slow: it says nothing", func(c net.Conn) { io.Copy(io.Discard, c) }},
		{"slow: a byte now and then", func(c net.Conn) {
			io.WriteString(c, head(len(set), ""))
			for i := range set {
				time.Sleep(50 * time.Millisecond)
				if _, err := c.Write(set[i : i+1]); err != nil {
					return
				}
			}
		}},
		{"10 MB, the keys first", func(c net.Conn) {
			const size = 10 << 20
			io.WriteString(c, head(size, ""))
			c.Write(set)
			pad := bytes.Repeat([]byte(" "), 64<<10)
			for left := size - len(set); left > 0; left -= len(pad) {
				if _, err := c.Write(pad[:min(left, len(pad))]); err != nil {
					return
				}
			}
		}},
		{"10 MB in chunks", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			fmt.Fprintf(c, "%x\r\n%s\r\n", len(set), set)
			for range 10 << 4 {
				if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", 64<<10, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
			io.WriteString(c, "0\r\n\r\n")
		}},
		{"500 with keys", func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%s", len(set), set)
		}},
		{"a redirect to the cloud's metadata", func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://%s/latest/meta-data/\r\nContent-Length: 0\r\n\r\n", cloud)
		}},
		{"it ends in the middle", func(c net.Conn) { io.WriteString(c, head(len(set), "")); c.Write(set[:len(set)/2]) }},
		{"it resets", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }},
		{"somebody else's answer", func(c net.Conn) { io.WriteString(c, head(6, "")+"<html>") }},
	}
	t.Run("answers", func(t *testing.T) {
		for _, b := range answers {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				r, out := newLoggedRig(t)
				var bad atomic.Bool
				r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
				r.cluster("keys", "", script(t, func(c net.Conn) {
					for br := bufio.NewReader(c); ; {
						if _, err := http.ReadRequest(br); err != nil {
							return
						}
						if bad.Load() {
							b.answer(c)
							return
						}
						io.WriteString(c, head(len(set), "")+string(set))
					}
				}))
				serve := func() {
					r.routes(toReviews, chainFilter(t, "envoy.filters.http.jwt_authn", fetchedKeys))
					r.logs("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%")
				}
				ask := func(want int) {
					t.Helper()
					begin := time.Now()
					if resp, body := get(t, r.client(), "/", "authorization", "Bearer "+token); resp.StatusCode != want {
						t.Errorf("status %d %s, want %d", resp.StatusCode, body, want)
					}
					if d := time.Since(begin); d > 5*time.Second {
						t.Errorf("took %v", d)
					}
				}
				bad.Store(true)
				serve()
				ask(401) // there never were keys
				if log := out.await(t, 1); !strings.Contains(log, "401 jwt_authn_access_denied{Jwks_remote_fetch_is_failed}") || strings.Contains(log, token) {
					t.Errorf("logged %s", log)
				}
				bad.Store(false)
				serve() // a filter of its own: nothing is remembered
				ask(200)
				bad.Store(true)
				time.Sleep(1100 * time.Millisecond) // its keys are old
				for range 3 {
					ask(200)
				}
			})
		}
	})
	if n := metadata.Load(); n != 0 {
		t.Errorf("the cloud's metadata was asked %d times", n)
	}
}

// fetchedKeys asks each request for a token whose keys are fetched from the cluster keys.
const fetchedKeys = `{"@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", "providers": {"o": {"issuer": "https://issuer.example",
 "remote_jwks": {"http_uri": {"uri": "http://keys.demo/jwks.json", "cluster": "keys", "timeout": "0.5s"}, "cache_duration": "1s"}}},
 "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "o"}}]}`

// keysAndToken are the key set of an issuer and a token of it.
func keysAndToken(t *testing.T) (set []byte, token string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signer.Sign(fmt.Appendf(nil, `{"iss": "https://issuer.example", "sub": "alice", "exp": %d}`, time.Now().Add(time.Hour).Unix()))
	if err != nil {
		t.Fatal(err)
	}
	token, err = sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return set, token
}

// TestRequestsThatComeBeforeTheKeysShareOneFetch: an issuer is not to be asked by everybody at once when a waypoint starts, and the
// client that came first may go away.
func TestRequestsThatComeBeforeTheKeysShareOneFetch(t *testing.T) {
	set, token := keysAndToken(t)
	for _, c := range []struct {
		name, keys, token string
		status            int
	}{
		{"they come", string(set), token, 200},
		{"they come, and the tokens are another's", string(set), token[:len(token)-8] + "AAAAAAAA", 401},
		{"they are none", "<html>", token, 401},
		{"they do not come", "", token, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			const clients = 32
			r := newRig(t)
			var fetches, served atomic.Int64
			begun, answer := make(chan struct{}, clients), make(chan struct{})
			r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) { served.Add(1) }))
			r.cluster("keys", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
				fetches.Add(1)
				begun <- struct{}{}
				select {
				case <-answer:
				case <-q.Context().Done():
				}
				if c.keys == "" {
					<-q.Context().Done()
				}
				io.WriteString(w, c.keys)
			}))
			authn := fetchedKeys
			if c.keys != "" {
				authn = strings.Replace(authn, `"0.5s"`, `"20s"`, 1)
			}
			r.routes(toReviews, chainFilter(t, "envoy.filters.http.jwt_authn", authn))
			ask := func(ctx context.Context) (int, error) {
				req, err := http.NewRequestWithContext(ctx, "GET", "http://reviews:9080/", nil)
				if err != nil {
					return 0, err
				}
				req.Header.Set("authorization", "Bearer "+c.token)
				resp, err := r.client().Do(req)
				if err != nil {
					return 0, err
				}
				resp.Body.Close()
				return resp.StatusCode, nil
			}
			var wg sync.WaitGroup
			first, leave := context.WithCancel(t.Context())
			wg.Go(func() {
				if code, err := ask(first); err == nil {
					t.Errorf("the client that went away got %d", code)
				}
			})
			<-begun
			waiting := func() int { return int(r.proxy.workers[0].open.Load() - r.proxy.workers[0].carried.Load()) }
			for range clients {
				wg.Go(func() {
					if code, err := ask(t.Context()); err != nil || code != c.status {
						t.Errorf("status %d, %v, want %d", code, err, c.status)
					}
				})
			}
			if c.keys != "" {
				until(t, func() bool { return waiting() > clients })
				leave()
				until(t, func() bool { return waiting() == clients })
				close(answer)
			} else {
				leave()
			}
			wg.Wait()
			most := int64(1)
			if c.keys == "" { // those that came when the time was over
				most = 3
			}
			if n := fetches.Load(); n > most {
				t.Errorf("the keys were fetched %d times", n)
			}
			if n := served.Load(); c.status != 200 && n > 0 || c.status == 200 && n != clients {
				t.Errorf("%d requests reached the service", n)
			}
		})
	}
}

// until waits for a claim to become true.
func until(t *testing.T, claim func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !claim(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not become true")
		}
	}
}
