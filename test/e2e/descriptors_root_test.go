package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// greeted says whether the server greets a connection within a time.
func greeted(c net.Conn, within time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(within))
	n, _ := c.Read(make([]byte, 1000))
	return n > 0
}

func TestRootAProxyOutOfDescriptorsLetsConnectionsWaitAndStaysInTouch(t *testing.T) { // B8, B42, EMFILE
	netnstest.RequireRoot(t)
	const limit = 200
	wrapper := filepath.Join(t.TempDir(), "ztunnel")
	script := fmt.Sprintf("#!/bin/sh\ncase \"$1\" in proxy) ulimit -n %d;; esac\nexec %s \"$@\"\n", limit, program(t, "ztunnel"))
	netnstest.Must(t, os.WriteFile(wrapper, []byte(script), 0o755))
	m := up(t, lab.Options{Name: "e2eemfile", Programs: lab.Programs{ZtunnelOf: map[string]string{"node-1": wrapper}}})
	server := netip.AddrPortFrom(m.addrs("shop", "server-")[0], 9000).String()
	client, err := m.c.Access(t.Context(), "shop", "client", "")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err := client.Do(func() error {
		for range 2 * limit {
			c, err := net.DialTimeout("tcp", server, 5*time.Second)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	served := 0
	for served < len(conns) && greeted(conns[served], 2*time.Second) {
		served++
	}
	t.Logf("%d of %d connections are served by a proxy that may have %d descriptors", served, len(conns), limit)
	if served < limit/4 || served >= limit {
		t.Fatal("the proxy does not serve what it can, or has no limit")
	}
	for i, c := range conns[served:] { // the rest waits: neither served nor reset
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || !os.IsTimeout(err) {
			t.Fatalf("connection %d, beyond the limit: %d bytes, %v", served+i, n, err)
		}
	}

	// What is served goes on, and the control plane can be reached anew: it is restarted, and a policy still arrives.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // without a descriptor, nobody is answered
	defer cancel()
	if err := m.c.Program(ctx, "restart", "controlplane", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := m.c.Fetch(ctx, "ztunnel/node-1", "http://127.0.0.1:15021/healthz/ready"); err != nil {
		t.Errorf("readiness: %v", err)
	}
	service := func(name string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + ", namespace: shop}\nspec: {selector: {app: none}, ports: [{port: 1}]}\n"
	}
	if err := m.c.ApplyYAML(t.Context(), service("fresh")); err != nil {
		t.Fatal(err)
	}
	m.eventually("news from the control plane", 20*time.Second, func() bool {
		dump, err := m.c.Fetch(ctx, "ztunnel/node-1", "http://127.0.0.1:15000/config_dump")
		return err == nil && strings.Contains(dump, "fresh.shop.svc")
	})
	if n := strings.Count(m.log("ztunnel/node-1", "proxy"), "out of descriptors"); n < 1 || n > 4 {
		t.Errorf("%d warnings of the descriptors, want one in 10 s", n)
	}

	// Room again: those that wait are served.
	for _, c := range conns[:served] {
		c.Close()
	}
	if !greeted(conns[served], 5*time.Second) {
		t.Error("a connection that waited is not served when there is room again")
	}
	if log := m.log("ztunnel/node-1", "proxy"); strings.Contains(log, "panic") {
		t.Error("the proxy panicked")
	}
}

// TestRootAWaypointOutOfDescriptorsServesItsPeersAndStaysInTouch: strangers that open more connections than a waypoint may have, and
// say nothing, keep nobody out for long.
func TestRootAWaypointOutOfDescriptorsServesItsPeersAndStaysInTouch(t *testing.T) { // B8, EMFILE
	netnstest.RequireRoot(t)
	const limit = 150
	wrapper := filepath.Join(t.TempDir(), "waypoint")
	netnstest.Must(t, os.WriteFile(wrapper, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", limit, program(t, "waypoint")), 0o755))
	m := start(t, lab.Options{Name: "e2ewpemfile", Programs: lab.Programs{Waypoint: wrapper}})
	m.files("testdata/waypoint.yaml")
	m.ready()
	answered := func(want string) func() bool {
		return func() bool {
			s := m.from("shop", "client", "--fresh", "--timeout=3s", "http://web/")
			return s.OK == 1 && strings.Contains(s.First, want)
		}
	}
	m.eventually("the first answer through the waypoint", 20*time.Second, answered("header.X-Request-Id="))
	pod := m.podNamed("wp-")
	at := netip.AddrPortFrom(m.addrs("shop", "wp-")[0], 15008)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range 2 * limit {
		c, err := m.dial("", "node-1", at, 5*time.Second)
		netnstest.Must(t, err)
		conns = append(conns, c)
	}
	m.eventually("the waypoint's word that it is out of descriptors", 10*time.Second, func() bool { return strings.Contains(m.podLog("wp-"), "out of descriptors") })
	m.eventually("an answer to who is connected", 10*time.Second, answered("pod=web-"))
	m.apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: shop}, spec: {hosts: [web], http: [{headers: {request: {set: {x-new: here}}}, route: [{destination: {host: web}}]}]}}")
	m.eventually("news from the control plane", 10*time.Second, answered("header.X-New=here"))
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	m.eventually("a stranger's connection that is taken again", 20*time.Second, func() bool {
		c, err := m.dial("", "node-1", at, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) // no TLS: it is closed at once if it is looked at
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, readErr := c.Read(make([]byte, 1))
		return err == nil && readErr != nil && !os.IsTimeout(readErr)
	})
	if log := m.podLog("wp-"); m.podNamed("wp-") != pod || strings.Contains(log, "panic") || strings.Count(log, "waypoint starts") != 1 {
		t.Error("the waypoint ended meanwhile: " + log)
	}
}
