// Package xds is a delta ADS client, generic over the types of resources.
//
// One Client holds one stream (X1) and any number of subscriptions, made by Subscribe before Run. For each response it
// decodes every resource, hands the good ones and the removals to the subscription's Handler, and answers at once:
// ACK, or NACK naming all that was rejected (X5). A rejected resource keeps its last good value. While the stream is
// down the last state stays in force (X12); the next stream begins with the versions that are held (X2, X6), so that
// nothing unchanged is sent again. Numbers such as X5 refer to the ztunnel specification.
package xds

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// Resource is one named value of a type.
type Resource[T any] struct {
	// Name is the resource's name, by which it is removed.
	Name string
	// Version is the server's, opaque.
	Version string
	// Value is what Type.Decode made of the body.
	Value T
}

// Type is a kind of resource.
type Type[T any] struct {
	// URL is the type URL, one of the constants of this package.
	URL string
	// Decode reads and validates a body; name is the resource's. An error rejects this resource alone. Called by Run's
	// goroutine, one at a time.
	Decode func(name string, body []byte) (T, error)
}

// Handler takes in the changes of one type. Apply is called by Run's goroutine, never twice at a time, once per
// response that changes something, with the new and changed resources and the names that are gone. The response is
// answered, and the next one read, only after it returned.
//
// An error rejects: one that has a method Rejected() map[string]error (see Rejection) names the resources that were
// not applied, the others were; any other error means that none was.
type Handler[T any] interface {
	Apply(up []Resource[T], removed []string) error
}

// Rejection is an error of Handler.Apply: resource names and why each was not applied.
type Rejection map[string]error

// Error lists the resources in order of name.
func (r Rejection) Error() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		parts = append(parts, name+": "+r[name].Error())
	}
	return strings.Join(parts, "; ")
}

// Rejected returns r.
func (r Rejection) Rejected() map[string]error { return r }

// Node says who we are (X8).
type Node struct {
	// ID is ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>, or the same with waypoint.
	ID string
	// Cluster is <workload>.<namespace>, for waypoints.
	Cluster string
	// Metadata holds NAME, NAMESPACE, NODE_NAME, CLUSTER_ID and so on.
	Metadata map[string]string
	// Labels are the pod's, metadata LABELS; nil = not sent.
	Labels map[string]string
}

func (n Node) proto() *corepb.Node {
	node := &corepb.Node{Id: n.ID, Cluster: n.Cluster, UserAgentName: "ambit", Metadata: textStruct(n.Metadata)}
	if n.Labels != nil {
		node.Metadata.Fields["LABELS"] = structpb.NewStructValue(textStruct(n.Labels))
	}
	return node
}

func textStruct(m map[string]string) *structpb.Struct {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(m))}
	for k, v := range m {
		s.Fields[k] = structpb.NewStringValue(v)
	}
	return s
}

// Stream is one delta ADS stream. Send is called by one goroutine and Recv by another; a failed Recv ends the stream.
type Stream interface {
	Send(*discoverypb.DeltaDiscoveryRequest) error
	Recv() (*discoverypb.DeltaDiscoveryResponse, error)
}

// Transport opens streams.
type Transport interface {
	// Open blocks until the stream can be used. The stream ends with ctx.
	Open(ctx context.Context) (Stream, error)
}

// Config is what a Client needs. It is not modified and must not be after NewClient.
type Config struct {
	// Transport opens the stream, usually NewTransport's. Required.
	Transport Transport
	// Node is sent with the first request of each type.
	Node Node
	// MaxInitialVersions bounds the size in bytes of the initial_resource_versions of one request; 0 = 3 MiB, below the
	// 4 MiB that istiod takes (X6, B11). Versions that do not fit are left out: those resources come again, and those
	// that are then missing from the first response are removed.
	MaxInitialVersions int
	// FetchTimeout bounds the wait of Subscription.Fetch; 0 = 5 s.
	FetchTimeout time.Duration
	// MinBackoff and MaxBackoff bound the wait before the next stream; 0 = 10 ms and 15 s (X11).
	MinBackoff, MaxBackoff time.Duration
	// Rand returns numbers in [0, 1) for jitter; nil = math/rand/v2.
	Rand func() float64
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

func (c Config) maxInitialVersions() int     { return orDefault(c.MaxInitialVersions, 3<<20) }
func (c Config) fetchTimeout() time.Duration { return orDefault(c.FetchTimeout, 5*time.Second) }
func (c Config) minBackoff() time.Duration   { return orDefault(c.MinBackoff, 10*time.Millisecond) }
func (c Config) maxBackoff() time.Duration   { return orDefault(c.MaxBackoff, 15*time.Second) }

func (c Config) rand() float64 {
	if c.Rand != nil {
		return c.Rand()
	}
	return rand.Float64()
}

func (c Config) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.New(slog.DiscardHandler)
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// ErrNotFound is returned by Subscription.Fetch: the server says that there is no such resource.
var ErrNotFound = errors.New("no such resource")

// Client is a delta ADS client. Subscribe first, then Run; everything else may be called from any goroutine.
type Client struct {
	cfg   Config
	subs  []*Subscription // immutable once Run was called
	ready chan struct{}
	asked chan struct{} // cap 1: some subscription has names to ask for

	mu        sync.Mutex
	connected bool  // guarded by mu
	lastErr   error // why the last stream ended; guarded by mu
	waiting   int   // wildcard types without an ACKed response; guarded by mu
}

// NewClient makes a client that does nothing until Run.
func NewClient(cfg Config) *Client {
	return &Client{cfg: cfg, ready: make(chan struct{}), asked: make(chan struct{}, 1)}
}

// Options adjust a subscription. The zero value is a wildcard subscription (X3).
type Options struct {
	// OnDemand asks for nothing until Fetch does (XDS_ON_DEMAND).
	OnDemand bool
	// Named asks for the names that Keep is given, and for nothing while there are none: an ordinary Envoy subscription,
	// without wildcard.
	Named bool
}

// wildcard says that all resources of the type are asked for.
func (o Options) wildcard() bool { return !o.OnDemand && !o.Named }

// Subscribe adds a type to the client, before Run. The order of calls is the order of the first requests.
func Subscribe[T any](c *Client, t Type[T], h Handler[T], opts Options) *Subscription {
	s := &Subscription{
		client: c, url: t.URL, opts: opts,
		held:  map[string]string{},
		alias: map[string]string{},
		names: map[string]*name{},
		apply: applier(t, h),
	}
	c.subs = append(c.subs, s)
	if opts.wildcard() {
		c.waiting++
	}
	return s
}

// Ready is closed when the first response of each wildcard type was applied and ACKed (X13). A NACK does not count.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Status describes the client for dumps.
type Status struct {
	// Connected tells whether there is a stream now, and Err why the last one ended.
	Connected bool
	Err       error
	// Types are in order of subscription.
	Types []TypeStatus
}

// TypeStatus describes one subscription.
type TypeStatus struct {
	URL       string
	OnDemand  bool
	Resources int       // held
	Names     []string  // asked for on demand
	Responses uint64    // received, over all streams
	Rejected  uint64    // resources rejected, over all streams
	LastNACK  string    // text of the last NACK, "" = none
	Updated   time.Time // when the last response came
}

// Status describes the client now.
func (c *Client) Status() Status {
	c.mu.Lock()
	st := Status{Connected: c.connected, Err: c.lastErr}
	c.mu.Unlock()
	for _, s := range c.subs {
		st.Types = append(st.Types, s.status())
	}
	return st
}
