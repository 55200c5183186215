// Package wire looks at what really passes on a link: it captures TCP with a raw socket of its own, puts each direction
// back in order, tells TLS from plaintext by its bytes, and counts how often a marker appears in the clear.
//
// Nothing is taken on trust: a connection counts as TLS 1.3 only if its server chose that version in a ServerHello that
// was seen, and if everything in both directions was made of TLS records.
package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sort"
)

// Segment is a TCP segment.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq      uint32
	SYN, FIN bool
	RST, ACK bool
	Payload  []byte
}

// ParseFrame takes an Ethernet frame apart (IPv4 or IPv6 with extension headers, TCP); false for anything else, also
// for fragments. Payload points into the frame.
func ParseFrame(frame []byte) (Segment, bool) {
	if len(frame) < 14 {
		return Segment{}, false
	}
	typ, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for typ == 0x8100 || typ == 0x88a8 { // VLAN tags
		if len(rest) < 4 {
			return Segment{}, false
		}
		typ, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch typ {
	case 0x0800:
		return parseIPv4(rest)
	case 0x86dd:
		return parseIPv6(rest)
	}
	return Segment{}, false
}

func parseIPv4(p []byte) (Segment, bool) {
	if len(p) < 20 {
		return Segment{}, false
	}
	head, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if total == 0 { // segmentation offload of more than 64 KB
		total = len(p)
	}
	fragment := binary.BigEndian.Uint16(p[6:]) & 0x3fff // more-fragments flag and offset
	if p[0]>>4 != 4 || head < 20 || total < head || total > len(p) || p[9] != 6 || fragment != 0 {
		return Segment{}, false
	}
	return parseTCP(p[head:total], netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])))
}

func parseIPv6(p []byte) (Segment, bool) {
	if len(p) < 40 || p[0]>>4 != 6 {
		return Segment{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	next, n := p[6], int(binary.BigEndian.Uint16(p[4:]))
	rest := p[40:]
	if n != 0 { // 0: jumbo, or segmentation offload of more than 64 KB
		if n > len(rest) {
			return Segment{}, false
		}
		rest = rest[:n]
	}
	for next == 0 || next == 43 || next == 60 { // hop-by-hop, routing, destination options
		if len(rest) < 8 {
			return Segment{}, false
		}
		size := (int(rest[1]) + 1) * 8
		if size > len(rest) {
			return Segment{}, false
		}
		next, rest = rest[0], rest[size:]
	}
	if next != 6 {
		return Segment{}, false
	}
	return parseTCP(rest, src, dst)
}

func parseTCP(p []byte, src, dst netip.Addr) (Segment, bool) {
	if len(p) < 20 {
		return Segment{}, false
	}
	head := int(p[12]>>4) * 4
	if head < 20 || head > len(p) {
		return Segment{}, false
	}
	flags := p[13]
	return Segment{
		Src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(p)), Dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:])),
		Seq: binary.BigEndian.Uint32(p[4:]),
		FIN: flags&1 != 0, SYN: flags&2 != 0, RST: flags&4 != 0, ACK: flags&16 != 0,
		Payload: p[head:],
	}, true
}

// Flow is one TCP connection as it was seen on the wire.
type Flow struct {
	Client, Server netip.AddrPort
	// Version is the TLS version that the server chose (0x0304 is 1.3); 0 if no ServerHello was seen.
	Version uint16
	// Offered are the versions in the ClientHello's supported_versions.
	Offered []uint16
	// TLS is set when each byte of both directions belonged to a TLS record, and there was at least one.
	TLS bool
	// Broken is set when bytes were seen that belong to no TLS record. A connection that was not seen from its beginning
	// may be neither TLS nor Broken: nothing can be said then, but markers are counted.
	Broken bool
	// Bytes are the payload bytes of both directions, Markers the occurrences of the marker in them.
	Bytes, Markers int
	// First are the first bytes of the client, at most 64.
	First []byte
	// Whole is set when the connection was seen from its SYN on.
	Whole bool
	// Gaps counts bytes of the stream that were not captured.
	Gaps int
}

// TLS13 tells whether the connection was TLS 1.3 and nothing else.
func (f *Flow) TLS13() bool { return f.TLS && f.Version == 0x0304 }

// Plaintext tells whether payload passed that is not TLS.
func (f *Flow) Plaintext() bool { return f.Broken }

// Tracker turns segments into flows. Not safe for concurrent use. The zero value is ready and has no marker.
type Tracker struct {
	// Marker is what to look for in the payload; none if empty. Set before the first Add.
	Marker []byte
	flows  map[pair]*flow
	order  []*flow
}

type pair struct{ a, b netip.AddrPort }

type flow struct {
	Flow
	toServer, toClient stream
}

// Add takes the next segment; its payload is not kept.
func (t *Tracker) Add(s Segment) {
	f := t.find(s)
	st := &f.toClient
	if s.Src == f.Client {
		st = &f.toServer
	}
	seq := s.Seq
	if s.SYN {
		seq++
		f.Whole = f.Whole || !s.ACK
		st.next, st.started = seq, true
	}
	st.add(seq, s.Payload, t.Marker)
}

func (t *Tracker) find(s Segment) *flow {
	k := pair{s.Src, s.Dst}
	f := t.flows[k]
	if f == nil {
		f = t.flows[pair{s.Dst, s.Src}]
	}
	// A SYN on a pair that had ended is a new connection.
	if f != nil && !(s.SYN && !s.ACK && f.toServer.started && s.Seq+1 != f.toServer.first) {
		return f
	}
	f = &flow{Flow: Flow{Client: s.Src, Server: s.Dst}}
	if s.SYN && s.ACK || !s.SYN && s.Src.Port() < s.Dst.Port() {
		f.Client, f.Server = s.Dst, s.Src
	}
	if s.SYN && !s.ACK {
		f.toServer.first = s.Seq + 1
	}
	if t.flows == nil {
		t.flows = map[pair]*flow{}
	}
	delete(t.flows, pair{s.Dst, s.Src})
	t.flows[k] = f
	t.order = append(t.order, f)
	return f
}

// Flows are the connections in the order in which they were first seen.
func (t *Tracker) Flows() []Flow {
	out := make([]Flow, 0, len(t.order))
	for _, f := range t.order {
		v := f.Flow
		up, down := &f.toServer, &f.toClient
		v.Bytes, v.Markers, v.Gaps = up.bytes+down.bytes, up.markers+down.markers, up.gaps+down.gaps
		v.First, v.Offered, v.Version = up.firstBytes, up.tls.offered, down.tls.selected
		v.Broken = up.tls.broken || down.tls.broken
		v.TLS = up.tls.records+down.tls.records > 0 && !v.Broken && !up.tls.lost && !down.tls.lost
		out = append(out, v)
	}
	return out
}

// stream is one direction of a connection.
type stream struct {
	started     bool
	first, next uint32
	later       map[uint32][]byte // out of order

	bytes, markers, gaps int
	firstBytes           []byte
	tail                 []byte // the last bytes, for a marker across segments
	tls                  records
}

// maxLater bounds what is kept out of order; beyond it a hole is given up on.
const maxLater = 512

func (s *stream) add(seq uint32, p, marker []byte) {
	if len(p) == 0 {
		return
	}
	if !s.started {
		s.started, s.next = true, seq
		s.tls.lost = true // in the midst of a connection: where a record begins is not known
	}
	switch diff := int32(seq - s.next); {
	case diff > 0:
		if s.later == nil {
			s.later = map[uint32][]byte{}
		}
		s.later[seq] = bytes.Clone(p)
		if len(s.later) > maxLater {
			s.skipHole()
		}
	case int(-diff) >= len(p): // seen before
		return
	default:
		s.take(p[-diff:], marker)
	}
	s.drain(marker)
}

// drain takes what now follows in order.
func (s *stream) drain(marker []byte) {
	for again := true; again; {
		again = false
		for seq, p := range s.later {
			diff := int32(seq - s.next)
			if diff > 0 {
				continue
			}
			delete(s.later, seq)
			if int(-diff) < len(p) {
				s.take(p[-diff:], marker)
			}
			again = true
		}
	}
}

func (s *stream) skipHole() {
	seqs := make([]uint32, 0, len(s.later))
	for q := range s.later {
		seqs = append(seqs, q)
	}
	sort.Slice(seqs, func(i, j int) bool { return int32(seqs[i]-seqs[j]) < 0 })
	s.gaps += int(seqs[0] - s.next)
	s.next = seqs[0]
	s.tls.lost = true
	s.tail = nil
}

func (s *stream) take(p, marker []byte) {
	s.next += uint32(len(p))
	s.bytes += len(p)
	if n := 64 - len(s.firstBytes); n > 0 {
		s.firstBytes = append(s.firstBytes, p[:min(n, len(p))]...)
	}
	s.tls.take(p)
	if len(marker) == 0 {
		return
	}
	s.markers += bytes.Count(p, marker)
	edge := append(s.tail, p[:min(len(p), len(marker)-1)]...)
	s.markers += bytes.Count(edge, marker)
	keep := len(marker) - 1
	if len(p) >= keep {
		s.tail = append([]byte(nil), p[len(p)-keep:]...)
	} else {
		s.tail = append([]byte(nil), edge[max(0, len(edge)-keep):]...)
	}
}
