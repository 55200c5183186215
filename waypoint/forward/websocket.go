package forward

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// A WebSocket of HTTP/2 (RFC 8441) has neither Sec-WebSocket-Key nor Sec-WebSocket-Accept, one of HTTP/1 has to have both
// (RFC 6455 section 4). Where the two ends speak different versions, the waypoint says them for the one that did not.

const (
	webSocketKey    = "sec-websocket-key"
	webSocketAccept = "sec-websocket-accept"
)

// keyWebSocket gives a request of HTTP/2 the key that an endpoint of HTTP/1 asks for.
func (x *exchange) keyWebSocket() {
	h := &x.Req.Header
	if x.Req.Proto != message.HTTP2 || x.Req.Upgrade != "websocket" || h.Has(webSocketKey) {
		return
	}
	var nonce [16]byte
	binary.LittleEndian.PutUint64(nonce[:], x.Rand.Uint64())
	binary.LittleEndian.PutUint64(nonce[8:], x.Rand.Uint64())
	h.Add(webSocketKey, h.Hold(base64.StdEncoding.EncodeToString(nonce[:])))
	x.keyed = true
}

// acceptWebSocket makes an endpoint's agreement one in the client's version.
func (x *exchange) acceptWebSocket(r *message.Response) {
	if r.Upgrade != "websocket" {
		return
	}
	h := &r.Header
	switch key := x.Req.Header.Get(webSocketKey); {
	case x.keyed: // the answer to a question that the client did not ask
		h.Del(webSocketAccept)
	case key != "" && x.Req.Proto != message.HTTP2 && !h.Has(webSocketAccept):
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		h.Add(webSocketAccept, h.Hold(base64.StdEncoding.EncodeToString(sum[:])))
	}
}
