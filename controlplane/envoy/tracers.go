package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// applyTracing makes the tracing of a chain do what Telemetry says; narrower objects replace what wider ones said.
func (b *builder) applyTracing(t *hcmv3.HttpConnectionManager_Tracing, at target) {
	provider := ""
	if names := b.mesh.config.GetDefaultProviders().GetTracing(); len(names) > 0 {
		provider = names[0]
	}
	if s := b.mesh.config.GetDefaultConfig().GetTracing().GetSampling(); s > 0 {
		t.RandomSampling = &typev3.Percent{Value: s}
	}
	var from *telemetryv1.Telemetry
	var sampling *wrapperspb.DoubleValue
	disabled := false
	tags := map[string]*telemetry.Tracing_CustomTag{}
	istioTags := true
	for _, o := range b.telemetryFor(at) {
		for _, x := range o.Spec.Tracing {
			if x.GetMatch().GetMode() == telemetry.WorkloadMode_CLIENT {
				continue
			}
			if len(x.Providers) > 0 {
				provider, from = x.Providers[0].Name, o
				if len(x.Providers) > 1 {
					b.problem(kube.Ignored, kube.KeyOf(o), "spec.tracing.providers", "spans go to one provider: "+provider, "one provider")
				}
			}
			if x.RandomSamplingPercentage != nil {
				sampling = x.RandomSamplingPercentage
			}
			if x.DisableSpanReporting != nil {
				disabled = x.DisableSpanReporting.Value
			}
			if x.DisableContextPropagation != nil {
				t.NoContextPropagation = x.DisableContextPropagation.Value
			}
			if len(x.CustomTags) > 0 {
				tags = x.CustomTags
			}
			if x.EnableIstioTags != nil {
				istioTags = x.EnableIstioTags.Value
			}
		}
	}
	if sampling != nil {
		t.RandomSampling = &typev3.Percent{Value: sampling.Value}
	}
	if !istioTags {
		t.CustomTags = nil
	}
	for _, name := range sortedKeys(tags) {
		if tag := customTag(name, tags[name]); tag != nil {
			t.CustomTags = append(t.CustomTags, tag)
		}
	}
	if provider == "" || disabled {
		return
	}
	tracer, why := b.tracer(t, provider)
	if why != "" {
		if from != nil {
			b.problem(kube.Ignored, kube.KeyOf(from), "spec.tracing[0].providers", why, b.mesh.providerNames())
		}
		return
	}
	t.Provider = tracer
}

func customTag(name string, c *telemetry.Tracing_CustomTag) *tracingv3.CustomTag {
	switch k := c.GetType().(type) {
	case *telemetry.Tracing_CustomTag_Literal:
		return literalTag(name, k.Literal.GetValue())
	case *telemetry.Tracing_CustomTag_Environment:
		return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{
			Name: k.Environment.GetName(), DefaultValue: k.Environment.GetDefaultValue(),
		}}}
	case *telemetry.Tracing_CustomTag_Header:
		return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{
			Name: k.Header.GetName(), DefaultValue: k.Header.GetDefaultValue(),
		}}}
	case *telemetry.Tracing_CustomTag_Formatter:
		return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Value{Value: headerValue(k.Formatter.GetValue())}}
	}
	return nil
}

// tracer is where spans go; why says what is missing.
func (b *builder) tracer(t *hcmv3.HttpConnectionManager_Tracing, name string) (*tracev3.Tracing_Http, string) {
	p := b.mesh.provider(name)
	make := func(driver string, m proto.Message) *tracev3.Tracing_Http {
		return &tracev3.Tracing_Http{Name: driver, ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: anyOf(m)}}
	}
	limit := func(n uint32) {
		if n > 0 {
			t.MaxPathTagLength = u32(n)
		}
	}
	switch {
	case p.GetZipkin() != nil:
		z := p.GetZipkin()
		cluster, host, why := b.providerCluster(z.Service, z.Port)
		if why != "" {
			return nil, why
		}
		limit(z.MaxTagLength)
		return make("envoy.tracers.zipkin", zipkinConfig(z, cluster, host)), ""
	case p.GetOpentelemetry() != nil:
		o := p.GetOpentelemetry()
		cluster, host, why := b.providerCluster(o.Service, o.Port)
		if why != "" {
			return nil, why
		}
		limit(o.MaxTagLength)
		return make("envoy.tracers.opentelemetry", b.otelConfig(o, cluster, host)), ""
	case p != nil:
		return nil, "provider " + name + " takes no traces that waypoints send"
	}
	return nil, "there is no extension provider " + name
}

func zipkinConfig(z *meshconfig.MeshConfig_ExtensionProvider_ZipkinTracingProvider, cluster, host string) *tracev3.ZipkinConfig {
	path := z.Path
	if path == "" {
		path = "/api/v2/spans"
	}
	return &tracev3.ZipkinConfig{
		CollectorCluster: cluster, CollectorEndpoint: path, CollectorHostname: host, CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON,
		TraceId_128Bit: !z.Enable_64BitTraceId, SharedSpanContext: wrapperspb.Bool(false),
	}
}

func (b *builder) otelConfig(o *meshconfig.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider, cluster, host string) *tracev3.OpenTelemetryConfig {
	c := &tracev3.OpenTelemetryConfig{ServiceName: b.gateway.Name + "." + b.gateway.Namespace}
	if h := o.GetHttp(); h != nil {
		c.HttpService = &corev3.HttpService{HttpUri: &corev3.HttpUri{
			Uri: "http://" + host + h.Path, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: timeoutOr(h.Timeout, 10e9),
		}}
		for _, v := range b.exportHeaders(h.Headers) {
			c.HttpService.RequestHeadersToAdd = append(c.HttpService.RequestHeadersToAdd, &corev3.HeaderValueOption{Header: v, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD})
		}
		return c
	}
	c.GrpcService = &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster, Authority: host}}}
	if g := o.GetGrpc(); g != nil {
		c.GrpcService.InitialMetadata = b.exportHeaders(g.InitialMetadata)
		if g.Timeout != nil {
			c.GrpcService.Timeout = clone(g.Timeout)
		}
	}
	return c
}

// exportHeaders are what a collector is sent besides, often a key. Values from the environment are the proxy's, which the
// control plane does not know.
func (b *builder) exportHeaders(list []*meshconfig.MeshConfig_ExtensionProvider_HttpHeader) []*corev3.HeaderValue {
	var out []*corev3.HeaderValue
	for _, h := range list {
		if h.GetEnvName() != "" {
			if cm := kube.Get[*corev1.ConfigMap](b.objects, b.cfg.RootNamespace, "istio"); cm != nil {
				b.problem(kube.Ignored, kube.KeyOf(cm), "data.mesh", "header "+h.Name+" of a tracing provider: envName is not served", "value")
			}
			continue
		}
		out = append(out, &corev3.HeaderValue{Key: h.Name, Value: headerValue(h.GetValue())})
	}
	return out
}

// sampledByID says whether the trace's fate is in the request's ID, as it is unless Telemetry says otherwise.
func (b *builder) sampledByID(at target) bool {
	by := true
	for _, o := range b.telemetryFor(at) {
		for _, x := range o.Spec.Tracing {
			if x.GetMatch().GetMode() != telemetry.WorkloadMode_CLIENT && x.UseRequestIdForTraceSampling != nil {
				by = x.UseRequestIdForTraceSampling.Value
			}
		}
	}
	return by
}
