package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	// ttl is that of all records, in seconds (D8).
	ttl = 30
	// headerLen is the length of a message's header: ID, flags, four counts.
	headerLen = 12
	// maxPayload bounds what a client may ask for in one datagram, in bytes.
	maxPayload = 4096
)

// Flags of the second pair of bytes of a message (RFC 1035, 4.1.1).
const (
	flagResponse = 1 << 15
	flagRecurse  = 1 << 8
	opcodeMask   = 15 << 11
	rcodeMask    = 15
)

// isQuery says whether a message is to be answered: not one too short for a header, nor an answer itself.
func isQuery(b []byte) bool {
	return len(b) >= headerLen && binary.BigEndian.Uint16(b[2:])&flagResponse == 0
}

// isStream says whether what comes back for a query is more than one message: over TCP the rest of the connection is the
// nameserver's then. So are the stateful operations of RFC 8490 and zone transfers (RFC 5936).
func isStream(b []byte) bool {
	if binary.BigEndian.Uint16(b[2:])&opcodeMask != 0 {
		return true
	}
	q := question(b)
	if q == nil {
		return false
	}
	t := binary.BigEndian.Uint16(q[len(q)-4:])
	return t == dns.TypeAXFR || t == dns.TypeIXFR
}

// decision is what becomes of a message.
type decision struct {
	// reply is sent back, unless it is nil.
	reply *dns.Msg
	// raw is sent back where there is no reply: an error to a message that cannot be read.
	raw []byte
	// forward says that the nameserver is asked.
	forward bool
	// query is the message; nil where it is not a plain question.
	query *dns.Msg
	// answer is what the mesh says of the name.
	answer Answer
}

// decide says what becomes of a message, which isQuery, from a client of namespace ns. It does not block, and keeps
// nothing of b.
//
//	another operation (UPDATE, NOTIFY, ...)   forwarded
//	malformed, or not one question            FORMERR
//	an EDNS version that there is not         BADVERS
//	not of class IN, or a type but A, AAAA    forwarded
//	a name of the mesh                        answered
//	any other                                 forwarded
func (l *Lookup) decide(v *workload.View, ns string, b []byte) decision {
	if binary.BigEndian.Uint16(b[2:])&opcodeMask != 0 {
		return decision{forward: true}
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil || question(b) == nil {
		return decision{raw: failure(b, dns.RcodeFormatError)}
	}
	if o := m.IsEdns0(); o != nil && o.Version() != 0 {
		r := newReply(m)
		r.Rcode = dns.RcodeBadVers
		return decision{reply: r, query: m}
	}
	q := m.Question[0]
	d := decision{query: m}
	if q.Qclass != dns.ClassINET {
		d.forward = true
		return d
	}
	d.answer = l.Find(v, ns, strings.ToLower(strings.TrimSuffix(q.Name, ".")), q.Qtype)
	if d.forward = d.answer.Forward; !d.forward {
		d.reply = d.answer.reply(m)
	}
	return d
}

// newReply begins an answer of ours: authoritative, recursion available, EDNS as in the query (D8, D10).
func newReply(m *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(m)
	r.Authoritative, r.RecursionAvailable, r.Compress = true, true, true
	if o := m.IsEdns0(); o != nil {
		r.SetEdns0(payload(m), o.Do())
	}
	return r
}

// payload is the size of a datagram that the client takes (D10).
func payload(m *dns.Msg) uint16 {
	if o := m.IsEdns0(); o != nil {
		return min(max(o.UDPSize(), dns.MinMsgSize), maxPayload)
	}
	return dns.MinMsgSize
}

// reply makes an answer of addresses; none is an answer as well. The order is another one each time (D6).
func (a *Answer) reply(m *dns.Msg) *dns.Msg {
	r := newReply(m)
	q := m.Question[0]
	owner := q.Name
	if a.Alias != "" && len(a.Addrs) > 0 {
		owner = q.Name[:len(a.Alias)] + "." // as the client wrote it
		r.Answer = append(r.Answer, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: owner})
	}
	for _, i := range rand.Perm(len(a.Addrs)) {
		r.Answer = append(r.Answer, record(owner, a.Addrs[i]))
	}
	return r
}

func header(name string, rtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rtype, Class: dns.ClassINET, Ttl: ttl}
}

func record(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// pack writes an answer; as a datagram no longer than the client takes, cut and marked so where needed (D10).
func pack(r, query *dns.Msg, datagram bool) ([]byte, error) {
	if datagram {
		r.Truncate(int(payload(query)))
	} else {
		r.Truncate(dns.MaxMsgSize)
	}
	return r.Pack()
}

// failure is an answer without any record to a message of which only the header need be readable.
func failure(b []byte, rcode int) []byte {
	out := make([]byte, headerLen, len(b))
	copy(out, b[:2])
	flags := binary.BigEndian.Uint16(b[2:])
	flags = flags&(opcodeMask|flagRecurse) | flagResponse | 1<<7 | uint16(rcode)
	binary.BigEndian.PutUint16(out[2:], flags)
	if q := question(b); q != nil {
		out[5] = 1
		out = append(out, q...)
	}
	return out
}

// question returns the bytes of the only question of a message; nil if it has none, or more, or it is malformed. A
// question has nothing before it to point at, so a pointer in its name is malformed.
func question(b []byte) []byte {
	if len(b) < headerLen || binary.BigEndian.Uint16(b[4:]) != 1 {
		return nil
	}
	for i := headerLen; i < len(b) && i < headerLen+255; i += int(b[i]) + 1 {
		if b[i] == 0 {
			if i+5 > len(b) {
				return nil
			}
			return b[headerLen : i+5]
		}
		if b[i] > 63 {
			return nil
		}
	}
	return nil
}

// answers says whether b, received from the nameserver, is the answer to query: same ID and opcode, marked as an answer,
// and with the same question, whatever the case of its letters. An error need not repeat the question.
func answers(b, query []byte) bool {
	if len(b) < headerLen || b[0] != query[0] || b[1] != query[1] {
		return false
	}
	got, want := binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(query[2:])
	if got&flagResponse == 0 || got&opcodeMask != want&opcodeMask {
		return false
	}
	if want&opcodeMask != 0 || binary.BigEndian.Uint16(b[4:]) == 0 && got&rcodeMask != 0 {
		return true
	}
	q, asked := question(b), question(query)
	if q == nil || len(q) != len(asked) {
		return false
	}
	for i := range q {
		if lower(q[i]) != lower(asked[i]) {
			return false
		}
	}
	return true
}

// lower makes a letter of ASCII small. Lengths of labels are none; of types and classes a few then count as one, which an
// answer that lies could have said as well.
func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// settle turns what a nameserver answered, or that it did not (b is nil), into what the client gets: for a name that the
// mesh knows, no failure and no doubt about its existence.
func (d *decision) settle(b, query []byte) []byte {
	a := &d.answer
	if b != nil {
		rcode := int(b[3] & rcodeMask)
		if !a.Known || rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError && !a.Exists {
			return b
		}
	} else if !a.Known {
		return failure(query, dns.RcodeServerFailure)
	}
	empty := Answer{}
	out, err := pack(empty.reply(d.query), d.query, true)
	if err != nil {
		return failure(query, dns.RcodeServerFailure)
	}
	return out
}
