package discovery

import (
	"maps"
	"slices"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// subscription is one type of one stream. Guarded by stream.mu.
type subscription struct {
	set      Set
	node     string // of the client
	wildcard bool
	first    bool              // the first response is still to come
	claimed  map[string]string // versions that the client came with, until the first response
	pos      uint64            // changes before it have been sent

	// On demand only.
	keys    map[string]bool // names and aliases asked for
	sent    map[string]bool // resources that the client has because of that
	pending []string        // keys asked for since the last response: each gets an answer
	gone    map[string]bool // resources of which the client is yet to be told that they are gone

	outstanding string // nonce of the response that waits for an answer, "" = none
	answers     bool   // the last response was one to a request
	carries     bool   // the last response was more than removals
	waiting     bool   // a response waits for its stage, since sentAt
	acked       string // nonce of the last ACK
	nack        string // text of the last NACK, "" once a later response was ACKed
	sentAt      time.Time
	resources   uint64 // sent, over the life of the stream
}

// ask takes in the names of a request. The first request of a type without names is a wildcard (1.11).
func (sub *subscription) ask(req *discoverypb.DeltaDiscoveryRequest, first bool) {
	if first {
		sub.first = true
		sub.claimed = req.GetInitialResourceVersions()
		sub.wildcard = len(req.GetResourceNamesSubscribe()) == 0
	}
	for _, key := range req.GetResourceNamesSubscribe() {
		if key == "*" {
			sub.wildcard = true
			continue
		}
		sub.keys[key] = true
		sub.pending = append(sub.pending, key)
	}
	for _, key := range req.GetResourceNamesUnsubscribe() {
		if key == "*" {
			sub.wildcard = false
			continue
		}
		delete(sub.keys, key)
		delete(sub.sent, key)
		delete(sub.gone, key)
		sub.pending = slices.DeleteFunc(sub.pending, func(k string) bool { return k == key })
	}
}

// behind says that the client may lack something.
func (sub *subscription) behind(st *set) bool {
	return sub.first || len(sub.pending) > 0 || sub.pos != st.end()
}

// delta is what a response says.
type delta struct {
	up      []*discoverypb.Resource
	removed []string
	// always: it is sent even if empty, since the client waits for it.
	always bool
}

// empty says that there is no need to send it.
func (d delta) empty() bool { return len(d.up) == 0 && len(d.removed) == 0 && !d.always }

// next is the difference between what the client has and the set, and makes it what the client has. False when the
// log no longer goes back to where the client is.
func (sub *subscription) next(st *set) (delta, bool) {
	var d delta
	var ok bool
	switch {
	case sub.first && sub.wildcard:
		d, ok = sub.everything(st), true
	case sub.wildcard:
		d, ok = sub.changes(st)
	default:
		d, ok = sub.demanded(st)
	}
	sub.pos = st.end()
	sub.first, sub.claimed, sub.pending = false, nil, nil
	return d, ok
}

// everything is the whole set without what the client has already, and what of the client's no longer exists (X6).
func (sub *subscription) everything(st *set) delta {
	d := delta{always: true}
	for _, name := range st.localFirst(sub.node) {
		e := st.entries[name]
		if v, ok := sub.claimed[name]; ok && v == e.version {
			continue
		}
		d.up = append(d.up, e.plain)
	}
	for name := range sub.claimed {
		if st.entries[name] == nil {
			d.removed = append(d.removed, name)
		}
	}
	slices.Sort(d.removed)
	return d
}

// changes is what changed since the last response, for a wildcard.
func (sub *subscription) changes(st *set) (delta, bool) {
	d := delta{always: len(sub.pending) > 0}
	names, ok := st.since(sub.pos)
	for _, name := range names {
		if e := st.entries[name]; e != nil {
			d.up = append(d.up, e.plain)
		} else {
			d.removed = append(d.removed, name)
		}
	}
	for _, key := range sub.pending {
		if name, e := st.resolve(key); e == nil {
			d.removed = append(d.removed, key)
		} else if !slices.Contains(names, name) {
			d.up = append(d.up, e.aliased())
		}
	}
	return d, ok
}

// demanded answers the keys asked for, and adds what changed of what the client has. The workloads of the client's own
// node, and those of each service that it asked for, belong to it too (1.11).
func (sub *subscription) demanded(st *set) (delta, bool) {
	d := delta{always: sub.first || len(sub.pending) > 0}
	done := map[string]bool{}
	give := func(name string, e *entry, again bool) {
		if done[name] {
			return
		}
		done[name] = true
		had := sub.sent[name]
		sub.sent[name] = true
		if had && !again || sub.claimed[name] == e.version && e.version != "" {
			return
		}
		d.up = append(d.up, e.aliased())
	}
	if sub.first {
		for _, name := range slices.Sorted(maps.Keys(st.byNode[sub.node])) {
			give(name, st.entries[name], false)
		}
		for name := range sub.claimed {
			if st.entries[name] == nil {
				d.removed = append(d.removed, name)
				done[name] = true
			}
		}
	}
	for _, key := range sub.pending {
		name, e := st.resolve(key)
		if e == nil {
			if !done[key] {
				d.removed = append(d.removed, key)
			}
			done[key] = true
			continue
		}
		give(name, e, true)
		for _, member := range slices.Sorted(maps.Keys(st.members[name])) {
			give(member, st.entries[member], false)
		}
	}
	if sub.first {
		slices.Sort(d.removed)
		return d, true
	}
	names, ok := st.since(sub.pos)
	for _, name := range names {
		e := st.entries[name]
		switch {
		case done[name]:
		case e != nil && (sub.sent[name] || sub.concerns(name, e)):
			give(name, e, true)
		case e == nil && (sub.sent[name] || sub.keys[name]):
			delete(sub.sent, name)
			d.removed = append(d.removed, name)
		}
	}
	return d, ok
}

// concerns tells whether a resource that the client does not have yet is one that it asked for.
func (sub *subscription) concerns(name string, e *entry) bool {
	if sub.keys[name] || sub.node != "" && e.traits.Node == sub.node {
		return true
	}
	has := func(m map[string]bool) func(string) bool { return func(k string) bool { return m[k] } }
	return slices.ContainsFunc(e.aliases, has(sub.keys)) || slices.ContainsFunc(e.traits.Groups, has(sub.sent))
}
