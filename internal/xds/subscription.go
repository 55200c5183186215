package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Subscription is one type of one Client. Its methods may be called from any goroutine.
type Subscription struct {
	client *Client
	url    string
	opts   Options
	apply  func(up []*discoverypb.Resource, removed []string) (rejected map[string]error)

	// For Run's goroutine only.
	omitted map[string]bool // names whose versions did not fit into the first request; nil = none or settled
	acked   bool            // a response was ACKed once

	mu          sync.Mutex
	held        map[string]string // resource name -> version
	alias       map[string]string // alias -> resource name
	names       map[string]*name  // asked for on demand, by the name or alias asked
	subscribe   []string          // to be sent
	unsubscribe []string          // to be sent
	sent        map[string]bool   // names that the stream's server was asked for and not told to forget; nil = no request yet
	responses   uint64
	rejected    uint64
	lastNACK    string
	updated     time.Time
}

// name is one name asked for on demand. It is guarded by Subscription.mu.
type name struct {
	answered chan struct{} // closed at the first answer
	found    bool
}

func (n *name) answer(found bool) {
	n.found = found
	select {
	case <-n.answered:
	default:
		close(n.answered)
	}
}

// Fetch asks for a resource by name or alias and waits until the server has answered: nil when it was handed to the
// Handler (or had been before), ErrNotFound when the server has none, ctx's error or context.DeadlineExceeded after
// Config.FetchTimeout (B11). The name stays subscribed, over reconnects too, until Release; so a later appearance is
// delivered even after ErrNotFound. For a wildcard subscription it only looks at what is held.
func (s *Subscription) Fetch(ctx context.Context, key string) error {
	s.mu.Lock()
	if s.holdsLocked(key) {
		s.mu.Unlock()
		return nil
	}
	if !s.opts.OnDemand {
		s.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	n := s.askLocked(key)
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, s.client.cfg.fetchTimeout())
	defer cancel()
	select {
	case <-n.answered:
	case <-ctx.Done():
		return fmt.Errorf("wait for resource %q: %w", key, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !n.found {
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return nil
}

// Release ends the interest in a name that Fetch was called with. Its resource is unsubscribed and removed from the
// Handler soon, unless another name that was asked for stands for it too. Resources that the server sent along with it
// (a service's workloads) stay subscribed.
func (s *Subscription) Release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(key)
}

// Keep has a Named subscription ask for exactly these names from now on. Resources of other names are removed from the
// Handler soon.
func (s *Subscription) Keep(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := make(map[string]bool, len(names))
	for _, n := range names {
		want[n] = true
		s.askLocked(n)
	}
	for n := range s.names {
		if !want[n] {
			s.releaseLocked(n)
		}
	}
}

// askLocked has key asked for, unless it is already.
func (s *Subscription) askLocked(key string) *name {
	if n := s.names[key]; n != nil {
		return n
	}
	n := &name{answered: make(chan struct{})}
	s.names[key] = n
	s.subscribe = append(s.subscribe, key)
	s.unsubscribe = slices.DeleteFunc(s.unsubscribe, func(k string) bool { return k == key })
	s.client.poke()
	return n
}

// releaseLocked is Release.
func (s *Subscription) releaseLocked(key string) {
	n, ok := s.names[key]
	if !ok {
		return
	}
	n.answer(s.holdsLocked(key))
	delete(s.names, key)
	s.subscribe = slices.DeleteFunc(s.subscribe, func(k string) bool { return k == key })
	if !s.sent[key] && !s.holdsLocked(key) { // nobody knows of it
		return
	}
	s.unsubscribe = append(s.unsubscribe, key)
	s.client.poke()
}

// dropLocked forgets the resources that released keys stand for and returns their names, which the caller then has removed
// from the Handler. What another name that was asked for stands for stays.
func (s *Subscription) dropLocked(released []string) (dropped []string) {
	wanted := map[string]bool{}
	for key := range s.names {
		wanted[s.resolveLocked(key)] = true
	}
	for _, key := range released {
		if n := s.resolveLocked(key); n != "" && !wanted[n] {
			dropped = append(dropped, n)
			delete(s.held, n)
		}
	}
	return dropped
}

// resolveLocked is the resource that key stands for, or "".
func (s *Subscription) resolveLocked(key string) string {
	if _, ok := s.held[key]; ok {
		return key
	}
	if n := s.alias[key]; n != "" {
		if _, ok := s.held[n]; ok {
			return n
		}
	}
	return ""
}

func (s *Subscription) holdsLocked(key string) bool { return s.resolveLocked(key) != "" }

// first is the first request of a stream (X2, X3), or nil if there is nothing to ask for. It drops the resources of what
// was released meanwhile, so it is for Run's goroutine only.
func (s *Subscription) first() *discoverypb.DeltaDiscoveryRequest {
	s.mu.Lock()
	dropped := s.dropLocked(s.unsubscribe)
	req := s.firstLocked()
	s.mu.Unlock()
	if len(dropped) > 0 {
		s.apply(nil, dropped)
	}
	return req
}

func (s *Subscription) firstLocked() *discoverypb.DeltaDiscoveryRequest {
	req := &discoverypb.DeltaDiscoveryRequest{
		TypeUrl:                 s.url,
		Node:                    s.client.cfg.Node.proto(),
		InitialResourceVersions: map[string]string{},
	}
	s.subscribe, s.unsubscribe, s.sent = nil, nil, nil
	if s.opts.Named {
		if len(s.names) == 0 {
			return nil
		}
		req.ResourceNamesSubscribe = slices.Sorted(maps.Keys(s.names))
	}
	s.sent = map[string]bool{}
	for n := range s.names {
		s.sent[n] = true
	}
	if s.opts.OnDemand {
		// All that is held is asked for again, also what the server had sent along: none of it may grow stale.
		again := maps.Clone(s.held)
		for n := range s.names {
			again[n] = ""
		}
		req.ResourceNamesSubscribe = append([]string{"*"}, slices.Sorted(maps.Keys(again))...)
		req.ResourceNamesUnsubscribe = []string{"*"}
	}
	room := s.client.cfg.maxInitialVersions()
	s.omitted = nil
	for n, v := range s.held {
		// A map entry costs its two strings, their tags and lengths, and its own: at most 16 bytes more.
		if room -= len(n) + len(v) + 16; room >= 0 {
			req.InitialResourceVersions[n] = v
			continue
		}
		if s.omitted == nil {
			s.omitted = map[string]bool{}
		}
		s.omitted[n] = true
	}
	return req
}

// next is a request for names that were asked for or released since, or nil. It drops the resources of the released
// ones, so it is for Run's goroutine only.
func (s *Subscription) next() *discoverypb.DeltaDiscoveryRequest {
	s.mu.Lock()
	if s.sent == nil { // there was nothing to ask for when the stream began
		s.mu.Unlock()
		return s.first()
	}
	req := &discoverypb.DeltaDiscoveryRequest{
		TypeUrl:                  s.url,
		ResourceNamesSubscribe:   s.subscribe,
		ResourceNamesUnsubscribe: s.unsubscribe,
	}
	s.subscribe, s.unsubscribe = nil, nil
	dropped := s.dropLocked(req.ResourceNamesUnsubscribe)
	for _, n := range dropped {
		if !slices.Contains(req.ResourceNamesUnsubscribe, n) {
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, n)
		}
	}
	for _, n := range req.ResourceNamesSubscribe {
		s.sent[n] = true
	}
	for _, n := range req.ResourceNamesUnsubscribe {
		delete(s.sent, n)
	}
	s.mu.Unlock()
	if len(dropped) > 0 {
		s.apply(nil, dropped)
	}
	if len(req.ResourceNamesSubscribe) == 0 && len(req.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	return req
}

// take applies a response and returns the text of the NACK, "" for an ACK.
func (s *Subscription) take(resp *discoverypb.DeltaDiscoveryResponse) string {
	removed := resp.GetRemovedResources()
	if s.omitted != nil && !s.opts.OnDemand {
		// The server could not know that we hold these. What still exists came with this first response.
		for _, r := range resp.GetResources() {
			delete(s.omitted, r.GetName())
		}
		removed = append(slices.Clone(removed), slices.Sorted(maps.Keys(s.omitted))...)
	}
	s.omitted = nil
	up := latest(resp.GetResources())
	var rejected map[string]error
	if len(up) > 0 || len(removed) > 0 {
		rejected = s.apply(up, removed)
	}
	s.record(up, removed, rejected)
	if len(rejected) == 0 {
		return ""
	}
	return Rejection(rejected).Error()
}

// latest drops all but the last resource of each name.
func latest(resources []*discoverypb.Resource) []*discoverypb.Resource {
	seen := make(map[string]int, len(resources))
	out := make([]*discoverypb.Resource, 0, len(resources))
	for _, r := range resources {
		if i, ok := seen[r.GetName()]; ok {
			out[i] = r
			continue
		}
		seen[r.GetName()] = len(out)
		out = append(out, r)
	}
	return out
}

// record remembers what is held now and answers those who wait. Aliases count (B11, unlike X4).
func (s *Subscription) record(up []*discoverypb.Resource, removed []string, rejected map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.responses++
	s.rejected += uint64(len(rejected))
	s.updated = time.Now()
	s.lastNACK = ""
	if len(rejected) > 0 {
		s.lastNACK = Rejection(rejected).Error()
	}
	for _, n := range removed {
		delete(s.held, n)
		if w, ok := s.names[n]; ok {
			w.answer(false)
		}
	}
	for _, r := range up {
		if _, bad := rejected[r.GetName()]; bad {
			continue // its old version, if any, stays recorded, and so the server sends it again (X6)
		}
		s.held[r.GetName()] = r.GetVersion()
		if !s.opts.OnDemand {
			continue
		}
		for _, key := range append([]string{r.GetName()}, r.GetAliases()...) {
			s.alias[key] = r.GetName()
			if w, ok := s.names[key]; ok {
				w.answer(true)
			}
		}
	}
	if len(removed) > 0 && len(s.alias) > 0 {
		maps.DeleteFunc(s.alias, func(_, n string) bool { _, ok := s.held[n]; return !ok })
	}
}

func (s *Subscription) status() TypeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return TypeStatus{
		URL: s.url, OnDemand: s.opts.OnDemand, Resources: len(s.held), Names: slices.Sorted(maps.Keys(s.names)),
		Responses: s.responses, Rejected: s.rejected, LastNACK: s.lastNACK, Updated: s.updated,
	}
}

// applier hides T: it decodes, applies, and says what was rejected and why.
func applier[T any](t Type[T], h Handler[T]) func([]*discoverypb.Resource, []string) map[string]error {
	return func(up []*discoverypb.Resource, removed []string) map[string]error {
		rejected := map[string]error{}
		good := make([]Resource[T], 0, len(up))
		for _, r := range up {
			v, err := decode(t, r)
			if err != nil {
				rejected[r.GetName()] = err
				continue
			}
			good = append(good, Resource[T]{Name: r.GetName(), Version: r.GetVersion(), Value: v})
		}
		if len(good) == 0 && len(removed) == 0 {
			return rejected
		}
		if err := h.Apply(good, removed); err != nil {
			var some interface{ Rejected() map[string]error }
			if errors.As(err, &some) {
				maps.Copy(rejected, some.Rejected())
				return rejected
			}
			for _, r := range good {
				rejected[r.Name] = err
			}
		}
		return rejected
	}
}

func decode[T any](t Type[T], r *discoverypb.Resource) (T, error) {
	var zero T
	switch {
	case r.GetResource() == nil:
		return zero, errors.New("the resource has no body")
	case r.GetResource().GetTypeUrl() != t.URL:
		return zero, fmt.Errorf("want type %q, got %q", t.URL, r.GetResource().GetTypeUrl())
	}
	return t.Decode(r.GetName(), r.GetResource().GetValue())
}
