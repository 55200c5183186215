package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// planted is in every secret of the test.
const planted = "PLANTED"

// TestRootSecretsAreInNoLogNoDumpAndNoTrace: secrets in the headers and queries of requests, in tokens, in the configuration and
// in the environment, and those of the mesh itself, are searched for in all that its programs say, at their most talkative.
func TestRootSecretsAreInNoLogNoDumpAndNoTrace(t *testing.T) { // B45, S15, A2
	netnstest.RequireRoot(t)
	t.Setenv("DATABASE_PASSWORD", planted)
	m := start(t, lab.Options{Name: "e2esecrets", Programs: lab.Programs{
		Waypoint: program(t, "waypoint"), WaypointArgs: []string{"--log-level=debug"}, ProxyArgs: []string{"--log-level=trace"}, ControlplaneArgs: []string{"--log-level=debug"},
	}})
	set, token := signedTokens(t)
	config, err := os.ReadFile("testdata/secrets.yaml")
	netnstest.Must(t, err)
	m.files("testdata/waypoint.yaml")
	m.apply(strings.Replace(string(config), "$JWKS", set, 1))

	m.eventually("an answer to a request with a token", 20*time.Second, func() bool {
		status, _ := m.secretly("web", "/ready", "authorization: Bearer "+token("ready", time.Hour))
		return status == 200 && strings.Contains(m.podLog("collector"), "/ready")
	})
	mark := token(planted, time.Hour)
	good := []string{"authorization: Bearer " + mark, "cookie: session=" + planted, "x-auth-token: " + planted}
	for _, c := range []struct {
		what, service, path string
		header              []string
		want                int
	}{
		{"a good token", "web", "/shown?page=shown", good, 200},
		{"a token in the query", "web", "/shown?page=shown&access_token=" + mark, nil, 200},
		{"a token in a parameter of the configuration's", "web", "/shown?t=" + mark, nil, 200},
		{"secrets in the query", "web", "/shown?api_key=" + planted + "&password=" + planted + ";token=" + planted + "&next=%2F%3Fsecret%3D" + planted, nil, 200},
		{"an expired token", "web", "/shown", []string{"authorization: Bearer " + token(planted, -time.Hour)}, 401},
		{"a forged token", "web", "/shown", []string{"authorization: Bearer " + mark[:len(mark)-8] + "AAAAAAAA"}, 401},
		{"what is no token", "web", "/shown?access_token=" + planted, []string{"authorization: Bearer " + planted + "." + planted + "." + planted}, 401},
		{"two tokens", "web", "/shown", []string{good[0], good[0]}, 401},
		{"an authorizer that is away", "asked", "/shown?token=" + planted, good, 403},
		{"no endpoint", "nobody", "/shown?token=" + planted, good, 503},
		{"a header that is malformed", "web", "/shown", []string{"authorization: Bearer\x00" + planted}, 400},
		{"headers that are too large", "web", "/shown", []string{"authorization: " + strings.Repeat(planted, 20_000)}, 431},
		{"a password in the target", "web", "http://user:" + planted + "@web/shown", nil, 400},
	} {
		if got, err := m.secretly(c.service, c.path, c.header...); got != c.want {
			t.Errorf("%s: status %d, %v; want %d", c.what, got, err, c.want)
		}
	}
	m.eventually("the last request at the collector, and in the log", 10*time.Second, func() bool {
		_, _ = m.secretly("web", "/last")
		return strings.Contains(m.podLog("collector"), "/last") && strings.Contains(m.podLog("wp-"), "/last")
	})
	m.findNone(map[string][]string{
		"waypoint":     {"GET /shown?page=shown ", "[redacted]", `"path":"/shown`},
		"collector":    {"http.url=", "page=shown&access_token=[redacted]", "auth=[redacted]"},
		"controlplane": {"level=DEBUG"},
	})
}

// signedTokens makes a key set, whose private half is in it too, and signs tokens with it.
func signedTokens(t *testing.T) (set string, sign func(subject string, life time.Duration) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(t, err)
	public, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
	netnstest.Must(t, err)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "one"}}, nil)
	netnstest.Must(t, err)
	set = strings.Replace(string(public), `{"keys":[`, `{"keys":[{"kty":"oct","kid":"two","k":"`+planted+`"},`, 1)
	return set, func(subject string, life time.Duration) string {
		sig, err := s.Sign(fmt.Appendf(nil, `{"iss":"https://issuer.example","sub":%q,"exp":%d}`, subject, time.Now().Add(life).Unix()))
		netnstest.Must(t, err)
		text, err := sig.CompactSerialize()
		netnstest.Must(t, err)
		return text
	}
}

// secretly sends a request as it is written, from the client's pod, and returns the status of the answer.
func (m *mesh) secretly(service, target string, header ...string) (int, error) {
	m.t.Helper()
	conn, err := m.dial("shop", "client", netip.AddrPortFrom(m.vips("shop", service)[0], 80), 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	go func() { // of a large head only the beginning is taken
		_, _ = io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: "+service+"\r\nConnection: close\r\n"+strings.Join(append(header, "", ""), "\r\n"))
	}()
	var status int
	_, err = fmt.Fscanf(conn, "HTTP/1.1 %d", &status)
	return status, err
}

// podLog is the log of the pod in the shop whose name begins with prefix.
func (m *mesh) podLog(prefix string) string {
	m.t.Helper()
	path, err := m.c.LogFile(m.t.Context(), "shop", m.podNamed(prefix), "")
	netnstest.Must(m.t, err)
	b, err := os.ReadFile(path)
	netnstest.Must(m.t, err)
	return string(b)
}

func (m *mesh) podNamed(prefix string) string {
	m.t.Helper()
	for _, p := range m.pods("shop") {
		if strings.HasPrefix(p.Metadata.Name, prefix) {
			return p.Metadata.Name
		}
	}
	m.t.Fatalf("no pod of the shop is named %q", prefix)
	return ""
}

// adminPages are what programs say of themselves.
var adminPages = map[string][]string{
	"waypoint": {
		"/", "/config_dump", "/config_dump?include_eds", "/config_dump?resource=dynamic_listeners", "/config_dump?mask=static_route_configs", "/clusters", "/clusters?format=json",
		"/listeners", "/listeners?format=json", "/certs", "/server_info", "/stats", "/stats?format=json", "/stats/prometheus", "/debug/pprof/goroutine",
	},
	"ztunnel":      {"/", "/config_dump", "/debug/pprof/goroutine"},
	"controlplane": {"/debug/syncz", "/debug/problems", "/debug/status", "/debug/ca", "/metrics"},
}

// findNone searches all that the programs have said for secrets: those that were planted, and the mesh's own. must is what has
// to be there: a log without anything has no secrets either.
func (m *mesh) findNone(must map[string][]string) {
	m.t.Helper()
	said := map[string]string{"waypoint": m.podLog("wp-"), "collector": m.podLog("collector"), "controlplane": m.log("controlplane", "")}
	for _, node := range []string{"node-1", "node-2"} {
		said["ztunnel of "+node] = m.log("ztunnel/"+node, "proxy") + m.log("ztunnel/"+node, "capture")
		for _, page := range adminPages["ztunnel"] {
			body, err := m.c.Fetch(m.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15000"+page)
			netnstest.Must(m.t, err)
			said["ztunnel of "+node+": "+page] = body
		}
		body, err := m.c.Fetch(m.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15020/stats/prometheus")
		netnstest.Must(m.t, err)
		said["ztunnel of "+node+": metrics"] = body
	}
	for _, page := range adminPages["controlplane"] {
		body, err := m.control(http.MethodGet, page)
		netnstest.Must(m.t, err)
		said["controlplane: "+page] = body
	}
	for _, page := range adminPages["waypoint"] {
		said["waypoint: "+page] = m.waypointSays(page)
	}
	secrets := m.ownSecrets()
	m.t.Logf("%d texts are searched for %d secrets", len(said), len(secrets))
	for where, text := range said {
		for what, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				m.t.Errorf("%s is told by %s: …%s…", what, where, text[max(0, i-200):min(len(text), i+50)])
			}
		}
	}
	for where, list := range must {
		for _, want := range list {
			if !strings.Contains(said[where], want) {
				m.t.Errorf("%s does not say %q:\n%s", where, want, said[where])
			}
		}
	}
}

// waypointSays is a page of the waypoint's administration.
func (m *mesh) waypointSays(page string) string {
	m.t.Helper()
	pod := m.podNamed("wp-")
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return m.dial("shop", pod, netip.MustParseAddrPort("127.0.0.1:15000"), 5*time.Second)
		},
	}}
	resp, err := client.Get("http://waypoint" + page)
	netnstest.Must(m.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	netnstest.Must(m.t, err)
	if resp.StatusCode != http.StatusOK {
		m.t.Errorf("%s: %s", page, resp.Status)
	}
	return string(body)
}

// ownSecrets are what must not be told, by what they are: what was planted, as it is and as the middle of a token, and the
// tokens and keys in the files of the lab.
func (m *mesh) ownSecrets() map[string]string {
	m.t.Helper()
	out := map[string]string{"a secret": planted, "a private key": "PRIVATE KEY", "a secret in a token": "IjoiUExBTlRFRC"}
	root := filepath.Join("/run/ambit-lab", m.name)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), "token") && !strings.Contains(d.Name(), "key") {
			return err
		}
		b, err := os.ReadFile(path)
		if text := strings.TrimSpace(string(b)); len(text) >= 16 {
			if _, rest, ok := strings.Cut(text, "-----\n"); ok { // in PEM, the first line of what is secret
				text, _, _ = strings.Cut(rest, "\n")
			}
			out["what is in "+path] = text
		}
		return err
	})
	netnstest.Must(m.t, err)
	if len(out) < 6 {
		m.t.Errorf("found only %d secrets in %s", len(out), root)
	}
	return out
}
