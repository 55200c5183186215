package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// drainSeconds is how long proxies drain in these tests.
const drainSeconds = 12

// gate is a waypoint for the servers.
const gate = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: km-load}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

// strictLoad is what only identities pass: who is not in the mesh, or not the asker, is refused.
const strictLoad = `
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: km-load}, spec: {mtls: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-askers, namespace: km-load}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/km-load/sa/asker]}}]}]}
`

// TestRootUpgradesUnderLoadLoseNothing replaces each part of the mesh, and the application, while it is used.
func TestRootUpgradesUnderLoadLoseNothing(t *testing.T) {
	m := newMesh(t, "km-load")
	if out, status := ambit(t, "upgrade", fmt.Sprintf("--set=ztunnel.drainSeconds=%d", drainSeconds)); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	t.Cleanup(func() {
		version := m.image[strings.LastIndexByte(m.image, ':')+1:]
		if out, err := exec.Command(ambitPath, "upgrade", "--set=ztunnel.drainSeconds=30", "--set=controlPlane.replicas=1", "--set=image.tag="+version).CombinedOutput(); err != nil {
			t.Errorf("ambit upgrade: %v\n%s", err, out)
		}
	})
	m.startLoaded(t)
	rollout := func(kind string) func(*testing.T) {
		namespace := m.system
		if strings.HasSuffix(kind, "/gate") || strings.HasSuffix(kind, "/server") {
			namespace = "km-load"
		}
		return func(t *testing.T) {
			must(t, "", "-n", namespace, "rollout", "restart", kind)
			must(t, "", "-n", namespace, "rollout", "status", kind, "--timeout=240s")
		}
	}
	t.Run("the application", func(t *testing.T) { underLoad(t, rollout("deployment/server")) })
	t.Run("ztunnel and the CNI plugin", func(t *testing.T) {
		defer encrypted(t)()
		told := make(chan time.Time, 1)
		o := underLoad(t, func(t *testing.T) {
			go func() { told <- m.firstEnd(t) }()
			rollout("daemonset/ztunnel")(t)
			m.oldEnded(t)
		})
		if first := <-told; o.longFailed > 0 {
			t.Logf("the first long connection was cut %.1f s after the first proxy was told to end", o.firstCut.Sub(first).Seconds())
			if d := o.firstCut.Sub(first); d < (drainSeconds-1)*time.Second { // Kubernetes' times are of whole seconds
				t.Errorf("that is before the time to drain, %d s", drainSeconds)
			}
		}
	})
	t.Run("the control plane", func(t *testing.T) { underLoad(t, rollout("deployment/ambit-controlplane")) })
	t.Run("two control planes", func(t *testing.T) {
		underLoad(t, func(t *testing.T) {
			if out, status := ambit(t, "upgrade", "--set=controlPlane.replicas=2"); status != 0 {
				t.Fatalf("status %d\n%s", status, out)
			}
			rollout("deployment/ambit-controlplane")(t)
		})
	})
	m.apply(gate)
	must(t, "", "-n", "km-load", "wait", "--for=condition=Programmed", "gateway/gate", "--timeout=90s")
	must(t, "", "-n", "km-load", "label", "service", "server", "istio.io/use-waypoint=gate")
	eventually(t, "the waypoint to be asked", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-load", "exec", "asker1", "--", "/ambit", "echo", "client", "http://server.km-load/")
		if !strings.Contains(out, "header.X-Request-Id") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	t.Run("the waypoint", func(t *testing.T) { underLoad(t, rollout("deployment/gate")) })
	t.Run("the application behind a waypoint", func(t *testing.T) { underLoad(t, rollout("deployment/server")) })
	t.Run("all of the mesh, to other images", func(t *testing.T) {
		requireBed(t)
		m.tagImages(t, "next")
		defer encrypted(t)()
		underLoad(t, func(t *testing.T) {
			if out, status := ambit(t, "upgrade", "--set=image.tag=next"); status != 0 {
				t.Fatalf("status %d\n%s", status, out)
			}
			m.oldEnded(t)
			eventuallyWithin(t, 2*time.Minute, "all programs to be of the other images", func() error {
				images := must(t, "", "get", "pods", "-A", "-l", "app in (ztunnel,ambit-controlplane)", "-o", "jsonpath={.items[*].spec.containers[*].image}")
				images += " " + must(t, "", "-n", "km-load", "get", "pods", "-l", "gateway.networking.k8s.io/gateway-name=gate", "-o", "jsonpath={.items[*].spec.containers[*].image}")
				for _, image := range strings.Fields(images) {
					if !strings.HasSuffix(image, ":next") {
						return errors.New(image)
					}
				}
				return nil
			})
		})
	})
	t.Run("without the surge requests are lost", func(t *testing.T) {
		must(t, "", "-n", m.system, "patch", "daemonset", "ztunnel", "-p", `{"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}`)
		o := measure(t, func(t *testing.T) {
			rollout("daemonset/ztunnel")(t)
			m.oldEnded(t)
		})
		if o.failed == 0 {
			t.Error("none: the load does not tell a careful upgrade from another one")
		}
	})
}

// encrypted captures what the nodes say to each other; what it returns fails the test if something of a pod was not encrypted.
func encrypted(t *testing.T) (stop func()) {
	t.Helper()
	if !onBed() {
		t.Log("the nodes are not on this machine: what passes between them is not looked at")
		return func() {}
	}
	end := tapFabric(t, "kubefab1")
	return func() { t.Helper(); wantNoPlaintext(t, "between the nodes", end()) }
}

// tagImages gives the images of the mesh's programs another tag, so that they can be upgraded to.
func (m *meshWorld) tagImages(t *testing.T, tag string) {
	t.Helper()
	for _, program := range []string{"controlplane", "ztunnel", "waypoint"} {
		old := strings.Replace(m.image, "ambit-ambit:", "ambit-"+program+":", 1)
		other := old[:strings.LastIndex(old, ":")+1] + tag
		if out, err := exec.Command("./cluster", "tag", old, other).CombinedOutput(); err != nil {
			t.Fatalf("cluster tag %s %s: %v\n%s", old, other, err, out)
		}
	}
}

// startLoaded starts the application, and waits until it is in the mesh and answers.
func (m *meshWorld) startLoaded(t *testing.T) {
	t.Helper()
	m.t = t
	m.apply(loaded)
	must(t, "", "-n", "km-load", "rollout", "status", "deployment/server", "--timeout=60s")
	for _, pod := range []string{"asker1", "asker2", "keeper1", "keeper2"} {
		m.ready("km-load", pod)
	}
	m.answered(t)
}

// answered waits until the askers get all they ask for.
func (m *meshWorld) answered(t *testing.T) {
	t.Helper()
	for _, pod := range []string{"asker1", "asker2"} {
		for _, url := range []string{"http://server.km-load/", "tcp://keeper.km-load:90"} {
			eventually(t, url+" to answer "+pod, func() error {
				out, err := kubectl(t.Context(), "", "-n", "km-load", "exec", pod, "--", "/ambit", "echo", "client", "--json", "--fresh", "--count=10", "--timeout=5s", url)
				var sum answers
				if err == nil {
					err = json.Unmarshal([]byte(out), &sum)
				}
				if err != nil || sum.OK < 10 {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
	}
}

// measure does something under load.
func measure(t *testing.T, f func(t *testing.T)) outcome {
	t.Helper()
	l := startLoad(t)
	time.Sleep(3 * time.Second) // of load before
	began := time.Now()
	f(t)
	took := time.Since(began).Seconds()
	time.Sleep(2 * time.Second) // and after
	o := l.end(t)
	t.Logf("done in %.1f s; %s", took, o)
	if got := float64(o.requests) / o.seconds; got < loadRate()/2 {
		t.Errorf("%.0f requests a second, want %.0f: the load proves nothing", got, loadRate())
	}
	return o
}

// underLoad does something under load and asks that no request fails.
func underLoad(t *testing.T, f func(t *testing.T)) outcome {
	t.Helper()
	o := measure(t, f)
	if o.failed > 0 {
		why, err := kubectl(t.Context(), "", "-n", "istio-system", "logs", "-l", "app=ztunnel", "-c", "proxy", "--tail=20000", "--prefix")
		t.Errorf("%d of %d requests failed; what proxies say that are there (%v):", o.failed, o.requests, err)
		for line := range strings.Lines(why) {
			if strings.Contains(line, "error=") {
				t.Log(line)
			}
		}
	}
	return o
}

// firstEnd waits until the first node proxy is told to end, and returns when that was.
func (m *meshWorld) firstEnd(t *testing.T) (first time.Time) {
	for deadline := time.Now().Add(3 * time.Minute); first.IsZero() && time.Now().Before(deadline) && t.Context().Err() == nil; time.Sleep(200 * time.Millisecond) {
		for _, p := range m.proxies(t) {
			if p.DeletionTimestamp.IsZero() {
				continue
			}
			at := p.DeletionTimestamp.Add(-time.Duration(p.DeletionGracePeriodSeconds) * time.Second)
			if first.IsZero() || at.Before(first) {
				first = at
			}
		}
	}
	return first
}

// proxyMeta is what Kubernetes says about the end of a node proxy.
type proxyMeta struct {
	DeletionTimestamp          time.Time
	DeletionGracePeriodSeconds int
}

func (m *meshWorld) proxies(t *testing.T) (out []proxyMeta) {
	var list struct {
		Items []struct{ Metadata proxyMeta }
	}
	text, err := kubectl(t.Context(), "", "-n", m.system, "get", "pods", "-l", "app=ztunnel", "-o", "json")
	if err != nil || json.Unmarshal([]byte(text), &list) != nil {
		return nil
	}
	for _, i := range list.Items {
		out = append(out, i.Metadata)
	}
	return out
}

// oldEnded waits until no node proxy is at its end any more.
func (m *meshWorld) oldEnded(t *testing.T) {
	t.Helper()
	eventuallyWithin(t, 2*time.Minute, "the old node proxies to end", func() error {
		list := m.proxies(t)
		for _, p := range list {
			if !p.DeletionTimestamp.IsZero() {
				return errors.New("one drains")
			}
		}
		if len(list) == 0 {
			return errors.New("none is there")
		}
		return nil
	})
}

// TestRootUninstallUnderLoadLosesNothing takes the mesh away below an application whose policies demand identities.
func TestRootUninstallUnderLoadLosesNothing(t *testing.T) {
	m := newMesh(t, "km-load")
	m.startLoaded(t)
	apply(t, strictLoad)
	m.answered(t)
	eventually(t, "the keeper to be refused, who is not the asker", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-load", "exec", "keeper1", "--", "/ambit", "echo", "client", "--json", "--fresh", "--timeout=3s", "http://server.km-load/")
		if err != nil || strings.Contains(out, `"ok":1`) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	underLoad(t, func(t *testing.T) {
		out, status := ambit(t, "uninstall", "-y", "--drain-timeout=10s")
		t.Log(out)
		if status != 0 {
			t.Fatalf("status %d", status)
		}
		installedHere = false
	})
}
