package forward

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// fail answers with an error of ours.
func (x *exchange) fail(status int, body, details string, flags filter.Flags) {
	x.Answered(status, body, details, flags)
	x.reply()
}

// reply answers for ourselves, with what is in Reply.
func (x *exchange) reply() {
	if x.stage >= answering {
		return
	}
	x.dropTry(errGivenUp)
	r := &x.Reply
	x.stage = answering
	x.resp.Reset()
	x.resp.Status = r.Status
	h := &x.resp.Header
	if route.IsGRPC(x.Req) {
		x.replyGRPC(r)
	} else if r.Body != "" {
		x.body = r.Body
		ct := r.ContentType
		if ct == "" {
			ct = "text/plain"
		}
		h.Set("content-type", ct)
		h.Set("content-length", strconv.Itoa(len(x.body)))
	}
	x.resp.ContentLength = int64(len(x.body))
	if r.HasGRPC && !route.IsGRPC(x.Req) {
		h.Set("grpc-status", strconv.Itoa(r.GRPC))
	}
	for _, f := range r.Header {
		h.Add(f.Name, f.Value)
	}
	if x.Req.Method == "HEAD" || bodiless(r.Status) {
		x.body = ""
	}
	x.head(&x.resp, x.body == "")
	x.pushReply()
}

// bodiless says that answers of this status have no body, and say nothing of its length.
func bodiless(status int) bool { return status == 204 || status == 304 || status < 200 }

// replyGRPC says the same to a gRPC client: status 200, and what went wrong in grpc-status.
func (x *exchange) replyGRPC(r *filter.Reply) {
	status := grpcStatus(r.Status)
	if r.HasGRPC {
		status = r.GRPC
	}
	x.resp.Status = 200
	h := &x.resp.Header
	h.Set("content-type", "application/grpc")
	h.Set("grpc-status", strconv.Itoa(status))
	if r.Body != "" {
		h.Set("grpc-message", strings.ReplaceAll(url.PathEscape(r.Body), "%20", " "))
	}
}

// grpcStatus is gRPC's status for an HTTP one, by the table that all of gRPC shares.
func grpcStatus(status int) int {
	switch status {
	case 200:
		return 0
	case 400:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 12 // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// pushReply sends what is left of an answer of ours.
func (x *exchange) pushReply() {
	if x.stage != answering || x.upstream || x.answered {
		return
	}
	if len(x.body) > 0 {
		n := x.down.SendData(message.Bytes(x.body))
		x.sent += int64(n)
		if x.body = x.body[n:]; x.body != "" {
			return
		}
		x.down.SendEnd(nil)
	}
	x.answered = true
	x.settle()
}

// head sends the head of an answer, after the filters and the route have seen it.
func (x *exchange) head(r *message.Response, end bool) {
	x.Resp = r
	for i := x.step - 1; i >= 0; i-- {
		if f, ok := x.chain.Filters[i].(filter.Answering); ok {
			f.Answer(&x.Exchange)
		}
	}
	if rt := x.Route(); rt != nil && (x.upstream || !x.Reply.Bare) {
		rt.ChangeResponse(x.RouteAction(), x.Context())
	}
	h := &r.Header
	if rt := x.Route(); rt != nil && rt.Operation != "" && rt.Propagate && x.chain.Tracing != nil {
		h.Set("x-envoy-decorator-operation", rt.Operation) // a client that traces names its span so
	}
	h.Set("date", x.w.date())
	switch c := x.chain; {
	case c.ServerHeader == listener.Overwrite, c.ServerHeader == listener.AppendIfAbsent && !h.Has("server"):
		if c.ServerName != "" {
			h.Set("server", c.ServerName)
		}
	}
	if x.chain.Via != "" {
		h.Add("via", x.chain.Via)
	}
	if x.chain.EchoRequestID {
		h.Set("x-request-id", x.Req.Header.Get("x-request-id"))
	}
	x.down.SendHead(r, end)
}
