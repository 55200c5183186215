package hbone

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
)

// FuzzServerConn gives a server's connection arbitrary bytes, cut in pieces, with streams that are accepted and joined or
// not. It must not panic, hold more than its limits, or lose count of its windows.
func FuzzServerConn(f *testing.F) {
	seed := func(script func(r *rig)) {
		r := &rig{t: f, tr: &fake{}}
		r.setup()
		script(r)
		f.Add(bytes.Clone(r.wbuf.Bytes()), uint8(7))
		f.Add(bytes.Clone(r.wbuf.Bytes()), uint8(0))
	}
	seed(func(r *rig) {
		r.connect(1)
		r.wr.WriteData(1, false, []byte("hello"))
		r.wr.WriteDataPadded(1, true, []byte("bye"), make([]byte, 3))
	})
	seed(func(r *rig) {
		r.connect(1)
		r.wr.WriteWindowUpdate(1, 100)
		r.wr.WriteRSTStream(1, http2.ErrCodeCancel)
		r.wr.WriteGoAway(0, http2.ErrCodeNo, []byte("x"))
	})
	seed(func(r *rig) {
		r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(":method", "CONNECT"), PadLength: 4, Priority: http2.PriorityParam{StreamDep: 3}})
		r.wr.WriteContinuation(1, true, r.block(":authority", "x:1"))
		r.wr.WriteSettings(http2.Setting{ID: 4, Val: 10}, http2.Setting{ID: 5, Val: 20000})
		r.wr.WritePing(false, [8]byte{})
		r.wr.WriteRawFrame(0x42, 0xff, 9, []byte("x"))
	})
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		r := serverRig(t, ServerConfig{})
		r.tr.null = true
		for len(in) > 0 && !r.c.dead {
			k := len(in)
			if cut > 0 {
				k = min(k, int(cut))
			}
			r.recv(in[:k])
			in = in[k:]
			for i, s := range r.served {
				switch i % 4 {
				case 0:
					s.Accept(nil)
				case 1:
					s.Accept(nil)
					fd, _ := socket(t, r.l, nil)
					s.Join(fd, nil)
				case 2:
					s.Reject(503)
				}
			}
			r.served = r.served[:0]
			r.turn()
		}
		r.check(t)
	})
}

// FuzzClientConn is the same for a client with requests under way.
func FuzzClientConn(f *testing.F) {
	r := &rig{t: f, tr: &fake{}}
	r.setup()
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(":status", "200"), EndHeaders: true})
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: r.block(":status", "503"), EndHeaders: true, EndStream: true})
	r.wr.WriteData(1, true, []byte("x"))
	r.wr.WriteRSTStream(5, http2.ErrCodeRefusedStream)
	r.wr.WriteGoAway(1, http2.ErrCodeNo, nil)
	f.Add(bytes.Clone(r.wbuf.Bytes()), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		r := clientRig(t, PoolConfig{})
		r.tr.null = true
		for range 4 {
			r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, streamFunc(func(s *Stream) {
				fd, _ := socket(t, r.l, nil)
				s.Join(fd, nil)
			}))
		}
		r.turn()
		for len(in) > 0 && !r.c.dead {
			k := len(in)
			if cut > 0 {
				k = min(k, int(cut))
			}
			r.recv(in[:k])
			in = in[k:]
		}
		r.check(t)
	})
}

// check looks for accounts that do not add up.
func (r *rig) check(t *testing.T) {
	t.Helper()
	held := 0
	for id, s := range r.c.streams {
		held += s.queue.Len()
		if s.id != id || s.removed || s.recvWin < 0 || s.sendWin > maxWindow {
			t.Errorf("stream %d: %+v", id, s)
		}
		if s.queue.Len() > streamWindow {
			t.Errorf("stream %d holds %d bytes", id, s.queue.Len())
		}
	}
	if r.c.dead && len(r.c.streams) != 0 {
		t.Errorf("%d streams on a dead connection", len(r.c.streams))
	}
	if r.c.buffered < held || !r.c.dead && r.c.recvWin+r.c.unacked != connWindow {
		t.Errorf("buffered %d, held %d, window %d + %d", r.c.buffered, held, r.c.recvWin, r.c.unacked)
	}
	if len(r.c.block.buf) > maxBlock || len(r.c.in.payload) > maxBlock {
		t.Errorf("header block of %d, payload of %d", len(r.c.block.buf), len(r.c.in.payload))
	}
}

// FuzzHeaderLimits decodes arbitrary header blocks: what is kept stays within the limit.
func FuzzHeaderLimits(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84}, []byte{0x40, 1, 'a', 1, 'b', 0xbe, 0xbe, 0xbe})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		d := newHeaderDecoder(200)
		for _, b := range [][]byte{one, two} {
			l, err := d.decode(b)
			if err != nil {
				return
			}
			size := 0
			for _, x := range l.fields {
				size += int(x.Size())
			}
			if size > 200 || (size != l.size) != l.tooBig {
				t.Errorf("kept %d, counted %d, too big: %v", size, l.size, l.tooBig)
			}
			parseRequest(l)
			parseResponse(l)
		}
	})
}
