// Package stats compiles Istio's statistics filter: how the metrics of a chain differ from the standard ones. Counting is
// the data path's; how changed metrics are shown is in package telemetry.
package stats

import (
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
	statspb "istio.io/api/envoy/extensions/stats"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/expr"
	"github.com/ambit-mesh/ambit/waypoint/field"
)

// Type is the full name of the filter's configuration.
const Type = "stats.PluginConfig"

// maxExtra bounds the value of an added label, in bytes.
const maxExtra = 128

// Config is how the metrics of a chain differ. It is immutable.
type Config struct {
	view   *telemetry.View
	values []*expr.Program
}

// Compile compiles the filter's configuration; nil: the metrics are the standard ones. Expressions that are not understood
// are refused, as are metrics of the user's own.
func Compile(a *anypb.Any) (*Config, error) {
	var p statspb.PluginConfig
	if err := a.UnmarshalTo(&p); err != nil {
		return nil, err
	}
	if len(p.GetDefinitions()) > 0 {
		return nil, field.Errorf("definitions", "unsupported: there are Istio's standard metrics only")
	}
	if len(p.GetMetrics()) == 0 {
		return nil, nil
	}
	c := &Config{}
	known := map[string]int{}
	var list []telemetry.Override
	for i, m := range p.GetMetrics() {
		o := telemetry.Override{Drop: m.GetDrop(), Remove: m.GetTagsToRemove(), Set: map[string]int{}}
		if m.GetName() != "" {
			o.Metric = "istio_" + m.GetName()
		}
		for tag, text := range m.GetDimensions() {
			n, ok := known[text]
			if !ok {
				e, err := expr.Compile(text)
				if err != nil {
					return nil, field.Index(field.Key(err, "dimensions", tag), "metrics", i)
				}
				n = len(c.values)
				c.values, known[text] = append(c.values, e), n
			}
			if !labelName(tag) {
				return nil, field.Index(field.Key(field.Errorf("", "not the name of a label"), "dimensions", tag), "metrics", i)
			}
			o.Set[tag] = n
		}
		list = append(list, o)
	}
	c.view = telemetry.NewView(list)
	return c, nil
}

// labelName says that s may name a label of Prometheus.
func labelName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && !strings.HasPrefix(s, "__")
}

// Fixed says that Apply does the same to the same labels, whatever the request: there are no expressions.
func (c *Config) Fixed() bool { return len(c.values) == 0 }

// Apply makes labels what the chain's metrics have; e is what expressions are about.
func (c *Config) Apply(l *telemetry.HTTPLabels, e *expr.Env) {
	l.View = c.view
	if len(c.values) > 0 {
		e.Shown = true
		var b strings.Builder
		for i, p := range c.values {
			if i > 0 {
				b.WriteByte(0)
			}
			v := strings.ReplaceAll(p.Eval(e).String(), "\x00", "?")
			b.WriteString(v[:min(len(v), maxExtra)])
		}
		l.Extra = b.String()
	}
	c.view.Reduce(l)
}
