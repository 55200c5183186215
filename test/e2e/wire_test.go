package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// marker is in what the tests send; once the mesh carries it, it must never be seen on the wire.
const marker = "AMBIT-E2E-MARKER-5d1c80"

// tap captures a node's link to the other nodes until stop is called. What goes to the control plane is left out.
func (m *mesh) tap(node string) (stop func() wire.Report) {
	m.t.Helper()
	a, err := m.c.Access(m.t.Context(), "", node, "")
	netnstest.Must(m.t, err)
	c, err := wire.Open(wire.Config{
		Link: "eth0", Inside: a.Do, Marker: []byte(marker),
		Filter: func(s wire.Segment) bool { return s.Src.Port() != 15012 && s.Dst.Port() != 15012 },
	})
	netnstest.Must(m.t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(m.t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }() // ends with cancel; stop waits for it
	end := sync.OnceValue(func() wire.Report {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
		defer c.Close()
		return c.Report()
	})
	m.t.Cleanup(func() { end() })
	return end
}

// encrypted says what in a capture was not TLS 1.3 from its first byte on. Flows without payload, such as a refused SYN,
// say nothing; a ClientHello that was never answered, because its pod is gone, must offer nothing else.
func encrypted(r wire.Report) error {
	var errs []error
	if n := r.Markers(); n > 0 {
		errs = append(errs, fmt.Errorf("the marker was on the wire %d times", n))
	}
	if r.Dropped > 0 {
		errs = append(errs, fmt.Errorf("%d packets were not looked at", r.Dropped))
	}
	for _, f := range r.Flows {
		unanswered := f.TLS && f.Version == 0 && slices.Equal(f.Offered, []uint16{tls.VersionTLS13})
		if f.Bytes > 0 && (f.Plaintext() || f.Whole && !f.TLS13() && !unanswered) {
			errs = append(errs, fmt.Errorf("%s to %s is not TLS 1.3: version %#x, first bytes %q", f.Client, f.Server, f.Version, f.First))
		}
	}
	return errors.Join(errs...)
}

// wantEncrypted fails the test if anything of a capture was in the clear, and tells what was seen. It returns how many
// tunnels were seen from their handshake on.
func wantEncrypted(t *testing.T, node string, r wire.Report) (whole int) {
	t.Helper()
	whole = r.Count(func(f *wire.Flow) bool { return f.Whole && f.TLS13() })
	t.Logf("%s: %d packets, %d connections, %d of them TLS 1.3 (%d from their handshake on), %d plaintext, marker %d times, %d packets missed",
		node, r.Packets, len(r.Flows), r.Count(func(f *wire.Flow) bool { return f.TLS13() }), whole,
		r.Count(func(f *wire.Flow) bool { return f.Plaintext() }), r.Markers(), r.Dropped)
	if err := encrypted(r); err != nil {
		t.Error(err)
	}
	return whole
}
