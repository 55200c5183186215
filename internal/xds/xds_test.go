package xds_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/xds/xdstest"
)

const fruit = "type.googleapis.com/test.Fruit"

// store is a Handler of strings. A value "unwelcome" is rejected by Apply, one that begins with "bad" by decode.
type store struct{ values map[string]string }

func (s *store) Apply(up []xds.Resource[string], removed []string) error {
	rejected := xds.Rejection{}
	for _, r := range up {
		if r.Value == "unwelcome" {
			rejected[r.Name] = errors.New("not welcome")
			continue
		}
		s.values[r.Name] = r.Value
	}
	for _, n := range removed {
		delete(s.values, n)
	}
	if len(rejected) > 0 {
		return rejected
	}
	return nil
}

func decode(_ string, body []byte) (string, error) {
	if strings.HasPrefix(string(body), "bad") {
		return "", errors.New("is rotten")
	}
	return string(body), nil
}

// client is a running client with one subscription of type fruit.
type client struct {
	*xds.Client
	sub    *xds.Subscription
	store  *store
	server *xdstest.Server
}

// run runs test in a bubble with a client that has been started.
func run(t *testing.T, cfg xds.Config, opts xds.Options, test func(t *testing.T, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := xdstest.NewServer()
		cfg.Transport = server
		cfg.Rand = func() float64 { return 0.5 }
		c := &client{Client: xds.NewClient(cfg), store: &store{values: map[string]string{}}, server: server}
		c.sub = xds.Subscribe(c.Client, xds.Type[string]{URL: fruit, Decode: decode}, c.store, opts)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		test(t, c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func response(nonce string, resources ...*discoverypb.Resource) *discoverypb.DeltaDiscoveryResponse {
	return &discoverypb.DeltaDiscoveryResponse{TypeUrl: fruit, Nonce: nonce, Resources: resources}
}

func res(name, version, body string, aliases ...string) *discoverypb.Resource {
	return xdstest.Resource(fruit, name, version, body, aliases...)
}

func isReady(c *client) bool {
	select {
	case <-c.Ready():
		return true
	default:
		return false
	}
}

func (c *client) want(t *testing.T, values map[string]string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(values, c.store.values); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
}

func TestFirstRequestIsAWildcardWithNode(t *testing.T) {
	node := xds.Node{ID: "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local", Metadata: map[string]string{"NODE_NAME": "n1"}}
	run(t, xds.Config{Node: node}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		req := st.Request(t)
		if req.GetTypeUrl() != fruit || len(req.GetResourceNamesSubscribe()) != 0 {
			t.Errorf("got %v, want an empty subscription of %s", req, fruit)
		}
		if req.GetNode().GetId() != node.ID || req.GetNode().GetMetadata().GetFields()["NODE_NAME"].GetStringValue() != "n1" {
			t.Errorf("got node %v, want %v", req.GetNode(), node)
		}
		st.Respond(t, response("1"))
		if ack := st.Request(t); ack.GetNode() != nil {
			t.Errorf("the ACK carries a node")
		}
	})
}

func TestGoodResourcesOfANACKedResponseAreApplied(t *testing.T) {
	run(t, xds.Config{}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", res("a", "1", "apple"), res("p", "1", "bad pear"), res("q", "1", "unwelcome"), res("x", "1", "bad x")))
		if got, want := st.WantNACK(t, "1"), "p: is rotten; q: not welcome; x: is rotten"; got != want {
			t.Errorf("got NACK %q, want %q", got, want)
		}
		c.want(t, map[string]string{"a": "apple"})
		if isReady(c) {
			t.Error("a NACKed first response made the client ready (X13)")
		}
		st.Respond(t, response("2", res("p", "2", "pear")))
		st.WantACK(t, "2")
		synctest.Wait()
		if !isReady(c) {
			t.Error("an ACKed response did not make the client ready")
		}
		// A rejected change leaves the last good value, and its version on record.
		st.Respond(t, response("3", res("a", "2", "bad apple")))
		st.WantNACK(t, "3")
		c.want(t, map[string]string{"a": "apple", "p": "pear"})
		st.Break(nil)
		st = c.server.Accept(t)
		want := map[string]string{"a": "1", "p": "2"}
		if got := st.Request(t).GetInitialResourceVersions(); !maps.Equal(got, want) {
			t.Errorf("got initial versions %v, want %v", got, want)
		}
		if got := c.Status().Types[0]; got.Resources != 2 || got.Rejected != 4 || got.LastNACK == "" {
			t.Errorf("got status %+v", got)
		}
	})
}

func TestResourceOfAnotherTypeIsRejected(t *testing.T) {
	run(t, xds.Config{}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", xdstest.Resource("type.googleapis.com/test.Stone", "a", "1", "x"), &discoverypb.Resource{Name: "b"}))
		nack := st.WantNACK(t, "1")
		if !strings.Contains(nack, "test.Stone") || !strings.Contains(nack, "b: the resource has no body") {
			t.Errorf("got NACK %q", nack)
		}
	})
}

func TestResponseOfAnUnknownTypeIsACKed(t *testing.T) {
	run(t, xds.Config{}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, &discoverypb.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/test.Stone", Nonce: "9"})
		st.WantACK(t, "9")
	})
}

func TestStateOutlivesTheStream(t *testing.T) {
	run(t, xds.Config{}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", res("a", "1", "apple"), res("b", "1", "banana")))
		st.WantACK(t, "1")
		st.Break(status.Error(codes.Unavailable, "error reading from server: EOF"))
		st = c.server.Accept(t)
		st.Request(t)
		c.want(t, map[string]string{"a": "apple", "b": "banana"})
		st.Respond(t, &discoverypb.DeltaDiscoveryResponse{TypeUrl: fruit, Nonce: "2", RemovedResources: []string{"b", "never"}})
		st.WantACK(t, "2")
		c.want(t, map[string]string{"a": "apple"})
	})
}

func TestBackoff(t *testing.T) {
	run(t, xds.Config{}, xds.Options{}, func(t *testing.T, c *client) {
		// With Rand 0.5 each wait is three quarters of the backoff, which doubles from 10 ms to 15 s.
		c.server.Refuse(t, xdstest.ErrRefused)
		backoff := 10 * time.Millisecond
		for range 14 {
			before := time.Now()
			c.server.Refuse(t, xdstest.ErrRefused)
			if got, want := time.Since(before), backoff*3/4; got != want {
				t.Errorf("waited %v, want %v", got, want)
			}
			backoff = min(2*backoff, 15*time.Second)
		}
		start := time.Now()
		st := c.server.Accept(t)
		if got := time.Since(start); got != 15*time.Second*3/4 {
			t.Errorf("waited %v after many failures, want 11.25s", got)
		}
		st.Request(t)
		st.Respond(t, response("1"))
		st.WantACK(t, "1")
		start = time.Now()
		st.Break(status.Error(codes.Unavailable, "transport is closing"))
		st = c.server.Accept(t)
		if got := time.Since(start); got != 30*time.Millisecond {
			t.Errorf("waited %v after a healthy stream was closed, want 30ms", got)
		}
		// A server that ends every stream without an answer must not be asked in a tight loop.
		start = time.Now()
		for range 10 {
			st.Break(nil)
			st = c.server.Accept(t)
		}
		if got := time.Since(start); got < 5*time.Second {
			t.Errorf("10 streams without an answer took %v, want growing waits", got)
		}
	})
}

func TestVersionsThatDoNotFitAreReconciled(t *testing.T) {
	run(t, xds.Config{MaxInitialVersions: 40}, xds.Options{}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		st.Request(t)
		var all []*discoverypb.Resource
		for i := range 10 {
			all = append(all, res(fmt.Sprintf("r%d", i), "1", "v"))
		}
		st.Respond(t, response("1", all...))
		st.WantACK(t, "1")
		st.Break(nil)
		st = c.server.Accept(t)
		versions := st.Request(t).GetInitialResourceVersions()
		if len(versions) != 2 {
			t.Fatalf("sent %d versions, want the 2 that fit into 40 bytes", len(versions))
		}
		// r9 is gone; the server sends what it was not told about.
		var again []*discoverypb.Resource
		want := map[string]string{}
		for _, r := range all[:9] {
			want[r.Name] = "v"
			if _, told := versions[r.Name]; !told {
				again = append(again, r)
			}
		}
		resp := response("2", again...)
		if _, told := versions["r9"]; told {
			resp.RemovedResources = []string{"r9"}
		}
		st.Respond(t, resp)
		st.WantACK(t, "2")
		c.want(t, want)
	})
}

func TestOnDemand(t *testing.T) {
	run(t, xds.Config{}, xds.Options{OnDemand: true}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		first := st.Request(t)
		if got := first.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"*"}) || !slices.Equal(first.GetResourceNamesUnsubscribe(), got) {
			t.Errorf("got first request %v, want * subscribed and unsubscribed (X3)", first)
		}
		results := make(chan error, 3)
		go func() { results <- c.sub.Fetch(t.Context(), "net/1.2.3.4") }()
		go func() { results <- c.sub.Fetch(t.Context(), "net/1.2.3.4") }()
		req := st.Request(t)
		if got := req.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"net/1.2.3.4"}) {
			t.Errorf("got subscription of %q", got)
		}
		st.Respond(t, response("1", res("uid-1", "1", "apple", "net/1.2.3.4", "net/::4")))
		st.WantACK(t, "1")
		for range 2 {
			if err := <-results; err != nil {
				t.Errorf("Fetch by an alias: %v", err)
			}
		}
		if err := c.sub.Fetch(t.Context(), "net/::4"); err != nil {
			t.Errorf("Fetch of what is held by another alias: %v", err)
		}
		go func() { results <- c.sub.Fetch(t.Context(), "ns/none") }()
		st.Request(t)
		st.Respond(t, &discoverypb.DeltaDiscoveryResponse{TypeUrl: fruit, Nonce: "2", RemovedResources: []string{"ns/none"}})
		if err := <-results; !errors.Is(err, xds.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		st.WantACK(t, "2")
		start := time.Now()
		if err := c.sub.Fetch(t.Context(), "ns/slow"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("got %v after %v, want DeadlineExceeded after 5s (B11)", err, time.Since(start))
		}
		st.Request(t)
		c.sub.Release("ns/slow")
		if got := st.Request(t).GetResourceNamesUnsubscribe(); !slices.Equal(got, []string{"ns/slow"}) {
			t.Errorf("got unsubscription of %q", got)
		}
		st.Break(nil)
		st = c.server.Accept(t)
		if got, want := st.Request(t).GetResourceNamesSubscribe(), []string{"*", "net/1.2.3.4", "ns/none", "uid-1"}; !slices.Equal(got, want) {
			t.Errorf("the next stream asks for %q, want %q", got, want)
		}
		c.sub.Release("net/1.2.3.4")
		if got, want := st.Request(t).GetResourceNamesUnsubscribe(), []string{"net/1.2.3.4", "uid-1"}; !slices.Equal(got, want) {
			t.Errorf("got unsubscription of %q, want %q", got, want)
		}
		c.want(t, map[string]string{})
	})
}

func TestANamedSubscriptionAsksForExactlyTheNamesItIsToKeep(t *testing.T) {
	run(t, xds.Config{}, xds.Options{Named: true}, func(t *testing.T, c *client) {
		st := c.server.Accept(t)
		c.sub.Keep([]string{"a", "b"})
		req := st.Request(t)
		if got := req.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"a", "b"}) || len(req.GetResourceNamesUnsubscribe()) != 0 {
			t.Errorf("first request %v", req)
		}
		st.Respond(t, response("1", res("a", "1", "apple"), res("b", "1", "banana")))
		st.WantACK(t, "1")
		c.sub.Keep([]string{"b", "c"})
		req = st.Request(t)
		if got := req.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"c"}) || !slices.Equal(req.GetResourceNamesUnsubscribe(), []string{"a"}) {
			t.Errorf("second request %v", req)
		}
		c.want(t, map[string]string{"b": "banana"})
		c.sub.Keep([]string{"c", "b"}) // the same: nothing is sent
		st.Break(nil)
		st = c.server.Accept(t)
		req = st.Request(t)
		if got := req.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"b", "c"}) || len(req.GetInitialResourceVersions()) != 1 {
			t.Errorf("the next stream asks for %v", req)
		}
		st.Respond(t, &discoverypb.DeltaDiscoveryResponse{TypeUrl: fruit, Nonce: "2", RemovedResources: []string{"b"}})
		st.WantACK(t, "2")
		c.want(t, map[string]string{})
	})
}

// keeper is a store that has a second subscription keep what it gets.
type keeper struct {
	*store
	needs *xds.Subscription
}

func (k *keeper) Apply(up []xds.Resource[string], removed []string) error {
	var names []string
	for _, r := range up {
		names = append(names, r.Name)
	}
	k.needs.Keep(names)
	return k.store.Apply(up, removed)
}

// A server that waits for the ACK of clusters before it sends routes knows by then which endpoints are needed.
func TestWhatAResponseMakesTheClientAskForComesBeforeItsACK(t *testing.T) {
	const stone = "type.googleapis.com/test.Stone"
	synctest.Test(t, func(t *testing.T) {
		server := xdstest.NewServer()
		c := xds.NewClient(xds.Config{Transport: server})
		k := &keeper{store: &store{values: map[string]string{}}}
		xds.Subscribe(c, xds.Type[string]{URL: fruit, Decode: decode}, k, xds.Options{})
		k.needs = xds.Subscribe(c, xds.Type[string]{URL: stone, Decode: decode}, &store{values: map[string]string{}}, xds.Options{Named: true})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		st := server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", res("a", "1", "apple")))
		if req := st.Request(t); req.GetTypeUrl() != stone || !slices.Equal(req.GetResourceNamesSubscribe(), []string{"a"}) {
			t.Errorf("got %v, want a request for the stone of a", req)
		}
		st.WantACK(t, "1")
		cancel()
		<-done
	})
}

func TestANameReleasedTwiceBeforeAnythingIsSentIsUnsubscribed(t *testing.T) {
	run(t, xds.Config{}, xds.Options{Named: true}, func(t *testing.T, c *client) {
		c.sub.Keep([]string{"a", "b"})
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", res("a", "1", "apple"), res("b", "1", "banana")))
		// While Run is busy with the ACK, which nobody has read yet, the names change three times.
		synctest.Wait()
		c.sub.Keep([]string{"b"})
		c.sub.Keep([]string{"a", "b"})
		c.sub.Keep([]string{"b"})
		st.WantACK(t, "1")
		if req := st.Request(t); !slices.Equal(req.GetResourceNamesUnsubscribe(), []string{"a"}) || len(req.GetResourceNamesSubscribe()) != 0 {
			t.Errorf("got request %v, want a unsubscribed", req)
		}
		c.want(t, map[string]string{"b": "banana"})
		// A name that came and went unseen is not worth a word.
		c.sub.Keep([]string{"b", "never"})
		c.sub.Keep([]string{"b"})
		c.sub.Keep([]string{"b", "c"})
		for got := []string(nil); !slices.Contains(got, "c"); {
			req := st.Request(t)
			got = req.GetResourceNamesSubscribe()
		}
	})
}

func TestWhatWasReleasedWithoutAStreamIsDroppedOnTheNext(t *testing.T) {
	run(t, xds.Config{}, xds.Options{Named: true}, func(t *testing.T, c *client) {
		c.sub.Keep([]string{"a", "b"})
		st := c.server.Accept(t)
		st.Request(t)
		st.Respond(t, response("1", res("a", "1", "apple"), res("b", "1", "banana")))
		st.WantACK(t, "1")
		st.Break(nil)
		synctest.Wait()
		c.sub.Keep([]string{"b"})
		st = c.server.Accept(t)
		req := st.Request(t)
		if got := req.GetResourceNamesSubscribe(); !slices.Equal(got, []string{"b"}) || len(req.GetInitialResourceVersions()) != 1 {
			t.Errorf("the next stream asks for %v", req)
		}
		c.want(t, map[string]string{"b": "banana"})
	})
}

func TestTheFirstRequestOfAStreamCarriesTheNodeHoweverLateItIs(t *testing.T) { // X2
	run(t, xds.Config{Node: xds.Node{ID: "n"}}, xds.Options{Named: true}, func(t *testing.T, c *client) {
		for range 2 {
			st := c.server.Accept(t)
			synctest.Wait() // nothing to ask for
			c.sub.Keep([]string{"a"})
			if req := st.Request(t); req.GetNode().GetId() != "n" || !slices.Equal(req.GetResourceNamesSubscribe(), []string{"a"}) {
				t.Errorf("first request %v", req)
			}
			c.sub.Keep([]string{"a", "b"})
			if req := st.Request(t); req.GetNode() != nil {
				t.Errorf("second request carries a node: %v", req)
			}
			c.sub.Keep(nil)
			st.Request(t)
			st.Break(nil)
		}
	})
}
