package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// upWaypoint starts a lab whose waypoints are ours, or Envoys.
func upWaypoint(t *testing.T, name string, envoy bool, files ...string) *mesh {
	t.Helper()
	netnstest.RequireRoot(t)
	p := lab.Programs{Waypoint: program(t, "waypoint")}
	if envoy {
		p.Envoy, p.EnvoyAgent = envoytest.Require(t), []string{program(t, "ambit"), "lab", "envoy"}
	}
	m := start(t, lab.Options{Name: name, Programs: p})
	m.files(files...)
	m.ready()
	return m
}

func TestRootEnvoyServesAsWaypointUnderOurControlPlane(t *testing.T) {
	waypointClaims(t, upWaypoint(t, "e2eenvoy", true, "testdata/waypoint.yaml", "testdata/waypoint-features.yaml"))
}

func TestRootOurWaypointServesUnderOurControlPlane(t *testing.T) {
	waypointClaims(t, upWaypoint(t, "e2eours", false, "testdata/waypoint.yaml", "testdata/waypoint-features.yaml"))
}

// waypointClaims are what holds of both.
func waypointClaims(t *testing.T, m *mesh) {
	m.eventually("the first answer of v1 through the waypoint", 20*time.Second, func() bool {
		s := m.from("shop", "client", "http://web/")
		return s.OK == 1 && strings.Contains(s.First, "header.X-Request-Id=")
	})
	for _, c := range []struct {
		claim, namespace, pod string
		args                  []string
		want                  string // in the answer, or in the error
	}{
		{"a route takes the rest", "shop", "client", []string{"http://web/"}, "pod=web-7"},
		{"a header chooses the subset", "shop", "client", []string{"-H", "x-canary: true", "http://web/"}, "pod=web-v2-"},
		{"a rule adds a header", "shop", "client", []string{"-H", "x-canary: true", "http://web/"}, "header.X-Added=here"},
		{"a rule answers itself", "shop", "client", []string{"http://web/teapot"}, "status 418"},
		{"a fault is injected", "shop", "client", []string{"http://web/fault"}, "status 507"},
		{"a destination that is not there fails", "shop", "client", []string{"http://web/nowhere"}, "status 503"},
		{"the client's namespace is matched", "other", "stranger", []string{"http://web.shop/who"}, "path=/namespace"},
		{"the client's labels are matched", "shop", "client", []string{"http://web/who"}, "path=/labels"},
		{"a policy denies a client's path", "other", "stranger", []string{"http://web.shop/secret/1"}, "status 403"},
		{"it does not deny another client", "shop", "client", []string{"http://web/secret/1"}, "path=/secret/1"},
		{"a policy denies a method", "shop", "client", []string{"-X", "DELETE", "http://web/"}, "status 403"},
		{"HTTP is detected", "shop", "client", []string{"http://any:90/"}, "header.X-Request-Id="},
		{"other protocols are passed on", "shop", "client", []string{"tcp://any:90"}, "pod=web-"},
		{"TCP is passed on", "shop", "client", []string{"tcp://raw:81"}, "pod=web-"},
		{"a denial of requests denies TCP, where none are seen", "shop", "client", []string{"tcp://web:81"}, "reset"},
		{"gRPC is routed", "shop", "client", []string{"grpc://rpc:80"}, "pod=web-"},
		{"a waypoint that is not there refuses", "shop", "client", []string{"--timeout=3s", "http://orphan/"}, "reset"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := m.from(c.namespace, c.pod, c.args...)
			got := s.First
			for e := range s.Errors {
				// A reset that arrives before the request is written is seen by its write.
				got += " " + strings.ReplaceAll(e, "broken pipe", "reset")
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q in it", got, c.want)
			}
		})
	}
	if log := m.log("controlplane", ""); strings.Contains(log, "rejected resources") {
		t.Error("the waypoint rejected resources; see the control plane's log: " + log)
	}
}
