package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// loaded is an application under load: servers that end politely, as those of a careful team do, a keeper of long TCP
// connections, and on each node a pod that asks both.
const loaded = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-load, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: asker, namespace: km-load}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: km-load}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 20
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: server}}}]
      containers:
        - name: echo
          image: IMAGE
          args: [echo, --quiet, --drain=3s]
          lifecycle: {preStop: {sleep: {seconds: 3}}}
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: km-load}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: keeper1, namespace: km-load, labels: {app: keeper}}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo, --quiet]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: keeper2, namespace: km-load, labels: {app: keeper}}, spec: {nodeName: node2, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo, --quiet]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: keeper, namespace: km-load}, spec: {selector: {app: keeper}, ports: [{name: tcp, port: 90, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: asker1, namespace: km-load}, spec: {nodeName: node1, serviceAccountName: asker, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo, --quiet]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: asker2, namespace: km-load}, spec: {nodeName: node2, serviceAccountName: asker, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo, --quiet]}]}}
`

// answers is what a client of the image says at its end.
type answers struct {
	OK, Failed   int
	Errors       map[string]int
	P99          float64   `json:"p99Seconds"`
	Longest      float64   `json:"longestSeconds"`
	FirstFailure time.Time `json:"firstFailure"`
}

// asking is a client at work in a pod.
type asking struct {
	what      string
	cmd       *exec.Cmd
	stop      io.Closer
	out, errs bytes.Buffer
}

// startAsking starts a client in a pod; it goes on until stopped.
func startAsking(t *testing.T, what, pod string, args ...string) *asking {
	t.Helper()
	a := &asking{what: what}
	a.cmd = exec.CommandContext(t.Context(), "kubectl", append([]string{"-n", "km-load", "exec", "-i", pod, "--",
		"/ambit", "echo", "client", "--json", "--until-eof", "--duration=30m", "--timeout=15s"}, args...)...)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.errs
	stdin, err := a.cmd.StdinPipe()
	if err == nil {
		err = a.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	a.stop = stdin
	return a
}

func (a *asking) end(t *testing.T) answers {
	t.Helper()
	_ = a.stop.Close()
	err := a.cmd.Wait()
	var sum answers
	if jerr := json.Unmarshal(a.out.Bytes(), &sum); err != nil || jerr != nil {
		t.Fatalf("%s: %v, %v: %s%s", a.what, err, jerr, &a.out, &a.errs)
	}
	return sum
}

// load is requests over short and kept connections, and long TCP connections, from both nodes.
type load struct {
	short, kept, long []*asking
	began             time.Time
}

// loadRate is that of all requests together: 1,000 a second in a soak.
func loadRate() float64 {
	if os.Getenv("AMBIT_SOAK") != "" {
		return 1000
	}
	return 200
}

// longs is how many long connections there are.
const longs = 100

func startLoad(t *testing.T) *load {
	t.Helper()
	l := &load{began: time.Now()}
	each := fmt.Sprintf("--rate=%g", loadRate()/4)
	address := must(t, "", "-n", "km-load", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	for _, pod := range []string{"asker1", "asker2"} {
		l.short = append(l.short, startAsking(t, "short connections from "+pod, pod, "--fresh", "--parallel=512", each, "http://server.km-load/"))
		// Who waits for a name does not show what happens to connections meanwhile.
		l.short = append(l.short, startAsking(t, "short connections without a name from "+pod, pod, "--fresh", "--parallel=64", "--rate=50", "http://"+address+"/"))
		l.kept = append(l.kept, startAsking(t, "kept connections from "+pod, pod, "--parallel=64", each, "http://server.km-load/"))
		l.long = append(l.long, startAsking(t, "long connections from "+pod, pod, fmt.Sprintf("--parallel=%d", longs/2), "--rate=100", "--data=still here", "tcp://keeper.km-load:90"))
	}
	return l
}

// outcome is what came of a load.
type outcome struct {
	requests, failed   int
	p99, longest       float64
	longOK, longFailed int
	firstCut           time.Time // of a long connection
	errors             []string
	seconds            float64
}

func (l *load) end(t *testing.T) (o outcome) {
	t.Helper()
	o.seconds = time.Since(l.began).Seconds()
	var all []*asking
	all = append(append(append(all, l.short...), l.kept...), l.long...)
	for _, a := range all {
		_ = a.stop.Close() // all at once
	}
	for i, a := range all {
		s := a.end(t)
		if s.Failed > 0 {
			o.errors = append(o.errors, fmt.Sprintf("%s, first at %s: %v", a.what, s.FirstFailure.Format("15:04:05.000"), s.Errors))
		}
		if i >= len(l.short)+len(l.kept) {
			o.longOK, o.longFailed = o.longOK+s.OK, o.longFailed+s.Failed
			if !s.FirstFailure.IsZero() && (o.firstCut.IsZero() || s.FirstFailure.Before(o.firstCut)) {
				o.firstCut = s.FirstFailure
			}
			continue
		}
		o.requests, o.failed = o.requests+s.OK+s.Failed, o.failed+s.Failed
		o.p99, o.longest = max(o.p99, s.P99), max(o.longest, s.Longest)
	}
	return o
}

// String is a line of figures.
func (o outcome) String() string {
	return fmt.Sprintf("%.1f s, %d requests (%.0f/s), %d failed, p99 %.0f ms, longest %.0f ms; on %d long connections %d exchanges, %d failed %s",
		o.seconds, o.requests, float64(o.requests)/o.seconds, o.failed, o.p99*1000, o.longest*1000, longs, o.longOK+o.longFailed, o.longFailed, strings.Join(o.errors, "; "))
}
