package e2e

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
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
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
func (m *mesh) call(namespace, pod string, to netip.AddrPort) (outcome, error) {
	conn, err := m.dial(namespace, pod, to, patience)
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

// records counts the connections that a node's proxy has reported.
func (m *mesh) records(node string) int {
	return strings.Count(m.log("ztunnel/"+node, "proxy"), "\taccess\t")
}

// proxyAddrs are the addresses of the namespace that a node's proxy has for itself.
func (m *mesh) proxyAddrs(node string) (out []netip.Addr) {
	m.t.Helper()
	ns, err := netns.Open("/run/netns/ambit-" + m.name + "-ztunnel-" + node + ".1")
	netnstest.Must(m.t, err)
	defer ns.Close()
	netnstest.Must(m.t, ns.Do(func() error {
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
			m := start(t, lab.Options{Name: "e2emal" + mode, Programs: lab.Programs{ProxyArgs: []string{"--same-node=" + mode}}})
			m.maliciousCalls(t)
		})
	}
}

func (m *mesh) maliciousCalls(t *testing.T) {
	m.apply(maliciousManifests)
	for _, pod := range []string{"client", "near", "far"} {
		m.tunnelled("node-1", pod, true)
	}
	nodeAddrs := []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:172:30::b")}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	targets := []target{
		{name: "a pod of the same node", addrs: m.addrs("shop", "near")},
		{name: "a pod of another node", addrs: m.addrs("shop", "far")},
		{name: "the node", addrs: nodeAddrs},
		{"the ztunnel", m.proxyAddrs("node-1"), []uint16{15020, 15021}},
		{name: "localhost", addrs: loopback},
	}
	before, reported := m.usage(), map[string]int{} // a proxy that calls itself has ever more descriptors
	for node := range before {
		reported[node] = m.records(node)
	}
	cells := 0
	t.Run("captured", func(t *testing.T) {
		cells += m.matrix(t, "shop", "client", append(targets, target{name: "own address", addrs: m.addrs("shop", "client")}))
	})
	t.Run("uncaptured", func(t *testing.T) {
		own := target{name: "own address", addrs: m.addrs("outside", "uncaptured")}
		cells += m.matrix(t, "outside", "uncaptured", append(targets, own, target{name: "the captured pod", addrs: m.addrs("shop", "client")}))
	})
	t.Run("a service that leads to the proxy's ports", func(t *testing.T) {
		for _, vip := range m.vips("shop", "trap") {
			for _, port := range []uint16{81, 86, 88} {
				for _, from := range [][2]string{{"shop", "client"}, {"outside", "uncaptured"}} {
					cells++
					to := netip.AddrPortFrom(vip, port)
					if got, err := m.call(from[0], from[1], to); err != nil || got == answered {
						t.Errorf("from %s to %s: %s %v", from[1], to, got, err)
					}
				}
			}
		}
	})
	t.Run("CONNECT", func(t *testing.T) { cells += m.maliciousConnects(t) })
	t.Logf("%d calls", cells)
	t.Run("no call became many", func(t *testing.T) {
		for node, n := range before {
			m.await(node+" to close what the calls opened", 10*time.Second, func() error {
				if now := m.usage()[node].descriptors; now < 0 || now > n.descriptors+40 { // the tunnels that were opened stay
					return fmt.Errorf("%d files open, %d before", now, n.descriptors)
				}
				return nil
			})
			if now := m.records(node); now-reported[node] > 3*cells {
				t.Errorf("%s reports %d connections for %d calls", node, now-reported[node], cells)
			}
		}
	})
}

// matrix makes every call from a pod and returns their number.
func (m *mesh) matrix(t *testing.T, namespace, pod string, targets []target) (cells int) {
	for _, to := range targets {
		if len(to.addrs) != 2 {
			t.Fatalf("%s has addresses %v, want one of each family", to.name, to.addrs)
		}
		t.Run(to.name, func(t *testing.T) {
			for _, a := range to.addrs {
				for _, port := range proxyPorts {
					cells++
					t.Run(netip.AddrPortFrom(a, port).String(), func(t *testing.T) { m.cell(t, namespace, pod, netip.AddrPortFrom(a, port), to.answer) })
				}
			}
		})
	}
	return cells
}

func (m *mesh) cell(t *testing.T, namespace, pod string, to netip.AddrPort, answer []uint16) {
	got, err := m.call(namespace, pod, to)
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
func (m *mesh) maliciousConnects(t *testing.T) (cells int) {
	cfg := m.credentials("node-1", "spiffe://cluster.local/ns/outside/sa/default")
	near, far := m.addrs("shop", "near"), m.addrs("shop", "far")
	for i, own := range far {
		c, err := m.openTunnel("outside", "uncaptured", own, cfg)
		netnstest.Must(t, err)
		_, err = c.Write(append([]byte(preface), frame{typ: typeSettings}.bytes()...))
		netnstest.Must(t, err)
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
