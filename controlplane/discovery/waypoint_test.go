package discovery

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// waypoints serves the namespace shop: its gateway is what the label in the metadata says.
func waypoints(c *Config) {
	c.Authorize = Policy{
		NodeAccounts: []string{"istio-system/ztunnel"}, NodeTypes: []string{fruit},
		WaypointTypes: []string{xds.ClusterType, xds.EndpointType, xds.ListenerType}, WaypointShared: []string{xds.WorkloadType},
		Waypoint: func(c Client, _ string) (string, error) {
			if g := c.Labels["gateway"]; g != "" {
				return c.Caller.Namespace + "/" + g, nil
			}
			return "", errors.New("no waypoint")
		},
	}.Authorize
}

var wp = Caller{Namespace: "shop", ServiceAccount: "wp", Pod: "wp-1", Node: "n1"}

func (c *conn) ask(url, nonce string, labels map[string]any, names ...string) {
	c.t.Helper()
	n := node("waypoint~1.1.1.2~wp-1.shop~shop.svc.cluster.local", "NAMESPACE", "shop")
	if labels != nil {
		s, err := structpb.NewStruct(labels)
		if err != nil {
			c.t.Fatal(err)
		}
		n.Metadata.Fields["LABELS"] = structpb.NewStructValue(s)
	}
	c.requests <- &discoverypb.DeltaDiscoveryRequest{Node: n, TypeUrl: url, ResourceNamesSubscribe: names, ResponseNonce: nonce}
}

func TestWaypointGetsTheSetsOfItsGateway(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		s.Publish(Set{TypeURL: xds.ClusterType, Scope: "shop/wp"}, []Resource{res("mine", "1")})
		s.Publish(Set{TypeURL: xds.ClusterType, Scope: "shop/other"}, []Resource{res("theirs", "1")})
		s.Publish(Set{TypeURL: xds.WorkloadType}, []Resource{res("pod", "1")})
		c := dial(t, s, wp)
		c.ask(xds.ClusterType, "", map[string]any{"gateway": "wp"})
		c.wantUnanswered([]string{"mine"}, nil)
		c.ask(xds.WorkloadType, "", nil)
		c.wantUnanswered([]string{"pod"}, nil)
		c.ask(xds.AddressType, "", nil)
		c.wantEnd(codes.PermissionDenied, "a waypoint may not have "+xds.AddressType)
	})
}

func TestEndpointsOfAResentClusterAreSentAgain(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		s.Publish(clusters, []Resource{res("a", "1"), res("b", "1")})
		s.Publish(endpoints, []Resource{res("a", "1"), res("b", "1")})
		c := dial(t, s, wp)
		c.ask(xds.ClusterType, "", map[string]any{"gateway": "wp"})
		first := c.wantUnanswered([]string{"a", "b"}, nil)
		c.ask(xds.ClusterType, first, nil)
		c.ask(xds.EndpointType, "", nil, "a", "b")
		eds := c.wantUnanswered([]string{"a", "b"}, nil)
		c.ask(xds.EndpointType, eds, nil)
		s.Update(clusters, []Resource{res("b", "2"), res("c", "1")}, nil)
		c.wantUnanswered([]string{"b", "c"}, nil)
		c.wantUnanswered([]string{"b"}, nil) // unchanged, and awaited by whoever warms the cluster
		c.wantIdle("c was not asked for, a was not re-sent")
	})
}

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

func TestNobodyIsAWaypointWithoutAGateway(t *testing.T) {
	bubble(t, waypoints, func(t *testing.T, s *Server) {
		c := dial(t, s, wp)
		c.ask(xds.ClusterType, "", map[string]any{"app": "x"})
		c.wantEnd(codes.PermissionDenied, "no waypoint")
	})
	var p Policy
	_, err := p.Authorize(Client{NodeID: "waypoint~x", Caller: wp}, xds.ClusterType)
	if err == nil || !strings.Contains(err.Error(), `nodes of type "waypoint" are not served`) {
		t.Errorf("got %v where waypoints are not served", err)
	}
}
