package discovery

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/xds"
)

var (
	clusters  = Set{TypeURL: xds.ClusterType, Scope: "shop/wp"}
	endpoints = Set{TypeURL: xds.EndpointType, Scope: "shop/wp"}
	listeners = Set{TypeURL: xds.ListenerType, Scope: "shop/wp"}
)

// configured is a waypoint that has a cluster "old" with endpoints, and a listener that leads there.
func configured(t *testing.T, s *Server) *conn {
	t.Helper()
	s.PublishTogether([]Contents{{clusters, []Resource{res("old", "1")}}, {endpoints, []Resource{res("old", "1")}}, {listeners, []Resource{res("main", "old")}}})
	c := dial(t, s, wp)
	c.ask(xds.ClusterType, "", map[string]any{"gateway": "wp"})
	nonce := c.wantOf(xds.ClusterType, []string{"old"}, nil)
	c.ask(xds.EndpointType, "", nil, "old")
	c.ask(xds.ListenerType, "", nil)
	c.ask(xds.ClusterType, nonce, nil)
	c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, []string{"old"}, nil), nil)
	c.ask(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil), nil)
	c.wantIdle("all is there")
	return c
}

func (c *conn) nack(url, nonce string) {
	c.requests <- &discoverypb.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce, ErrorDetail: &statuspb.Status{Message: "bad"}}
}

// TestARouteComesAfterItsClusterAndEndpointsAndAClusterGoesAfterItsRoute: make before break (controlplane.md 4).
func TestARouteComesAfterItsClusterAndEndpointsAndAClusterGoesAfterItsRoute(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, []Resource{res("new", "1")}}, {endpoints, []Resource{res("new", "1")}}, {listeners, []Resource{res("main", "new")}}})
		cds := c.wantOf(xds.ClusterType, []string{"new"}, nil)
		c.wantIdle("the client may not have the new cluster yet")
		if got := stateOf(s, xds.ListenerType); got != "STALE" {
			t.Errorf("listeners that wait are %q", got)
		}
		c.ask(xds.EndpointType, "", nil, "new")
		eds := c.wantOf(xds.EndpointType, []string{"new"}, nil)
		c.ask(xds.ClusterType, cds, nil)
		c.wantIdle("the client may not have the endpoints yet")
		c.ask(xds.EndpointType, eds, nil)
		lds := c.wantOf(xds.ListenerType, []string{"main"}, nil)
		c.ask(xds.ListenerType, lds, nil)
		time.Sleep(59 * time.Second)
		c.wantIdle("connections that began before lead to the old cluster")
		time.Sleep(2 * time.Second)
		cds = c.wantOf(xds.ClusterType, nil, []string{"old"})
		c.wantIdle("the client may still have the old cluster")
		c.ask(xds.ClusterType, cds, nil)
		c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, nil, []string{"old"}), nil)
		c.wantIdle("all was said")
		if got := stateOf(s, xds.ListenerType); got != "SYNCED" {
			t.Errorf("listeners are %q at the end", got)
		}
	})
}

func stateOf(s *Server, url string) string {
	for _, t := range s.Clients()[0].Types {
		if t.TypeURL == url {
			return t.State
		}
	}
	return ""
}

func TestEndpointsThatChangeWaitForNothing(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, []Resource{res("old", "1"), res("new", "1")}}, {listeners, []Resource{res("main", "new")}}})
		c.wantOf(xds.ClusterType, []string{"new"}, nil)
		for _, v := range []string{"2", "3"} {
			s.Update(endpoints, []Resource{res("old", v)}, nil)
			c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, []string{"old"}, nil), nil)
		}
		c.wantIdle("the cluster is not acknowledged")
	})
}

func TestAClusterThatComesBackDoesNotGo(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, nil}, {endpoints, nil}})
		c.wantIdle("connections may still need it")
		s.PublishTogether([]Contents{{clusters, []Resource{res("old", "2")}}, {endpoints, []Resource{res("old", "2")}}})
		c.ask(xds.ClusterType, c.wantOf(xds.ClusterType, []string{"old"}, nil), nil)
		c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, []string{"old"}, nil), nil)
		time.Sleep(time.Hour)
		c.wantIdle("it is there")
	})
}

func TestARouteComesBehindTheEndpointsOfItsState(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		publish := func(v string) {
			s.PublishTogether([]Contents{{endpoints, []Resource{res("old", v)}}, {listeners, []Resource{res("main", v)}}})
		}
		publish("2")
		eds := c.wantOf(xds.EndpointType, []string{"old"}, nil)
		c.ask(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil), nil)
		publish("3")
		c.wantIdle("the endpoints wait for an ACK, and the route for them")
		if got := stateOf(s, xds.ListenerType); got != "STALE" {
			t.Errorf("listeners that wait are %q", got)
		}
		c.ask(xds.EndpointType, eds, nil)
		c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, []string{"old"}, nil), nil)
		c.ask(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil), nil)
		c.wantIdle("all was said")
	})
}

func TestAClientThatReturnsKeepsTheEndpointsThatItsRoutesLeadTo(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		s.PublishTogether([]Contents{{clusters, []Resource{res("new", "1")}}, {endpoints, []Resource{res("new", "1")}}, {listeners, []Resource{res("main", "new")}}})
		c := dial(t, s, wp)
		c.returns(xds.ClusterType, map[string]string{"old": "1"})
		cds := c.wantOf(xds.ClusterType, []string{"new"}, nil)
		c.returns(xds.EndpointType, map[string]string{"old": "1"}, "old")
		eds := c.wantOf(xds.EndpointType, nil, nil) // an answer, but not that they are gone
		c.returns(xds.ListenerType, map[string]string{"main": "1"})
		c.ask(xds.EndpointType, eds, nil)
		c.ask(xds.EndpointType, "", nil, "new")
		eds = c.wantOf(xds.EndpointType, []string{"new"}, nil)
		c.ask(xds.ClusterType, cds, nil)
		c.ask(xds.EndpointType, eds, nil)
		c.ask(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil), nil)
		time.Sleep(2 * time.Minute)
		c.ask(xds.ClusterType, c.wantOf(xds.ClusterType, nil, []string{"old"}), nil)
		c.wantOf(xds.EndpointType, nil, []string{"old"})
	})
}

// returns is a first request of a type by a client that has some of it.
func (c *conn) returns(url string, versions map[string]string, names ...string) {
	n := node("waypoint~1.1.1.2~wp-1.shop~shop.svc.cluster.local", "NAMESPACE", "shop")
	n.Metadata.Fields["LABELS"] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"gateway": structpb.NewStringValue("wp")}})
	c.requests <- &discoverypb.DeltaDiscoveryRequest{Node: n, TypeUrl: url, ResourceNamesSubscribe: names, InitialResourceVersions: versions}
}

func TestAClusterOfAClientThatDoesNotAnswerGoesWhenItDoes(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.Update(clusters, []Resource{res("x", "1")}, nil)
		c.ask(xds.ClusterType, c.wantOf(xds.ClusterType, []string{"x"}, nil), nil)
		s.Update(clusters, nil, []string{"x"})
		c.wantIdle("it lingers")
		s.Update(clusters, []Resource{res("old", "2")}, nil)
		cds := c.wantOf(xds.ClusterType, []string{"old"}, nil)
		c.ask(xds.EndpointType, c.wantOf(xds.EndpointType, []string{"old"}, nil), nil)
		time.Sleep(time.Hour) // of a bubble, which a loop that never waits would not end
		c.wantIdle("the client has not answered")
		c.ask(xds.ClusterType, cds, nil)
		c.wantOf(xds.ClusterType, nil, []string{"x"})
	})
}

func TestAClusterStaysWhileTheListenerWithoutItIsRejected(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, nil}, {listeners, []Resource{res("main", "bad")}}})
		c.nack(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil))
		time.Sleep(time.Hour)
		c.wantIdle("the listener in force leads to it")
		s.Publish(listeners, []Resource{res("main", "good")})
		c.ask(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil), nil)
		time.Sleep(2 * time.Minute)
		c.wantOf(xds.ClusterType, nil, []string{"old"})
	})
}

func TestWhatWasRejectedIsSoAfterARemoval(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.Publish(clusters, []Resource{res("new", "bad")})
		c.nack(xds.ClusterType, c.wantOf(xds.ClusterType, []string{"new"}, nil))
		time.Sleep(2 * time.Minute)
		c.ask(xds.ClusterType, c.wantOf(xds.ClusterType, nil, []string{"old"}), nil)
		c.wantIdle("all was said")
		if got := stateOf(s, xds.ClusterType); got != "NACKED" {
			t.Errorf("clusters are %q", got)
		}
	})
}

func TestThatThereIsNoClusterOfANameIsAnsweredAtOnce(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		c.ask(xds.ClusterType, "", nil, "nobody")
		c.wantOf(xds.ClusterType, nil, []string{"nobody"})
	})
}

func TestARouteThatComesWhileAClusterIsNotAcknowledgedIsNotSynced(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.Update(clusters, []Resource{res("new", "1")}, nil)
		c.wantOf(xds.ClusterType, []string{"new"}, nil)
		s.Publish(listeners, []Resource{res("main", "new")})
		c.wantIdle("the cluster is not acknowledged")
		if got := stateOf(s, xds.ListenerType); got != "STALE" {
			t.Errorf("listeners that wait are %q", got)
		}
	})
}

func TestAClusterThatLingersIsNoReasonToCallAClientSlow(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.Publish(listeners, []Resource{res("main", "2")})
		lds := c.wantOf(xds.ListenerType, []string{"main"}, nil)
		s.Publish(clusters, nil)
		c.wantIdle("the listener is not acknowledged")
		c.ask(xds.ListenerType, lds, nil)
		c.wantIdle("the cluster lingers")
		if got := stateOf(s, xds.ClusterType); got != "SYNCED" {
			t.Errorf("clusters are %q", got)
		}
	})
}

func TestARouteThatIsTakenBackBeforeItWasSentIsNotSent(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, []Resource{res("old", "1"), res("new", "1")}}, {endpoints, []Resource{res("old", "1"), res("new", "1")}}, {listeners, []Resource{res("main", "new")}}})
		cds := c.wantOf(xds.ClusterType, []string{"new"}, nil)
		s.PublishTogether([]Contents{{clusters, []Resource{res("old", "1")}}, {endpoints, []Resource{res("old", "1")}}, {listeners, []Resource{res("main", "old")}}})
		c.ask(xds.EndpointType, "", nil, "new")
		eds := c.wantOf(xds.EndpointType, nil, []string{"new"})
		c.ask(xds.ClusterType, cds, nil)
		c.ask(xds.EndpointType, eds, nil)
		synctest.Wait()
		if resp := <-c.responses; resp.GetTypeUrl() != xds.ListenerType || !bytes.Contains(resp.GetResources()[0].GetResource().GetValue(), []byte("old")) {
			t.Errorf("got %v, want the listener that leads to the old cluster", resp)
		}
	})
}

// TestARouteNeverLeadsToAClusterThatIsNotThere lets a client whose answers come late follow random states of three clusters.
func TestARouteNeverLeadsToAClusterThatIsNotThere(t *testing.T) {
	for seed := range uint64(sequences()) {
		bubble(t, waypoints, func(t *testing.T, s *Server) { follow(t, s, rand.New(rand.NewPCG(seed, 1))) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// sequences is how many are followed: with AMBIT_SOAK ten times as many.
func sequences() int {
	if os.Getenv("AMBIT_SOAK") != "" {
		return 2000
	}
	return 200
}

func follow(t *testing.T, s *Server, r *rand.Rand) {
	names := []string{"a", "b", "c"}
	target := ""
	publish := func() {
		var cds, eds []Resource
		target = names[r.IntN(len(names))]
		for _, n := range names {
			if n == target || r.IntN(2) == 0 {
				cds = append(cds, res(n, strconv.Itoa(r.IntN(2))))
				eds = append(eds, res(n, strconv.Itoa(r.IntN(9))))
			}
		}
		s.PublishTogether([]Contents{{clusters, cds}, {endpoints, eds}, {listeners, []Resource{{Name: "main", Version: target, Body: []byte(target)}}}})
	}
	publish()
	c := dial(t, s, wp)
	c.ask(xds.ClusterType, "", map[string]any{"gateway": "wp"})
	c.ask(xds.ListenerType, "", nil)
	has, filled, leads, subscribed := map[string]bool{}, map[string]bool{}, "", false
	take := func(resp *discoverypb.DeltaDiscoveryResponse) {
		var ask, forget []string
		for _, x := range resp.GetResources() {
			switch resp.GetTypeUrl() {
			case xds.ClusterType:
				if !has[x.GetName()] {
					ask = append(ask, x.GetName())
				}
				has[x.GetName()] = true
			case xds.EndpointType:
				filled[x.GetName()] = true
			case xds.ListenerType:
				leads = string(x.GetResource().GetValue())
			}
		}
		for _, n := range resp.GetRemovedResources() {
			delete(filled, n)
			if resp.GetTypeUrl() == xds.ClusterType {
				delete(has, n)
				forget = append(forget, n)
			}
		}
		if len(ask)+len(forget) > 0 {
			req := &discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.EndpointType, ResourceNamesSubscribe: ask, ResourceNamesUnsubscribe: forget}
			if !subscribed {
				subscribed = true
				c.ask(xds.EndpointType, "", nil, ask...)
			} else {
				c.requests <- req
			}
		}
		if leads != "" && (!has[leads] || !filled[leads]) {
			t.Errorf("a listener leads to %q: it is there: %v, and has endpoints: %v", leads, has[leads], filled[leads])
		}
	}
	var answers []*discoverypb.DeltaDiscoveryResponse
	step := func() bool {
		synctest.Wait()
		switch {
		case len(c.responses) > 0:
			resp := <-c.responses
			take(resp)
			answers = append(answers, resp)
		case len(answers) > 0:
			i := r.IntN(len(answers))
			c.ask(answers[i].GetTypeUrl(), answers[i].GetNonce(), nil)
			answers = slices.Delete(answers, i, i+1)
		default:
			return false
		}
		return true
	}
	for range 60 {
		switch r.IntN(4) {
		case 0:
			publish()
		case 1:
			time.Sleep(time.Duration(r.IntN(40)) * time.Second)
		default:
			step()
		}
	}
	for step() {
	}
	time.Sleep(5 * time.Minute)
	for step() {
	}
	if leads != target {
		t.Errorf("in the end the listener leads to %q, want %q", leads, target)
	}
	want := map[string]bool{}
	s.mu.RLock()
	for n := range s.sets[clusters].entries {
		want[n] = true
	}
	s.mu.RUnlock()
	if !maps.Equal(has, want) {
		t.Errorf("in the end the client has %v, want %v", has, want)
	}
}

func TestARejectedClusterDoesNotHoldBackRoutesForEver(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		s.PublishTogether([]Contents{{clusters, []Resource{res("old", "2")}}, {listeners, []Resource{res("main", "2")}}})
		cds := c.wantOf(xds.ClusterType, []string{"old"}, nil)
		eds := c.wantOf(xds.EndpointType, []string{"old"}, nil) // unchanged, for whoever warms the cluster
		c.nack(xds.ClusterType, cds)
		c.wantIdle("the endpoints are not acknowledged")
		c.nack(xds.EndpointType, eds)
		c.nack(xds.ListenerType, c.wantOf(xds.ListenerType, []string{"main"}, nil))
		c.wantIdle("nothing is sent twice")
	})
}

func TestRoutesArriveUnderASteadyStreamOfClusters(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := configured(t, s)
		version := 1
		publish := func() {
			version++
			v := strconv.Itoa(version)
			s.PublishTogether([]Contents{{clusters, []Resource{res("old", v)}}, {listeners, []Resource{res("main", v)}}})
		}
		publish()
		for range 10 {
			cds := c.wantOf(xds.ClusterType, []string{"old"}, nil)
			eds := c.wantOf(xds.EndpointType, []string{"old"}, nil)
			publish() // before each ACK
			c.ask(xds.ClusterType, cds, nil)
			publish()
			c.ask(xds.EndpointType, eds, nil)
			lds := c.wantOf(xds.ListenerType, []string{"main"}, nil)
			publish()
			c.ask(xds.ListenerType, lds, nil)
		}
	})
}
