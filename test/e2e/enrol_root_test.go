package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// enrolManifests are a client and a server on two nodes, another server beside the client, and a client of a namespace that
// stays outside. Port 9000 echoes.
const enrolManifests = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo, args: ["--listen=:9000"], readinessProbe: {tcpSocket: {port: 9000}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: far}}, spec: {nodeSelector: {kubernetes.io/hostname: node-2}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo, args: ["--listen=:9000"], readinessProbe: {tcpSocket: {port: 9000}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: outsider, namespace: outside}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo, args: ["--listen=:9000"], readinessProbe: {tcpSocket: {port: 9000}}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: far, namespace: shop}, spec: {selector: {app: far}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 90, targetPort: 9000}]}}
`

// talk is a connection that a pod keeps, with bytes on their way both ways all the time.
type talk struct {
	name   string
	conn   *net.TCPConn
	rounds atomic.Int64
	err    error // why it ended early; after the group has ended
}

// run sends and takes back blocks of random bytes until stop is closed, and ends with a FIN both ways.
func (k *talk) run(stop <-chan struct{}) error {
	rnd := rand.NewChaCha8([32]byte{9})
	out, in := make([]byte, 1<<10), make([]byte, 1<<10)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		rnd.Read(out)
		_ = k.conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := k.conn.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(k.conn, in); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("other bytes came back")
		}
		k.rounds.Add(1)
		select {
		case <-stop:
			if err := k.conn.CloseWrite(); err != nil {
				return err
			}
			if n, err := k.conn.Read(in); n > 0 || err != io.EOF {
				return fmt.Errorf("after the end came %d bytes, %v", n, err)
			}
			return nil
		case <-tick.C:
		}
	}
}

// talks are all connections of a test.
type talks struct {
	m    *mesh
	stop chan struct{}
	wg   sync.WaitGroup
	all  []*talk
}

// open opens one connection for every pair of a client and an address of a server.
func (ks *talks) open(generation string) {
	m := ks.m
	m.t.Helper()
	far := ports(m.addrs("shop", "far"), 9000)
	for _, c := range []struct {
		namespace, pod, what string
		to                   []netip.AddrPort
	}{
		{"shop", "client", "another node", far},
		{"shop", "client", "a service", ports(m.vips("shop", "far"), 90)},
		{"shop", "client", "the same node", ports(m.addrs("shop", "near"), 9000)},
		{"shop", "client", "outside", ports(m.addrs("outside", "outsider"), 9000)},
		{"outside", "outsider", "from outside", far},
	} {
		for _, to := range c.to {
			conn, err := m.dial(c.namespace, c.pod, to, 5*time.Second)
			netnstest.Must(m.t, err)
			m.t.Cleanup(func() { conn.Close() })
			k := &talk{name: generation + ", " + c.what + ", " + to.String(), conn: conn}
			ks.all = append(ks.all, k)
			ks.wg.Go(func() { k.err = k.run(ks.stop) })
		}
	}
}

// flow waits until every connection has carried bytes both ways again.
func (ks *talks) flow(when string) {
	m := ks.m
	m.t.Helper()
	before := make([]int64, len(ks.all))
	for i, k := range ks.all {
		before[i] = k.rounds.Load()
	}
	for i, k := range ks.all {
		m.await(k.name+" to carry bytes "+when, 20*time.Second, func() error {
			if n := k.rounds.Load(); n < before[i]+2 {
				return fmt.Errorf("%d rounds, then %d", before[i], n)
			}
			return nil
		})
	}
}

// enrol sets or takes the namespace's label and waits until pods and proxies follow.
func (m *mesh) enrol(yes bool) {
	m.t.Helper()
	labels := ""
	if yes {
		labels = ", labels: {istio.io/dataplane-mode: ambient}"
	}
	m.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop" + labels + "}}")
	for _, p := range m.pods("shop") {
		if p.captured() != yes {
			m.t.Fatalf("pod %s is captured: %t, want %t", p.Metadata.Name, p.captured(), yes)
		}
	}
	for _, node := range []string{"node-1", "node-2"} {
		m.tunnelled(node, "far", yes)
	}
}

// tunnels tells whether a new connection to the far pod goes by a tunnel, by what is on the wire.
func (m *mesh) tunnels(to netip.AddrPort) bool {
	m.t.Helper()
	stop := m.tap("node-1")
	conn, err := m.dial("shop", "client", to, 5*time.Second)
	netnstest.Must(m.t, err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = io.WriteString(conn, marker)
	netnstest.Must(m.t, err)
	_, err = io.ReadFull(conn, make([]byte, len(marker)))
	netnstest.Must(m.t, err)
	r := stop()
	return r.Markers() == 0
}

// Acceptance point 3: connections that are open before a pod is enrolled survive it, and those that are open before it is
// un-enrolled survive that, whichever way they go.
func TestRootOpenConnectionsSurviveEnrolmentAndUnenrolment(t *testing.T) {
	for _, families := range []string{"dual", "ipv4", "ipv6"} {
		t.Run(families, func(t *testing.T) {
			m := start(t, lab.Options{Name: "e2eenr" + families, Families: families})
			m.apply(enrolManifests)
			ks := &talks{m: m, stop: make(chan struct{})}
			end := sync.OnceFunc(func() { close(ks.stop); ks.wg.Wait() })
			defer end()
			far := ports(m.addrs("shop", "far"), 9000)
			for round, enrolled := range []bool{false, true, false, true, false} {
				if round > 0 {
					m.enrol(enrolled)
				}
				when := fmt.Sprintf("in round %d, enrolled: %t", round, enrolled)
				ks.flow(when)
				for _, to := range far {
					if got := m.tunnels(to); got != enrolled {
						t.Errorf("%s: a new connection to %s is tunnelled: %t", when, to, got)
					}
				}
				ks.open(fmt.Sprintf("opened in round %d", round))
				ks.flow(when)
			}
			end()
			for _, k := range ks.all {
				if k.err != nil {
					t.Errorf("%s: after %d rounds: %v", k.name, k.rounds.Load(), k.err)
				}
			}
			t.Logf("%d connections, none ended early", len(ks.all))
		})
	}
}
