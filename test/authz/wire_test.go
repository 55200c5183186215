package authz

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/forward/forwardtest"
)

// wire is our whole waypoint, which clients of the mesh's own trust domain reach through tunnels: with their certificate,
// from their address.
type wire struct{ *forwardtest.Waypoint }

// takes says whether the waypoint can be asked: certificates of other trust domains are not its mesh's.
func (w *wire) takes(r *request) bool { return strings.HasPrefix(r.identity, "cluster.local/") }

func (w *wire) decide(t *testing.T, r *request) (decision, path string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	id, err := spiffe.Parse("spiffe://" + r.identity)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Client(t, id).Dial(ctx, r.source, r.dest)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return r.ask(c, nil)
}
