package forward

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// descriptors is the number of descriptors that the process has, and those of the waypoint's loop.
func (r *rig) descriptors() (all, ofLoop int) {
	r.t.Helper()
	l := r.proxy.workers[0].loop
	l.OnLoop(func() { ofLoop = l.Stats().FDs })
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	return len(d), ofLoop
}

func TestHandshakesThatFailLeaveNothingBehind(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	addr := secureBackend(t, &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}}, false, func(http.ResponseWriter, *http.Request) {})
	wrong := upstreamTLS("x.example", "file-root:"+a.file, "", "y.example")
	missing := upstreamTLS("x.example", "file-root:/nowhere", "")
	r.cluster("direct", `"transport_socket": {"name": "tls", "typed_config": `+wrong+`}`, addr)
	r.cluster("missing", `"transport_socket": {"name": "tls", "typed_config": `+missing+`}`, addr)
	via := r.pod(addr, joins{})
	r.mesh("mesh", wrong, "", via)
	r.mesh("missing-mesh", missing, "", via)
	r.routes(`[{"match": {"prefix": "/direct"}, "route": {"cluster": "direct"}}, {"match": {"prefix": "/mesh"}, "route": {"cluster": "mesh"}},
	 {"match": {"prefix": "/missing-mesh"}, "route": {"cluster": "missing-mesh"}}, {"match": {"prefix": "/missing"}, "route": {"cluster": "missing"}}]`)
	c := r.client()
	round := func() {
		for _, path := range []string{"/direct", "/mesh", "/missing", "/missing-mesh"} {
			if resp, body := get(t, c, path); resp.StatusCode != 503 || !strings.Contains(body, "remote connection failure") {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
	}
	round() // the tunnel to the pod stays
	all, ofLoop := r.descriptors()
	for range 10 {
		round()
	}
	deadline := time.Now().Add(5 * time.Second) // the other ends of what was closed belong to the test's servers
	for {
		nowAll, nowLoop := r.descriptors()
		if nowAll <= all && nowLoop <= ofLoop {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, of them %d of the loop; before 40 handshakes %d and %d", nowAll, nowLoop, all, ofLoop)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestAServerThatNeverAnswersTheHandshakeTimesOut(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() }) // the backlog takes connections, and nobody speaks
	r.cluster("direct", toTLS("x.example", "", ""), ln.Addr().String())
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "direct"}}]`)
	if resp, body := get(t, r.client(), "/"); resp.StatusCode != 503 || !strings.Contains(body, "connection timeout") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestAnAnswerThatIsCutOffIsNotTakenForWhole(t *testing.T) {
	r := newRig(t)
	a := newAuthority(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}})
	if err != nil {
		t.Fatal(err)
	}
	scriptOn(t, ln, func(c net.Conn) {
		c.Read(make([]byte, 1000))
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhalf of it") // ends with the connection
		c.(*tls.Conn).NetConn().Close()                        // and that without close_notify
	})
	r.cluster("reviews", toTLS("x.example", "", ""), ln.Addr().String())
	r.routes(toReviews)
	resp, err := r.client().Get("http://reviews:9080/")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil && resp.StatusCode == 200 {
		t.Errorf("%q was taken for whole", b)
	}
}

func TestKeepAliveIsAsConfigured(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	opt := func(level, name int) int {
		v, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := opt(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)
	if keepAlive(fd, cluster.Keepalive{}); opt(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0 {
		t.Error("on without being asked for")
	}
	keepAlive(fd, cluster.Keepalive{On: true, Probes: 3, Idle: 7 * time.Second})
	if opt(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 1 || opt(unix.IPPROTO_TCP, unix.TCP_KEEPCNT) != 3 || opt(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE) != 7 {
		t.Error("not as asked for")
	}
	if opt(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL) != before {
		t.Error("what was not said was changed")
	}
}

func TestAuthoritiesAreTakenApart(t *testing.T) {
	for a, want := range map[string]struct {
		host string
		port uint16
	}{
		"a.example": {"a.example", 0}, "A.Example:80": {"a.example", 80}, "10.0.0.1:443": {"10.0.0.1", 443}, "[::1]:80": {"::1", 80},
		"[::1]": {"::1", 0}, "::1": {"::1", 0}, "": {"", 0}, ":80": {"", 80}, "a:": {"a", 0}, "a:99999": {"a", 0}, "a:b": {"a", 0}, "[": {"[", 0}, "]:1": {"]", 1},
	} {
		if host, port := splitAuthority(a); host != want.host || port != want.port {
			t.Errorf("%q: %q %d", a, host, port)
		}
	}
	for _, h := range []string{"", ".", "a..b", "a/b", "a b", "fe80::1%eth0", "a\x00", "ä.example", strings.Repeat("a", 254)} {
		if validHost(h) {
			t.Errorf("%q is a host", h)
		}
	}
	for _, h := range []string{"a", "a.example.", "10.0.0.1", "::1", "_x.a-b.example"} {
		if !validHost(h) {
			t.Errorf("%q is no host", h)
		}
	}
}
