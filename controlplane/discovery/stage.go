package discovery

import (
	"maps"
	"math"
	"slices"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// Clusters, and the listeners and routes that lead to them, change in stages, make before break, as the xDS protocol asks of
// a server ("Eventual consistency considerations"). First come new and changed clusters. Once the client has them and the
// endpoints that it asked for, the listeners and routes follow, behind the endpoints of the same state. Sent all at once, an
// Envoy has a route to a cluster that still waits for its endpoints, and answers 503 meanwhile. Clusters that are gone are
// told of last, Config.Linger after the client has taken the listeners that do without them: an Envoy serves a connection by
// the listener that it began with until it has drained it.
//
// One change is under way at a time, and what happens meanwhile is the next one; so a stream of changes does not hold one back
// for ever. If a cluster goes meanwhile the change is made anew. A NACK ends a stage as an ACK does: what was good stays in
// force at the client. Endpoints wait for nothing, but that they are gone is told after their cluster.
type stages struct {
	clusters, leads []held               // of the change under way, what is not sent yet
	parting         map[string]bool      // clusters that are gone, while a listener in force may lead to them
	leaving         map[string]time.Time // clusters that are gone, and when the client is told
	queue           []leaver             // of leaving, the first to go first; some may have come back
	again           int                  // how often the change under way was made anew, at most maxAgain times
}

const maxAgain = 10

// held is a part of a change that waits for its stage.
type held struct {
	url string
	delta
}

// leaver is a cluster that is gone, and when the client is told.
type leaver struct {
	name string
	at   time.Time
}

var leading = []string{xds.ListenerType, xds.RouteType}

// inStages tells whether a type's changes wait for others.
func inStages(url string) bool { return url == xds.ClusterType || slices.Contains(leading, url) }

// clusterStage is the first stage of the next change, if the client has all of the one before; or the clusters whose time is over.
// Needs mu and the server's.
func (st *stream) clusterStage() ([]*discoverypb.DeltaDiscoveryResponse, error) {
	if st.settling() {
		for _, url := range st.lacking() {
			if sub := st.subs[url]; sub.outstanding == "" {
				sub.wait()
			}
		}
		return nil, nil
	}
	if len(st.leads) > 0 {
		return nil, nil
	}
	st.part()
	if err := st.change(); err != nil {
		return nil, err
	}
	if len(st.clusters) == 0 && len(st.leads) == 0 {
		st.part()
		st.clusters = st.gone()
	}
	return st.sendHeld(&st.clusters), nil
}

// leadStage is the second stage. It comes behind the endpoints of a push. Needs mu and the server's.
func (st *stream) leadStage() ([]*discoverypb.DeltaDiscoveryResponse, error) {
	if len(st.leads) == 0 || st.settling() {
		return nil, nil
	}
	news, gone := st.clustersSince()
	switch {
	case gone && st.again < maxAgain: // leads may be to what was taken back
		st.again++
		if err := st.change(); err != nil {
			return nil, err
		}
		if len(st.clusters) > 0 {
			return st.sendHeld(&st.clusters), nil
		}
	case !news:
		if err := st.change(); err != nil {
			return nil, err
		}
	}
	if sub, set := st.endpointSet(); set != nil && sub.pos != set.end() {
		return nil, nil // an ACK brings the endpoints, and the leads behind them
	}
	st.again = 0
	return st.sendHeld(&st.leads), nil
}

// clustersSince tells whether clusters came or changed, and whether some went, since the change under way.
func (st *stream) clustersSince() (news, gone bool) {
	sub := st.subs[xds.ClusterType]
	if sub == nil {
		return false, false
	}
	set := st.published(sub)
	if set == nil {
		return false, false
	}
	names, _ := set.since(sub.pos)
	for _, name := range names {
		there := set.entries[name] != nil
		news, gone = news || there, gone || !there
	}
	return news, gone
}

// then is a difference followed by another.
func (d delta) then(next delta) delta {
	later := nameSet(next.removed)
	for _, r := range next.up {
		later[r.Name] = true
	}
	next.always = next.always || d.always
	for _, r := range d.up {
		if !later[r.Name] {
			next.up = append(next.up, r)
		}
	}
	for _, name := range d.removed {
		if !later[name] {
			next.removed = append(next.removed, name)
		}
	}
	return next
}

func (st *stream) sendHeld(list *[]held) (out []*discoverypb.DeltaDiscoveryResponse) {
	for _, h := range *list {
		out = append(out, st.response(h.url, st.subs[h.url], h.delta))
	}
	*list = nil
	return out
}

// settling tells whether the client still has to answer something that was sent, or to get endpoints that it asked for.
func (st *stream) settling() bool {
	for url, sub := range st.subs {
		if inStages(url) && sub.outstanding != "" {
			return true
		}
	}
	sub, set := st.endpointSet()
	return set != nil && (sub.answers && sub.outstanding != "" || len(sub.pending) > 0)
}

// endpointSet has no set if the client does not ask for endpoints, or nobody has any.
func (st *stream) endpointSet() (*subscription, *set) {
	sub := st.subs[xds.EndpointType]
	if sub == nil {
		return nil, nil
	}
	return sub, st.published(sub)
}

// lacking are the types of a change that is yet to be made, in the order of pushes.
func (st *stream) lacking() (urls []string) {
	for _, url := range st.order {
		sub := st.subs[url]
		if set := st.published(sub); inStages(url) && set != nil && sub.behind(set) {
			urls = append(urls, url)
		}
	}
	return urls
}

// wait notes since when something waits for the client: that a client is slow shows.
func (sub *subscription) wait() {
	if !sub.waiting {
		sub.waiting, sub.sentAt = true, time.Now()
	}
}

// change makes the stages of what the client lacks, or adds it to those under way.
func (st *stream) change() error {
	for _, url := range st.lacking() {
		sub := st.subs[url]
		asked := nameSet(sub.pending)
		d, ok := sub.next(st.published(sub))
		if !ok {
			return errTooFarBehind
		}
		if url == xds.ClusterType {
			st.linger(&d, asked)
		}
		switch {
		case d.empty(): // or only of clusters that linger
			sub.waiting = false
		case url == xds.ClusterType:
			st.clusters = append(st.clusters, held{url, d})
		default:
			sub.wait()
			st.lead(url, d)
		}
	}
	return nil
}

func (st *stream) lead(url string, d delta) {
	for i, h := range st.leads {
		if h.url == url {
			st.leads[i].delta = h.then(d)
			return
		}
	}
	st.leads = append(st.leads, held{url, d})
}

func nameSet(names []string) map[string]bool {
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out
}

// linger keeps clusters that are gone for later. That there is none of a name that was asked for is an answer, and is not kept.
func (st *stream) linger(d *delta, asked map[string]bool) {
	for _, r := range d.up {
		delete(st.parting, r.Name)
		delete(st.leaving, r.Name)
	}
	var answers []string
	for _, name := range d.removed {
		switch {
		case st.parts(name):
		case asked[name]:
			answers = append(answers, name)
		default:
			st.parting[name] = true
		}
	}
	d.removed = answers
}

// parts tells whether a cluster is gone and the client not told yet.
func (st *stream) parts(name string) bool {
	_, leaves := st.leaving[name]
	return leaves || st.parting[name]
}

// part lets the time of clusters begin that no listener in force leads to: the client has taken the newest ones.
func (st *stream) part() {
	for _, url := range leading {
		if sub := st.subs[url]; sub != nil && sub.nack != "" {
			return
		}
	}
	at := time.Now().Add(st.srv.cfg.linger())
	for name := range st.parting {
		st.leaving[name] = at
		st.queue = append(st.queue, leaver{name, at})
	}
	clear(st.parting)
}

// gone are the clusters whose time is over.
func (st *stream) gone() []held {
	var names []string
	for len(st.queue) > 0 && !time.Now().Before(st.queue[0].at) {
		first := st.queue[0]
		st.queue = st.queue[1:]
		if st.leaving[first.name].Equal(first.at) {
			names = append(names, first.name)
			delete(st.leaving, first.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []held{{xds.ClusterType, delta{removed: names}}}
}

// next is when the time of a cluster that is gone is over; far away if there is none, or the client has to answer first.
func (st *stream) next() time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.queue) == 0 {
		return math.MaxInt64
	}
	st.srv.mu.RLock()
	defer st.srv.mu.RUnlock()
	if len(st.leads) > 0 || st.settling() {
		return math.MaxInt64
	}
	return max(time.Until(st.queue[0].at), 0)
}

// endpointResponse is the next response of endpoints, nil if there is nothing to say now. quiet says that no stage is sent along
// with it. Needs mu and the server's.
func (st *stream) endpointResponse(quiet bool) (*discoverypb.DeltaDiscoveryResponse, error) {
	sub, set := st.endpointSet()
	if set == nil || sub.outstanding != "" {
		return nil, nil
	}
	var d delta
	if sub.behind(set) {
		asked := nameSet(sub.pending)
		maps.DeleteFunc(asked, func(name string, _ bool) bool { // what the client has it may still need
			_, claimed := sub.claimed[name]
			return claimed || sub.sent[name] || sub.gone[name]
		})
		var ok bool
		if d, ok = sub.next(set); !ok {
			return nil, errTooFarBehind
		}
		for _, r := range d.up {
			delete(sub.gone, r.Name)
		}
		var answers []string
		for _, name := range d.removed {
			if asked[name] {
				delete(sub.gone, name)
				answers = append(answers, name)
			} else {
				sub.gone[name] = true
			}
		}
		d.removed = answers
	}
	if quiet && len(sub.gone) > 0 && len(st.leads) == 0 && !st.settling() && len(st.lacking()) == 0 {
		for _, name := range slices.Sorted(maps.Keys(sub.gone)) {
			if !st.parts(name) {
				d.removed = append(d.removed, name)
				delete(sub.gone, name)
			}
		}
	}
	if d.empty() {
		return nil, nil
	}
	return st.response(xds.EndpointType, sub, d), nil
}
