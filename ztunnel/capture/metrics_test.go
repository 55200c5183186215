package capture

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
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

func TestMetricsSayHowLongPodsWaitedToBeLetIn(t *testing.T) {
	n := newNode(t)
	pod := n.pod("a")
	n.cfg.Cluster = &fakeCluster{pod: *pod}
	now := time.Now()
	for _, begun := range []time.Time{{}, now.Add(-3 * time.Second), now.Add(time.Hour)} { // unsaid, long ago, and the clock was set back
		if _, err := n.SetSandbox(t.Context(), podsock.Sandbox{Namespace: "default", Name: "a", Netns: pod.Netns, Begun: begun}); err != nil {
			t.Fatal(err)
		}
	}
	rec := httptest.NewRecorder()
	n.ServeMetrics(rec, nil)
	for _, want := range []string{
		`_bucket{result="captured",le="1"} 2`, `_bucket{result="captured",le="5"} 3`, `_bucket{result="captured",le="+Inf"} 3`,
		`_count{result="captured"} 3`, `_count{result="skipped"} 0`, `_sum{result="captured"} 3`,
	} {
		if !strings.Contains(rec.Body.String(), "workload_manager_cni_add_duration_seconds"+want) {
			t.Errorf("no %s in\n%s", want, rec.Body)
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
