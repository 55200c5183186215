//lint:file-ignore SA1019 what takes the place of istiod fills the fields that istiod does

package envoy

import (
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otellogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	otelcommonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// textLogFormat is Istio's, with the trace's ID behind it.
const textLogFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% %TRACE_ID%` + "\n"

// jsonLogFields are Istio's, and the trace's ID.
var jsonLogFields = map[string]any{
	"start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
	"protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%", "response_flags": "%RESPONSE_FLAGS%", "response_code_details": "%RESPONSE_CODE_DETAILS%",
	"connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
	"duration": "%DURATION%", "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
	"user_agent": "%REQ(USER-AGENT)%", "request_id": "%REQ(X-REQUEST-ID)%", "authority": "%REQ(:AUTHORITY)%", "upstream_host": "%UPSTREAM_HOST%",
	"upstream_cluster": "%UPSTREAM_CLUSTER_RAW%", "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "requested_server_name": "%REQUESTED_SERVER_NAME%",
	"trace_id":                          "%TRACE_ID%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}

// logTo is a provider with the filter that its entries must pass.
type logTo struct {
	provider, filter string
	telemetry        *telemetryv1.Telemetry
	field            string
}

// accessLogs are the logs of a chain: those of the narrowest Telemetry that says something, else MeshConfig's defaults.
func (b *builder) accessLogs(at target) []*accesslogv3.AccessLog {
	var to []logTo
	for _, name := range b.mesh.config.GetDefaultProviders().GetAccessLogging() {
		to = append(to, logTo{provider: name})
	}
	if b.mesh.config.GetAccessLogFile() != "" && len(to) == 0 {
		to = []logTo{{provider: meshFile}}
	}
	for _, t := range b.telemetryFor(at) {
		to = b.telemetryLogs(t, to)
	}
	var out []*accesslogv3.AccessLog
	for _, l := range to {
		if err := expressionFlaw(l.filter); l.filter != "" && err != nil {
			b.problem(kube.Rejected, kube.KeyOf(l.telemetry), l.field+".filter.expression", err.Error()+": nothing is logged by it", "an expression of CEL")
			continue
		}
		if log := b.accessLog(l); log != nil {
			if l.filter != "" {
				log.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
					Name: "envoy.access_loggers.extension_filters.cel", ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: anyOf(&celv3.ExpressionFilter{Expression: l.filter})},
				}}}
			}
			out = append(out, log)
		}
	}
	return out
}

// meshFile stands for MeshConfig's accessLogFile, which has no name.
const meshFile = ""

// telemetryLogs are the logs by one Telemetry: it replaces what wider ones say, but that entries without a provider, and
// entries that turn some off, are about theirs.
func (b *builder) telemetryLogs(t *telemetryv1.Telemetry, inherited []logTo) []logTo {
	var to []logTo
	said := false // of logs of a server
	for i, a := range t.Spec.AccessLogging {
		if a.GetMatch().GetMode() == telemetry.WorkloadMode_CLIENT {
			continue
		}
		if a.GetDisabled().GetValue() {
			off := func(l logTo) bool { return disables(a, l.provider) }
			to, inherited = slices.DeleteFunc(to, off), slices.DeleteFunc(slices.Clone(inherited), off)
			continue
		}
		said = true
		l := logTo{filter: a.GetFilter().GetExpression(), telemetry: t, field: indexed("spec.accessLogging", i)}
		for _, p := range a.Providers {
			l.provider = p.Name
			to = append(to, l)
		}
		if len(a.Providers) == 0 {
			for _, p := range inherited {
				l.provider = p.provider
				to = append(to, l)
			}
		}
	}
	if !said {
		return inherited
	}
	return to
}

// disables says whether an entry turns a provider's logs off: all of them when it names none.
func disables(a *telemetry.AccessLogging, provider string) bool {
	return len(a.Providers) == 0 || slices.ContainsFunc(a.Providers, func(p *telemetry.ProviderRef) bool { return p.Name == provider })
}

func (b *builder) accessLog(l logTo) *accesslogv3.AccessLog {
	p := b.mesh.provider(l.provider)
	switch {
	case l.provider == meshFile:
		return b.meshFileLog(b.mesh.config.GetAccessLogFile())
	case p.GetEnvoyFileAccessLog() != nil:
		return fileLog(p.GetEnvoyFileAccessLog())
	case p == nil && l.provider == "envoy": // Istio's own, always there
		return fileLog(&meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout"})
	case p.GetEnvoyOtelAls() != nil:
		return b.otelLog(l, p.GetEnvoyOtelAls())
	}
	b.logProblem(l, "provider "+l.provider+" takes no access log")
	return nil
}

func (b *builder) logProblem(l logTo, why string) {
	if l.telemetry != nil {
		b.problem(kube.Ignored, kube.KeyOf(l.telemetry), l.field+".providers", why, b.mesh.providerNames())
	}
}

func fileLog(p *meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider) *accesslogv3.AccessLog {
	format := &corev3.SubstitutionFormatString{OmitEmptyValues: p.OmitEmptyValues}
	switch f := p.GetLogFormat().GetLogFormat().(type) {
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Labels:
		fields := f.Labels
		if len(fields.GetFields()) == 0 {
			fields = structOf(jsonLogFields)
		}
		format.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields}
		format.JsonFormatOptions = &corev3.JsonFormatOptions{SortProperties: false}
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Text:
		setText(format, f.Text)
	default:
		setText(format, "")
	}
	return fileAccessLog(p.Path, format)
}

func setText(format *corev3.SubstitutionFormatString, text string) {
	if text == "" {
		text = textLogFormat
	}
	if text[len(text)-1] != '\n' {
		text += "\n"
	}
	format.Format = &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
		Specifier: &corev3.DataSource_InlineString{InlineString: text},
	}}
}

func fileAccessLog(path string, format *corev3.SubstitutionFormatString) *accesslogv3.AccessLog {
	if path == "" {
		path = "/dev/stdout"
	}
	return &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: anyOf(&filev3.FileAccessLog{
		Path: path, AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: format},
	})}}
}

// meshFileLog is that of MeshConfig's accessLogFile, accessLogEncoding and accessLogFormat.
func (b *builder) meshFileLog(path string) *accesslogv3.AccessLog {
	format := &corev3.SubstitutionFormatString{}
	text := b.mesh.config.GetAccessLogFormat()
	if b.mesh.config.GetAccessLogEncoding() == meshconfig.MeshConfig_JSON {
		fields := structOf(jsonLogFields)
		if text != "" {
			custom := &structpb.Struct{}
			if err := custom.UnmarshalJSON([]byte(text)); err == nil {
				fields = custom
			}
		}
		format.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields}
	} else {
		setText(format, text)
	}
	return fileAccessLog(path, format)
}

func (b *builder) otelLog(l logTo, p *meshconfig.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider) *accesslogv3.AccessLog {
	cluster, _, why := b.providerCluster(p.Service, p.Port)
	if why != "" {
		b.logProblem(l, why)
		return nil
	}
	name := p.LogName
	if name == "" {
		name = "otel_envoy_accesslog"
	}
	text := p.GetLogFormat().GetText()
	if text == "" {
		text = textLogFormat
	}
	c := &otellogv3.OpenTelemetryAccessLogConfig{
		CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
			LogName: name, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
				ClusterName: cluster, Authority: serviceHost(p.Service),
			}}},
			FilterStateObjectsToLog: []string{"upstream_peer", "downstream_peer", "wasm.upstream_peer", "wasm.downstream_peer"},
		},
		DisableBuiltinLabels: true,
		Body:                 &otelcommonv1.AnyValue{Value: &otelcommonv1.AnyValue_StringValue{StringValue: text}},
	}
	if labels := p.GetLogFormat().GetLabels(); len(labels.GetFields()) > 0 {
		c.Attributes = &otelcommonv1.KeyValueList{}
		for _, k := range sortedKeys(labels.Fields) {
			c.Attributes.Values = append(c.Attributes.Values, &otelcommonv1.KeyValue{
				Key: k, Value: &otelcommonv1.AnyValue{Value: &otelcommonv1.AnyValue_StringValue{StringValue: labels.Fields[k].GetStringValue()}},
			})
		}
	}
	return &accesslogv3.AccessLog{Name: "envoy.access_loggers.open_telemetry", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: anyOf(c)}}
}
