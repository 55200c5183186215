package hbone

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

// upload sends n bytes of DATA on a stream.
func (r *rig) upload(id uint32, n int) {
	for n > 0 {
		k := min(n, 1<<20)
		r.recv(rawFrame(frameData, 0, id, make([]byte, k)))
		n -= k
	}
}

// Prototype fault: a few aborted downloads stalled the tunnel for good.
func TestDataOfStreamsThatAreGoneIsCreditedToTheConnection(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	for id := uint32(1); id < 40; id += 2 { // 20 x 4 MiB through a window of 16 MiB
		s := r.serve(id)
		s.Reset(CodeCancel)
		r.turn()
		r.upload(id, streamWindow) // was on its way
		if r.c.dead {
			t.Fatalf("stream %d: the connection is gone", id)
		}
	}
	if r.c.recvWin < connWindow*3/4 {
		t.Errorf("the connection's window is down to %d", r.c.recvWin)
	}
	got := strings.Join(r.frames(), "; ")
	if strings.Contains(got, "STREAM_CLOSED") || !strings.Contains(got, "WINDOW[0] ") {
		t.Errorf("frames %q", got)
	}
}

// H7, H11, T13
func TestAStalledReaderHoldsItsOwnWindowAndNothingElse(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	ids := []uint32{1, 3, 5, 7, 9, 11, 13, 15}
	for _, id := range ids { // 8 x 4 MiB, twice the connection's window
		r.serve(id)
		r.upload(id, streamWindow)
		if r.c.dead {
			t.Fatalf("stream %d: the connection is gone", id)
		}
	}
	if r.c.recvWin < connWindow*3/4 {
		t.Errorf("stalled readers have taken the connection's window down to %d", r.c.recvWin)
	}
	if r.c.buffered != len(ids)*streamWindow || r.srv.Stats().Buffered != r.c.buffered {
		t.Errorf("%d bytes are accounted for", r.c.buffered)
	}
	r.tr.out.Reset()
	r.upload(1, 1) // beyond its window
	r.wantFrames("RST[1] FLOW_CONTROL_ERROR")
	if r.c.buffered != (len(ids)-1)*streamWindow {
		t.Errorf("%d bytes are accounted for after one reset", r.c.buffered)
	}
	for _, s := range r.served {
		s.Reset(CodeCancel)
	}
	if r.c.buffered != 0 || r.srv.sh.buffered != 0 {
		t.Errorf("%d and %d bytes are accounted for in the end", r.c.buffered, r.srv.sh.buffered)
	}
}

func TestBeyondTheBudgetTheConnectionPushesBack(t *testing.T) {
	r := serverRig(t, ServerConfig{Limits: Limits{BufferedBytes: 8 << 20}})
	for id := uint32(1); id < 13; id += 2 {
		r.serve(id)
		r.upload(id, streamWindow)
	}
	if r.c.recvWin != 0 {
		t.Errorf("window of %d left; want it used up: 8 MiB are the budget, 16 MiB the window", r.c.recvWin)
	}
	r.served[0].Reset(CodeCancel) // frees 4 MiB
	r.c.creditConn()
	if r.c.recvWin != streamWindow {
		t.Errorf("window of %d after 4 MiB were dropped", r.c.recvWin)
	}
	r.turn()
	r.recv(rawFrame(frameData, 0, 3, make([]byte, 1)))
	if r.c.dead {
		t.Error("gone")
	}
}

func TestWindowsAreEnforcedAndPaddingCountsAndIsCredited(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s := r.serve(1)
	for range 3 * streamWindow / 256 {
		r.recvLater(rawFrame(frameData, flagPadded, 1, append([]byte{255}, make([]byte, 255)...)))
		if r.wbuf.Len() > 64<<10 {
			r.sendFrames()
		}
	}
	r.sendFrames()
	if r.c.dead || s.err != nil || s.received != 0 {
		t.Errorf("padding is not credited: dead %v, %v, received %d", r.c.dead, s.err, s.received)
	}
}

func TestCreditIsGivenOnlyForWhatTheApplicationTook(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s := r.serve(1)
	f, app := socket(t, r.l, nil)
	s.Join(f, nil)
	r.upload(1, 2<<20)
	for _, x := range r.frames() {
		if strings.HasPrefix(x, "WINDOW[1]") {
			t.Errorf("%s though the application has read nothing", x)
		}
	}
	read := 0
	buf := make([]byte, 1<<20)
	j := s.side.(*join)
	for read < 2<<20 {
		n, err := unix.Read(app, buf)
		if err == unix.EAGAIN {
			kick(t, r, j)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		read += n
	}
	kick(t, r, j)
	got := 0
	for _, x := range r.frames() {
		if strings.HasPrefix(x, "WINDOW[1] ") {
			n := 0
			for _, d := range x[len("WINDOW[1] "):] {
				n = n*10 + int(d-'0')
			}
			got += n
		}
	}
	if got+s.taken != 2<<20 || got < 1<<20 {
		t.Errorf("credit of %d and %d to come, want %d in all", got, s.taken, 2<<20)
	}
}

// kick does what the loop would when the application's socket has become readable and writable.
func kick(t *testing.T, r *rig, j *join) {
	t.Helper()
	if err := r.l.Register(j.app, j.app.Detach(), j); err != nil {
		t.Fatal(err)
	}
	j.Ready(j.app)
	r.turn()
}

func TestFramesKeepToThePeersLimits(t *testing.T) {
	for _, c := range []struct{ frame, window, want int }{{16384, 100_000, 65535}, {16384, 30_000, 30_000}, {1 << 20, 60_000, 60_000}, {65536, 50_000, 50_000}, {20000, 1, 1}} {
		r := serverRig(t, ServerConfig{})
		r.wr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: uint32(c.frame)}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.window)})
		r.sendFrames()
		s := r.serve(1)
		f, app := socket(t, r.l, nil)
		s.Join(f, nil)
		unix.Write(app, make([]byte, 120_000))
		j := s.side.(*join)
		j.Ready(f)
		r.turn()
		raw := bytes.Clone(r.tr.out.Bytes())
		total := 0
		for len(raw) > 0 {
			n := int(raw[0])<<16 | int(raw[1])<<8 | int(raw[2])
			if raw[3] == frameData {
				total += n
				if n > c.frame {
					t.Errorf("%+v: a frame of %d", c, n)
				}
			}
			raw = raw[9+n:]
		}
		if total != min(c.want, 65535) {
			t.Errorf("%+v: %d bytes were sent", c, total)
		}
		if sent, _ := s.Counts(); sent != int64(total) {
			t.Errorf("%+v: counted %d", c, sent)
		}
	}
}

func TestStreamsThatWaitForTheConnectionTakeTurns(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.c.sendWin = 0
	var order []uint32
	var woken []*Stream
	for id := uint32(1); id <= 5; id += 2 {
		s := r.serve(id)
		s.side = &wakeSide{woken: &woken, s: s}
		r.c.enlist(s, false)
	}
	for range 6 {
		r.recv(rawFrame(frameWindowUpdate, 0, 0, u32(10)))
		for _, s := range woken { // what their visits would do: one message uses up what there is
			n, _ := s.maySend()
			if n > 0 {
				order = append(order, s.id)
				r.c.sendWin = 0
			}
			r.c.enlist(s, n > 0)
		}
		woken = nil
	}
	if want := []uint32{1, 3, 5, 1, 3, 5}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// wakeSide notes that its stream may send.
type wakeSide struct {
	NetConn
	s     *Stream
	woken *[]*Stream
}

func (w *wakeSide) resume() { *w.woken = append(*w.woken, w.s) }
