package kube

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns"
)

// secret is in what the callers of a test send: it must never be seen in the clear.
const secret = "AMBIT-KUBE-SECRET-77d0b1"

// requireBed skips a test whose nodes must be on this machine.
func requireBed(t *testing.T) {
	t.Helper()
	if !onBed() {
		t.Skip("the nodes are not on this machine (make kube-up)")
	}
}

func onBed() bool {
	_, err := os.Stat("/run/netns/node1")
	return err == nil
}

var (
	pods     = netip.MustParsePrefix("10.244.0.0/16")
	services = netip.MustParsePrefix("10.96.0.0/16")
)

// tapFabric captures what pods say to each other on a link between the nodes, until stop is called.
func tapFabric(t *testing.T, link string) (stop func() wire.Report) {
	t.Helper()
	return tap(t, wire.Config{Link: link})
}

// tapNode captures what pods say to each other on all links of a node, also on those of pods to come.
func tapNode(t *testing.T, node string) (stop func() wire.Report) {
	t.Helper()
	ns, err := netns.Open("/run/netns/" + node)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return tap(t, wire.Config{Inside: ns.Do})
}

func tap(t *testing.T, cfg wire.Config) (stop func() wire.Report) {
	t.Helper()
	cfg.Marker = []byte(secret)
	cfg.Filter = func(s wire.Segment) bool { return ofPod(s.Src) && ofPod(s.Dst) }
	c, err := wire.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	end := sync.OnceValue(func() wire.Report {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		defer c.Close()
		return c.Report()
	})
	t.Cleanup(func() { end() })
	return end
}

// ofPod tells a pod or a Service of pods from nodes, whose first address is that of their bridge, and from what is not the
// mesh's to encrypt: xDS, DNS, the API server.
func ofPod(a netip.AddrPort) bool {
	ip := a.Addr()
	return (pods.Contains(ip) && ip.As4()[3] != 1 || services.Contains(ip)) && !slices.Contains([]uint16{15012, 53, 443}, a.Port())
}

// wantNoPlaintext looks at what was captured, but for what some spared clients said: nothing but HBONE, no packet of anything
// else, not even of its handshake.
func wantNoPlaintext(t *testing.T, where string, r wire.Report, spared ...netip.Addr) {
	t.Helper()
	r.Flows = slices.DeleteFunc(slices.Clone(r.Flows), func(f wire.Flow) bool { return slices.Contains(spared, f.Client.Addr()) })
	tunnels := r.Count(func(f *wire.Flow) bool { return f.Server.Port() == 15008 && f.TLS13() })
	t.Logf("%s: %d packets, %d connections of pods, %d of them HBONE, the callers' text %d times, %d packets missed", where, r.Packets, len(r.Flows), tunnels, r.Markers(), r.Dropped)
	if tunnels == 0 {
		t.Errorf("%s: nothing was tunnelled: the capture proves nothing", where)
	}
	if r.Dropped > 0 {
		t.Errorf("%s: the capture missed %d packets", where, r.Dropped)
	}
	for _, f := range r.Flows {
		if f.Markers > 0 || f.Server.Port() != 15008 {
			t.Errorf("%s: %s to %s is not HBONE: %d bytes, the callers' text %d times, first %q", where, f.Client, f.Server, f.Bytes, f.Markers, f.First)
		}
	}
}
