package kube

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// dnsObjects is a namespace with a Service of every form, and clients in the mesh, outside of it, and in it without its DNS.
const dnsObjects = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-dns, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: km-dns}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: plain, namespace: km-dns, labels: {istio.io/dataplane-mode: none}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: shy, namespace: km-dns, annotations: {ambient.istio.io/dns-capture: "false"}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: named, namespace: km-dns, labels: {app: flat}}, spec: {hostname: alpha, subdomain: flat, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: unnamed, namespace: km-dns, labels: {app: flat}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: km-dns}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: km-dns}, spec: {selector: {app: flat}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: km-dns}, spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: flat, namespace: km-dns}, spec: {clusterIP: None, selector: {app: flat}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: km-dns}, spec: {clusterIP: None, selector: {app: nobody}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: idle, namespace: km-dns}, spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: inside, namespace: km-dns}, spec: {type: ExternalName, externalName: web.km-dns.svc.cluster.local}}
---
{apiVersion: v1, kind: Service, metadata: {name: outside, namespace: km-dns}, spec: {type: ExternalName, externalName: www.example.org}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api, namespace: km-dns}, spec: {hosts: [api.example.org], resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 80, name: http, protocol: HTTP}]}}
`

// dnsWorld is that namespace, with a way to ask from inside of its pods.
type dnsWorld struct {
	*meshWorld
	nameserver string
	spaces     map[string]*netns.NS
}

func newDNSWorld(t *testing.T) *dnsWorld {
	m := newMeshWorld(t)
	netnstest.RequireRoot(t)
	t.Cleanup(func() {
		if _, err := kubectl(context.WithoutCancel(t.Context()), "", "delete", "--ignore-not-found", "--wait=false", "namespace", "km-dns"); err != nil {
			t.Log(err)
		}
	})
	m.apply(dnsObjects)
	w := &dnsWorld{meshWorld: m, spaces: map[string]*netns.NS{}}
	w.nameserver = must(t, "", "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}") + ":53"
	must(t, "", "-n", "km-dns", "rollout", "status", "statefulset/db", "--timeout=60s")
	for _, pod := range []string{"client", "plain", "shy", "named", "unnamed"} {
		m.ready("km-dns", pod)
	}
	for _, pod := range []string{"client", "plain", "shy"} {
		w.spaces[pod] = w.space(pod)
	}
	return w
}

// space is the network namespace of a pod, which must be one of this machine.
func (w *dnsWorld) space(pod string) *netns.NS {
	w.t.Helper()
	id := must(w.t, "", "-n", "km-dns", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	_, id, _ = strings.Cut(id, "://")
	paths, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range paths {
		if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), id) {
			continue
		}
		if ns, err := netns.Open(filepath.Join(filepath.Dir(path), "ns/net")); err == nil {
			w.t.Cleanup(func() { ns.Close() })
			return ns
		}
	}
	w.t.Skip("the cluster's pods are not on this machine")
	return nil
}

// ask asks the cluster's nameserver in a pod.
func (w *dnsWorld) ask(pod, network, name string, qtype uint16) (string, error) {
	c := dns.Client{Net: network, Timeout: 7 * time.Second}
	var r *dns.Msg
	err := w.spaces[pod].Do(func() (err error) {
		r, _, err = c.Exchange(new(dns.Msg).SetQuestion(name, qtype), w.nameserver)
		return err
	})
	if err != nil {
		return "", err
	}
	return described(r), nil
}

// described is an answer without its order and times.
func described(r *dns.Msg) string {
	var out []string
	for _, rr := range r.Answer {
		rr.Header().Ttl = 0
		rr.Header().Name = strings.ToLower(rr.Header().Name)
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(out)
	return dns.RcodeToString[r.Rcode] + " " + strings.Join(out, "; ")
}

// find resolves a name as a program does, by the search domains of the pod.
func (w *dnsWorld) find(pod, name string) (string, error) {
	for _, search := range []string{"km-dns.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
		got, err := w.ask(pod, "udp", name+"."+search, dns.TypeA)
		if err != nil {
			return "", err
		}
		var addrs []string
		for _, rr := range strings.Split(got, "; ") {
			if f := strings.Fields(rr); slices.Contains(f, "A") {
				addrs = append(addrs, f[len(f)-1])
			}
		}
		if len(addrs) > 0 {
			return strings.Join(addrs, " "), nil
		}
	}
	return "nothing", nil
}

func TestRootEveryFormOfServiceIsResolvedInTheMeshAsByCoreDNS(t *testing.T) {
	w := newDNSWorld(t)
	addr := strings.ReplaceAll(must(t, "", "-n", "km-dns", "get", "pod", "unnamed", "-o", "jsonpath={.status.podIP}"), ".", "-")
	vip := netip.MustParseAddr(must(t, "", "-n", "km-dns", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	reverse, _ := dns.ReverseAddr(vip.String())
	const svc = ".km-dns.svc.cluster.local."
	eventually(t, "the client's capture", w.redirection("km-dns", "client", "enabled"))
	asked := 0
	same := func(network, name string, qtype uint16) {
		asked++
		eventually(t, "the same answer", func() error {
			got, err := w.ask("client", network, name, qtype)
			want, werr := w.ask("plain", network, name, qtype)
			if got != want || err != nil || werr != nil {
				return fmt.Errorf("%s %s: got %q, %v; CoreDNS says %q, %v", name, dns.TypeToString[qtype], got, err, want, werr)
			}
			return nil
		})
	}
	for _, name := range []string{
		"web" + svc, "WeB" + svc, "idle" + svc, "db" + svc, "flat" + svc, "empty" + svc, "inside" + svc, "outside" + svc, "nobody" + svc,
		"db-0.db" + svc, "db-1.db" + svc, "db-2.db" + svc, "alpha.flat" + svc, addr + ".flat" + svc, "unnamed.flat" + svc, "named.flat" + svc,
		"kubernetes.default.svc.cluster.local.", "kube-dns.kube-system.svc.cluster.local.", addr + ".km-dns.pod.cluster.local.", "www.example.org.", "example.",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
			same("udp", name, qtype)
		}
		same("tcp", name, dns.TypeA)
	}
	same("udp", "_http._tcp.web"+svc, dns.TypeSRV)
	same("udp", "_http._tcp.db"+svc, dns.TypeSRV)
	same("udp", reverse, dns.TypePTR)
	t.Logf("%d questions have the same answer", asked)

	for _, name := range []string{"web", "web.km-dns", "web.km-dns.svc", "db", "db-0.db", "db-1.db.km-dns", "alpha.flat", "inside", "kubernetes.default", "nobody", "web.nowhere"} {
		eventually(t, "the same address", func() error {
			got, err := w.find("client", name)
			want, werr := w.find("plain", name)
			if got != want || err != nil || werr != nil {
				return fmt.Errorf("%s: got %q, %v; with CoreDNS %q, %v", name, got, err, want, werr)
			}
			return nil
		})
	}
	for pod, inMesh := range map[string]bool{"client": true, "plain": false, "shy": false} {
		eventually(t, "the ServiceEntry's host in "+pod, func() error {
			got, err := w.find(pod, "api.example.org")
			if err != nil || strings.HasPrefix(got, "240.240.") != inMesh {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return nil
		})
	}
	w.nameserverAway(t, vip)
}

// nameserverAway: without CoreDNS the names of the mesh are resolved all the same.
func (w *dnsWorld) nameserverAway(t *testing.T, vip netip.Addr) {
	must(t, "", "-n", "kube-system", "scale", "deployment/coredns", "--replicas=0")
	defer func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := kubectl(ctx, "", "-n", "kube-system", "scale", "deployment/coredns", "--replicas=1"); err != nil {
			t.Error(err)
		}
		if _, err := kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the nameserver's end", func() error {
		if got, err := w.ask("client", "udp", "www.example.org.", dns.TypeA); err != nil || !strings.HasPrefix(got, "SERVFAIL") {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	})
	if got, err := w.find("client", "web"); err != nil || got != vip.String() {
		t.Errorf("web without a nameserver: got %q, %v, want %v", got, err, vip)
	}
	for _, name := range []string{"db", "db-0.db", "api.example.org"} {
		if got, err := w.find("client", name); err != nil || got == "nothing" {
			t.Errorf("%s without a nameserver: got %q, %v", name, got, err)
		}
	}
}
