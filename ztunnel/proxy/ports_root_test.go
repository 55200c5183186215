package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
)

// Were they of the pod's own range, NAT would have to move a later connection of the pod to the same server to another
// port, which may be one of a connection that is open in the server's pod.
func TestRootMeshConnectionsOutOfTheMeshLeaveFromPortsThatNoPodChooses(t *testing.T) {
	m := newMesh(t, nil)
	client := m.pod("client", "n1", "10.98.1.2", "fd98:1::2")
	outside := m.pod("outside", "n2", "10.98.2.2", "fd98:2::2")
	m.capture(client)
	ports := make(chan uint16, 1)
	m.serve(outside, 8080, func(c *net.TCPConn) {
		ports <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
		_, _ = io.Copy(io.Discard, c) // until the client's end
		c.Close()
	})
	from := func(addr netip.Addr) uint16 {
		t.Helper()
		if _, err := m.dial(client, netip.AddrPortFrom(addr, 8080).String()); err != nil {
			t.Fatal(err)
		}
		return <-ports
	}
	seen := map[uint16]bool{}
	for _, addr := range []netip.Addr{outside.v4, outside.v6} {
		for range 20 {
			p := from(addr)
			if p < redirect.UpstreamPorts.First {
				t.Errorf("to %s from port %d, which the pod itself may choose next", addr, p)
			}
			if seen[p] {
				t.Errorf("to %s from port %d again", addr, p)
			}
			seen[p] = true
		}
	}
	t.Run("also those of a new proxy, beside open ones of the old", func(t *testing.T) {
		m.nodes["n1"].proxy.StopPod(client.name, true)
		m.capture(client)
		for range 20 {
			if p := from(outside.v4); p < redirect.UpstreamPorts.First || seen[p] {
				t.Errorf("from port %d", p)
			}
		}
	})
	t.Run("also more of them than there are ports, each ended by the client", func(t *testing.T) {
		for i := range 5000 {
			c, err := m.dial(client, netip.AddrPortFrom(outside.v4, 8080).String())
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			if p := <-ports; p < redirect.UpstreamPorts.First {
				t.Fatalf("connection %d from port %d", i, p)
			}
			if err = c.CloseWrite(); err == nil {
				_, err = io.Copy(io.Discard, c)
			}
			if err != nil {
				t.Fatalf("end of connection %d: %v", i, err)
			}
			c.Close()
		}
	})
	t.Run("unless they are taken", func(t *testing.T) {
		err := client.space.Do(func() error {
			for p := redirect.UpstreamPorts.First; p != 0; p++ {
				l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close() })
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range []netip.Addr{outside.v4, outside.v6} {
			if p := from(addr); p >= redirect.UpstreamPorts.First {
				t.Errorf("to %s from port %d, on which another socket listens", addr, p)
			}
		}
	})
}
