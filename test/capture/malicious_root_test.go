package capture

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// maliciousManifests are the pods of the matrix, and services whose target is a port of the proxy.
const maliciousManifests = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: far}}, spec: {nodeSelector: {kubernetes.io/hostname: node-2}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: uncaptured, namespace: outside}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
---
apiVersion: v1
kind: Service
metadata: {name: trap, namespace: shop}
spec:
  selector: {app: far}
  ipFamilyPolicy: PreferDualStack
  ports:
  - {name: outbound, port: 81, targetPort: 15001}
  - {name: inbound, port: 86, targetPort: 15006}
  - {name: hbone, port: 88, targetPort: 15008}
`

var proxyPorts = []uint16{15000, 15001, 15006, 15008, 15020, 15021, 15080}

// outcome is what becomes of a call, in the words of Istio's malicious_calls table: the connection fails, or it is accepted
// and the request fails, or an HTTP server answers with an error of its own.
type outcome string

const (
	failed   outcome = "connection fails"
	dropped  outcome = "request fails"
	answered outcome = "HTTP error"
)

// patience is how long a call may take at most. Istio's table gives a second; a busy machine gets more.
const patience = 5 * time.Second

// call makes one call of the table.
func (w *world) call(namespace, pod string, to netip.AddrPort) (outcome, error) {
	conn, err := w.dial(namespace, pod, to, patience)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("neither accepted nor refused: %w", err)
	}
	if err != nil {
		return failed, nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "hello world\r\n\r\n"); err != nil {
		return dropped, nil
	}
	got := make([]byte, 12)
	n, err := io.ReadFull(conn, got)
	switch {
	case string(got) == "HTTP/1.1 400":
		return answered, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", errors.New("neither answered nor closed")
	case n > 0:
		return "", fmt.Errorf("answered with %q", got[:n])
	}
	return dropped, nil
}

// target is a row of the table: an address of each family, and which ports answer.
type target struct {
	name   string
	addrs  []netip.Addr
	answer []uint16
}

// openFiles is the number of descriptors that a node's proxy holds: one that calls itself has ever more of them.
func (w *world) openFiles(node string) (n float64) {
	w.t.Helper()
	text, err := w.c.Fetch(w.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15020/metrics")
	must(w.t, err)
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "process_open_fds "); ok {
			_, err = fmt.Sscan(v, &n)
			must(w.t, err)
		}
	}
	if n == 0 {
		w.t.Fatal("the proxy does not tell how many files it has open")
	}
	return n
}

// records counts the connections that a node's proxy has reported.
func (w *world) records(node string) int {
	return strings.Count(w.log("ztunnel/"+node, "proxy"), "\taccess\t")
}

// proxyAddrs are the addresses of the namespace that a node's proxy has for itself.
func (w *world) proxyAddrs(node string) (out []netip.Addr) {
	w.t.Helper()
	must(w.t, w.insideNetNS("ambit-"+w.name+"-ztunnel-"+node+".1", func() error {
		as, err := net.InterfaceAddrs()
		for _, a := range as {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && ip.Unmap().IsGlobalUnicast() {
				out = append(out, ip.Unmap())
			}
		}
		return err
	}))
	return out
}

// ztunnel.md P5, the contract of malicious_calls_inpod, and more of it: what an application may send to ports of the proxy,
// wherever they are, is refused, and never makes the proxy call itself.
func TestRootMaliciousCalls(t *testing.T) {
	for _, mode := range []string{"direct", "hbone"} {
		t.Run("same-node="+mode, func(t *testing.T) {
			w := newWorld(t, "capmal"+mode, func(o *lab.Options) { o.Programs.ProxyArgs = []string{"--same-node=" + mode} })
			w.maliciousCalls(t)
		})
	}
}

func (w *world) maliciousCalls(t *testing.T) {
	w.apply(maliciousManifests)
	for _, pod := range []string{"client", "near", "far"} {
		w.tunnelled("node-1", pod, true)
	}
	nodeAddrs := []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:172:30::b")}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	targets := []target{
		{name: "a pod of the same node", addrs: w.addrs("shop", "near")},
		{name: "a pod of another node", addrs: w.addrs("shop", "far")},
		{name: "the node", addrs: nodeAddrs},
		{"the ztunnel", w.proxyAddrs("node-1"), []uint16{15020, 15021}},
		{name: "localhost", addrs: loopback},
	}
	before, reported := map[string]float64{}, map[string]int{}
	for _, node := range []string{"node-1", "node-2"} {
		before[node], reported[node] = w.openFiles(node), w.records(node)
	}
	cells := 0
	t.Run("captured", func(t *testing.T) {
		cells += w.matrix(t, "shop", "client", append(targets, target{name: "own address", addrs: w.addrs("shop", "client")}))
	})
	t.Run("uncaptured", func(t *testing.T) {
		own := target{name: "own address", addrs: w.addrs("outside", "uncaptured")}
		cells += w.matrix(t, "outside", "uncaptured", append(targets, own, target{name: "the captured pod", addrs: w.addrs("shop", "client")}))
	})
	t.Run("a service that leads to the proxy's ports", func(t *testing.T) {
		for _, vip := range w.vips("shop", "trap") {
			for _, port := range []uint16{81, 86, 88} {
				for _, from := range [][2]string{{"shop", "client"}, {"outside", "uncaptured"}} {
					cells++
					to := netip.AddrPortFrom(vip, port)
					if got, err := w.call(from[0], from[1], to); err != nil || got == answered {
						t.Errorf("from %s to %s: %s %v", from[1], to, got, err)
					}
				}
			}
		}
	})
	t.Run("CONNECT", func(t *testing.T) { cells += w.maliciousConnects(t) })
	t.Logf("%d calls", cells)
	t.Run("no call became many", func(t *testing.T) {
		for node, n := range before {
			w.await(node+" to close what the calls opened", 10*time.Second, func() error {
				if now := w.openFiles(node); now > n+40 { // the tunnels that were opened stay
					return fmt.Errorf("%.0f files open, %.0f before", now, n)
				}
				return nil
			})
			if now := w.records(node); now-reported[node] > 3*cells {
				t.Errorf("%s reports %d connections for %d calls", node, now-reported[node], cells)
			}
		}
	})
}

// matrix makes every call from a pod and returns their number.
func (w *world) matrix(t *testing.T, namespace, pod string, targets []target) (cells int) {
	for _, to := range targets {
		if len(to.addrs) != 2 {
			t.Fatalf("%s has addresses %v, want one of each family", to.name, to.addrs)
		}
		t.Run(to.name, func(t *testing.T) {
			for _, a := range to.addrs {
				for _, port := range proxyPorts {
					cells++
					t.Run(netip.AddrPortFrom(a, port).String(), func(t *testing.T) { w.cell(t, namespace, pod, netip.AddrPortFrom(a, port), to.answer) })
				}
			}
		})
	}
	return cells
}

func (w *world) cell(t *testing.T, namespace, pod string, to netip.AddrPort, answer []uint16) {
	got, err := w.call(namespace, pod, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range answer {
		if port == to.Port() {
			if got != answered {
				t.Errorf("%s, want the server's own error", got)
			}
			return
		}
	}
	if got == answered {
		t.Error("answered, want it refused")
	}
}

// badConnect is a request by its pseudo-header fields, and the first field of the answer or how the stream is reset.
type badConnect struct {
	name string
	kv   []string
	want string
}

// maliciousConnects asks a pod's tunnel port, as a peer with a valid certificate, for what is not its business (B22, I3).
func (w *world) maliciousConnects(t *testing.T) (cells int) {
	cfg := w.credentials("node-1", "spiffe://cluster.local/ns/outside/sa/default")
	near, far := w.addrs("shop", "near"), w.addrs("shop", "far")
	for i, own := range far {
		c, err := w.openTunnel("outside", "uncaptured", own, cfg)
		must(t, err)
		_, err = c.Write(append([]byte(preface), frame{typ: typeSettings}.bytes()...))
		must(t, err)
		at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
		ok := at(own, 8080)
		calls := []badConnect{
			{"localhost", connectTo("localhost:8080"), ":status: 503"},
			{"loopback", connectTo("127.0.0.1:8080"), ":status: 400"},
			{"IPv6 loopback", connectTo("[::1]:8080"), ":status: 400"},
			{"mapped loopback", connectTo("[::ffff:127.0.0.1]:8080"), ":status: 400"},
			{"another pod", connectTo(at(near[i], 8080)), ":status: 400"},
			{"the pod's other address", connectTo(at(far[1-i], 8080)), ":status: 400"},
			{"the node", connectTo("172.30.0.12:15021"), ":status: 400"},
			{"the unspecified address", connectTo("0.0.0.0:8080"), ":status: 400"},
			{"link-local", connectTo("169.254.1.1:8080"), ":status: 400"},
			{"IPv6 link-local", connectTo("[fe80::1]:8080"), ":status: 400"},
			{"a scoped address", connectTo("[fe80::1%25eth0]:8080"), ":status: 400"},
			{"a scoped address, unescaped", connectTo("[fe80::1%eth0]:8080"), ":status: 400"},
			{"a UDP name", connectTo("udp://dns:53"), ":status: 400"},
			{"a service of nobody", connectTo("nobody.shop.svc.cluster.local:80"), ":status: 503"},
			{"port 0", connectTo(own.String() + ":0"), ":status: 400"},
			{"port 70000", connectTo(strings.TrimSuffix(ok, "8080") + "70000"), ":status: 400"},
			{"a negative port", connectTo(strings.TrimSuffix(ok, "8080") + "-1"), ":status: 400"},
			{"no port", connectTo(strings.TrimSuffix(ok, ":8080")), ":status: 400"},
			{"no authority", []string{":method", "CONNECT"}, "reset 1"},
			{"an empty authority", connectTo(""), "reset 1"},
			{"a path", append(connectTo(ok), ":path", "/"), "reset 1"},
			{"a scheme", append(connectTo(ok), ":scheme", "http"), "reset 1"},
			{"another protocol", append(connectTo(ok), ":protocol", "connect-udp"), "reset 1"},
			{"GET", []string{":method", "GET", ":scheme", "http", ":authority", ok, ":path", "/"}, ":status: 400"},
		}
		for _, port := range []string{"81", "86", "88"} {
			calls = append(calls, badConnect{"the trap's port " + port, connectTo("trap.shop.svc.cluster.local:" + port), ":status: 503"})
		}
		for _, port := range proxyPorts {
			calls = append(calls, badConnect{fmt.Sprint("own address, port ", port), connectTo(at(own, port)), ":status: 503"})
		}
		for _, call := range append(calls, calls[0]) {
			cells++
			t.Run(own.String()+"/"+call.name, func(t *testing.T) {
				_, answer, err := c.connect(call.kv...)
				if err != nil || len(answer) == 0 || answer[0] != call.want {
					t.Errorf("got %q, %v, want %s", answer, err, call.want)
				}
			})
		}
		if _, answer, err := c.connect(connectTo(ok)...); err != nil || answer[0] != ":status: 200" {
			t.Errorf("after all that a good CONNECT gets %q, %v", answer, err)
		}
	}
	return cells
}

func connectTo(authority string) []string {
	return []string{":method", "CONNECT", ":authority", authority}
}
