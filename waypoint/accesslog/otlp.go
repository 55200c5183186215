package accesslog

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"strings"
	"time"

	otelv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// exportTime is how long a collector may take if the configuration does not say.
const exportTime = 5 * time.Second

// Exporter sends entries to a collector by OpenTelemetry's protocol over gRPC. It is immutable.
type Exporter struct {
	rpc        *filter.RPC
	resource   []*commonpb.KeyValue
	body       *route.Format // nil: none
	attributes []attribute
}

// attribute is a member of a record.
type attribute struct {
	key   string
	value *route.Format
}

func compileExporter(p *otelv3.OpenTelemetryAccessLogConfig) (*Exporter, error) {
	x := &Exporter{}
	service, at := p.GetGrpcService(), "grpc_service"
	if service == nil {
		service, at = p.GetCommonConfig().GetGrpcService(), "common_config.grpc_service"
	}
	if service == nil {
		return nil, field.Errorf("grpc_service", "required")
	}
	var err error
	if x.rpc, err = filter.CompileRPC(service, exportTime); err != nil {
		return nil, field.At(err, at)
	}
	if name := p.GetCommonConfig().GetLogName(); name != "" && !p.GetDisableBuiltinLabels() {
		x.resource = append(x.resource, text("log_name", name))
	}
	x.resource = append(x.resource, p.GetResourceAttributes().GetValues()...)
	if b := p.GetBody(); b != nil {
		if x.body, err = formatOf(b); err != nil {
			return nil, field.At(err, "body")
		}
	}
	for i, a := range p.GetAttributes().GetValues() {
		f, err := formatOf(a.GetValue())
		if err != nil {
			return nil, field.At(field.Index(err, "values", i), "attributes")
		}
		x.attributes = append(x.attributes, attribute{a.GetKey(), f})
	}
	return x, nil
}

// formatOf compiles a value that is a format string, which all are that istiod sends.
func formatOf(v *commonpb.AnyValue) (*route.Format, error) {
	s, ok := v.GetValue().(*commonpb.AnyValue_StringValue)
	if !ok {
		return nil, field.Errorf("", "only strings are supported, not %T", v.GetValue())
	}
	return route.CompileShown(s.StringValue)
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: stringOf(value)}
}

func stringOf(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(s, "\uFFFD")}}
}

// Record is what a collector is told of an entry. trace is the ID of its trace; nil: none.
func (x *Exporter) Record(e *Entry, trace []byte) *logspb.LogRecord {
	r := &logspb.LogRecord{TimeUnixNano: uint64(e.Exchange.Now.UnixNano()), TraceId: trace}
	var space [512]byte
	if x.body != nil {
		body := bounded(func(most int) []byte { return x.body.AppendEscaped(space[:0], e.Context, "-", most) }, maxLine)
		r.Body = stringOf(strings.TrimSuffix(string(body), "\n"))
	}
	for _, a := range x.attributes {
		r.Attributes = append(r.Attributes, text(a.key, string(a.value.AppendCut(space[:0], e.Context, "-", maxLine))))
	}
	return r
}

// Call makes the call that tells a collector of records.
func (x *Exporter) Call(records []*logspb.LogRecord) (*filter.Call, error) {
	// The same bytes as an ExportLogsServiceRequest, whose only field is the same one.
	return x.rpc.Call("/opentelemetry.proto.collector.logs.v1.LogsService/Export", &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{
		Resource: &resourcepb.Resource{Attributes: x.resource}, ScopeLogs: []*logspb.ScopeLogs{{LogRecords: records}},
	}}})
}

// Check judges its answer.
func (x *Exporter) Check(a *filter.CallAnswer) error { return x.rpc.Answer(a, &emptypb.Empty{}) }
