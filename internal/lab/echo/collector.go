package echo

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The paths where collectors take spans.
const (
	otlpRPC   = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	otlpHTTP  = "/v1/traces"
	zipkinV2  = "/api/v2/spans"
	maxExport = 4 << 20 // bytes of a call
)

// span is what the log says of one.
type span struct {
	trace, id, parent, kind, service, name string
	tags                                   []any // of slog
}

// collect plays a collector of traces for a request that brings spans, and writes a line for each of them; false if the
// request brings none. OpenTelemetry's protocol is spoken over gRPC and HTTP, Zipkin's in its version 2 with JSON.
func (s *server) collect(w http.ResponseWriter, r *http.Request) bool {
	var read func([]byte) ([]span, bool)
	switch r.URL.Path {
	case otlpRPC, otlpHTTP:
		read = otlpSpans
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
	rpc := r.URL.Path == otlpRPC
	if rpc {
		body = grpcBody(body)
	}
	spans, ok := read(body)
	if !ok || rpc && body == nil {
		status, grpc = http.StatusBadRequest, "3"
	}
	for _, x := range spans {
		s.cfg.Log.Info("span", append([]any{"trace", x.trace, "span", x.id, "parent", x.parent, "kind", x.kind, "service", x.service, "name", x.name}, x.tags...)...)
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
func otlpSpans(body []byte) (out []span, ok bool) {
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
				x := span{
					trace: hex.EncodeToString(p.GetTraceId()), id: hex.EncodeToString(p.GetSpanId()), parent: hex.EncodeToString(p.GetParentSpanId()),
					kind: p.GetKind().String(), service: service, name: p.GetName(),
				}
				for _, a := range p.GetAttributes() {
					x.tags = append(x.tags, slog.String(a.GetKey(), a.GetValue().GetStringValue()))
				}
				out = append(out, x)
			}
		}
	}
	return out, true
}

func zipkinSpans(body []byte) (out []span, ok bool) {
	var list []struct {
		TraceID, ID, ParentID, Kind, Name string
		LocalEndpoint                     struct{ ServiceName string }
		Tags                              map[string]string
	}
	if json.Unmarshal(body, &list) != nil {
		return nil, false
	}
	for _, p := range list {
		x := span{trace: p.TraceID, id: p.ID, parent: p.ParentID, kind: p.Kind, service: p.LocalEndpoint.ServiceName, name: p.Name}
		for k, v := range p.Tags {
			x.tags = append(x.tags, slog.String(k, v))
		}
		out = append(out, x)
	}
	return out, true
}
