package forward

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// prepare makes the request what filters and routes work on: a canonical path, headers that only we may say removed, and
// those that applications rely on added. It is false if the request was answered.
func (x *exchange) prepare() bool {
	if p := x.Req.Path; p != "" && p[0] == '/' {
		path, verdict := x.chain.Path.Apply(p)
		switch verdict {
		case route.PathBad:
			x.fail(400, "", "path_normalization_failed", 0)
			return false
		case route.PathRedirect:
			x.Answered(307, "", "path_normalization_failed", 0)
			x.Reply.Header = append(x.Reply.Header, message.Field{Name: "location", Value: path})
			x.reply()
			return false
		}
		x.Req.Path = path
	}
	h := &x.Req.Header
	h.DelFunc(ours)
	x.prepareHost()
	x.prepareCert()
	if v := x.chain.Via; v != "" {
		h.Add("via", v)
	}
	if unsaid(h, "x-forwarded-proto") {
		h.Set("x-forwarded-proto", x.Req.Scheme)
	}
	if s := h.Get("x-forwarded-proto"); x.Req.Proto != message.HTTP2 && (s == "http" || s == "https") {
		x.Req.Scheme = s // HTTP/1 does not say it itself
	}
	if x.chain.Scheme != "" {
		x.Req.Scheme = x.chain.Scheme
	}
	if x.chain.RequestID && unsaid(h, "x-request-id") {
		h.Set("x-request-id", x.requestID())
	}
	x.beginSpan()
	return true
}

// unsaid says that a header is not there, or says nothing.
func unsaid(h *message.Header, name string) bool {
	for _, f := range h.Fields() {
		if f.Name == name && f.Value != "" {
			return false
		}
	}
	return true
}

// prepareHost makes the request's host what routes look at.
func (x *exchange) prepareHost() {
	c, host := x.chain, x.Req.Authority
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		port, err := strconv.ParseUint(host[i+1:], 10, 16)
		if c.StripAnyPort || c.StripMatchingPort && err == nil && uint16(port) == x.Dest.Port() {
			host = host[:i]
		}
	}
	if c.StripDot {
		host = strings.TrimSuffix(host, ".")
	}
	x.Req.Authority = host
}

// prepareCert makes x-forwarded-client-cert what the chain says; without a word nobody may claim to be somebody.
func (x *exchange) prepareCert() {
	const name = "x-forwarded-client-cert"
	h := &x.Req.Header
	switch x.chain.ClientCert {
	case listener.ForwardOnly, listener.AlwaysForwardOnly:
		return
	case listener.Sanitize:
		h.Del(name)
		return
	}
	v := "By=" + x.Local
	if x.chain.CertURI {
		v += ";URI=" + x.Client.Principal
	}
	if old, ok := h.Lookup(name); ok && x.chain.ClientCert == listener.AppendForward {
		v = old + "," + v
	}
	h.Set(name, h.Hold(v))
}

// ours says that a client has no business to send a header: Envoy's controls of its own work, and what proxies tell each
// other.
func ours(f message.Field) bool {
	name, ok := strings.CutPrefix(f.Name, "x-envoy-")
	if !ok {
		return false
	}
	switch name {
	case "retriable-status-codes", "retriable-header-names", "retry-on", "retry-grpc-on", "max-retries", "upstream-alt-stat-name",
		"upstream-rq-timeout-ms", "upstream-rq-per-try-timeout-ms", "upstream-rq-timeout-alt-response", "expected-rq-timeout-ms",
		"upstream-stream-duration-ms",
		"force-trace", "ip-tags", "original-url", "original-path", "original-host", "hedge-on-per-try-timeout", "internal", "attempt-count",
		"peer-metadata", "peer-metadata-id", "decorator-operation":
		return true
	}
	return false
}

// requestID makes a random UUID (RFC 9562 section 5.4).
func (x *exchange) requestID() string {
	var raw [16]byte
	a, b := x.Rand.Uint64(), x.Rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	var text [36]byte
	hex.Encode(text[0:8], raw[0:4])
	hex.Encode(text[9:13], raw[4:6])
	hex.Encode(text[14:18], raw[6:8])
	hex.Encode(text[19:23], raw[8:10])
	hex.Encode(text[24:36], raw[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return x.Req.Header.HoldBytes(text[:])
}
