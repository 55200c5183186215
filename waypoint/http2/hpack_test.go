package http2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestTheHuffmanCodeIsThatOfTheRFC(t *testing.T) {
	for c := range 256 {
		s := string([]byte{byte(c), byte(c), byte(c)})
		want := hpack.AppendHuffmanString(nil, s)
		got := appendHuffman(nil, s)
		if !bytes.Equal(got, want) || huffmanSize(s) != len(want) {
			t.Errorf("%#x: got %x, want %x", c, got, want)
		}
		back, err := appendUnhuffman(nil, want)
		if err != nil || string(back) != s {
			t.Errorf("%#x: got back %x, %v", c, back, err)
		}
	}
	for name, b := range map[string][]byte{
		"eight bits of padding":   {0xff},
		"padding of zeros":        {0x00}, // "0", and three bits
		"end of string":           {0xff, 0xff, 0xff, 0xff},
		"a code that is cut":      {0xff, 0xff},
		"padding behind a symbol": {0x1f, 0xff},
	} {
		if got, err := appendUnhuffman(nil, b); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// decodeBlock decodes a block, with names and values in h's arena, or for its effect only.
func decodeBlock(d *decoder, b []byte, h *message.Header) ([]hpack.HeaderField, error) {
	d.resizes = 0
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	var out []hpack.HeaderField
	for len(b) > 0 {
		f, rest, err := d.next(b, sc, h)
		if err != nil {
			return out, err
		}
		b = rest
		if f.resize {
			continue
		}
		out = append(out, hpack.HeaderField{Name: strings.Clone(f.name), Value: strings.Clone(f.value)})
		if want := validName(f.name) && message.Value(f.value); f.valid && !want {
			panic("a bad field is called valid: " + f.name + ": " + f.value)
		}
	}
	return out, nil
}

func validName(s string) bool { return message.LowerToken(strings.TrimPrefix(s, ":")) }

// FuzzDecodeLikeXNet decodes blocks, of which some are skipped, and compares with x/net.
func FuzzDecodeLikeXNet(f *testing.F) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	block := func(kv ...string) []byte {
		buf.Reset()
		for i := 0; i < len(kv); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return bytes.Clone(buf.Bytes())
	}
	f.Add(block(":method", "GET", "a", "b", "x-long", strings.Repeat("z", 300)), block("a", "b", ":path", "/"), block("x-long", strings.Repeat("z", 300)), uint8(0))
	f.Add([]byte{0x20, 0x3f, 0xe1, 0x1f, 0x82}, []byte{0x40, 1, 'a', 1, 'b', 0xbe, 0xbe}, []byte{0xbe, 0x7e, 0}, uint8(2))
	f.Add([]byte{0x40, 0x81, 0x1f, 0x00}, []byte{0xff, 0x80, 0x80, 0x80, 0x80, 0x00}, []byte{0x0f, 0x10, 1, 'x'}, uint8(1))
	f.Fuzz(func(t *testing.T, one, two, three []byte, skip uint8) {
		var d decoder
		d.init()
		var want []hpack.HeaderField
		x := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { want = append(want, hpack.HeaderField{Name: f.Name, Value: f.Value}) })
		for i, b := range [][]byte{one, two, three} {
			want = nil
			_, werr := x.Write(b)
			if werr == nil {
				werr = x.Close()
			}
			var h *message.Header
			if skip>>i&1 == 0 {
				h = &message.Header{}
			}
			got, err := decodeBlock(&d, b, h)
			if err != nil {
				if werr == nil && !errors.Is(err, errResize) && !errors.Is(err, errInteger) {
					t.Fatalf("block %d: ours %v, x/net's %v", i, err, werr)
				}
				return
			}
			if werr != nil && severalUpdates(b) {
				return // RFC 7541 section 4.2 allows them at the beginning of a block, x/net one only
			}
			if werr != nil {
				t.Fatalf("block %d: x/net finds %v, we %q", i, werr, got)
			}
			if len(got) != len(want) {
				t.Fatalf("block %d: got %q, want %q", i, got, want)
			}
			for k := range got {
				if got[k] != want[k] {
					t.Fatalf("block %d: got %q, want %q", i, got[k], want[k])
				}
			}
			if d.table.size > tableSize || len(d.table.buf) > 8*tableSize {
				t.Fatalf("the table holds %d, in %d bytes", d.table.size, len(d.table.buf))
			}
		}
	})
}

// severalUpdates says that a block begins with more than one change of the table's size.
func severalUpdates(b []byte) bool {
	n := 0
	for len(b) > 0 && b[0]&0xe0 == 0x20 {
		n++
		long := b[0]&0x1f == 0x1f
		b = b[1:]
		for long && len(b) > 0 {
			long = b[0]&0x80 != 0
			b = b[1:]
		}
	}
	return n > 1
}

// FuzzEncodeForXNet encodes lists of fields, while the peer's table changes its size, and has x/net decode them.
func FuzzEncodeForXNet(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint32(4096), uint32(0))
	f.Fuzz(func(t *testing.T, a, b uint64, size, other uint32) {
		rnd := rand.New(rand.NewPCG(a, b))
		var e encoder
		e.init()
		var got []hpack.HeaderField
		x := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { got = append(got, hpack.HeaderField{Name: f.Name, Value: f.Value}) })
		names := []string{"a", "b", "content-type", "x-very-long-name-of-a-field", "authorization", ":path", "date", "te", "user-agent", "cookie"}
		for range 20 {
			switch rnd.IntN(6) {
			case 0:
				e.setMax(size)
				x.SetAllowedMaxDynamicTableSize(min(size, tableSize))
			case 1:
				e.setMax(other)
				e.setMax(size)
				x.SetAllowedMaxDynamicTableSize(min(size, tableSize))
			}
			var want []hpack.HeaderField
			block := e.begin(nil)
			for range rnd.IntN(12) {
				n := names[rnd.IntN(len(names))]
				v := strings.Repeat(string(rune('!'+rnd.IntN(90))), rnd.IntN(4)*rnd.IntN(300))
				if n[0] == ':' {
					block = appendLiteral(block, without, staticPath, n, v)
				} else {
					block = e.field(block, n, v)
				}
				want = append(want, hpack.HeaderField{Name: n, Value: v})
			}
			got = nil
			if _, err := x.Write(block); err != nil {
				t.Fatal(err)
			}
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) {
				t.Fatalf("got %q, want %q", got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("got %q, want %q", got[i], want[i])
				}
			}
			if e.table.size > e.peerMax {
				t.Fatalf("the table holds %d of %d", e.table.size, e.peerMax)
			}
		}
	})
}

func TestAFieldIsKnownByItsNameToo(t *testing.T) {
	var e encoder
	e.init()
	a, b := e.field(nil, "x-a", "same"), e.field(nil, "x-b", "same")
	if bytes.Equal(a, b) || len(e.field(nil, "x-a", "same")) != 1 || len(e.field(nil, "x-b", "same")) != 1 || e.table.n != 2 {
		t.Errorf("%x and %x, %d entries", a, b, e.table.n)
	}
}

func TestSecretsAreNeverIndexed(t *testing.T) {
	var e encoder
	e.init()
	for _, name := range []string{"authorization", "proxy-authorization", "cookie", "set-cookie"} {
		b := e.field(nil, name, "secret")
		if b[0]&0xf0 != 0x10 || e.table.n != 0 {
			t.Errorf("%s begins with %#x, %d entries", name, b[0], e.table.n)
		}
	}
}

func TestWhatCannotStandInAHeadIsNotSent(t *testing.T) {
	var e encoder
	e.init()
	for _, f := range []message.Field{{Name: "X", Value: "a"}, {Name: "", Value: "a"}, {Name: "a b", Value: "a"}, {Name: "a", Value: "b\r\nc: d"}, {Name: "date", Value: "\x00"}} {
		if b := e.field(nil, f.Name, f.Value); len(b) != 0 {
			t.Errorf("%q is sent as %x", f, b)
		}
	}
}
