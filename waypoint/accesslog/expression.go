package accesslog

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"

	"github.com/ambit-mesh/ambit/waypoint/expr"
	"github.com/ambit-mesh/ambit/waypoint/field"
)

// compileExpression is a condition in CEL (package expr), which is what filters of the Telemetry API become. What cannot be
// evaluated for an entry is not logged, as in Envoy.
func compileExpression(p *accesslogv3.ExtensionFilter) (condition, error) {
	var m celv3.ExpressionFilter
	a := p.GetTypedConfig()
	if !a.MessageIs(&m) {
		return nil, field.Errorf("typed_config", "unknown filter %q of type %q; known is envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", p.GetName(), a.GetTypeUrl())
	}
	if err := a.UnmarshalTo(&m); err != nil {
		return nil, field.At(err, "typed_config")
	}
	e, err := expr.Compile(m.GetExpression())
	if err != nil {
		return nil, field.At(err, "typed_config.expression")
	}
	return func(x *Entry) bool {
		return e.Eval(&expr.Env{Exchange: x.Exchange, Status: x.Status, GRPC: x.GRPC, Duration: x.Duration}).True()
	}, nil
}
