package forward

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// AppendValue implements route.Values: the operators of Envoy's format strings that are about the exchange.
func (x *exchange) AppendValue(dst []byte, operator, arg string) ([]byte, bool) {
	switch operator {
	case "BYTES_RECEIVED":
		return strconv.AppendInt(dst, x.received, 10), true
	case "BYTES_SENT":
		return strconv.AppendInt(dst, x.sent, 10), true
	case "DURATION":
		return strconv.AppendInt(dst, (x.w.loop.Now() - x.begun).Milliseconds(), 10), true
	case "REQUEST_DURATION":
		return appendSpan(dst, x.begun, x.wholeAt)
	case "RESPONSE_DURATION":
		return appendSpan(dst, x.begun, x.headAt)
	case "RESPONSE_TX_DURATION":
		return appendSpan(dst, x.headAt, x.w.loop.Now())
	case "UPSTREAM_REQUEST_ATTEMPT_COUNT":
		return strconv.AppendInt(dst, int64(x.tries), 10), true
	case "ROUTE_NAME":
		if r := x.Route(); r != nil && r.Name != "" {
			return append(dst, r.Name...), true
		}
		return dst, false
	case "VIRTUAL_HOST_NAME":
		if r := x.Route(); r != nil && r.Host != nil {
			return append(dst, r.Host.Name...), true
		}
		return dst, false
	case "TRACE_ID":
		return x.appendTrace(dst)
	case "STREAM_ID":
		return appendText(dst, x.Req.Header.Get("x-request-id"))
	case "TRAILER":
		if arg != "grpc-status" { // nothing else of a trailer is kept
			return dst, false
		}
		return appendText(dst, x.grpc)
	case "PATH":
		return appendText(dst, x.Req.Path)
	case "QUERY_PARAM":
		return appendText(dst, queryParam(x.Req.Path, arg))
	case "GRPC_STATUS", "GRPC_STATUS_NUMBER":
		v := x.grpcAnswer()
		if n, err := strconv.Atoi(v); err == nil && operator == "GRPC_STATUS" && n >= 0 && n < len(grpcNames) {
			v = grpcNames[n]
		}
		return append(dst, v...), v != ""
	}
	return x.in.appendValue(dst, &x.Exchange, x.cluster, x.host, operator, arg)
}

// appendSpan appends a time in milliseconds; zero as the end, or the beginning, is a time that has not come.
func appendSpan(dst []byte, from, to time.Duration) ([]byte, bool) {
	if from == 0 || to == 0 {
		return dst, false
	}
	return strconv.AppendInt(dst, (to - from).Milliseconds(), 10), true
}

// queryParam is the first value of a parameter, as it came.
func queryParam(path, name string) string {
	_, query, _ := strings.Cut(path, "?")
	for part := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(part, "="); k == name {
			return v
		}
	}
	return ""
}

// grpcAnswer is the answer's gRPC status, from its trailer or its head.
func (x *exchange) grpcAnswer() string {
	if x.grpc != "" {
		return x.grpc
	}
	if x.Resp != nil {
		if v := x.Resp.Header.Get("grpc-status"); v != "" {
			return keepStatus(v)
		}
	}
	return ""
}

// noteTrailer keeps what logs and metrics want to know of a trailer.
func (x *exchange) noteTrailer(h *message.Header) {
	if v := h.Get("grpc-status"); v != "" {
		x.grpc = keepStatus(v)
	}
}

// keepStatus is a gRPC status in memory of its own: metrics keep it, the request's memory is used again.
func keepStatus(v string) string {
	for i := range grpcNumbers {
		if grpcNumbers[i] == v {
			return grpcNumbers[i]
		}
	}
	return "2" // what is no status is UNKNOWN to clients
}

var grpcNumbers = [...]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"}

var grpcNames = [...]string{
	"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
	"ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss",
	"Unauthenticated",
}

func appendAddr(dst []byte, a netip.AddrPort) ([]byte, bool) {
	if !a.IsValid() {
		return dst, false
	}
	return a.AppendTo(dst), true
}

func appendText(dst []byte, s string) ([]byte, bool) { return append(dst, s...), s != "" }

// appendMetadata appends a value of dynamic metadata; arg is the filter's name and a path, with colons between.
func appendMetadata(dst []byte, x *filter.Exchange, arg string) ([]byte, bool) {
	name, path, _ := strings.Cut(arg, ":")
	s := x.Metadata(name)
	for s != nil && path != "" {
		var key string
		key, path, _ = strings.Cut(path, ":")
		v := s.GetFields()[key]
		if path != "" {
			s = v.GetStructValue()
			continue
		}
		switch k := v.GetKind().(type) {
		case *structpb.Value_StringValue:
			return append(dst, k.StringValue...), true
		case nil:
			return dst, false
		}
		b, err := v.MarshalJSON()
		return append(dst, b...), err == nil
	}
	return dst, false
}
