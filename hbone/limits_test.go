package hbone

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// flood sends what f writes for each of n rounds, in bursts, until the connection ends. It returns the rounds used.
func (r *rig) flood(n int, f func(i int)) int {
	for i := range n {
		f(i)
		if r.wbuf.Len() > 32<<10 || i == n-1 {
			r.sendFrames()
			if r.c.dead {
				return i + 1
			}
		}
	}
	return n
}

// B1, CVE-2023-44487
func TestB1RapidResetIsSentAway(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	begin := time.Now()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := r.flood(100_000, func(i int) {
		id := uint32(2*i + 1)
		r.connect(id)
		r.wr.WriteRSTStream(id, http2.ErrCodeCancel)
	})
	runtime.ReadMemStats(&after)
	r.wantGoAway(CodeEnhanceYourCalm)
	if n > 5000 {
		t.Errorf("%d streams were wasted before", n)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("it took %v", d)
	}
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 20<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if len(r.c.streams) != 0 {
		t.Errorf("%d streams left", len(r.c.streams))
	}
}

func TestB1ApplicationsThatCloseByResetAreNotAFlood(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	for i := range uint32(20_000) {
		r.serve(2*i + 1)
		r.wr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		r.sendFrames()
		if r.c.dead {
			t.Fatalf("sent away after %d connections", i)
		}
	}
}

// B2, CVE-2025-8671: the peer makes us reset
func TestB2MadeYouResetIsSentAway(t *testing.T) {
	for name, f := range map[string]func(r *rig, id uint32){
		"WINDOW_UPDATE of 0":   func(r *rig, id uint32) { r.recvLater(rawFrame(frameWindowUpdate, 0, id, u32(0))) },
		"window overflow":      func(r *rig, id uint32) { r.recvLater(rawFrame(frameWindowUpdate, 0, id, u32(maxWindow))) },
		"DATA behind its end":  func(r *rig, id uint32) { r.wr.WriteData(id, true, nil); r.wr.WriteData(id, false, []byte("x")) },
		"PRIORITY on itself":   func(r *rig, id uint32) { r.wr.WritePriority(id, http2.PriorityParam{StreamDep: id}) },
		"trailers":             func(r *rig, id uint32) { r.recvLater(rawFrame(frameHeaders, flagEndHeaders, id, []byte{0x82})) },
		"malformed from start": nil,
		"too many streams":     func(*rig, uint32) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{})
			n := r.flood(100_000, func(i int) {
				id := uint32(2*i + 1)
				if f == nil {
					r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(":method", "CONNECT", ":path", "/"), EndHeaders: true})
					return
				}
				r.connect(id)
				f(r, id)
			})
			r.wantGoAway(CodeEnhanceYourCalm)
			if n > 5000 {
				t.Errorf("%d streams were wasted before", n)
			}
		})
	}
}

// recvLater appends a frame that the http2 package would not write.
func (r *rig) recvLater(b []byte) { r.wbuf.Write(b) }

// B3, CVE-2023-45288
func TestB3EndlessContinuationIsSentAway(t *testing.T) {
	for name, size := range map[string]int{"empty": 0, "short": 100, "long": 16384, "1 MiB at once": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{})
			r.recv(rawFrame(frameHeaders, 0, 1, []byte{0x82}))
			frames, total := 0, 0
			for ; !r.c.dead && frames < 1000; frames++ {
				r.recv(rawFrame(frameContinuation, 0, 1, make([]byte, size)))
				total += size
			}
			r.wantGoAway(CodeEnhanceYourCalm)
			if frames > maxContinuations+1 || total-size > maxBlock {
				t.Errorf("%d frames, %d bytes", frames, total)
			}
			if len(r.c.block.buf) > maxBlock || cap(r.c.in.payload) > maxBlock {
				t.Errorf("%d and %d bytes are held", len(r.c.block.buf), cap(r.c.in.payload))
			}
		})
	}
}

// B4, CVE-2026-47774
func TestB4AnHpackBombIsAnswered431AndThenSentAway(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "x:1"})
	enc.WriteField(hpack.HeaderField{Name: "cookie", Value: string(bytes.Repeat([]byte("a"), 3900))})
	bomb := append(buf.Bytes(), bytes.Repeat([]byte{0x80 | 62}, 10_000)...) // one byte for each 3.9 KB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.recv(rawFrame(frameHeaders, flagEndHeaders, 1, bomb))
	r.wantFrames("HEADERS[1] :status=431 END", "RST[1] NO_ERROR")
	for id := uint32(3); !r.c.dead && id < 100; id += 2 {
		r.recv(rawFrame(frameHeaders, flagEndHeaders, id, bytes.Repeat([]byte{0x80 | 62}, 10_000)))
	}
	runtime.ReadMemStats(&after)
	r.wantGoAway(CodeEnhanceYourCalm)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

// B4, CVE-2026-97032
func TestB4TableSizeFlipsAreSentAway(t *testing.T) {
	r := serverRig(t, ServerConfig{Limits: Limits{Resets: 50}})
	var flips []byte
	for len(flips) < 60_000 {
		flips = append(flips, 0x20, 0x3f, 0xe1, 0x1f) // size 0, size 4096
	}
	for id := uint32(1); !r.c.dead && id < 200; id += 2 {
		r.recv(rawFrame(frameHeaders, flagEndHeaders, id, flips))
	}
	r.wantGoAway(CodeEnhanceYourCalm)
}

func TestB4AStringBeyondTheLimitEndsTheConnection(t *testing.T) {
	r := clientRig(t, PoolConfig{})
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, nopOpener{})
	r.turn()
	r.tr.out.Reset()
	r.recv(rawFrame(frameHeaders, flagEndHeaders, 1, r.block(":status", "200", "x", string(bytes.Repeat([]byte{'~'}, 20_000)))))
	r.wantGoAway(CodeCompression)
}

// B5
func TestB5FloodsOfControlFramesAreSentAway(t *testing.T) {
	for name, f := range map[string]func(r *rig){
		"SETTINGS":   func(r *rig) { r.wr.WriteSettings() },
		"PING":       func(r *rig) { r.wr.WritePing(false, [8]byte{}) },
		"empty DATA": func(r *rig) { r.wr.WriteData(1, false, nil) },
		"PRIORITY":   func(r *rig) { r.wr.WritePriority(1, http2.PriorityParam{}) },
		"unknown":    func(r *rig) { r.wr.WriteRawFrame(0xbe, 0, 1, nil) },
		// CVE-2026-78669
		"window toggling": func(r *rig) {
			r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		},
		"DATA for a closed stream": func(r *rig) { r.wr.WriteData(3, false, []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{})
			r.connect(1)
			r.connect(3)
			r.wr.WriteRSTStream(3, http2.ErrCodeCancel)
			r.sendFrames()
			n := r.flood(100_000, func(int) { f(r) })
			if name == "DATA for a closed stream" {
				// answered once, and then ignored: it costs the peer more than us
				if r.c.dead {
					t.Error("sent away")
				}
				return
			}
			r.wantGoAway(CodeEnhanceYourCalm)
			if n > 10_000 {
				t.Errorf("only after %d frames", n)
			}
		})
	}
}

func TestB5APeerThatDoesNotReadItsRepliesIsSentAway(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.tr.queued = 5 << 20
	r.wr.WritePing(false, [8]byte{})
	r.sendFrames()
	if !r.c.dead {
		t.Error("still there")
	}
}

func TestBucketsRefill(t *testing.T) {
	b := newBucket(10, 5, 0)
	if !b.take(10, 0) || b.take(1, 0) {
		t.Error("the burst is not 10")
	}
	if !b.take(4, time.Second) || b.take(2, time.Second) {
		t.Error("the rate is not 5 in a second")
	}
	if !b.take(10, time.Hour) || b.take(1, time.Hour) {
		t.Error("the burst is not a limit after a long time")
	}
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	r := serverRig(t, ServerConfig{MaxStreams: 3})
	for id := uint32(1); id <= 9; id += 2 {
		r.connect(id)
	}
	r.sendFrames()
	r.wantFrames("RST[7] REFUSED_STREAM", "RST[9] REFUSED_STREAM")
	if len(r.served) != 3 {
		t.Errorf("%d served", len(r.served))
	}
}
