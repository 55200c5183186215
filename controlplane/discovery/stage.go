package discovery

import (
	"math"
	"slices"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// Clusters, and the listeners and routes that lead to them, change in stages, make before break, as the xDS protocol asks of
// a server ("Eventual consistency considerations"). First come new and changed clusters. Once the client has them and the
// endpoints that it asked for, the listeners and routes follow. Sent all at once, an Envoy has a route to a cluster that still
// waits for its endpoints, and answers 503 meanwhile. Clusters that are gone are told of last, and Config.Linger later: an Envoy
// serves a connection by the listener that it began with until it has drained it.
//
// One change is under way at a time, and what happens meanwhile is the next one; so a stream of changes does not hold one back
// for ever. A NACK ends a stage as an ACK does: what was good stays in force at the client. Endpoints wait for nothing, but that
// they are gone is told after the clusters.
var leading = []string{xds.ListenerType, xds.RouteType}

// inStages tells whether a type's changes wait for others.
func inStages(url string) bool { return url == xds.ClusterType || slices.Contains(leading, url) }

// held is a part of a change that waits for its stage.
type held struct {
	url string
	delta
}

// stage is the next stage of the change under way, or the first one of the next change, if the client has all that came
// before. Needs mu and the server's.
func (st *stream) stage() ([]*discoverypb.DeltaDiscoveryResponse, error) {
	if st.settling() {
		return nil, nil
	}
	if len(st.stages) == 0 {
		if err := st.change(); err != nil {
			return nil, err
		}
	}
	if len(st.stages) == 0 {
		return nil, nil
	}
	var out []*discoverypb.DeltaDiscoveryResponse
	for _, h := range st.stages[0] {
		if sub := st.subs[h.url]; sub != nil {
			out = append(out, st.response(h.url, sub, h.delta))
		}
	}
	st.stages = st.stages[1:]
	return out, nil
}

// settling tells whether the client still has to answer something that was sent, or to get endpoints that it asked for.
func (st *stream) settling() bool {
	for url, sub := range st.subs {
		if inStages(url) && sub.outstanding != "" {
			return true
		}
	}
	sub := st.subs[xds.EndpointType]
	if sub == nil {
		return false
	}
	set := st.srv.sets[sub.set]
	return sub.answers && sub.outstanding != "" || len(sub.pending) > 0 && set != nil && set.published
}

// change makes the stages of what the client lacks.
func (st *stream) change() error {
	var clusters, leads []held
	for _, url := range st.order {
		sub := st.subs[url]
		set := st.srv.sets[sub.set]
		if !inStages(url) || set == nil || !set.published || !sub.behind(set) {
			continue
		}
		d, ok := sub.next(set)
		if !ok {
			return errTooFarBehind
		}
		if d.empty() {
			continue
		}
		if url == xds.ClusterType {
			if st.linger(&d); !d.empty() {
				clusters = append(clusters, held{url, d})
			}
		} else {
			sub.sentAt = time.Now() // also while it waits: that a client is slow shows
			leads = append(leads, held{url, d})
		}
	}
	for _, stage := range [][]held{clusters, leads, st.gone()} {
		if len(stage) > 0 {
			st.stages = append(st.stages, stage)
		}
	}
	return nil
}

// linger keeps clusters that are gone for later.
func (st *stream) linger(d *delta) {
	for _, r := range d.up {
		delete(st.leaving, r.Name)
	}
	for _, name := range d.removed {
		st.leaving[name] = time.Now().Add(st.srv.cfg.linger())
	}
	d.removed = nil
}

// gone are the clusters whose time is over.
func (st *stream) gone() []held {
	var names []string
	for name, at := range st.leaving {
		if !time.Now().Before(at) {
			names = append(names, name)
			delete(st.leaving, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []held{{xds.ClusterType, delta{removed: names}}}
}

// next is when the time of a cluster that is gone is over; far away if there is none.
func (st *stream) next() time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	wait := time.Duration(math.MaxInt64)
	for _, at := range st.leaving {
		wait = min(wait, max(time.Until(at), 0))
	}
	return wait
}

// waits tells whether a part of the change under way is of a type and not sent yet.
func (st *stream) waits(url string) bool {
	return slices.ContainsFunc(st.stages, func(stage []held) bool {
		return slices.ContainsFunc(stage, func(h held) bool { return h.url == url })
	})
}

// endpoints is the next response of endpoints, nil if there is nothing to say now. quiet says that no stage is sent along with it.
// Needs mu and the server's.
func (st *stream) endpoints(quiet bool) (*discoverypb.DeltaDiscoveryResponse, error) {
	sub := st.subs[xds.EndpointType]
	set := st.srv.sets[sub.set]
	if set == nil || !set.published || sub.outstanding != "" {
		return nil, nil
	}
	var d delta
	if sub.behind(set) {
		asked, ok := slices.Clone(sub.pending), false
		if d, ok = sub.next(set); !ok {
			return nil, errTooFarBehind
		}
		for _, r := range d.up {
			sub.forget(r.Name)
		}
		var answers []string
		for _, name := range d.removed {
			sub.forget(name)
			if slices.Contains(asked, name) {
				answers = append(answers, name)
			} else {
				sub.gone = append(sub.gone, name)
			}
		}
		d.removed = answers
	}
	if quiet && len(st.stages) == 0 && len(st.leaving) == 0 && !st.settling() {
		d.removed, sub.gone = append(d.removed, sub.gone...), nil
	}
	if d.empty() {
		return nil, nil
	}
	return st.response(xds.EndpointType, sub, d), nil
}

// forget drops a name of which the client need not be told that it is gone.
func (sub *subscription) forget(name string) {
	sub.gone = slices.DeleteFunc(sub.gone, func(n string) bool { return n == name })
}
