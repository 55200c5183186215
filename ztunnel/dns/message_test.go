package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

func TestAnAnswerOfTheMeshIsWholeAndOurs(t *testing.T) {
	v := view(t, fixture()...)
	m := asking("WEB.Other.sHoP.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, true)
	d := lookup.decide(v, "shop", packed(t, m))
	if d.forward || d.reply == nil {
		t.Fatalf("got %+v", d)
	}
	b, err := pack(d.reply, d.query, true)
	if err != nil {
		t.Fatal(err)
	}
	r := unpacked(t, b)
	o := r.IsEdns0()
	if r.Id != m.Id || !r.Response || !r.Authoritative || !r.RecursionAvailable || !r.RecursionDesired || r.Rcode != dns.RcodeSuccess {
		t.Errorf("header: %+v", r.MsgHdr)
	}
	if o == nil || !o.Do() || o.UDPSize() != 1232 || o.Version() != 0 {
		t.Errorf("EDNS: %v", o)
	}
	if r.Question[0].Name != m.Question[0].Name {
		t.Errorf("question: got %v", r.Question[0])
	}
	var got []string
	for _, rr := range r.Answer {
		got = append(got, strings.Join(strings.Fields(rr.String()), " "))
	}
	want := "WEB.Other.sHoP.svc.cluster.local. 30 IN CNAME WEB.Other. | WEB.Other. 30 IN A 10.96.0.2"
	if strings.Join(got, " | ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatTheMeshDoesNotAnswerGoesToTheNameserver(t *testing.T) {
	v := view(t, fixture()...)
	chaos := asking("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	update := new(dns.Msg).SetUpdate("example.com.")
	notify := new(dns.Msg).SetNotify("example.com.")
	for name, m := range map[string]*dns.Msg{
		"a name outside": asking("example.com.", dns.TypeA), "another class": chaos, "UPDATE": update, "NOTIFY": notify,
		"another type": asking("example.com.", dns.TypeHTTPS), "a transfer": asking("example.com.", dns.TypeAXFR),
		"a type without a name": asking("example.com.", 31337), "ANY": asking("example.com.", dns.TypeANY),
	} {
		if d := lookup.decide(v, "shop", packed(t, m)); !d.forward {
			t.Errorf("%s: got %+v", name, d)
		}
	}
}

// B29: compression loops, labels of no length, lengths that lie.
func TestAMalformedMessageIsAnsweredWithFORMERR(t *testing.T) {
	v := view(t, fixture()...)
	head := []byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	with := func(rest ...byte) []byte { return append(bytes.Clone(head), rest...) }
	two := packed(t, asking("a.", dns.TypeA))
	two[5] = 2
	none := with()
	none[5] = 0
	long := with(bytes.Repeat([]byte{1, 'a'}, 200)...)
	additional := append(packed(t, asking("a.", dns.TypeA)), 0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0, 9)
	additional[11] = 1
	for name, b := range map[string][]byte{
		"a header alone":                   with(),
		"a name that points at itself":     with(0xc0, 12, 0, 1, 0, 1),
		"a name that points behind itself": with(0xc0, 14, 0xc0, 12, 0, 1, 0, 1),
		"a name that ends in the middle":   with(5, 'a', 'b'),
		"a label of a kind there is not":   with(0x80, 'a', 0, 0, 1, 0, 1),
		"a question without its class":     with(1, 'a', 0, 0, 1),
		"a name longer than names are":     append(long, 0, 0, 1, 0, 1),
		"two questions, one there":         two,
		"no question":                      none,
		"EDNS cut off":                     additional,
	} {
		d := lookup.decide(v, "shop", b)
		if d.forward || len(d.raw) < headerLen {
			t.Errorf("%s: got %+v", name, d)
			continue
		}
		flags := binary.BigEndian.Uint16(d.raw[2:])
		if !bytes.Equal(d.raw[:2], b[:2]) || flags&flagResponse == 0 || flags&rcodeMask != dns.RcodeFormatError || flags&flagRecurse == 0 {
			t.Errorf("%s: got %x", name, d.raw)
		}
	}
	// A label of no length is the end of the name: the root is asked for, and somebody else knows it.
	if d := lookup.decide(v, "shop", with(0, 0, 1, 0, 1)); !d.forward {
		t.Errorf("the root: got %+v", d)
	}
	for name, b := range map[string][]byte{"nothing": nil, "half a header": head[:7], "an answer": {0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if isQuery(b) {
			t.Errorf("%s is a query", name)
		}
	}
}

// B29: EDNS version 1.
func TestAnUnknownEDNSVersionIsAnsweredWithBADVERS(t *testing.T) {
	m := asking("web.", dns.TypeA)
	m.SetEdns0(4096, false)
	m.IsEdns0().SetVersion(1)
	d := lookup.decide(view(t, fixture()...), "shop", packed(t, m))
	b, err := pack(d.reply, d.query, true)
	if err != nil {
		t.Fatal(err)
	}
	r := unpacked(t, b)
	if o := r.IsEdns0(); r.Rcode != dns.RcodeBadVers || o == nil || o.Version() != 0 {
		t.Errorf("got %v", r)
	}
}

// B29: truncation, then TCP.
func TestALongAnswerIsCutInADatagramAndWholeOverTCP(t *testing.T) {
	const n = 300
	objects := []*pb.Address{kube("shop", "big")}
	for i := range n {
		objects = append(objects, endpointOf("shop", fmt.Sprintf("p%d", i), "p", "big.shop.svc.cluster.local", fmt.Sprintf("10.2.%d.%d", i/200, i%200+1)))
	}
	v := view(t, objects...)
	for _, size := range []uint16{0, 100, 512, 1232, 4096, 65535} {
		m := asking("big.", dns.TypeA)
		limit := int(min(max(size, 512), maxPayload))
		if size > 0 {
			m.SetEdns0(size, false)
		}
		d := lookup.decide(v, "shop", packed(t, m))
		b, err := pack(d.reply, d.query, true)
		if err != nil {
			t.Fatal(err)
		}
		r := unpacked(t, b)
		if len(b) > limit || !r.Truncated || len(r.Answer) == 0 || len(r.Answer) >= n {
			t.Errorf("payload %d: %d bytes, truncated %v, %d records", size, len(b), r.Truncated, len(r.Answer))
		}
		d = lookup.decide(v, "shop", packed(t, m))
		if b, err = pack(d.reply, d.query, false); err != nil {
			t.Fatal(err)
		}
		if r = unpacked(t, b); r.Truncated || len(r.Answer) != n {
			t.Errorf("TCP: truncated %v, %d records", r.Truncated, len(r.Answer))
		}
	}
}

func TestTheOrderOfAddressesChanges(t *testing.T) {
	v := view(t, fixture()...)
	first := map[string]bool{}
	for range 200 { // 2^-199 to see one only
		d := lookup.decide(v, "shop", packed(t, asking("db.", dns.TypeA)))
		first[d.reply.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 2 {
		t.Errorf("first addresses: %v", first)
	}
}

// B29: spoofed IDs and questions.
func TestOnlyTheAnswerToTheQueryIsTaken(t *testing.T) {
	query := asking("www.Example.com.", dns.TypeA)
	reply := func(f func(*dns.Msg)) []byte {
		r := new(dns.Msg).SetReply(query)
		f(r)
		return packed(t, r)
	}
	q := packed(t, query)
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"the answer":                  {reply(func(*dns.Msg) {}), true},
		"in other letters":            {reply(func(r *dns.Msg) { r.Question[0].Name = "WWW.example.COM." }), true},
		"another ID":                  {reply(func(r *dns.Msg) { r.Id++ }), false},
		"another name":                {reply(func(r *dns.Msg) { r.Question[0].Name = "xxx.example.com." }), false},
		"another type":                {reply(func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeAAAA }), false},
		"the query itself":            {q, false},
		"another operation":           {reply(func(r *dns.Msg) { r.Opcode = dns.OpcodeNotify }), false},
		"an error without a question": {reply(func(r *dns.Msg) { r.Question, r.Rcode = nil, dns.RcodeFormatError }), true},
		"success without a question":  {reply(func(r *dns.Msg) { r.Question = nil }), false},
		"a header cut off":            {q[:6], false},
		"a question cut off":          {reply(func(*dns.Msg) {})[:20], false},
		"nothing":                     {nil, false},
	} {
		if got := answers(c.b, q); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestTheNameserversFailureIsSERVFAILOnlyOutsideOfTheMesh(t *testing.T) {
	v := view(t, fixture()...)
	for _, c := range []struct {
		claim, name string
		qtype       uint16
		rcode       int // of the nameserver; -1: no answer
		want        int
	}{
		{"outside, no answer", "example.org.", dns.TypeA, -1, dns.RcodeServerFailure},
		{"outside, no such name", "example.org.", dns.TypeA, dns.RcodeNameError, dns.RcodeNameError},
		{"outside, refused", "example.org.", dns.TypeA, dns.RcodeRefused, dns.RcodeRefused},
		{"another type of a name of the mesh, no answer", "web.", dns.TypeTXT, -1, dns.RcodeSuccess},
		{"another type of a name that only the mesh knows", "api.example.com.", dns.TypeHTTPS, dns.RcodeNameError, dns.RcodeSuccess},
		{"a headless service without endpoints, no answer", "empty.shop.svc.cluster.local.", dns.TypeA, -1, dns.RcodeSuccess},
		{"a headless service without endpoints, as the nameserver says", "empty.shop.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, dns.RcodeNameError},
	} {
		query := asking(c.name, c.qtype)
		q := packed(t, query)
		d := lookup.decide(v, "shop", q)
		var b []byte
		if c.rcode >= 0 {
			b = packed(t, new(dns.Msg).SetRcode(query, c.rcode))
		}
		if r := unpacked(t, d.settle(b, q)); !d.forward || r.Rcode != c.want || r.Id != query.Id || !r.Response || len(r.Question) != 1 {
			t.Errorf("%s: got %v", c.claim, r)
		}
	}
}

func FuzzDNSQuery(f *testing.F) {
	v := view(f, fixture()...)
	for _, name := range []string{"web.", "web.other.shop.svc.cluster.local.", "db-0.db.", "x.wild.example.com.", "example.org.", "."} {
		m := asking(name, dns.TypeA)
		f.Add(packed(f, m))
		m.SetEdns0(512, true)
		f.Add(packed(f, m))
	}
	f.Add(packed(f, new(dns.Msg).SetUpdate("example.com.")))
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isQuery(b) {
			return
		}
		isStream(b)
		given := bytes.Clone(b)
		d := lookup.decide(v, "shop", b)
		if !bytes.Equal(b, given) {
			t.Fatal("the message was changed")
		}
		outs := [][]byte{d.raw}
		switch {
		case d.forward:
			outs = [][]byte{d.settle(nil, b), d.settle(failure(b, dns.RcodeNameError), b)}
		case d.reply != nil:
			for i, datagram := range []bool{false, true} {
				r := d.reply
				if i == 0 {
					r = r.Copy()
				}
				out, err := pack(r, d.query, datagram)
				if err != nil {
					t.Fatalf("pack answer to %x: %v", b, err)
				}
				if datagram && len(out) > int(payload(d.query)) {
					t.Fatalf("%d bytes for a client that takes %d", len(out), payload(d.query))
				}
				outs = append(outs, out)
			}
			outs = outs[1:]
		}
		for _, out := range outs {
			if len(out) < headerLen || out[0] != b[0] || out[1] != b[1] || out[2]&0x80 == 0 {
				t.Fatalf("answer %x to %x", out, b)
			}
		}
	})
}

func FuzzDNSAnswer(f *testing.F) {
	query := asking("www.example.com.", dns.TypeA)
	q := packed(f, query)
	f.Add(packed(f, new(dns.Msg).SetReply(query)))
	f.Add(q)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decision{query: query, answer: Answer{Known: true, Exists: true}}
		if answers(b, q) && len(d.settle(b, q)) < headerLen {
			t.Fatalf("no answer from %x", b)
		}
	})
}

func FuzzDNSControl(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 53, 10, 96, 0, 10})
	f.Fuzz(func(_ *testing.T, b []byte) { originalDst(b) })
}
