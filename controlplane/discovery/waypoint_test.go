package discovery

import (
	"errors"
	"strings"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
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
