// Package discovery is a delta ADS server (envoy.service.discovery.v3) for the mesh's proxies.
//
// It holds sets of resources. Publish replaces a set, Update changes some of it; each stream then gets the difference
// to what it has, as one response per type, and the next one only after the client's ACK or NACK: a slow client gets
// fewer, larger responses and no queue. A wildcard client costs no memory per resource: every set has a log of the
// names that changed, and a stream remembers its place in it. docs/decisions/0002-delta-ads-server.md has the reasons.
//
// Numbers such as X5 refer to the ztunnel specification, 1.11 to the control plane's.
package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Set names a set of resources: all of one type that one group of clients sees.
type Set struct {
	// TypeURL of the resources.
	TypeURL string
	// Scope tells apart sets of one type, "" = the mesh's; for example the name of a waypoint.
	Scope string
}

// Resource is one resource of a set. It must not be modified after it was handed in.
type Resource struct {
	// Name is unique within the set.
	Name string
	// Version changes with Body; equal versions mean equal content, in every replica: a hash of it.
	Version string
	// Aliases are other names under which it can be asked for, "network/ip".
	Aliases []string
	// Body is the message in wire format, of the set's type.
	Body []byte
	// Traits must follow from Body.
	Traits Traits
}

// Traits are what the server must know of a resource beyond its name.
type Traits struct {
	// Node is the node of a workload: its proxy gets it first, and always (1.11).
	Node string
	// Groups are resources whose subscribers also get this one: the services of a workload (1.11).
	Groups []string
}

// Caller is the authenticated other end of a stream.
type Caller struct {
	Namespace, ServiceAccount, Pod, UID, Node string
	Live                                      bool
}

// Client is a proxy that asks.
type Client struct {
	Caller Caller
	// NodeID and Metadata are what it says of itself in its first request. Authorize decides how far to believe it.
	NodeID   string
	Metadata map[string]string
	// Labels are those of its metadata.
	Labels map[string]string
}

// Config is what a Server needs. It must not be modified after NewServer.
type Config struct {
	// Authenticate finds out who opens a stream, from the RPC's metadata. An error ends the stream with Unauthenticated
	// and an opaque text. Required.
	Authenticate func(ctx context.Context) (Caller, error)
	// Authorize decides whether a client may have a type and which set answers it. An error ends the stream with
	// PermissionDenied and the error's text. Required.
	Authorize func(c Client, typeURL string) (Set, error)
	// Order lists type URLs whose changes a client must see in this order: what one of them refers to another for comes
	// first. Other types follow, in the order in which a client first asks for them.
	Order []string
	// MaxStreams bounds the open streams, and MaxStreamsPerCaller those of one pod; 0 = 20000 and 16.
	MaxStreams, MaxStreamsPerCaller int
	// MaxNames bounds the names that one stream asks for per type; 0 = 200000.
	MaxNames int
	// LogSize bounds the changes remembered per set; 0 = the larger of 65536 and twice the set. A stream that is
	// further behind is ended and starts over from the versions that the client has.
	LogSize int
	// Linger is how long a client keeps a cluster after it is gone; 0 = 60 s, more than the 45 s in which Istio's Envoys drain
	// the connections of a listener that was replaced.
	Linger time.Duration
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

func (c Config) maxStreams() int          { return orDefault(c.MaxStreams, 20000) }
func (c Config) maxStreamsPerCaller() int { return orDefault(c.MaxStreamsPerCaller, 16) }
func (c Config) maxNames() int            { return orDefault(c.MaxNames, 200000) }

func (c Config) linger() time.Duration { return orDefault(c.Linger, time.Minute) }

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Server is the delta ADS server. All methods may be called from any goroutine; it starts none of its own.
type Server struct {
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	cfg Config
	log *slog.Logger

	mu       sync.RWMutex
	sets     map[Set]*set // guarded by mu
	revision uint64       // counts changes of any set; guarded by mu

	smu     sync.Mutex
	streams map[*stream]bool // guarded by smu
	callers map[string]int   // open streams by caller; guarded by smu

	lastStream atomic.Uint64
	sent       atomic.Uint64 // resources sent and removals
	responses  atomic.Uint64
	nacks      atomic.Uint64
}

// NewServer makes a server without any set. A client that asks for a set which was never published waits: an empty
// answer would tell it that all it has is gone.
func NewServer(cfg Config) *Server {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: log, sets: map[Set]*set{}, streams: map[*stream]bool{}, callers: map[string]int{}}
}

// Publish makes resources the whole of a set. Only what differs from before is sent to clients. It does not block on
// them.
func (s *Server) Publish(key Set, resources []Resource) {
	s.PublishTogether([]Contents{{key, resources}})
}

// Contents is the whole of a set.
type Contents struct {
	Set       Set
	Resources []Resource
}

// PublishTogether is Publish for several sets: no client sees one of them changed and another not.
func (s *Server) PublishTogether(list []Contents) {
	s.mu.Lock()
	news := false
	for _, c := range list {
		news = s.publishLocked(c) || news
	}
	s.mu.Unlock()
	if news {
		s.wake()
	}
}

func (s *Server) publishLocked(c Contents) (news bool) {
	st := s.setLocked(c.Set)
	keep := make(map[string]bool, len(c.Resources))
	for _, r := range c.Resources {
		keep[r.Name] = true
	}
	var removed []string
	for name := range st.entries {
		if !keep[name] {
			removed = append(removed, name)
		}
	}
	slices.Sort(removed)
	changed := s.changeLocked(st, c.Resources, removed)
	first := !st.published
	st.published = true
	return changed || first
}

// Update changes some resources of a set that was published, and removes some by name. It costs what changed.
func (s *Server) Update(key Set, up []Resource, removed []string) {
	s.mu.Lock()
	changed := s.changeLocked(s.setLocked(key), up, removed)
	s.mu.Unlock()
	if changed {
		s.wake()
	}
}

func (s *Server) setLocked(key Set) *set {
	st := s.sets[key]
	if st == nil {
		st = newSet(key, s.cfg.LogSize)
		s.sets[key] = st
	}
	return st
}

func (s *Server) changeLocked(st *set, up []Resource, removed []string) bool {
	changed := false
	for _, r := range up {
		if old := st.entries[r.Name]; old != nil && old.version == r.Version && slices.Equal(old.aliases, r.Aliases) {
			continue
		}
		st.put(r)
		changed = true
	}
	for _, name := range removed {
		changed = st.remove(name) || changed
	}
	if changed {
		s.revision++
		st.trim()
	}
	return changed
}

// wake tells every stream to look for changes.
func (s *Server) wake() {
	s.smu.Lock()
	defer s.smu.Unlock()
	for st := range s.streams {
		st.poke()
	}
}

// DeltaAggregatedResources serves one stream until the client or ctx ends it.
func (s *Server) DeltaAggregatedResources(rpc discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	caller, err := s.cfg.Authenticate(rpc.Context())
	if err != nil {
		s.log.Warn("xds client refused", slog.String("peer", peerOf(rpc.Context())), slog.Any("err", err))
		return status.Error(codes.Unauthenticated, "the token could not be authenticated")
	}
	st := newStream(s, rpc, caller)
	if err := s.register(st); err != nil {
		s.log.Warn("xds client refused", slog.String("peer", st.peer), slog.String("caller", callerKey(caller)), slog.Any("err", err))
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	defer s.unregister(st)
	err = st.run()
	s.log.Info("xds client disconnected", slog.String("peer", st.peer), slog.String("client", st.clientName()),
		slog.Duration("dur", time.Since(st.since)), slog.Any("err", err))
	return err
}

func callerKey(c Caller) string { return c.Namespace + "/" + c.ServiceAccount + "/" + c.Pod }

func (s *Server) register(st *stream) error {
	s.smu.Lock()
	defer s.smu.Unlock()
	key := callerKey(st.caller)
	switch {
	case len(s.streams) >= s.cfg.maxStreams():
		return fmt.Errorf("%d streams are open", len(s.streams))
	case s.callers[key] >= s.cfg.maxStreamsPerCaller():
		return fmt.Errorf("%d streams of %s are open", s.callers[key], key)
	}
	s.streams[st] = true
	s.callers[key]++
	return nil
}

func (s *Server) unregister(st *stream) {
	s.smu.Lock()
	defer s.smu.Unlock()
	delete(s.streams, st)
	key := callerKey(st.caller)
	if s.callers[key]--; s.callers[key] <= 0 {
		delete(s.callers, key)
	}
}
