package forward

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// authority signs certificates of servers outside the mesh, and of their clients.
type authority struct {
	t    *testing.T
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	c := a.issue("ca")
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	a.write(a.file, c)
	return a
}

// issue makes a certificate with DNS names and, where a name is one, URIs and addresses.
func (a *authority) issue(names ...string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	m := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			m.URIs = append(m.URIs, u)
		} else if ip := net.ParseIP(n); ip != nil {
			m.IPAddresses = append(m.IPAddresses, ip)
		} else {
			m.DNSNames = append(m.DNSNames, n)
		}
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		m.IsCA, m.BasicConstraintsValid, m.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = m, key
	}
	der, err := x509.CreateCertificate(rand.Reader, m, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// write puts a certificate, and if there are two files its key, where the waypoint finds them.
func (a *authority) write(file string, c tls.Certificate, key ...string) {
	a.t.Helper()
	put := func(name, typ string, b []byte) {
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b}), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	put(file, "CERTIFICATE", c.Certificate[0])
	for _, k := range key {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			a.t.Fatal(err)
		}
		put(k, "PRIVATE KEY", der)
	}
}

// secureBackend is a server of HTTPS; its handler finds q.TLS.
func secureBackend(t *testing.T, cfg *tls.Config, two bool, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS, s.EnableHTTP2 = cfg, two
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// toTLS is a transport socket; parts are proto JSON.
func toTLS(sni, ca, common string, sans ...string) string {
	return `"transport_socket": {"name": "tls", "typed_config": ` + upstreamTLS(sni, ca, common, sans...) + `}`
}

func upstreamTLS(sni, ca, common string, sans ...string) string {
	list := ""
	for i, s := range sans {
		if i > 0 {
			list += ","
		}
		list += fmt.Sprintf(`{"exact": %q}`, s)
	}
	if ca != "" {
		ca = fmt.Sprintf(`, "validation_context_sds_secret_config": {"name": %q}`, ca)
	}
	if common != "" {
		common = "," + common
	}
	return fmt.Sprintf(`{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": %q,
	 "common_tls_context": {"combined_validation_context": {"default_validation_context": {"match_subject_alt_names": [%s]}%s}%s}}`, sni, list, ca, common)
}

const withAuto = `"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
 "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
 "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true}, %s}}`

const explicit1 = `"explicit_http_config": {"http_protocol_options": {}}`

func TestTLSBeginsAtTheWaypointAndTheServerIsChecked(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	addr := secureBackend(t, &tls.Config{Certificates: []tls.Certificate{a.issue("api.example", "*.wild.example", "spiffe://x/ns/y")}}, false,
		func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, q.TLS.ServerName) })
	root := "file-root:" + a.file
	for name, c := range map[string]struct {
		socket string
		want   string // of the answer, or of its failure
		status int
	}{
		"by its name":                   {toTLS("api.example", root, "", "api.example"), "api.example", 200},
		"by one of several names":       {toTLS("api.example", root, "", "nobody", "spiffe://x/ns/y"), "api.example", 200},
		"by a wildcard":                 {toTLS("api.example", root, "", "a.wild.example"), "api.example", 200},
		"by its authority alone":        {toTLS("", root, ""), "", 200},
		"unchecked, as configured":      {toTLS("api.example", "", ""), "api.example", 200},
		"of TLS 1.2":                    {toTLS("api.example", root, `"tls_params": {"tls_maximum_protocol_version": "TLSv1_2"}`), "api.example", 200},
		"that is another":               {toTLS("api.example", root, "", "b.example"), "none of the names that are expected, but api.example, *.wild.example", 503},
		"that nobody vouches for":       {toTLS("api.example", "file-root:"+other.file, "", "api.example"), "unknown authority", 503},
		"by authorities not there":      {toTLS("api.example", "file-root:/nowhere/ca.pem", ""), "/nowhere/ca.pem: no such file", 503},
		"by a secret of unknown kind":   {toTLS("api.example", "kubernetes://x", ""), `unknown secret "kubernetes://x"`, 503},
		"with an unknown certificate":   {toTLS("api.example", root, `"tls_certificate_sds_secret_configs": [{"name": "mine"}]`), `unknown secret "mine"`, 503},
		"by the system's authorities":   {toTLS("api.example", "file-root:system", "", "api.example"), "verify server certificate", 503},
		"of a version that it does not": {toTLS("api.example", root, `"tls_params": {"tls_maximum_protocol_version": "TLSv1_1", "tls_minimum_protocol_version": "TLSv1_0"}`), "protocol version", 503},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.cluster("reviews", c.socket, addr)
			r.routes(toReviews)
			cl := r.client()
			for range 2 {
				resp, body := get(t, cl, "/")
				if resp.StatusCode != c.status || !strings.Contains(body, c.want) {
					t.Errorf("%d %q, want %d %q", resp.StatusCode, body, c.status, c.want)
				}
			}
		})
	}
}

func TestMutualTLSShowsACertificateOfAFileOrOurOwn(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	pool.AppendCertsFromPEM([]byte(r.ca.RootPEM()))
	who := func(w http.ResponseWriter, q *http.Request) {
		c := q.TLS.PeerCertificates[0]
		fmt.Fprint(w, c.DNSNames, c.URIs)
	}
	mutual := func(c tls.Certificate) *tls.Config {
		return &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{c}}
	}
	outside := secureBackend(t, mutual(a.issue("api.example")), false, who)
	inside := secureBackend(t, mutual(r.ca.Cert(r.ca.ID("demo", "reviews"))), false, who)
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	a.write(cert, a.issue("client.example"), key)
	mine := func(name string) string {
		return fmt.Sprintf(`"tls_certificate_sds_secret_configs": [{"name": %q}]`, name)
	}
	r.cluster("file", toTLS("api.example", "file-root:"+a.file, mine("file-cert:"+cert+"~"+key), "api.example"), outside)
	r.cluster("own", toTLS("", "ROOTCA", mine("default"), "spiffe://cluster.local/ns/demo/sa/reviews"), inside)
	r.cluster("none", toTLS("", "ROOTCA", ""), inside)
	r.routes(`[{"match": {"prefix": "/file"}, "route": {"cluster": "file"}}, {"match": {"prefix": "/own"}, "route": {"cluster": "own"}}, {"match": {"prefix": "/none"}, "route": {"cluster": "none"}}]`)
	c := r.client()
	if _, body := get(t, c, "/file"); body != "[client.example] []" {
		t.Errorf("of a file: %s", body)
	}
	if _, body := get(t, c, "/own"); body != "[] [spiffe://cluster.local/ns/demo/sa/waypoint]" {
		t.Errorf("our own: %s", body)
	}
	if resp, body := get(t, c, "/none"); resp.StatusCode != 503 {
		t.Errorf("without one: %d %s", resp.StatusCode, body)
	}
	// A new certificate is taken up by the next connection.
	a.write(cert, a.issue("renewed.example"), key)
	r.cluster("file", toTLS("api.example", "file-root:"+a.file, mine("file-cert:"+cert+"~"+key), "nobody", "api.example"), outside)
	r.snap.Store(&Snapshot{Listener: r.snap.Load().Listener, Clusters: r.set.View()})
	if _, body := get(t, r.client(), "/file"); body != "[renewed.example] []" {
		t.Errorf("after the renewal: %s", body)
	}
}

func TestTheRequestsHostIsTheServerNameAndHasToBeInTheCertificate(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	var mu sync.Mutex
	var from []string
	addr := secureBackend(t, &tls.Config{Certificates: []tls.Certificate{a.issue("a.example", "b.example", "127.0.0.1")}}, false, func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(from, q.RemoteAddr) {
			from = append(from, q.RemoteAddr)
		}
		fmt.Fprintf(w, "%q", q.TLS.ServerName)
	})
	r.cluster("reviews", toTLS("static.example", "file-root:"+a.file, "")+","+fmt.Sprintf(withAuto, explicit1), addr)
	r.routes(toReviews)
	c := r.client()
	for range 3 {
		for host, want := range map[string]string{"a.example": `"a.example"`, "B.example:9080": `"b.example"`, "127.0.0.1": `"static.example"`} {
			if body := getFrom(t, c, host); host != "127.0.0.1" && body != want {
				t.Errorf("%s: %s", host, body)
			}
		}
	}
	if body := getFrom(t, c, "c.example"); !strings.Contains(body, "not c.example") {
		t.Errorf("a name that is not the server's: %s", body)
	}
	if len(from) != 3 {
		t.Errorf("%d connections for 3 names", len(from))
	}
}

func getFrom(t *testing.T, c *http.Client, host string) string {
	t.Helper()
	req, _ := http.NewRequest("GET", "http://reviews:9080/", nil)
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestALPNDecidesTheVersionOfHTTPWhereItIsToBeNegotiated(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}}
	seen := func(w http.ResponseWriter, q *http.Request) {
		n, _ := io.Copy(io.Discard, q.Body)
		fmt.Fprintf(w, "%s %s %d", q.Proto, q.TLS.NegotiatedProtocol, n)
	}
	auto := fmt.Sprintf(strings.Replace(withAuto, `"auto_san_validation": true`, `"auto_san_validation": false`, 1), `"auto_config": {"http_protocol_options": {}, "http2_protocol_options": {}}`)
	old, modern := secureBackend(t, cfg.Clone(), false, seen), secureBackend(t, cfg.Clone(), true, seen)
	socket := toTLS("x.example", "file-root:"+a.file, "", "x.example")
	r.cluster("old", socket+","+auto, old)
	r.cluster("modern", socket+","+auto, modern)
	r.cluster("one", toTLS("x.example", "", `"alpn_protocols": ["h2", "http/1.1"]`), modern)
	r.cluster("two", socket+","+h2, modern)
	r.routes(`[{"match": {"prefix": "/old"}, "route": {"cluster": "old"}}, {"match": {"prefix": "/modern"}, "route": {"cluster": "modern"}},
	 {"match": {"prefix": "/one"}, "route": {"cluster": "one"}}, {"match": {"prefix": "/two"}, "route": {"cluster": "two"}}]`)
	for name, c := range map[string]*http.Client{"HTTP/1.1": r.client(), "HTTP/2.0": r.client2()} {
		var wg sync.WaitGroup
		for path, want := range map[string]string{"/old": "HTTP/1.1 http/1.1", "/modern": "HTTP/2.0 h2", "/one": "HTTP/1.1 ", "/two": "HTTP/2.0 h2"} {
			for range 5 {
				wg.Go(func() {
					resp, err := c.Post("http://reviews:9080"+path, "text/plain", strings.NewReader(strings.Repeat("x", 300_000)))
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if string(b) != want+" 300000" || err != nil {
						t.Errorf("%s, from %s: %q, %v", path, name, b, err)
					}
				})
			}
		}
		wg.Wait()
	}
}

func TestBodiesPassThroughTLSBothWays(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	for _, two := range []bool{false, true} {
		more := toTLS("x.example", "file-root:"+a.file, "", "x.example")
		if two {
			more += "," + h2
		}
		r.cluster("reviews", more, secureBackend(t, &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}}, two, func(w http.ResponseWriter, q *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, q.Body)
		}))
		r.routes(toReviews)
		for _, n := range []int{0, 1, 20_000, 10 << 20} {
			body := make([]byte, n)
			rand.Read(body)
			resp, err := r.client().Post("http://reviews:9080/", "application/octet-stream", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("HTTP/2 %v, %d bytes: %d came back, %v", two, n, len(got), err)
			}
		}
	}
}

// countingTLS is a server that tells how many bytes came before the client's end.
func countingTLS(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	scriptOn(t, ln, func(c net.Conn) {
		io.WriteString(c, "server first\n")
		n, err := io.Copy(io.Discard, c)
		fmt.Fprint(c, n, err)
	})
	return ln.Addr().String()
}

func TestATCPConnectionIsCarriedByTLSWithHalfClose(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	addr := countingTLS(t, &tls.Config{Certificates: []tls.Certificate{a.issue("db.example")}})
	r.cluster("db", toTLS("db.example", "file-root:"+a.file, "", "db.example"), addr)
	r.target(&listener.Target{TCP: raw(t, "db")})
	r.counts(0, 10, 5<<20)
}

// counts sends so many bytes to a counting server, and half-closes.
func (r *rig) counts(sizes ...int) {
	r.t.Helper()
	for _, n := range sizes {
		c, err := r.dial(r.t.Context(), vip)
		if err != nil {
			r.t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := bufio.NewReader(c)
		if l, err := b.ReadString('\n'); l != "server first\n" {
			r.t.Fatal(l, err)
		}
		if _, err := c.Write(make([]byte, n)); err != nil {
			r.t.Fatal(err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if rest, err := io.ReadAll(b); string(rest) != fmt.Sprint(n, nil) || err != nil {
			r.t.Errorf("%q %v", rest, err)
		}
		c.Close()
	}
}

// joins counts the tunnels that have ended.
type joins struct{ ended chan hbone.JoinResult }

// Joined implements hbone.JoinHandler.
func (j joins) Joined(res hbone.JoinResult) {
	if j.ended != nil {
		j.ended <- res
	}
}

func TestTLSPassesThroughAMeshTunnel(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}}
	good := upstreamTLS("x.example", "file-root:"+a.file, "", "x.example")
	t.Run("HTTP", func(t *testing.T) {
		j := joins{make(chan hbone.JoinResult, 10)}
		via := r.pod(secureBackend(t, cfg.Clone(), true, func(w http.ResponseWriter, q *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, q.Body)
		}), j)
		r.mesh("one", good, "", via)
		r.mesh("two", good, h2, via)
		r.mesh("bad", upstreamTLS("x.example", "file-root:"+a.file, "", "y.example"), "", via)
		r.routes(`[{"match": {"prefix": "/one"}, "route": {"cluster": "one"}}, {"match": {"prefix": "/two"}, "route": {"cluster": "two"}}, {"match": {"prefix": "/bad"}, "route": {"cluster": "bad"}}]`)
		c := r.client()
		for _, path := range []string{"/one", "/two"} {
			for _, n := range []int{1, 5 << 20} {
				body := make([]byte, n)
				rand.Read(body)
				resp, err := c.Post("http://reviews:9080"+path, "text/plain", bytes.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%s: %d of %d bytes, %v", path, len(got), n, err)
				}
			}
		}
		if resp, body := get(t, c, "/bad"); resp.StatusCode != 503 || !strings.Contains(body, "none of the names") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		<-j.ended // the tunnel of the handshake that failed
	})
	t.Run("TCP", func(t *testing.T) {
		j := joins{make(chan hbone.JoinResult, 10)}
		via := r.pod(countingTLS(t, cfg.Clone()), j)
		r.mesh("db", good, "", via)
		r.target(&listener.Target{TCP: raw(t, "db")})
		r.counts(0, 10, 5<<20)
		for range 3 {
			if res := <-j.ended; res.Err != nil {
				t.Errorf("a tunnel ended by %v", res.Err)
			}
		}
		// A client that breaks off takes the tunnel with it.
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		c.Close() // with bytes unread
		if res := <-j.ended; res.Err == nil {
			t.Error("the endpoint took it for a good end")
		}
	})
}
