package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// These may be seen on the wire.
const (
	outsiderMarker  = "AMBIT-OUTSIDER-MARKER-07"
	neighbourMarker = "AMBIT-NEIGHBOUR-MARKER-3"
)

// churnManifests close the mesh: STRICT everywhere, and nobody may do anything but the account "starter" speak to the
// server and to the replicas that come and go, and the client to the replicas.
const churnManifests = `
{apiVersion: v1, kind: Namespace, metadata: {name: churn, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: istio-system}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nothing, namespace: istio-system}, spec: {}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: starter, namespace: shop}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/churn/sa/starter]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client, namespace: churn}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: starter, namespace: churn}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: stranger, namespace: churn}}
---
{apiVersion: v1, kind: Service, metadata: {name: replicas, namespace: churn}, spec: {selector: {app: replica}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080}]}}
`

// starterPod makes requests from its first instruction on: no shell, no probe, no pause before them.
func (m *mesh) starterPod(i int, account string, to netip.AddrPort) string {
	argv, err := json.Marshal(append(append([]string{}, m.echo...), "client", "--json", "--fresh", "--count=5", "--timeout=10s", "--data="+marker, "http://"+to.String()+"/"))
	netnstest.Must(m.t, err)
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: pod-%d, namespace: churn, labels: {app: starter}}
spec:
  serviceAccountName: %s
  nodeSelector: {kubernetes.io/hostname: node-%d}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: main, command: %s}]
`, i, account, 1+i%2, argv)
}

// replicaPods serve from their first instruction on, behind a service.
func replicaPods(generation, n int) string {
	return fmt.Sprintf(`
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: replica, namespace: churn}
spec:
  replicas: %d
  selector: {matchLabels: {app: replica}}
  strategy: {rollingUpdate: {maxSurge: 100%%, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: replica, generation: "%d"}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: ambit/echo}]
`, n, generation)
}

// caller speaks, from one pod and without pause, to the addresses of pods that come and go.
type caller struct {
	callerConfig
	m    *mesh
	from *lab.Access
	stop chan struct{}
	wg   sync.WaitGroup

	targets                          atomic.Pointer[[]netip.AddrPort]
	tried, connected, answered, hung atomic.Int64
}

type callerConfig struct {
	namespace, pod, marker string
	prefix                 string // of the names of the pods that are called
	ahead                  int    // addresses behind a pod's own that are tried too: a node hands them out in turn
}

// startCaller starts one; end ends it.
func (m *mesh) startCaller(cfg callerConfig) *caller {
	m.t.Helper()
	from, err := m.c.Access(m.t.Context(), cfg.namespace, cfg.pod, "")
	netnstest.Must(m.t, err)
	in := &caller{callerConfig: cfg, m: m, from: from, stop: make(chan struct{})}
	in.targets.Store(&[]netip.AddrPort{})
	in.wg.Go(in.watch)
	for range 4 {
		in.wg.Go(in.run)
	}
	return in
}

func (in *caller) ended() bool {
	select {
	case <-in.stop:
		return true
	default:
		return false
	}
}

// watch keeps the list of targets.
func (in *caller) watch() {
	for ; !in.ended(); time.Sleep(20 * time.Millisecond) {
		set := map[netip.AddrPort]bool{}
		for _, p := range in.m.pods("churn") {
			if !strings.HasPrefix(p.Metadata.Name, in.prefix) {
				continue
			}
			for _, a := range p.addrs() {
				for range 1 + in.ahead {
					set[netip.AddrPortFrom(a, 8080)] = true
					a = a.Next()
				}
			}
		}
		list := slices.Collect(maps.Keys(set))
		in.targets.Store(&list)
	}
}

func (in *caller) run() {
	for !in.ended() {
		list := *in.targets.Load()
		if len(list) == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		in.try(list[rand.IntN(len(list))])
	}
}

func (in *caller) try(to netip.AddrPort) {
	in.tried.Add(1)
	var conn net.Conn
	err := in.from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 50*time.Millisecond)
		return err
	})
	if err != nil {
		return
	}
	defer conn.Close()
	in.connected.Add(1)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n%s: 1\r\n\r\n", in.marker)
	n, err := conn.Read(make([]byte, 1))
	switch {
	case n > 0:
		in.answered.Add(1)
	case errors.Is(err, os.ErrDeadlineExceeded): // its pod is gone
		in.hung.Add(1)
	}
}

func (in *caller) end() {
	close(in.stop)
	in.wg.Wait()
}

// churn is a run of the test and its figures.
type churn struct {
	m              *mesh
	total, wave    int
	served, failed int
	strangers      int
}

// Acceptance point 3: no moment of plaintext at pod start. Pods come and go in a mesh that denies by default; each sends,
// or serves, from its first instruction. Both nodes' links are captured all the time.
func TestRootNoPodHasAMomentInPlaintext(t *testing.T) {
	m := start(t, lab.Options{Name: "e2echurn"})
	c := &churn{m: m, total: 20, wave: 10}
	if soak() {
		c.total, c.wave = 200, 20
	}
	m.demo("start", "enroll.yaml")
	m.apply("{apiVersion: v1, kind: Namespace, metadata: {name: outside}}")
	t.Run("a pod outside of the mesh is seen in plaintext", func(t *testing.T) {
		stop := m.tap("node-1")
		m.from("outside", "outsider", "--fresh", "--count=3", "--data="+marker, "http://server.shop/")
		if r := stop(); r.Markers() < 3 {
			t.Errorf("the marker was seen %d times: the comparison is blind", r.Markers())
		}
	})
	m.apply(churnManifests + replicaPods(0, 4))
	m.tunnelled("node-1", "server-", true)
	m.tunnelled("node-2", "server-", true)
	m.await("the mesh to be closed", 20*time.Second, func() error {
		if s := m.from("outside", "outsider", "--fresh", "--timeout=2s", "http://server.shop/"); s.OK > 0 {
			return errors.New("an outsider is still served")
		}
		return nil
	})
	outsider := m.addrs("outside", "outsider")
	taps := []func() wire.Report{m.tap("node-1"), m.tap("node-2")}
	in := m.startCaller(callerConfig{namespace: "outside", pod: "outsider", marker: outsiderMarker, ahead: 5})
	beside := m.startCaller(callerConfig{namespace: "shop", pod: "client", marker: neighbourMarker, prefix: "replica-"})
	end := sync.OnceFunc(func() { in.end(); beside.end() })
	defer end()
	logged := len(m.log("ztunnel/node-1", "proxy"))
	c.run()
	end()
	c.neighbours(t, beside, m.log("ztunnel/node-1", "proxy")[logged:])
	for i, stop := range taps {
		c.check(t, fmt.Sprint("node-", i+1), stop(), outsider)
	}
	t.Logf("%d pods: %d requests from their first instruction served, %d not; %d by strangers served", c.total, c.served, c.failed, c.strangers)
	t.Logf("an intruder made %d attempts in plaintext, %d met a listener, %d were answered, %d ended with their pod", in.tried.Load(), in.connected.Load(), in.answered.Load(), in.hung.Load())
	if c.failed > 0 || c.strangers > 0 || in.answered.Load() > 0 || in.connected.Load() == 0 {
		t.Error("want every request of the starters served, and nobody else's")
	}
}

// neighbours checks that a pod of the mesh that speaks to the addresses of new ones sent plaintext to none that its node
// knew. An address that it does not know may be anybody's (O6).
func (c *churn) neighbours(t *testing.T, beside *caller, log string) {
	t.Helper()
	unknown := 0
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `src.workload="client"`) || !strings.Contains(line, `direction="outbound"`) ||
			strings.Contains(line, "dst.hbone_addr=") || strings.Contains(line, `via="same-node"`) {
			continue
		}
		if strings.Contains(line, `dst.namespace="churn"`) {
			t.Errorf("plaintext to a pod of the mesh: %s", line)
		}
		unknown++
	}
	t.Logf("a neighbour made %d calls to pods by address, %d were answered, %d went to addresses that its node did not know", beside.tried.Load(), beside.answered.Load(), unknown)
	if beside.answered.Load() == 0 {
		t.Error("no pod ever answered its neighbour")
	}
}

// check looks at a capture: nothing but the intruder's own bytes, and what the neighbour sent to addresses that nobody
// knew, may be plaintext.
func (c *churn) check(t *testing.T, node string, r wire.Report, outsider []netip.Addr) {
	t.Helper()
	own := wire.Report{Packets: r.Packets, Dropped: r.Dropped}
	for _, f := range r.Flows {
		foreign := strings.Contains(string(f.First), neighbourMarker)
		for _, a := range outsider {
			foreign = foreign || f.Client.Addr() == a || f.Server.Addr() == a
		}
		if foreign {
			if f.Markers > 0 {
				t.Errorf("the marker went to the intruder: %+v", f)
			}
			continue
		}
		own.Flows = append(own.Flows, f)
	}
	if wantEncrypted(t, node, own) == 0 {
		t.Error("no tunnel was seen")
	}
}

// run has the pods come and go, while the client speaks to the replicas, of which every wave replaces all.
func (c *churn) run() {
	m := c.m
	stop := make(chan struct{})
	var wg sync.WaitGroup
	replicas := &echo.Summary{Errors: map[string]int{}}
	wg.Go(func() { m.whileOpen(stop, replicas) })
	defer func() {
		close(stop)
		wg.Wait()
		m.t.Logf("the client's requests to replicas that come and go: %d served, %d not: %v", replicas.OK, replicas.Failed, replicas.Errors)
		if replicas.OK == 0 {
			m.t.Error("no replica ever answered the client")
		}
	}()
	to := append(ports(m.addrs("shop", "server-"), 8080), ports(m.vips("shop", "server"), 80)...)
	for first := 0; first < c.total; first += c.wave {
		var b strings.Builder
		for i := first; i < min(first+c.wave, c.total); i++ {
			account := "starter"
			if i%5 == 4 {
				account = "stranger"
			}
			b.WriteString(m.starterPod(i, account, to[i%len(to)]))
		}
		netnstest.Must(m.t, m.c.ApplyYAML(m.t.Context(), b.String()+replicaPods(1+first, 4)))
		c.finish(first, min(first+c.wave, c.total))
	}
}

// whileOpen makes requests to the replicas until stop is closed.
func (m *mesh) whileOpen(stop <-chan struct{}, sum *echo.Summary) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		s := m.from("shop", "client", "--fresh", "--count=20", "--parallel=2", "--timeout=2s", "--data="+marker, "http://replicas.churn/")
		sum.OK, sum.Failed = sum.OK+s.OK, sum.Failed+s.Failed
		for e, n := range s.Errors {
			sum.Errors[e] += n
		}
	}
}

// finish waits for the pods of a wave to end, counts what they report, and deletes them.
func (c *churn) finish(from, to int) {
	m := c.m
	m.t.Helper()
	m.await(fmt.Sprintf("pods %d to %d to end", from, to-1), time.Minute, func() error {
		running := 0
		for _, p := range m.pods("churn") {
			if strings.HasPrefix(p.Metadata.Name, "pod-") && p.Status.Phase != "Succeeded" {
				running++
			}
		}
		if running > 0 {
			return fmt.Errorf("%d pods have not ended", running)
		}
		return nil
	})
	for i := from; i < to; i++ {
		name := fmt.Sprint("pod-", i)
		path, err := m.c.LogFile(m.t.Context(), "churn", name, "")
		netnstest.Must(m.t, err)
		text, err := os.ReadFile(path)
		netnstest.Must(m.t, err)
		var sum echo.Summary
		if err := json.Unmarshal(text, &sum); err != nil {
			m.t.Errorf("%s wrote %q: %v", name, text, err)
		}
		if i%5 == 4 {
			c.strangers += sum.OK
		} else {
			c.served, c.failed = c.served+sum.OK, c.failed+sum.Failed
			if sum.Failed > 0 {
				m.t.Logf("%s: %v", name, sum.Errors)
			}
		}
		netnstest.Must(m.t, m.c.DeleteObject(m.t.Context(), "Pod", "churn", name))
	}
	m.ready()
}
