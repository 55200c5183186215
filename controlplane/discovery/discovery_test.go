package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	fruit = "type.googleapis.com/test.Fruit"
	stone = "type.googleapis.com/test.Stone"
)

var fruits = Set{TypeURL: fruit}

// conn is a client of a Server, without gRPC.
type conn struct {
	grpc.ServerStream
	t         testing.TB
	ctx       context.Context
	cancel    context.CancelFunc
	requests  chan *discoverypb.DeltaDiscoveryRequest
	responses chan *discoverypb.DeltaDiscoveryResponse
	ended     chan error
}

func (c *conn) Context() context.Context { return c.ctx }

func (c *conn) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	select {
	case req, ok := <-c.requests:
		if !ok {
			return nil, io.EOF
		}
		return req, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func (c *conn) Send(resp *discoverypb.DeltaDiscoveryResponse) error {
	c.responses <- resp
	return nil
}

type callerKeyType struct{}

// dial opens a stream as caller; the test must end it.
func dial(t testing.TB, s *Server, caller Caller) *conn {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callerKeyType{}, caller))
	c := &conn{t: t, ctx: ctx, cancel: cancel, requests: make(chan *discoverypb.DeltaDiscoveryRequest),
		responses: make(chan *discoverypb.DeltaDiscoveryResponse, 100), ended: make(chan error, 1)}
	go func() {
		err := s.DeltaAggregatedResources(c)
		c.ended <- err
		cancel() // as gRPC does
	}()
	t.Cleanup(cancel)
	return c
}

var ztunnel = Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Pod: "z1", Node: "n1"}

func node(id string, kv ...string) *corepb.Node {
	n := &corepb.Node{Id: id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{}}}
	for i := 0; i < len(kv); i += 2 {
		n.Metadata.Fields[kv[i]] = structpb.NewStringValue(kv[i+1])
	}
	return n
}

var ztunnelNode = node("ztunnel~1.1.1.1~z1.istio-system~istio-system.svc.cluster.local", "NODE_NAME", "n1", "NAMESPACE", "istio-system")

// subscribe sends the first request of type fruit with the given names.
func (c *conn) subscribe(versions map[string]string, names ...string) {
	c.requests <- &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode, TypeUrl: fruit, ResourceNamesSubscribe: names, InitialResourceVersions: versions}
}

// demand begins on demand (X3).
func (c *conn) demand(versions map[string]string, names ...string) {
	c.requests <- &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode, TypeUrl: fruit, ResourceNamesSubscribe: append([]string{"*"}, names...),
		ResourceNamesUnsubscribe: []string{"*"}, InitialResourceVersions: versions}
}

func (c *conn) ack(nonce string) {
	c.requests <- &discoverypb.DeltaDiscoveryRequest{TypeUrl: fruit, ResponseNonce: nonce}
}

// want waits for a response with exactly these resources and removals, in order, and ACKs it.
func (c *conn) want(up, removed []string) {
	c.t.Helper()
	c.ack(c.wantUnanswered(up, removed))
}

// wantUnanswered is want without the ACK; it returns the nonce.
func (c *conn) wantUnanswered(up, removed []string) string {
	c.t.Helper()
	return c.wantOf("", up, removed)
}

// wantOf is wantUnanswered of a type, "" = any.
func (c *conn) wantOf(url string, up, removed []string) string {
	c.t.Helper()
	synctest.Wait()
	select {
	case resp := <-c.responses:
		if url != "" && resp.GetTypeUrl() != url {
			c.t.Fatalf("got %v, want a response of type %s", resp, url)
		}
		var names []string
		for _, r := range resp.GetResources() {
			names = append(names, r.GetName())
		}
		if !slices.Equal(names, up) || !slices.Equal(resp.GetRemovedResources(), removed) {
			c.t.Fatalf("got %q, removed %q; want %q, removed %q", names, resp.GetRemovedResources(), up, removed)
		}
		return resp.GetNonce()
	default:
		c.t.Fatalf("no response; want %q, removed %q", up, removed)
		return ""
	}
}

func (c *conn) wantIdle(why string) {
	c.t.Helper()
	synctest.Wait()
	if len(c.responses) > 0 {
		c.t.Fatalf("%s: got %v, want no response", why, <-c.responses)
	}
}

func (c *conn) wantEnd(code codes.Code, text string) {
	c.t.Helper()
	if err := <-c.ended; status.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) {
		c.t.Errorf("the stream ended with %v, want %v and %q", err, code, text)
	}
}

func newTestServer(change func(*Config)) *Server {
	cfg := Config{
		Authenticate: func(ctx context.Context) (Caller, error) {
			c, _ := ctx.Value(callerKeyType{}).(Caller)
			if c.ServiceAccount == "" {
				return c, errors.New("no token")
			}
			return c, nil
		},
		Authorize: Policy{NodeAccounts: []string{"istio-system/ztunnel"}, NodeTypes: []string{fruit}}.Authorize,
	}
	if change != nil {
		change(&cfg)
	}
	return NewServer(cfg)
}

func res(name, version string, aliases ...string) Resource {
	return Resource{Name: name, Version: version, Aliases: aliases, Body: []byte(name + version)}
}

func onNode(r Resource, node string, groups ...string) Resource {
	r.Traits = Traits{Node: node, Groups: groups}
	return r
}

func bubble(t *testing.T, change func(*Config), test func(t *testing.T, s *Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newTestServer(change)) })
}

func TestWildcardGetsAllAndThenChanges(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("b", "1"), res("a", "1"), onNode(res("z", "1"), "n1")})
		c := dial(t, s, ztunnel)
		c.subscribe(nil)
		c.want([]string{"z", "a", "b"}, nil) // the client's own node first
		s.Publish(fruits, []Resource{res("b", "1"), res("a", "2"), res("c", "1")})
		c.want([]string{"a", "c"}, []string{"z"})
		s.Publish(fruits, []Resource{res("b", "1"), res("a", "2"), res("c", "1")})
		c.wantIdle("nothing changed")
		s.Update(fruits, []Resource{res("b", "2")}, []string{"c", "never"})
		c.want([]string{"b"}, []string{"c"})
		s.Update(fruits, []Resource{res("b", "2")}, []string{"c"})
		c.wantIdle("nothing changed")
	})
}

func TestNothingUnchangedIsSentAgainOnReconnect(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("a", "1"), res("b", "2"), res("new", "1")})
		c := dial(t, s, ztunnel)
		c.subscribe(map[string]string{"a": "1", "b": "1", "gone": "1"})
		c.want([]string{"b", "new"}, []string{"gone"})
		c = dial(t, s, ztunnel)
		c.subscribe(map[string]string{"a": "1", "b": "2", "new": "1"})
		c.want(nil, nil) // an answer all the same: the client becomes ready by it (X13)
	})
}

func TestASetThatWasNeverPublishedIsNotAnswered(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		c := dial(t, s, ztunnel)
		c.subscribe(map[string]string{"a": "1"})
		c.wantIdle("an answer now would remove all that the client has")
		s.Publish(fruits, []Resource{res("a", "1")})
		c.want(nil, nil)
		c = dial(t, s, ztunnel)
		s.Publish(fruits, nil)
		c.subscribe(map[string]string{"a": "1"})
		c.want(nil, []string{"a"})
	})
}

func TestOneResponseIsOutstanding(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("a", "1")})
		c := dial(t, s, ztunnel)
		c.subscribe(nil)
		nonce := c.wantUnanswered([]string{"a"}, nil)
		for i := range 5 {
			s.Update(fruits, []Resource{res("a", fmt.Sprint(i+2)), res(fmt.Sprint("t", i), "1")}, nil)
			s.Update(fruits, nil, []string{fmt.Sprint("t", i-1)})
		}
		c.ack("stale nonce")
		c.wantIdle("the response has not been answered")
		c.ack(nonce)
		nonce = c.wantUnanswered([]string{"a", "t4"}, []string{"t0", "t1", "t2", "t3"}) // merged
		s.Update(fruits, []Resource{res("b", "1")}, nil)
		c.requests <- &discoverypb.DeltaDiscoveryRequest{TypeUrl: fruit, ResponseNonce: nonce, ErrorDetail: &statuspb.Status{Message: "a: is rotten"}}
		c.wantUnanswered([]string{"b"}, nil) // the rejected one comes again when it changes
		st := s.Clients()
		if len(st) != 1 || len(st[0].Types) != 1 {
			t.Fatalf("got status %+v", st)
		}
		if got := st[0].Types[0]; got.NACK != "a: is rotten" || got.State != "STALE" || !got.Wildcard {
			t.Errorf("got status %+v, want the NACK and STALE", got)
		}
		if got := s.Stats(); got.NACKs != 1 || got.Streams != 1 || got.Sets[fruits] != 3 {
			t.Errorf("got stats %+v", got)
		}
	})
}

func TestAStreamThatIsTooFarBehindStartsOver(t *testing.T) {
	bubble(t, func(c *Config) { c.LogSize = 10 }, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("a", "1")})
		c := dial(t, s, ztunnel)
		c.subscribe(nil)
		nonce := c.wantUnanswered([]string{"a"}, nil)
		for i := range 20 {
			s.Update(fruits, []Resource{res("a", fmt.Sprint(i+2))}, nil)
		}
		c.ack(nonce)
		c.wantEnd(codes.Unavailable, "too far behind")
		c = dial(t, s, ztunnel)
		c.subscribe(map[string]string{"a": "1"})
		c.want([]string{"a"}, nil)
	})
}

func TestOnDemand(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{
			onNode(res("local", "1", "net/10.0.0.1"), "n1"), onNode(res("w1", "1", "net/10.0.0.2"), "n2", "ns/svc"),
			onNode(res("w2", "1"), "n2", "ns/svc"), res("ns/svc", "1", "net/10.9.9.9"), res("other", "1"),
		})
		c := dial(t, s, ztunnel)
		c.demand(nil)
		c.want([]string{"local"}, nil) // workloads of the own node always (1.11)
		ask := func(names ...string) {
			c.requests <- &discoverypb.DeltaDiscoveryRequest{TypeUrl: fruit, ResourceNamesSubscribe: names}
		}
		ask("net/10.0.0.2")
		c.want([]string{"w1"}, nil)
		ask("net/10.9.9.9") // a VIP brings the service's workloads along
		c.want([]string{"ns/svc", "w2"}, nil)
		ask("none")
		c.want(nil, []string{"none"})
		ask("w1") // asked for again: answered again
		c.want([]string{"w1"}, nil)

		s.Update(fruits, []Resource{res("other", "2")}, nil)
		c.wantIdle("a resource that nobody asked for")
		s.Update(fruits, []Resource{onNode(res("w2", "2"), "n2", "ns/svc"), onNode(res("w3", "1"), "n3", "ns/svc"), onNode(res("local2", "1"), "n1")}, nil)
		c.want([]string{"local2", "w2", "w3"}, nil)
		s.Update(fruits, []Resource{res("none", "1")}, []string{"w3"})
		c.want([]string{"none"}, []string{"w3"})
		c.requests <- &discoverypb.DeltaDiscoveryRequest{TypeUrl: fruit, ResourceNamesUnsubscribe: []string{"none"}}
		synctest.Wait()
		s.Update(fruits, []Resource{res("none", "2")}, nil)
		c.wantIdle("the name was unsubscribed")

		c = dial(t, s, ztunnel)
		c.demand(map[string]string{"w1": "1", "w3": "1", "local": "1"}, "w1", "w3", "net/10.9.9.9")
		c.want([]string{"local2", "ns/svc", "w2"}, []string{"w3"})
	})
}

func TestAliasesAreSentOnDemandOnly(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("a", "1", "net/10.0.0.1")})
		c := dial(t, s, ztunnel)
		c.subscribe(nil)
		synctest.Wait()
		if got := (<-c.responses).GetResources()[0].GetAliases(); len(got) != 0 {
			t.Errorf("a wildcard got aliases %q", got)
		}
		c = dial(t, s, ztunnel)
		c.demand(nil, "net/10.0.0.1")
		synctest.Wait()
		if got := (<-c.responses).GetResources()[0].GetAliases(); !slices.Equal(got, []string{"net/10.0.0.1"}) {
			t.Errorf("on demand got aliases %q", got)
		}
	})
}

func TestAnAddressThatMoves(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		s.Publish(fruits, []Resource{res("old", "1", "net/10.0.0.1")})
		s.Update(fruits, []Resource{res("new", "1", "net/10.0.0.1")}, nil)
		s.Update(fruits, nil, []string{"old"})
		c := dial(t, s, ztunnel)
		c.demand(nil, "net/10.0.0.1")
		c.want([]string{"new"}, nil)
	})
}

// TestWhoMayAskWhat is row B27 of the hostile-input table.
func TestWhoMayAskWhat(t *testing.T) {
	waypoint := Caller{Namespace: "a", ServiceAccount: "waypoint", Pod: "w1"}
	tests := []struct {
		name   string
		caller Caller
		req    *discoverypb.DeltaDiscoveryRequest
		code   codes.Code
		text   string
	}{
		{"no token", Caller{}, nil, codes.Unauthenticated, "could not be authenticated"},
		{"a node proxy asks for waypoint configuration", ztunnel, &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode, TypeUrl: stone}, codes.PermissionDenied, "may not have"},
		{"a waypoint says it is a node proxy", waypoint, &discoverypb.DeltaDiscoveryRequest{Node: node("ztunnel~1~w1.a~a"), TypeUrl: fruit}, codes.PermissionDenied, "a/waypoint is no account of node proxies"},
		{"a waypoint says it is of another namespace", waypoint, &discoverypb.DeltaDiscoveryRequest{Node: node("waypoint~1~w1.b~b", "NAMESPACE", "b"), TypeUrl: fruit}, codes.PermissionDenied, `namespace "b"`},
		{"another service account than the token's", ztunnel, &discoverypb.DeltaDiscoveryRequest{Node: node("ztunnel~1~z~i", "SERVICE_ACCOUNT", "x"), TypeUrl: fruit}, codes.PermissionDenied, `service account "x"`},
		{"another node than the token's", ztunnel, &discoverypb.DeltaDiscoveryRequest{Node: node("ztunnel~1~z~i", "NODE_NAME", "n2"), TypeUrl: fruit}, codes.PermissionDenied, `"n2"`},
		{"no type", ztunnel, &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode}, codes.InvalidArgument, "type URL"},
		{"too many names", ztunnel, &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode, TypeUrl: fruit, ResourceNamesSubscribe: strings.Split(strings.Repeat("x,", 40), ",")}, codes.ResourceExhausted, "names"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(c *Config) { c.MaxNames = 10 }, func(t *testing.T, s *Server) {
				s.Publish(fruits, []Resource{res("a", "1")})
				c := dial(t, s, tt.caller)
				if tt.req != nil {
					c.requests <- tt.req
				}
				c.wantEnd(tt.code, tt.text)
				if len(c.responses) != 0 {
					t.Errorf("got %v", <-c.responses)
				}
			})
		})
	}
}

func TestStreamsAreLimited(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxStreams, c.MaxStreamsPerCaller = 5, 3 }, func(t *testing.T, s *Server) {
		for range 3 {
			dial(t, s, ztunnel)
		}
		synctest.Wait()
		c := dial(t, s, ztunnel)
		c.wantEnd(codes.ResourceExhausted, "3 streams of istio-system/ztunnel/z1")
		other := ztunnel
		other.Pod = "z2"
		last := dial(t, s, other)
		dial(t, s, other)
		synctest.Wait()
		dial(t, s, Caller{Namespace: "x", ServiceAccount: "y", Pod: "z"}).wantEnd(codes.ResourceExhausted, "5 streams are open")
		close(last.requests)
		if err := <-last.ended; err != nil {
			t.Errorf("a client that closed its stream got %v", err)
		}
		dial(t, s, other)
		synctest.Wait()
		if n := s.Stats().Streams; n != 5 {
			t.Errorf("%d streams, want 5", n)
		}
	})
}

// TestTypesComeInOrder: a resource comes before what it is named by (controlplane.md 1.11), whatever the client asked for first.
func TestTypesComeInOrder(t *testing.T) {
	stones := Set{TypeURL: stone}
	change := func(cfg *Config) {
		cfg.Order = []string{fruit, stone}
		cfg.Authorize = Policy{NodeAccounts: []string{"istio-system/ztunnel"}, NodeTypes: cfg.Order}.Authorize
	}
	bubble(t, change, func(t *testing.T, s *Server) {
		s.Publish(fruits, nil)
		s.Publish(stones, nil)
		c := dial(t, s, ztunnel)
		ack := func(url, nonce string) {
			c.requests <- &discoverypb.DeltaDiscoveryRequest{Node: ztunnelNode, TypeUrl: url, ResponseNonce: nonce}
		}
		next := func(url, name string) (nonce string) {
			t.Helper()
			synctest.Wait()
			select {
			case resp := <-c.responses:
				if resp.GetTypeUrl() != url || name != "" && (len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != name) {
					t.Fatalf("got %v, want %s %q", resp, url, name)
				}
				return resp.GetNonce()
			default:
				t.Fatalf("no response, want %s %q", url, name)
				return ""
			}
		}
		ack(stone, "") // the first request
		ack(stone, next(stone, ""))
		ack(fruit, "")
		ack(fruit, next(fruit, ""))

		s.mu.Lock() // both before the stream looks
		s.changeLocked(s.sets[stones], []Resource{res("a stone", "1")}, nil)
		s.changeLocked(s.sets[fruits], []Resource{res("a fruit", "1")}, nil)
		s.mu.Unlock()
		s.wake()
		first := next(fruit, "a fruit")
		ack(stone, next(stone, "a stone"))

		s.Update(fruits, []Resource{res("a fruit", "2")}, nil)
		s.Update(stones, []Resource{res("a stone", "2")}, nil)
		c.wantIdle("a fruit waits for an ACK, and the stone may be in it")
		ack(fruit, first)
		next(fruit, "a fruit")
		next(stone, "a stone")
	})
}

// TestOneChangeCostsOneSmallMessage is the promise for large meshes: 10,000 workloads, 1,000 services, 100 clients.
func TestOneChangeCostsOneSmallMessage(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *Server) {
		all := map[string]Resource{}
		for i := range 10000 {
			r := onNode(res(fmt.Sprintf("Kubernetes//Pod/ns-%d/pod-%d", i%50, i), "1"), fmt.Sprintf("n%d", i%100), fmt.Sprintf("ns/svc-%d", i%1000))
			r.Body = make([]byte, 250)
			all[r.Name] = r
		}
		for i := range 1000 {
			r := res(fmt.Sprintf("ns/svc-%d", i), "1")
			r.Body = make([]byte, 150)
			all[r.Name] = r
		}
		s.Publish(fruits, slices.Collect(maps.Values(all)))
		var clients []*conn
		for i := range 100 {
			caller := ztunnel
			caller.Pod = fmt.Sprint("z", i)
			c := dial(t, s, caller)
			c.subscribe(nil)
			clients = append(clients, c)
		}
		synctest.Wait()
		for _, c := range clients {
			resp := <-c.responses
			if n := len(resp.GetResources()); n != 11000 {
				t.Fatalf("the first response has %d resources, want 11000", n)
			}
			c.ack(resp.GetNonce())
		}
		changed := all["Kubernetes//Pod/ns-0/pod-0"]
		changed.Version = "2"
		all[changed.Name] = changed
		s.Publish(fruits, slices.Collect(maps.Values(all)))
		synctest.Wait()
		for i, c := range clients {
			if len(c.responses) != 1 {
				t.Fatalf("client %d got %d responses for one change, want 1", i, len(c.responses))
			}
			if resp := <-c.responses; len(resp.GetResources()) != 1 || proto.Size(resp) > 500 {
				t.Fatalf("client %d got %d resources in %d bytes, want one in at most 500", i, len(resp.GetResources()), proto.Size(resp))
			}
		}
	})
}

func BenchmarkUpdate(b *testing.B) {
	s := newTestServer(nil)
	var all []Resource
	for i := range 11000 {
		all = append(all, res(fmt.Sprint("r", i), "1"))
	}
	s.Publish(fruits, all)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Update(fruits, []Resource{res("r7", fmt.Sprint(i))}, nil)
	}
}
