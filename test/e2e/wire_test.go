package e2e

import (
	"context"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

// tap reads what passes on a node's link to the other nodes, except for what the node says to the control plane.
type tap struct {
	m    *mesh
	c    *wire.Capture
	stop context.CancelFunc
	done chan error
}

func (m *mesh) tap(node string) *tap {
	m.t.Helper()
	a, err := m.c.Access(m.t.Context(), "", node, "")
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := wire.Open(wire.Config{
		Link: "eth0", Inside: a.Do, Marker: []byte(marker),
		Filter: func(s wire.Segment) bool { return s.Src.Port() != 15012 && s.Dst.Port() != 15012 },
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	p := &tap{m: m, c: c, stop: cancel, done: make(chan error, 1)}
	go func() { p.done <- c.Run(ctx) }() // ends with cancel; end waits for it
	return p
}

// end stops reading, fails the test if anything was in the clear, and says what was seen.
func (p *tap) end() string {
	t := p.m.t
	t.Helper()
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	defer p.c.Close()
	r := p.c.Report()
	plain := r.Count(func(f *wire.Flow) bool { return f.Plaintext() })
	seen := fmt.Sprintf("on the wire %d packets, %d tunnels TLS 1.3, %d plaintext, marker %d times, %d packets missed",
		r.Packets, r.Count(func(f *wire.Flow) bool { return f.TLS13() }), plain, r.Markers(), r.Dropped)
	if plain > 0 || r.Markers() > 0 || r.Dropped > 0 {
		t.Errorf("want all of it seen and encrypted: %s", seen)
		for i := range r.Flows {
			if f := &r.Flows[i]; f.Plaintext() || f.Markers > 0 {
				t.Logf("in the clear: %s to %s: %q", f.Client, f.Server, f.First)
			}
		}
	}
	return seen
}
