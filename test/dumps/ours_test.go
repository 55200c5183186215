package dumps

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/forward/forwardtest"
)

// client is who sends requests: a service account, as namespace and name.
type client struct{ namespace, account string }

func (c client) String() string { return c.namespace + "/" + c.account }

// principal is the client's identity, as policies see it.
func (c client) principal() string {
	return "spiffe://cluster.local/ns/" + c.namespace + "/sa/" + c.account
}

// clients are all of them: one that policies let in, one that they keep out, and one that they do not know.
var clients = []client{{"demo", "client"}, {"blocked", "app"}, {"other", "app"}}

// side is a waypoint under test.
type side interface {
	// dial opens a connection of a client to an address behind the waypoint.
	dial(ctx context.Context, who client, to netip.AddrPort) (net.Conn, error)
}

// ours is our waypoint, in the test's process. Clients reach it through tunnels, as their ztunnel would.
type ours struct {
	*forwardtest.Waypoint
	clients map[client]*forwardtest.Client
}

func startOurs(t *testing.T) *ours {
	t.Helper()
	o := &ours{Waypoint: forwardtest.Start(t), clients: map[client]*forwardtest.Client{}}
	for _, c := range clients {
		id, err := spiffe.New("cluster.local", c.namespace, c.account)
		if err != nil {
			t.Fatal(err)
		}
		o.clients[c] = o.Client(t, id)
	}
	return o
}

// serve makes the waypoint serve resources; only main_internal counts of the listeners.
func (o *ours) serve(t *testing.T, r *resources) {
	t.Helper()
	o.Serve(t, r.main, r.clusters)
}

func (o *ours) dial(ctx context.Context, who client, to netip.AddrPort) (net.Conn, error) {
	return o.clients[who].Dial(ctx, netip.Addr{}, to)
}
