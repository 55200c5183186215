package discovery

import (
	"slices"
	"time"
)

// Stats are counters since the start, and sizes now.
type Stats struct {
	Streams   int    `json:"streams"`
	Responses uint64 `json:"responses"`
	Resources uint64 `json:"resources"` // sent or removed, over all clients
	NACKs     uint64 `json:"nacks"`
	// Sets are the numbers of resources.
	Sets map[Set]int `json:"-"`
}

// Stats counts.
func (s *Server) Stats() Stats {
	out := Stats{Responses: s.responses.Load(), Resources: s.sent.Load(), NACKs: s.nacks.Load(), Sets: map[Set]int{}}
	s.smu.Lock()
	out.Streams = len(s.streams)
	s.smu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for key, st := range s.sets {
		out.Sets[key] = len(st.entries)
	}
	return out
}

// ClientStatus describes one stream for /debug/syncz.
type ClientStatus struct {
	Client    string       `json:"client"`
	Caller    string       `json:"caller"`
	Peer      string       `json:"peer"`
	Connected time.Time    `json:"connected"`
	Types     []TypeStatus `json:"types"`
}

// TypeStatus describes one type of one stream.
type TypeStatus struct {
	TypeURL string `json:"typeUrl"`
	Scope   string `json:"scope,omitempty"`
	// State is "SYNCED", "STALE" (a response was sent and not answered yet, or one waits until the
	// client has what it leads to), "NACKED" or "NOT SENT".
	State     string    `json:"state"`
	Wildcard  bool      `json:"wildcard"`
	Names     int       `json:"names,omitempty"` // asked for on demand
	Sent      string    `json:"sent,omitempty"`  // nonce that waits for an answer
	Acked     string    `json:"acked,omitempty"` // nonce
	NACK      string    `json:"nack,omitempty"`
	SentAt    time.Time `json:"sentAt"`    // or since when it waits
	Resources uint64    `json:"resources"` // sent or removed on this stream
}

// Clients describes all streams, oldest first.
func (s *Server) Clients() []ClientStatus {
	s.smu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.smu.Unlock()
	slices.SortFunc(streams, func(a, b *stream) int { return int(a.id) - int(b.id) })
	out := make([]ClientStatus, 0, len(streams))
	for _, st := range streams {
		out = append(out, st.status())
	}
	return out
}

func (st *stream) status() ClientStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := ClientStatus{Caller: callerKey(st.caller), Peer: st.peer, Connected: st.since}
	if st.client != nil {
		out.Client = st.client.NodeID
	}
	for _, url := range st.order {
		sub := st.subs[url]
		ts := TypeStatus{
			TypeURL: url, Scope: sub.set.Scope, State: "SYNCED", Wildcard: sub.wildcard, Names: len(sub.keys),
			Sent: sub.outstanding, Acked: sub.acked, NACK: sub.nack, SentAt: sub.sentAt, Resources: sub.resources,
		}
		switch {
		case sub.sentAt.IsZero():
			ts.State = "NOT SENT"
		case sub.outstanding != "" || sub.waiting:
			ts.State = "STALE"
		case sub.nack != "":
			ts.State = "NACKED"
		}
		out.Types = append(out.Types, ts)
	}
	return out
}
