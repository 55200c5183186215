package http2

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// tunnelled opens a tunnel of a server.
func tunnelled(r *rig) (message.ServerStream, *taker) {
	r.headers(1, false, ":method", "CONNECT", ":authority", "db:5432")
	r.send()
	s := r.served[0]
	k := &taker{r: r, s: s, limit: -1}
	r.do(func() { s.SetTaker(k); s.SendHead(response(200), false) })
	r.frames()
	return s, k
}

func TestTheDirectionsOfATunnelEndEachForItself(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := tunnelled(r)
	r.do(func() { s.SendData([]byte("bye")); s.SendEnd(nil) })
	r.wantFrames("DATA[1] 3 END")
	r.wr.WriteData(1, true, []byte("more"))
	r.send()
	if k.got.String() != "more" || !k.ended || r.sc.Streams() != 0 {
		t.Errorf("got %q, ended %v, %d streams", k.got.String(), k.ended, r.sc.Streams())
	}

	r = serverRig(t, ServerConfig{})
	s, k = tunnelled(r)
	r.wr.WriteData(1, true, nil)
	r.send()
	if !k.ended || r.sc.Streams() != 1 {
		t.Errorf("ended %v, %d streams", k.ended, r.sc.Streams())
	}
	r.do(func() { s.SendData([]byte("more")); s.SendEnd(nil) })
	r.wantFrames("DATA[1] 4 END")
	if r.sc.Streams() != 0 {
		t.Errorf("%d streams", r.sc.Streams())
	}
}

func TestAClientsTunnelEndsEachForItself(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	s, k := r.open("CONNECT", false)
	r.headers(1, false, ":status", "200")
	r.wr.WriteData(1, true, []byte("bye"))
	r.send()
	r.frames()
	if !k.ended || r.cc.Streams() != 1 {
		t.Errorf("ended %v, %d streams", k.ended, r.cc.Streams())
	}
	r.do(func() { s.SendData([]byte("more")); s.SendEnd(nil) })
	r.wantFrames("DATA[1] 4 END")
	if r.cc.Streams() != 0 {
		t.Errorf("%d streams", r.cc.Streams())
	}
}

// noEnd lets a taker be told that what it sends fails after the other direction has ended.
type noEnd struct{ *taker }

func (k *noEnd) End(*message.Header) {}

func TestATunnelThatIsCutAfterItsHalfCloseFails(t *testing.T) {
	for name, cut := range map[string]func(r *rig){
		"reset": func(r *rig) { r.wr.WriteRSTStream(1, http2.ErrCodeCancel); r.send() },
		"gone":  func(r *rig) { r.hangUp(io.EOF) },
	} {
		t.Run(name, func(t *testing.T) {
			r := clientRig(t, ClientConfig{})
			k := &noEnd{&taker{r: r, limit: -1}}
			r.do(func() {
				r.cc.Open(&message.Request{Method: "CONNECT", Authority: "db:1"}, false, k)
			})
			r.headers(1, false, ":status", "200")
			r.wr.WriteData(1, true, []byte("bye"))
			r.send()
			cut(r)
			var se *message.StreamError
			if !errors.As(k.err, &se) || !se.Remote {
				t.Errorf("told %v", k.err)
			}
		})
	}
}

func TestATunnelHasNoTrailer(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	_, k := tunnelled(r)
	r.headers(1, true, "a", "b")
	r.send()
	r.wantFrames("RST[1] PROTOCOL_ERROR")
	if !errors.Is(k.err, message.ErrMalformed) {
		t.Errorf("told %v", k.err)
	}
}

func TestARefusedConnectIsAnOrdinaryAnswer(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, k := r.open("CONNECT", false)
	r.frames()
	r.headers(1, false, ":status", "403", "content-length", "2")
	r.wr.WriteData(1, true, []byte("no"))
	r.send()
	r.wantFrames("RST[1] NO_ERROR")
	if k.status != 403 || k.got.String() != "no" || !k.ended || r.cc.Streams() != 0 {
		t.Errorf("told %+v", k)
	}
}

func TestAnUpgradeThatTheBackendAnswersWith200IsNotAccepted(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, _ := r.serve(1, "CONNECT", false, ":protocol", "websocket")
	r.do(func() { s.SendHead(response(200), false); s.SendEnd(nil) })
	r.wantFrames("HEADERS[1] :status=502 END", "RST[1] NO_ERROR")
}
