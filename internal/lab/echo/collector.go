package echo

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The paths where collectors take spans and logs.
const (
	otlpRPC   = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	otlpHTTP  = "/v1/traces"
	logsRPC   = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
	logsHTTP  = "/v1/logs"
	zipkinV2  = "/api/v2/spans"
	maxExport = 4 << 20 // bytes of a call
)

// item is what the log says of a span, or of an entry of another log.
type item struct {
	what string // "span" or "entry"
	tags []any  // of slog
}

func span(trace, id, parent, kind, service, name string, tags []any) item {
	return item{"span", append([]any{"trace", trace, "span", id, "parent", parent, "kind", kind, "service", service, "name", name}, tags...)}
}

// collect plays a collector for a request that brings spans or logs, and writes a line for each of them; false if the
// request brings none. OpenTelemetry's protocol is spoken over gRPC and HTTP, Zipkin's in its version 2 with JSON.
func (s *server) collect(w http.ResponseWriter, r *http.Request) bool {
	var read func([]byte) ([]item, bool)
	switch r.URL.Path {
	case otlpRPC, otlpHTTP:
		read = otlpSpans
	case logsRPC, logsHTTP:
		read = otlpLogs
	case zipkinV2:
		read = zipkinSpans
	default:
		return false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxExport))
	if err != nil {
		return true
	}
	status, grpc := http.StatusOK, "0"
	rpc := r.URL.Path == otlpRPC || r.URL.Path == logsRPC
	if rpc {
		body = grpcBody(body)
	}
	items, ok := read(body)
	if !ok || rpc && body == nil {
		status, grpc = http.StatusBadRequest, "3"
	}
	for _, x := range items {
		s.cfg.Log.Info(x.what, x.tags...)
	}
	if !rpc {
		w.WriteHeader(status)
		return true
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	if grpc == "0" {
		_, _ = w.Write(make([]byte, 5)) // an empty answer: all were taken
	}
	w.Header().Set("Grpc-Status", grpc)
	return true
}

// otlpSpans reads an ExportTraceServiceRequest, whose only field is that of TracesData.
func otlpSpans(body []byte) (out []item, ok bool) {
	var m tracepb.TracesData
	if proto.Unmarshal(body, &m) != nil {
		return nil, false
	}
	for _, rs := range m.GetResourceSpans() {
		service := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, p := range ss.GetSpans() {
				out = append(out, span(hex.EncodeToString(p.GetTraceId()), hex.EncodeToString(p.GetSpanId()), hex.EncodeToString(p.GetParentSpanId()),
					p.GetKind().String(), service, p.GetName(), tagsOf(p.GetAttributes())))
			}
		}
	}
	return out, true
}

func tagsOf(list []*commonpb.KeyValue) (out []any) {
	for _, a := range list {
		out = append(out, slog.String(a.GetKey(), a.GetValue().GetStringValue()))
	}
	return out
}

// otlpLogs reads an ExportLogsServiceRequest, whose only field is that of LogsData.
func otlpLogs(body []byte) (out []item, ok bool) {
	var m logspb.LogsData
	if proto.Unmarshal(body, &m) != nil {
		return nil, false
	}
	for _, rl := range m.GetResourceLogs() {
		for _, sl := range rl.GetScopeLogs() {
			for _, r := range sl.GetLogRecords() {
				tags := []any{"trace", hex.EncodeToString(r.GetTraceId()), "body", r.GetBody().GetStringValue()}
				out = append(out, item{"entry", append(tags, tagsOf(r.GetAttributes())...)})
			}
		}
	}
	return out, true
}

func zipkinSpans(body []byte) (out []item, ok bool) {
	var list []struct {
		TraceID, ID, ParentID, Kind, Name string
		LocalEndpoint                     struct{ ServiceName string }
		Tags                              map[string]string
	}
	if json.Unmarshal(body, &list) != nil {
		return nil, false
	}
	for _, p := range list {
		var tags []any
		for k, v := range p.Tags {
			tags = append(tags, slog.String(k, v))
		}
		out = append(out, span(p.TraceID, p.ID, p.ParentID, p.Kind, p.LocalEndpoint.ServiceName, p.Name, tags))
	}
	return out, true
}
