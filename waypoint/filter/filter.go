// Package filter holds the HTTP filters of a waypoint: what may look at a request, change it, answer it or hold it up
// before it is sent to an endpoint.
//
// A filter is compiled once from Envoy's configuration of it and is immutable then; all requests of all workers share it.
// What it needs to know and to say about one request is in the request's Exchange, which belongs to the worker's loop.
// Filters run in the order of the configuration on the way in, and in the opposite one on the answer. They do not block: a
// filter that has to wait says Wait and goes on by Exchange.Resume.
package filter

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Action is what a filter wants to happen next.
type Action uint8

const (
	// Continue: on to the next filter.
	Continue Action = iota
	// Stop: Exchange.Reply was called, and that is the answer.
	Stop
	// Wait: nothing until the filter calls Exchange.Resume.
	Wait
)

// Filter is one compiled HTTP filter.
type Filter interface {
	// Request acts on the head of a request.
	Request(x *Exchange) Action
}

// Answering is what a Filter implements besides if it has to see the head of the answer, ours or an endpoint's.
type Answering interface {
	Answer(x *Exchange)
}

// Ending is what a Filter implements besides if it has to know that an exchange is over, however it ended. It is called
// only if Request was.
type Ending interface {
	End(x *Exchange)
}

// Peer is one end of a connection.
type Peer struct {
	// Principal is the SPIFFE ID as a URI, proven by TLS; "" if there was none.
	Principal string
	// Addr is the address and port that the connection came from, or went to.
	Addr netip.AddrPort
}

// Host is what carries an exchange. All methods but Go's argument are for the loop.
type Host interface {
	// Resume goes on behind a filter that has said Wait, with Continue or Stop.
	Resume(a Action)
	// After calls f after d, unless the exchange is over by then, and resumes with what it returns.
	After(d time.Duration, f func() Action)
	// Go runs f on a goroutine, and what it returns on the loop, unless the exchange is over by then. ctx ends with the
	// exchange.
	Go(f func(ctx context.Context) func())
	// Call sends a request to an endpoint of a cluster, with the exchange's own means, and gives the answer to done, later,
	// unless the exchange is over by then.
	Call(c *Call, done func(a *CallAnswer, err error))
	// Share is Call for what exchanges of a loop need alike: while a call with that key is under way, no other is sent. It goes
	// on when the exchange is over. take gets the answer, once; then done is called, unless the exchange is over by then.
	Share(key any, c *Call, take func(a *CallAnswer, err error), done func())
	// Body waits until the request's body is complete, or has more than limit bytes, and gives what has come of it to done,
	// later. The body is sent on all the same. whole says that it is complete.
	Body(limit int, done func(body []byte, whole bool))
}

// Call is a request of a filter's own.
type Call struct {
	Cluster string
	Req     message.Request
	Body    []byte
	// Timeout is how long the whole call may take; 0 means a minute.
	Timeout time.Duration
	// MaxAnswer is how many bytes of a body are taken; more fails the call. 0 means 1 MiB.
	MaxAnswer int
}

// CallAnswer is the answer to a Call.
type CallAnswer struct {
	Status  int
	Header  message.Header
	Trailer message.Header
	Body    []byte
}

// Exchange is one request and its answer, as filters see them. Strings of Req and Resp are valid for as long as the
// exchange is; a filter that wants to keep one clones it.
type Exchange struct {
	Host
	// Req is the request. Its Path is normalised already.
	Req *message.Request
	// Resp is the answer's head; nil before it has come.
	Resp *message.Response
	// Client is the original client: the waypoint is given its identity and address by the node proxy.
	Client Peer
	// Local is our own principal.
	Local string
	// Dest is the service's address and port that the client dialled.
	Dest netip.AddrPort
	// ServerName is the SNI that a TLS connection asked for; "" otherwise.
	ServerName string
	// Routes is the table of the chain.
	Routes *route.Table
	// Values answers the operators of format strings that are about the exchange.
	Values route.Values
	// Now is the time at which the request came.
	Now time.Time
	// Rand draws numbers; it is the loop's.
	Rand *rand.Rand

	// Reply is the answer that a filter gave.
	Reply Reply
	// Flags are Envoy's response flags, such as "UAEX", of what went wrong.
	Flags Flags
	// Details says in a word why an answer is ours, as %RESPONSE_CODE_DETAILS%.
	Details string
	// Transport is why an endpoint, or a service of ours, could not be used, as %UPSTREAM_TRANSPORT_FAILURE_REASON%.
	Transport string

	// written is the path with its parameters while rules that allow look at it without them; "" otherwise.
	written string

	route  *route.Route
	action *route.Action
	routed bool
	notes  []note
	ctx    route.Context

	metadata map[string]*structpb.Struct // by filter; nil until something was set
}

// Reply is an answer that is not from an endpoint.
type Reply struct {
	Status int
	Body   string
	// ContentType is that of Body; "" means text/plain.
	ContentType string
	Header      []message.Field
	// HasGRPC says that a gRPC client gets the status GRPC, not one that follows from Status.
	HasGRPC bool
	GRPC    int
	// Bare says that the route does not change the answer's headers.
	Bare bool
}

// note is what a filter remembers of an exchange.
type note struct{ key, value any }

// Reset makes the exchange ready for the next request.
func (x *Exchange) Reset() {
	clear(x.notes)
	x.ctx.For(nil, nil, nil)
	*x = Exchange{notes: x.notes[:0], ctx: x.ctx}
}

// Route is where the request goes as it is now; nil if nowhere. The answer is kept until ClearRoute.
func (x *Exchange) Route() *route.Route {
	if !x.routed {
		draw := x.Rand.Uint64()
		x.route, x.routed, x.action = x.Routes.MatchWith(x.Req, draw, x), true, nil
		if x.route != nil {
			x.action = x.route.Action(x.Req, draw)
		}
	}
	return x.route
}

// RouteAction is the cluster that the request goes to as it is now; nil if the route answers by itself, or there is none.
func (x *Exchange) RouteAction() *route.Action {
	x.Route()
	return x.action
}

// Context is what format strings are about, valid until the next call.
func (x *Exchange) Context() *route.Context {
	x.ctx.For(x.Req, x.Resp, x.Values)
	return &x.ctx
}

// RemoteIP is the client's address as the last proxy in front says it (x-forwarded-for), or that of the connection.
func (x *Exchange) RemoteIP() netip.Addr {
	v := ""
	for _, f := range x.Req.Header.Fields() {
		if f.Name == "x-forwarded-for" && f.Value != "" { // an empty line says nothing
			v = f.Value
		}
	}
	if i := strings.LastIndexByte(v, ','); i >= 0 {
		v = v[i+1:]
	}
	if v = strings.TrimSpace(v); v != "" {
		if a, err := netip.ParseAddr(v); err == nil {
			return a.Unmap()
		}
	}
	return x.Client.Addr.Addr()
}

// ClearRoute has Route look again, after a filter changed the request.
func (x *Exchange) ClearRoute() { x.routed = false }

// Answered sets the answer and returns Stop.
func (x *Exchange) Answered(status int, body, details string, flags Flags) Action {
	x.Reply = Reply{Status: status, Body: body}
	x.Details = details
	x.Flags |= flags
	return Stop
}

// Note keeps value under key, which is the filter itself or something as unique, until the exchange is over.
func (x *Exchange) Note(key, value any) {
	for i := range x.notes {
		if x.notes[i].key == key {
			x.notes[i].value = value
			return
		}
	}
	x.notes = append(x.notes, note{key, value})
}

// Noted returns what was kept under key, or nil.
func (x *Exchange) Noted(key any) any {
	for i := range x.notes {
		if x.notes[i].key == key {
			return x.notes[i].value
		}
	}
	return nil
}

// SetMetadata sets dynamic metadata.
func (x *Exchange) SetMetadata(filter, key string, value *structpb.Value) {
	if x.metadata == nil {
		x.metadata = map[string]*structpb.Struct{}
	}
	m := x.metadata[filter]
	if m == nil {
		m = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		x.metadata[filter] = m
	}
	m.Fields[key] = value
}

// Metadata is Envoy's dynamic metadata under a filter's name, or nil.
func (x *Exchange) Metadata(filter string) *structpb.Struct { return x.metadata[filter] }

// FilterState is Envoy's filter state of the connection, as far as configuration refers to it.
func (x *Exchange) FilterState(key string) (string, bool) {
	switch key {
	case "io.istio.peer_principal":
		return x.Client.Principal, x.Client.Principal != ""
	case "io.istio.local_principal":
		return x.Local, x.Local != ""
	case "io.istio.connect_authority", "envoy.filters.listener.original_dst.local_ip":
		return x.Dest.String(), true
	case "envoy.filters.listener.original_dst.remote_ip":
		return x.Client.Addr.String(), x.Client.Addr.IsValid()
	}
	return "", false
}
