package envoy

import (
	"fmt"
	"regexp"

	"istio.io/api/envoy/extensions/stats"
	telemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// What is served of Telemetry: selection by namespace and targetRefs; accessLogging (mode, providers, disabled, filter) to
// files and OpenTelemetry; tracing (mode, the first provider, randomSamplingPercentage, disableSpanReporting,
// disableContextPropagation, customTags of all four kinds, enableIstioTags, useRequestIdForTraceSampling) to OpenTelemetry and
// Zipkin; metrics (overrides, disabled, tagOverrides, reportingInterval) for Prometheus. Not served, and reported: other
// providers.

// telemetryFor lists the Telemetry objects for a chain from the widest to the narrowest: of the root namespace, of the
// waypoint's namespace, those that refer to the waypoint, those that refer to the chain's service.
func (b *builder) telemetryFor(at target) []*telemetryv1.Telemetry {
	var levels [4][]*telemetryv1.Telemetry
	for _, t := range b.telemetry {
		refs := t.Spec.TargetRefs
		if one := t.Spec.GetTargetRef(); one != nil {
			refs = append(refs[:len(refs):len(refs)], one)
		}
		switch {
		case len(refs) > 0 && b.targets(t.Namespace, nil, refs, target{}):
			levels[2] = append(levels[2], t)
		case len(refs) > 0 && b.targets(t.Namespace, nil, refs, at):
			levels[3] = append(levels[3], t)
		case len(refs) > 0 || t.Spec.Selector != nil:
		case t.Namespace == b.cfg.RootNamespace:
			levels[0] = append(levels[0], t)
		case t.Namespace == b.gateway.Namespace:
			levels[1] = append(levels[1], t)
		}
	}
	var out []*telemetryv1.Telemetry
	for _, l := range levels {
		for i, t := range l {
			if i > 0 {
				b.problem(kube.Ignored, kube.KeyOf(t), "spec", "Telemetry "+l[0].Name+" is older and is for the same", "one Telemetry for each namespace, Gateway or Service")
				continue
			}
			out = append(out, t)
		}
	}
	return out
}

// metricNames are those of the statistics filter.
var metricNames = map[telemetry.MetricSelector_IstioMetric]string{
	telemetry.MetricSelector_REQUEST_COUNT: "requests_total", telemetry.MetricSelector_REQUEST_DURATION: "request_duration_milliseconds",
	telemetry.MetricSelector_REQUEST_SIZE: "request_bytes", telemetry.MetricSelector_RESPONSE_SIZE: "response_bytes",
	telemetry.MetricSelector_TCP_OPENED_CONNECTIONS: "tcp_connections_opened_total", telemetry.MetricSelector_TCP_CLOSED_CONNECTIONS: "tcp_connections_closed_total",
	telemetry.MetricSelector_TCP_SENT_BYTES: "tcp_sent_bytes_total", telemetry.MetricSelector_TCP_RECEIVED_BYTES: "tcp_received_bytes_total",
	telemetry.MetricSelector_GRPC_REQUEST_MESSAGES: "request_messages_total", telemetry.MetricSelector_GRPC_RESPONSE_MESSAGES: "response_messages_total",
}

// statsConfig is what the statistics filter of a chain does; the overrides of the narrower Telemetry come later and win.
func (b *builder) statsConfig(at target) *stats.PluginConfig {
	c := &stats.PluginConfig{DisableHostHeaderFallback: true, Reporter: stats.Reporter_SERVER_GATEWAY}
	for _, t := range b.telemetryFor(at) {
		for i, m := range t.Spec.Metrics {
			if !b.prometheus(t, indexed("spec.metrics", i), m.Providers) {
				continue
			}
			if m.ReportingInterval != nil {
				c.TcpReportingDuration = clone(m.ReportingInterval)
			}
			for j, o := range m.Overrides {
				if o.GetMatch().GetMode() == telemetry.WorkloadMode_CLIENT {
					continue // a waypoint reports as a server
				}
				c.Metrics = append(c.Metrics, metricConfigs(b.readable(t, indexed(indexed("spec.metrics", i)+".overrides", j), o))...)
			}
		}
	}
	return c
}

// prometheus says whether metrics go to the one provider there is.
func (b *builder) prometheus(t *telemetryv1.Telemetry, field string, providers []*telemetry.ProviderRef) bool {
	for _, p := range providers {
		if p.Name != "prometheus" && b.mesh.provider(p.Name).GetPrometheus() == nil {
			b.problem(kube.Ignored, kube.KeyOf(t), field+".providers", "provider "+p.Name+" takes no metrics of waypoints", "prometheus")
			return false
		}
	}
	return true
}

var labelName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// readable is an override without tags that a client could not read.
func (b *builder) readable(t *telemetryv1.Telemetry, field string, o *telemetry.MetricsOverrides) *telemetry.MetricsOverrides {
	out := clone(o)
	for _, tag := range sortedKeys(o.TagOverrides) {
		v := o.TagOverrides[tag]
		if v.GetOperation() == telemetry.MetricsOverrides_TagOverride_REMOVE {
			continue
		}
		err := expressionFlaw(v.GetValue())
		if !labelName.MatchString(tag) {
			err = fmt.Errorf("%q is no name of a label", tag)
		}
		if err != nil {
			b.problem(kube.Rejected, kube.KeyOf(t), field+".tagOverrides["+tag+"]", err.Error()+": the metrics go without the tag", "a name of letters, digits and underscores, and an expression of CEL")
			delete(out.TagOverrides, tag)
		}
	}
	return out
}

func metricConfigs(o *telemetry.MetricsOverrides) []*stats.MetricConfig {
	names := []string{""}
	switch m := o.GetMatch().GetMetricMatch().(type) {
	case *telemetry.MetricSelector_Metric:
		if m.Metric != telemetry.MetricSelector_ALL_METRICS {
			names = []string{metricNames[m.Metric]}
		}
	case *telemetry.MetricSelector_CustomMetric:
		names = []string{m.CustomMetric}
	}
	if o.GetDisabled().GetValue() && names[0] == "" {
		names = sortedValues(metricNames) // each by name: there is no way to drop all
	}
	var out []*stats.MetricConfig
	for _, n := range names {
		c := &stats.MetricConfig{Name: n, Drop: o.GetDisabled().GetValue()}
		for _, tag := range sortedKeys(o.TagOverrides) {
			switch v := o.TagOverrides[tag]; v.GetOperation() {
			case telemetry.MetricsOverrides_TagOverride_REMOVE:
				c.TagsToRemove = append(c.TagsToRemove, tag)
			default:
				if c.Dimensions == nil {
					c.Dimensions = map[string]string{}
				}
				c.Dimensions[tag] = v.GetValue()
			}
		}
		out = append(out, c)
	}
	return out
}

func sortedValues[K comparable](m map[K]string) []string {
	set := map[string]bool{}
	for _, v := range m {
		set[v] = true
	}
	return sortedKeys(set)
}
