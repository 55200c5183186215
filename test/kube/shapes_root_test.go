package kube

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

//go:embed testdata/shapes.yaml
var shapes string

// echoContainer is what ECHO stands for in shapes.
const echoContainer = `image: IMAGE, env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]`

// shapesWorld is a namespace in the mesh (ks) and one outside (ks-out) with pods and Services of every form that Kubernetes
// has. Clients are on node1, what they ask on node2.
type shapesWorld struct{ *meshWorld }

// TestRootEveryShapeOfKubernetes: each form of pod and Service works in the mesh as without it, in HBONE across the nodes
// if both ends are in the mesh.
func TestRootEveryShapeOfKubernetes(t *testing.T) {
	requireCluster(t)
	requireOurCluster(t)
	w := &shapesWorld{newMesh(t, "ks", "ks-out")}
	text := strings.ReplaceAll(shapes, "NAMESERVER", must(t, "", "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"))
	w.apply(strings.ReplaceAll(text, "ECHO", echoContainer))
	w.settle()
	for _, c := range []struct {
		claim string
		check func(*shapesWorld, *testing.T)
	}{
		{"pods that are not in the mesh are talked to in plaintext, both ways", (*shapesWorld).outside},
		{"pods of a headless StatefulSet have stable names", (*shapesWorld).headless},
		{"an ExternalName is another name of the Service", (*shapesWorld).externalName},
		{"pods in the node's network are servers and clients in plaintext", (*shapesWorld).hostNetwork},
		{"a Job's first request is in HBONE, and it completes", (*shapesWorld).job},
		{"init containers and sidecars use the mesh", (*shapesWorld).initContainers},
		{"both containers of a pod are reached", (*shapesWorld).twoContainers},
		{"a named target port is each pod's own", (*shapesWorld).namedPorts},
		{"a pod with its listener on 127.0.0.1 is reached by itself only", (*shapesWorld).loopback},
		{"a pod reaches itself by its address and by its Service", (*shapesWorld).itself},
		{"two Services share a pod", (*shapesWorld).twins},
		{"endpoints written by hand are used", (*shapesWorld).manual},
		{"publishNotReadyAddresses has pods reached that are not ready, and others are not", (*shapesWorld).notReady},
		{"internalTrafficPolicy Local stays on the node", (*shapesWorld).internalLocal},
		{"sessionAffinity ClientIP keeps a client at one pod", (*shapesWorld).sticky},
		{"node ports lead into the mesh, with externalTrafficPolicy Local for the pod's own node only", (*shapesWorld).nodePorts},
		{"IPv6 is carried as IPv4", (*shapesWorld).dualStack},
		{"a pod's own resolver configuration holds", (*shapesWorld).resolvers},
		{"a NetworkPolicy must allow port 15008, and what blocks it is named", (*shapesWorld).networkPolicy},
		{"the last endpoint serves while it terminates", (*shapesWorld).terminating},
	} {
		t.Run(c.claim, func(t *testing.T) { w.t = t; c.check(w, t) })
	}
}

// settle waits until all pods run and those of the mesh are captured.
func (w *shapesWorld) settle() {
	w.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string
				Labels      map[string]string
				Annotations map[string]string
			}
			Spec   struct{ HostNetwork bool }
			Status struct{ Phase string }
		}
	}
	must(w.t, "", "-n", "ks", "rollout", "status", "statefulset/db", "--timeout=120s")
	eventuallyWithin(w.t, 4*patience, "pods run and are captured", func() error {
		if err := json.Unmarshal([]byte(must(w.t, "", "-n", "ks", "get", "pods", "-o", "json")), &list); err != nil {
			return err
		}
		for _, p := range list.Items {
			done := p.Status.Phase == "Succeeded"
			if !done && p.Status.Phase != "Running" {
				return fmt.Errorf("pod %s is %s", p.Metadata.Name, p.Status.Phase)
			}
			inMesh := !p.Spec.HostNetwork && p.Metadata.Labels["istio.io/dataplane-mode"] != "none"
			if got := p.Metadata.Annotations["ambient.istio.io/redirection"]; (got == "enabled") != inMesh && !done {
				return fmt.Errorf("redirection of pod %s is %q", p.Metadata.Name, got)
			}
		}
		return nil
	})
	for _, pod := range []string{"outsider", "stranger"} {
		w.ready("ks-out", pod)
	}
}

// get asks a URL once in a pod and returns what the server says.
func (w *shapesWorld) get(namespace, pod, url string) (string, error) {
	return kubectl(w.t.Context(), "", "-n", namespace, "exec", pod, "--", "/ambit", "echo", "client", "--fresh", "--timeout=10s", url)
}

// field is a field of a pod's status or spec, or of another object's.
func (w *shapesWorld) field(namespace, object, path string) string {
	w.t.Helper()
	return must(w.t, "", "-n", namespace, "get", object, "-o", "jsonpath={"+path+"}")
}

func (w *shapesWorld) ip(namespace, pod string) string {
	w.t.Helper()
	return w.field(namespace, "pod/"+pod, ".status.podIP")
}

// lines are those of the nodes' proxies about connections, that have all the words.
func (w *shapesWorld) lines(words ...string) []string {
	w.t.Helper()
	var out []string
	for line := range strings.Lines(must(w.t, "", "-n", w.system, "logs", "-l", "app=ztunnel", "-c", "proxy", "--tail=-1")) {
		if !slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(line, s) }) {
			out = append(out, line)
		}
	}
	return out
}

// end is a pod at one end of a connection.
type end struct{ namespace, pod string }

// carried says how connections reached a pod from another: by tunnels under its identity, and in plaintext.
func (w *shapesWorld) carried(from, to end) (hbone, plain int) {
	w.t.Helper()
	for _, line := range w.lines(`direction="inbound"`, `src.workload="`+from.pod+`"`, `dst.workload="`+to.pod+`"`) {
		if strings.Contains(line, `src.identity="spiffe://cluster.local/ns/`+from.namespace+`/sa/default"`) && strings.Contains(line, "dst.hbone_addr=") {
			hbone++
		} else {
			plain++
		}
	}
	return hbone, plain
}

// crosses checks that a URL is answered by a pod, and that this went through a tunnel, all of it.
func (w *shapesWorld) crosses(from end, url string, to end) {
	w.t.Helper()
	eventually(w.t, url+" from "+from.pod, func() error {
		hbone, plain := w.carried(from, to)
		if err := w.answers(from, url, to.pod); err != nil {
			return err
		}
		now, nowPlain := hbone, plain
		for range 20 { // the line is written when the connection has ended
			if now, nowPlain = w.carried(from, to); now > hbone {
				break
			}
		}
		if now <= hbone || nowPlain != plain {
			return fmt.Errorf("%d connections in tunnels, %d in plaintext", now-hbone, nowPlain-plain)
		}
		return nil
	})
}

// name is who has answered.
func name(answer string) string {
	first, _, _ := strings.Cut(answer, "\n")
	return first
}

// answers checks that a URL is answered by one of some pods.
func (w *shapesWorld) answers(from end, url string, pods ...string) error {
	got, err := w.get(from.namespace, from.pod, url)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(pods, func(p string) bool { return strings.Contains(got, "pod="+p+"\n") }) {
		return fmt.Errorf("answered by another pod than %v:\n%s", pods, got)
	}
	return nil
}

// plainly checks that a URL is answered by a pod without a tunnel.
func (w *shapesWorld) plainly(from end, url string, to end) {
	w.t.Helper()
	before, _ := w.carried(from, to)
	eventually(w.t, url+" from "+from.pod, func() error { return w.answers(from, url, to.pod) })
	if now, _ := w.carried(from, to); now != before {
		w.t.Errorf("%s from %s: %d connections in tunnels", url, from.pod, now-before)
	}
}

// refused checks that a URL is not answered.
func (w *shapesWorld) refused(from end, url string) {
	w.t.Helper()
	eventually(w.t, url+" from "+from.pod, func() error {
		if got, err := w.get(from.namespace, from.pod, url); err == nil {
			return fmt.Errorf("answered: %s", got)
		}
		return nil
	})
}

var (
	client   = end{"ks", "client"}
	outsider = end{"ks-out", "outsider"}
	server   = end{"ks", "server"}
)

func ks(pod string) end { return end{"ks", pod} }

func (w *shapesWorld) outside(t *testing.T) {
	w.crosses(client, "http://server/", server)
	w.crosses(client, "http://"+w.ip("ks", "server")+":8080/", server)
	w.plainly(outsider, "http://server.ks/", server)
	w.plainly(client, "http://stranger.ks-out/", end{"ks-out", "stranger"})
	eventually(t, "the line of plaintext to the stranger", func() error {
		if n := len(w.lines(`direction="outbound"`, `src.workload="client"`, `dst.workload="stranger"`)); n == 0 {
			return fmt.Errorf("no line")
		}
		return nil
	})
}

func (w *shapesWorld) headless(*testing.T) {
	for _, pod := range []string{"db-0", "db-1"} {
		w.crosses(client, "http://"+pod+".db:8080/", ks(pod))
		w.plainly(outsider, "http://"+pod+".db.ks.svc.cluster.local:8080/", ks(pod))
	}
	eventually(w.t, "db", func() error { return w.answers(client, "http://db:8080/", "db-0", "db-1") })
}

func (w *shapesWorld) externalName(*testing.T) {
	w.crosses(client, "http://alias/", server)
	w.plainly(outsider, "http://alias.ks/", server)
}

func (w *shapesWorld) hostNetwork(t *testing.T) {
	w.plainly(client, "http://host/", ks("host"))
	w.plainly(outsider, "http://host.ks/", ks("host"))
	w.plainly(ks("hostclient"), "http://server/", server)
	w.plainly(ks("hostclient"), "http://host/", ks("host"))
	out, err := onNode(t, "node1", ambitProgram(t), "echo", "client", "--timeout=10s", "http://"+w.field("ks", "service/server", ".spec.clusterIP")+"/")
	if err != nil || !strings.Contains(out, "pod=server\n") {
		t.Errorf("a process of the node: %v: %s", err, out)
	}
}

// firstOfJob is a Job that asks at once.
const firstOfJob = `
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: ks}
spec:
  backoffLimit: 0
  template:
    spec: {nodeName: node1, restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{name: ask, image: IMAGE, args: [echo, client, "--timeout=20s", "http://server/"]}]}
`

func (w *shapesWorld) job(t *testing.T) {
	w.apply(firstOfJob)
	must(t, "", "-n", "ks", "wait", "--for=condition=Complete", "job/job", "--timeout=60s")
	pod := w.field("ks", "pods", `.items[?(@.metadata.labels.job-name=="job")].metadata.name`)
	eventually(t, "its request in the log", func() error {
		if n := len(w.lines(`direction="inbound"`, `src.workload="`+pod+`"`, `src.identity="spiffe://cluster.local/ns/ks/sa/default"`, `dst.workload="server"`)); n != 1 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
}

func (w *shapesWorld) initContainers(t *testing.T) {
	w.ready("ks", "phases")
	eventually(t, "the lines of both init containers", func() error {
		if hbone, plain := w.carried(ks("phases"), ks("near-alone")); hbone < 2 || plain != 0 {
			return fmt.Errorf("%d in tunnels, %d in plaintext", hbone, plain)
		}
		return nil
	})
	w.crosses(client, "http://phases:90/", ks("phases"))
	w.crosses(client, "http://phases/", ks("phases"))
	out, err := kubectl(t.Context(), "", "-n", "ks", "exec", "phases", "-c", "side", "--", "/ambit", "echo", "client", "--timeout=10s", "http://near-alone/")
	if err != nil || !strings.Contains(out, "pod=near-alone\n") {
		t.Errorf("a sidecar as a client: %v: %s", err, out)
	}
}

func (w *shapesWorld) twoContainers(*testing.T) {
	w.crosses(client, "http://two:81/", ks("two"))
	w.crosses(client, "http://two:82/", ks("two"))
	w.plainly(outsider, "http://two.ks:82/", ks("two"))
}

func (w *shapesWorld) namedPorts(t *testing.T) {
	seen := map[string]bool{}
	eventually(t, "both pods", func() error {
		got, err := w.get("ks", "client", "http://named/")
		if err != nil {
			return err
		}
		if seen[name(got)] = true; !seen["pod=named-a"] || !seen["pod=named-b"] {
			return fmt.Errorf("answers of %v", seen)
		}
		return nil
	})
	for _, pod := range []string{"named-a", "named-b"} {
		if hbone, plain := w.carried(client, ks(pod)); hbone == 0 || plain != 0 {
			t.Errorf("%s: %d in tunnels, %d in plaintext", pod, hbone, plain)
		}
	}
}

func (w *shapesWorld) loopback(t *testing.T) {
	w.refused(client, "http://loopback/")
	w.refused(outsider, "http://loopback.ks/")
	w.refused(client, "http://"+w.ip("ks", "loopback")+":8080/")
	w.refused(ks("loopback"), "http://"+w.ip("ks", "loopback")+":8080/")
	if err := w.answers(ks("loopback"), "http://127.0.0.1:8080/", "loopback"); err != nil {
		t.Error(err)
	}
}

func (w *shapesWorld) itself(*testing.T) {
	for _, url := range []string{"http://" + w.ip("ks", "server") + ":8080/", "http://server.ks/", "http://localhost:8080/"} {
		eventually(w.t, url, func() error { return w.answers(server, url, "server") })
	}
}

func (w *shapesWorld) twins(*testing.T) {
	w.crosses(client, "http://server/", server)
	w.crosses(client, "http://twin:8081/", server)
	w.refused(client, "http://twin/") // the other's port
}

// slice is an EndpointSlice that somebody wrote.
const slice = `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: NAME-1, namespace: ks, labels: {kubernetes.io/service-name: NAME}}, addressType: IPv4,
 ports: [{name: http, port: 8080, protocol: TCP}], endpoints: [{addresses: [ADDRESS]}]}`

func (w *shapesWorld) manual(*testing.T) {
	for name, to := range map[string]end{"manual": server, "manual-out": {"ks-out", "stranger"}} {
		w.apply(strings.NewReplacer("NAME", name, "ADDRESS", w.ip(to.namespace, to.pod)).Replace(slice))
	}
	w.plainly(client, "http://manual-out/", end{"ks-out", "stranger"})
	w.plainly(outsider, "http://manual.ks/", server)
	w.crosses(client, "http://manual/", server)
}

func (w *shapesWorld) notReady(*testing.T) {
	w.crosses(client, "http://published/", ks("unready"))
	w.plainly(outsider, "http://published.ks/", ks("unready"))
	w.refused(client, "http://unpublished/")
	w.refused(outsider, "http://unpublished.ks/")
}

func (w *shapesWorld) internalLocal(t *testing.T) {
	for range 6 {
		eventually(t, "local", func() error { return w.answers(client, "http://local/", "near", "far") })
	}
	if hbone, plain := w.carried(client, ks("far")); hbone+plain != 0 {
		t.Errorf("%d connections to the pod of another node", hbone+plain)
	}
	w.refused(client, "http://remote/") // none on this node
}

func (w *shapesWorld) sticky(t *testing.T) {
	for _, from := range []end{client, outsider} {
		seen := map[string]bool{}
		for range 12 {
			var got string
			eventually(t, "sticky", func() (err error) { got, err = w.get(from.namespace, from.pod, "http://sticky.ks/"); return err })
			seen[name(got)] = true
		}
		if len(seen) != 1 {
			t.Errorf("%s was answered by %v", from.pod, seen)
		}
	}
}

// fromMachine asks as somebody outside the cluster does.
func fromMachine(t *testing.T, url string) (string, error) {
	out, err := exec.CommandContext(t.Context(), ambitProgram(t), "echo", "client", "--fresh", "--timeout=5s", url).CombinedOutput()
	return string(out), err
}

func (w *shapesWorld) nodePorts(t *testing.T) {
	addr := map[string]string{}
	for _, node := range []string{"node1", "node2"} {
		addr[node] = w.field("", "node/"+node, `.status.addresses[?(@.type=="InternalIP")].address`)
		addr[node], _, _ = strings.Cut(addr[node], " ")
	}
	anywhere, here := w.field("ks", "service/anywhere", ".spec.ports[0].nodePort"), w.field("ks", "service/here", ".spec.ports[0].nodePort")
	for _, c := range []struct{ node, port, peer string }{
		{"node1", anywhere, addr["node1"]}, {"node2", anywhere, ""}, {"node2", here, "172.30.0.1"}, // whose address stays
	} {
		eventually(t, c.node+":"+c.port, func() error {
			got, err := fromMachine(t, "http://"+addr[c.node]+":"+c.port+"/")
			if err != nil || !strings.Contains(got, "pod=server\n") || !strings.Contains(got, "peer="+c.peer) {
				return fmt.Errorf("%w: %s, want peer %s", err, got, c.peer)
			}
			return nil
		})
	}
	if got, err := fromMachine(t, "http://"+addr["node1"]+":"+here+"/"); err == nil {
		t.Errorf("the other node answered: %s", got)
	}
	// In the mesh a client has the node port as those outside.
	w.plainly(client, "http://"+addr["node2"]+":"+anywhere+"/", server)
}

func (w *shapesWorld) dualStack(t *testing.T) {
	ips := strings.Fields(w.field("ks", "pod/both", ".status.podIPs[*].ip"))
	if len(ips) < 2 {
		t.Skip("the cluster has one family of addresses only")
	}
	vips := strings.Fields(strings.NewReplacer("[", " ", "]", " ", `"`, " ", ",", " ").Replace(w.field("ks", "service/both", ".spec.clusterIPs")))
	six, out := w.field("ks", "service/six", ".spec.clusterIP"), strings.Fields(w.field("ks-out", "pod/stranger", ".status.podIPs[*].ip"))[1]
	if len(vips) != 2 || !strings.Contains(six, ":") {
		t.Fatalf("addresses of Services: %v, %s", vips, six)
	}
	for _, host := range []string{vips[0] + ":80", "[" + vips[1] + "]:80", ips[0] + ":8080", "[" + ips[1] + "]:8080", "[" + six + "]:80", "six", "both"} {
		w.crosses(client, "http://"+host+"/", ks("both"))
	}
	for _, host := range []string{"[" + vips[1] + "]:80", "[" + ips[1] + "]:8080"} {
		got, err := w.get("ks", "client", "http://"+host+"/")
		if err != nil || !strings.Contains(got, "local=["+ips[1]+"]:8080") {
			t.Errorf("%s: %v, reached another address than %s:\n%s", host, err, ips[1], got)
		}
		w.plainly(outsider, "http://"+host+"/", ks("both"))
	}
	w.plainly(client, "http://["+out+"]:8080/", end{"ks-out", "stranger"})
	eventually(t, "itself by IPv6", func() error { return w.answers(ks("both"), "http://["+ips[1]+"]:8080/", "both") })
}

func (w *shapesWorld) resolvers(t *testing.T) {
	for _, pod := range []string{"dns-none", "dns-custom"} {
		for _, host := range []string{"server", "stranger", "server.ks.svc.cluster.local", "stranger.ks-out.svc", "server.ks", "nobody"} {
			want, werr := w.get("ks", pod+"-plain", "http://"+host+"/")
			if werr != nil { // a short name may be found in the mesh only, which knows the pod's namespace
				want = "nothing"
			}
			eventually(t, host+" in "+pod, func() error {
				got, err := w.get("ks", pod, "http://"+host+"/")
				if (err != nil && werr == nil) || werr == nil && name(got) != name(want) || host == "nobody" && err == nil {
					return fmt.Errorf("got %q, %w; without the mesh %q", name(got), err, name(want))
				}
				return nil
			})
		}
	}
	// The node's nameserver has no say about the mesh.
	w.crosses(ks("dns-default"), "http://server.ks.svc.cluster.local/", server)
}

// policies are NetworkPolicies about one pod: one that keeps out the tunnels' port, and one that allows it.
const policies = `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: guarded, namespace: ks}, spec: {podSelector: {matchLabels: {app: guarded}}, ingress: [{ports: [{port: 8080}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: fine, namespace: ks}, spec: {podSelector: {matchLabels: {app: both}}, ingress: [{ports: [{port: 15008}]}]}}
`

// networkPolicy has rules on the pod's node stand for the CNI, as the bridge plugin enforces no policies.
func (w *shapesWorld) networkPolicy(t *testing.T) {
	w.apply(policies)
	out, _ := ambit(t, "analyze", "-n", "ks")
	if !strings.Contains(out, "AMB0306") || !strings.Contains(out, "NetworkPolicy ks/guarded") || !strings.Contains(out, "15008") || strings.Contains(out, "NetworkPolicy ks/fine") {
		t.Errorf("ambit analyze:\n%s", out)
	}
	drop := func(ports ...string) (end func()) {
		t.Helper()
		rule := func(op string) {
			args := append([]string{"iptables", "-w", op, "FORWARD", "-d", w.ip("ks", "guarded"), "-p", "tcp"}, ports...)
			if out, err := onNode(t, "node2", append(args, "-j", "DROP")...); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
		rule("-I")
		return func() { rule("-D") }
	}
	end := drop("--dport", "15008") // what ks/guarded means
	w.plainly(outsider, "http://guarded.ks/", ks("guarded"))
	w.refused(client, "http://guarded/")
	eventually(t, "the line that names the reason", func() error {
		if n := len(w.lines(`src.workload="client"`, w.ip("ks", "guarded")+":15008", "timed out; does a NetworkPolicy block port 15008?")); n == 0 {
			return fmt.Errorf("no line")
		}
		return nil
	})
	end()
	end = drop("!", "--dport", "15008") // what one means that allows this port alone
	w.crosses(client, "http://guarded/", ks("guarded"))
	w.refused(outsider, "http://guarded.ks/")
	end()
}

func (w *shapesWorld) terminating(t *testing.T) {
	w.crosses(client, "http://leaving/", ks("leaving"))
	must(t, "", "-n", "ks", "delete", "pod", "leaving", "--wait=false")
	eventually(t, "the pod terminates", func() error {
		if got := w.field("ks", "endpointslices", `.items[?(@.metadata.labels.kubernetes\.io/service-name=="leaving")].endpoints[*].conditions.terminating`); got != "true" {
			return fmt.Errorf("terminating: %q", got)
		}
		return nil
	})
	w.crosses(client, "http://leaving/", ks("leaving"))
	w.plainly(outsider, "http://leaving.ks/", ks("leaving"))
	must(t, "", "-n", "ks", "delete", "pod", "leaving", "--force", "--grace-period=0")
}
