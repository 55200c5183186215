package http2

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// pong answers the server's PINGs.
func (r *rig) pong() {
	var data [8]byte
	for i := range data {
		data[i] = byte(uint64(pingDrain) >> (56 - 8*i))
	}
	r.wr.WritePing(true, data)
	r.send()
}

func TestADrainedServerServesWhatWasOnItsWay(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	a, _ := r.serve(1, "GET", true)
	r.do(r.sc.Drain)
	r.wantFrames("GOAWAY 2147483647 NO_ERROR", "PING")
	b, _ := r.serve(3, "GET", true) // sent before the client knew
	r.pong()
	r.wantFrames("PING")
	r.pong()
	r.wantFrames("GOAWAY 3 NO_ERROR")
	r.request(5, "GET", true) // against the rule; it is dropped
	r.send()
	r.do(func() { a.SendHead(response(200), true) })
	if r.p.ended {
		t.Fatal("closed ahead of its last stream")
	}
	r.do(func() { b.SendHead(response(200), true) })
	r.wantFrames("HEADERS[1] :status=200 END", "HEADERS[3] :status=200 END")
	if !r.p.ended || r.p.closed || len(r.served) != 2 {
		t.Errorf("ended %v, closed %v, served %d", r.p.ended, r.p.closed, len(r.served))
	}
	r.hangUp(io.EOF)
	if r.closes != 1 || !errors.Is(r.closed, message.ErrDrained) || !r.p.closed {
		t.Errorf("closed %d times, with %v", r.closes, r.closed)
	}
}

func TestAClientsGoAwayClosesBehindTheLastStream(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "GET", true)
	r.wr.WriteGoAway(0, http2.ErrCodeNo, nil)
	r.send()
	if k.err != nil || r.p.ended {
		t.Fatalf("told %v", k.err)
	}
	r.do(func() { s.SendHead(response(200), true) })
	r.wantFrames("HEADERS[1] :status=200 END", "GOAWAY 1 NO_ERROR")
	if !r.p.ended {
		t.Error("not closed")
	}
}

func TestAGoAwayWithACodeIsWhyTheConnectionEnded(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, k := r.open("GET", true)
	r.wr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings"))
	r.send()
	r.hangUp(io.EOF)
	var ce *ConnError
	if !errors.As(r.closed, &ce) || !ce.Remote || ce.Code != message.CodeEnhanceYourCalm || ce.Reason != "too_many_pings" {
		t.Errorf("closed with %v", r.closed)
	}
	if !errors.As(k.err, &ce) || !errors.Is(k.err, message.ErrGone) {
		t.Errorf("told %v", k.err)
	}
}

func TestStreamsWithoutATakerOutliveTheConnection(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.request(1, "POST", false)
	r.request(3, "POST", false)
	r.send()
	r.hangUp(io.EOF)
	if r.closes != 0 {
		t.Error("closed ahead of its streams")
	}
	k := &taker{r: r, limit: -1}
	r.do(func() { r.served[0].SetTaker(k) })
	r.do(func() { r.served[1].SendHead(response(200), true) })
	if !errors.Is(k.err, message.ErrGone) || r.closes != 1 {
		t.Errorf("told %v, closed %d times", k.err, r.closes)
	}
}

func TestAGoAwayThatRefusesAllLetsAllBeSentAgain(t *testing.T) { // B34
	r := clientRig(t, ClientConfig{})
	_, a := r.open("GET", true)
	_, b := r.open("POST", false)
	r.wr.WriteGoAway(0, http2.ErrCodeNo, nil)
	r.send()
	for _, k := range []*taker{a, b} {
		var se *message.StreamError
		if !errors.As(k.err, &se) || !se.Retryable {
			t.Errorf("told %v", k.err)
		}
	}
	if !r.p.ended {
		t.Error("not closed")
	}
}

func TestAFaultOfTheServerTakesTheRoomAway(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, k := r.open("GET", true)
	n := r.changes
	r.recv(rawFrame(frameSettings, 0, 1, nil))
	r.wantGoAway(message.CodeProtocol)
	if r.cc.Room() != 0 || r.changes == n || !errors.Is(k.err, message.ErrMalformed) {
		t.Errorf("room %d, %d changes, told %v", r.cc.Room(), r.changes-n, k.err)
	}
}
