package kube

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

// onlyMesh lets nobody in who is not in the mesh.
const onlyMesh = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: km-shop}, spec: {mtls: {mode: STRICT}}}`

// onlyShop lets in who is of the namespace, and denies everybody else by default.
const onlyShop = `
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nothing, namespace: km-shop}, spec: {}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: shop, namespace: km-shop},
 spec: {action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/km-shop/sa/default]}}]}]}}`

// firstRequest is a pod that asks the servers at once, and ends well only if it was answered: under STRICT that is if its
// first packet was captured.
const firstRequest = `{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: km-shop, labels: {churn: BATCH}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 1,
 containers: [{name: ask, image: IMAGE, args: [echo, client, --timeout=20s, "http://server.km-shop/` + secret + `"]}]}}
---
`

const (
	atOnce  = 30 // pods that churn makes at a time
	hasty   = 5  // and others that are deleted before they could ask
	addTime = "workload_manager_cni_add_duration_seconds"
	ofMesh  = `result="captured"`
)

// TestRootManyPodsAreCapturedBeforeTheirFirstPacket is the long form of what make e2e-short does with few.
func TestRootManyPodsAreCapturedBeforeTheirFirstPacket(t *testing.T) {
	m := newMeshWorld(t)
	m.churn(t, 300)
}

// churn makes n pods that ask and end, and deletes them while the next are made, in a namespace where nobody is heard who is
// not in the mesh.
func (m *meshWorld) churn(t *testing.T, n int) {
	m.apply(onlyMesh + "\n---" + onlyShop)
	defer must(t, "", "-n", "km-shop", "delete", "peerauthentication/strict", "authorizationpolicy/nothing", "authorizationpolicy/shop")
	eventually(t, "STRICT to refuse the outsider", m.outsiderRefused)
	before, stop := m.scrape(t), m.tapNodes(t)
	began := time.Now()
	for first := 0; first < n; first += atOnce {
		batch := fmt.Sprintf("batch-%d", first)
		m.apply(requests(batch, min(atOnce, n-first)) + requests("hasty", hasty))
		must(t, "", "-n", "km-shop", "delete", "pods", "-l", "churn=hasty", "--wait=false")
		m.allAnswered(t, batch, min(atOnce, n-first))
		must(t, "", "-n", "km-shop", "delete", "pods", "-l", "churn="+batch, "--wait=false")
		m.noneLeft(t, "hasty")
	}
	t.Logf("%d pods started, asked and ended in %.1f s", n, time.Since(began).Seconds())
	m.noneLeft(t, "")
	t.Logf("all were gone after %.1f s", time.Since(began).Seconds())
	stop()
	var after map[string]float64
	eventually(t, "capture to forget them", func() error {
		after = m.scrape(t)
		for _, name := range []string{"workload_manager_active_proxy_count", "workload_manager_pending_proxy_count", "workload_manager_draining_proxy_count"} {
			if after[name] != before[name] {
				return fmt.Errorf("%s is %g, was %g", name, after[name], before[name])
			}
		}
		return nil
	})
	let := func(what string) float64 { return after[addTime+what] - before[addTime+what] }
	count := let("_count{" + ofMesh + "}")
	t.Logf("the CNI plugin let in %g pods of the mesh, which waited p50 %.0f ms, p99 %.0f ms, %.0f ms on average",
		count, quantile(0.5, let), quantile(0.99, let), let("_sum{"+ofMesh+"}")/count*1000)
	if count < float64(n) {
		t.Errorf("%s counts %g of %d pods", addTime, count, n)
	}
}

// requests are n pods of a batch.
func requests(batch string, n int) string {
	var all strings.Builder
	for i := range n {
		all.WriteString(strings.NewReplacer("NAME", fmt.Sprintf("%s-%d", batch, i), "BATCH", batch).Replace(firstRequest))
	}
	return all.String()
}

func (m *meshWorld) outsiderRefused() error {
	out, err := kubectl(m.t.Context(), "", "-n", "km-outside", "exec", "outsider", "--", "/ambit", "echo", "client", "--json", "--fresh", "--timeout=3s", "http://server.km-shop/"+secret)
	if err != nil || strings.Contains(out, `"ok":1`) {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (m *meshWorld) allAnswered(t *testing.T, batch string, n int) {
	t.Helper()
	var phases []string
	eventuallyWithin(t, 3*time.Minute, "all pods to end", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-shop", "get", "pods", "-l", "churn="+batch, "-o", "jsonpath={.items[*].status.phase}")
		phases = strings.Fields(out)
		ended := 0
		for _, p := range phases {
			if p == "Succeeded" || p == "Failed" {
				ended++
			}
		}
		if err != nil || ended < n {
			return fmt.Errorf("%d of %d ended: %w", ended, n, err)
		}
		return nil
	})
	if !slices.Contains(phases, "Failed") {
		return
	}
	failed := strings.Fields(must(t, "", "-n", "km-shop", "get", "pods", "-l", "churn="+batch, "--field-selector=status.phase=Failed", "-o", "jsonpath={.items[*].metadata.name}"))
	lines := must(t, "", "-n", m.system, "logs", "-l", "app=ztunnel", "--all-containers", "--prefix", "--tail=-1")
	for _, pod := range failed {
		logs, _ := kubectl(t.Context(), "", "-n", "km-shop", "logs", pod)
		t.Errorf("pod %s was not answered: %s", pod, logs)
		for line := range strings.Lines(lines) {
			if strings.Contains(line, pod) {
				t.Log(line)
			}
		}
	}
}

// noneLeft waits until no pod of a batch, or of all, is left.
func (m *meshWorld) noneLeft(t *testing.T, batch string) {
	t.Helper()
	eventuallyWithin(t, 2*time.Minute, "pods to be gone", func() error {
		left, err := kubectl(t.Context(), "", "-n", "km-shop", "get", "pods", "-l", strings.TrimSuffix("churn="+batch, "="), "--no-headers", "--ignore-not-found")
		if err != nil || left != "" {
			return fmt.Errorf("%w: %s", err, left)
		}
		return nil
	})
}

// tapNodes captures on both nodes until stop is called, which judges. A pod that is not captured is seen first: the outsider.
func (m *meshWorld) tapNodes(t *testing.T) (stop func()) {
	t.Helper()
	if !onBed() {
		t.Log("the nodes are not on this machine: what passes on them is not looked at")
		return func() {}
	}
	taps := map[string]func() wire.Report{"node1": tapNode(t, "node1"), "node2": tapNode(t, "node2")}
	eventually(t, "STRICT to refuse the outsider", m.outsiderRefused)
	outsider := netip.MustParseAddr(must(t, "", "-n", "km-outside", "get", "pod", "outsider", "-o", "jsonpath={.status.podIP}"))
	return func() {
		for node, tap := range taps {
			r := tap()
			if node == "node2" && r.Count(func(f *wire.Flow) bool { return f.Client.Addr() == outsider && f.Server.Port() != 15008 }) == 0 {
				t.Error("the outsider was not seen: the capture proves nothing")
			}
			wantNoPlaintext(t, "on "+node, r, outsider)
		}
	}
}

// scrape is the sum of the metrics of all nodes' capture.
func (m *meshWorld) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	sum := map[string]float64{}
	for pod := range strings.FieldsSeq(must(t, "", "-n", m.system, "get", "pods", "-l", "app=ztunnel", "-o", "jsonpath={.items[*].metadata.name}")) {
		text := must(t, "", "get", "--raw", "/api/v1/namespaces/"+m.system+"/pods/"+pod+":15022/proxy/metrics")
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				sum[name] += v
			}
		}
	}
	return sum
}

// quantile is where in the histogram's buckets the share q of all is reached, in milliseconds, as Prometheus computes it.
func quantile(q float64, series func(name string) float64) float64 {
	rank, low, below := q*series("_count{"+ofMesh+"}"), 0.0, 0.0
	for _, bound := range []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25} {
		n := series(fmt.Sprintf("_bucket{%s,le=\"%g\"}", ofMesh, bound))
		if n >= rank && n > below {
			return 1000 * (low + (bound-low)*(rank-below)/(n-below))
		}
		low, below = bound, n
	}
	return math.Inf(1)
}
