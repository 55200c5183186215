package capture

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestMetricsSayHowProbesAreRecognised(t *testing.T) {
	n := newNode(t)
	how := "none"
	n.cfg.Probes, n.cfg.Late = func() string { return how }, func() uint64 { return 3 }
	n.set(n.pod("a"))
	for _, how = range []string{"none", "process"} {
		rec := httptest.NewRecorder()
		n.ServeMetrics(rec, nil)
		for _, want := range []string{
			"workload_manager_active_proxy_count 1\n", "workload_manager_late_pods_total 3\n",
			`workload_manager_probe_recognition{by="` + how + `"} 1` + "\n",
		} {
			if !strings.Contains(rec.Body.String(), want) {
				t.Errorf("no %q in\n%s", want, rec.Body)
			}
		}
	}
}

func TestAPodWithInterfacesOfItsOwnIsLookedAtMoreOften(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	n.k.problems = []string{"lookup program is for other interfaces"}
	n.round(t.Context())
	n.wantCalls("listen ", "attach a")
	p.Annotations = map[string]string{annotationReroute: "br0"}
	n.set(p)
	n.k.problems = []string{"lookup program is for other interfaces"}
	n.round(t.Context())
	n.wantCalls("attach a", "attach a")
}
