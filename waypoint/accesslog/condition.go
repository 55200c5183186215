package accesslog

import (
	"errors"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// condition says whether an entry is logged.
type condition func(*Entry) bool

// maxDepth is how deep conditions may be nested.
const maxDepth = 32

func compileFilter(p *accesslogv3.AccessLogFilter, depth int) (condition, error) {
	if p == nil {
		return nil, nil
	}
	if depth > maxDepth {
		return nil, errors.New("nested too deep")
	}
	switch f := p.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		c, err := compare(f.StatusCodeFilter.GetComparison())
		return func(e *Entry) bool { return c(int64(e.Status)) }, field.At(err, "status_code_filter.comparison")
	case *accesslogv3.AccessLogFilter_DurationFilter:
		c, err := compare(f.DurationFilter.GetComparison())
		return func(e *Entry) bool { return c(e.Duration.Milliseconds()) }, field.At(err, "duration_filter.comparison")
	case *accesslogv3.AccessLogFilter_NotHealthCheckFilter:
		return func(*Entry) bool { return true }, nil
	case *accesslogv3.AccessLogFilter_RuntimeFilter:
		s, err := route.CompileFraction(f.RuntimeFilter.GetPercentSampled())
		return func(e *Entry) bool { return s.Hit(e.Rand) }, field.At(err, "runtime_filter.percent_sampled")
	case *accesslogv3.AccessLogFilter_AndFilter:
		return compileAll("and_filter", f.AndFilter.GetFilters(), depth, true)
	case *accesslogv3.AccessLogFilter_OrFilter:
		return compileAll("or_filter", f.OrFilter.GetFilters(), depth, false)
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		m, err := route.CompileHeader(f.HeaderFilter.GetHeader())
		return func(e *Entry) bool { return e.Context.Req != nil && m.Match(e.Context.Req) }, field.At(err, "header_filter.header")
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		return compileFlags(f.ResponseFlagFilter.GetFlags())
	case *accesslogv3.AccessLogFilter_GrpcStatusFilter:
		var list []int
		for _, s := range f.GrpcStatusFilter.GetStatuses() {
			list = append(list, int(s))
		}
		return func(e *Entry) bool {
			return slices.Contains(list, grpcNumber(e.GRPC)) != f.GrpcStatusFilter.GetExclude()
		}, nil
	}
	if f := p.GetExtensionFilter(); f != nil {
		c, err := compileExpression(f)
		return c, field.At(err, "extension_filter")
	}
	return nil, field.Errorf("filter_specifier", "unsupported condition %T", p.GetFilterSpecifier())
}

func compileAll(name string, list []*accesslogv3.AccessLogFilter, depth int, all bool) (condition, error) {
	var cs []condition
	for i, p := range list {
		c, err := compileFilter(p, depth+1)
		if err == nil && c == nil {
			err = errors.New("required")
		}
		if err != nil {
			return nil, field.At(field.Index(err, "filters", i), name)
		}
		cs = append(cs, c)
	}
	return func(e *Entry) bool {
		for _, c := range cs {
			if c(e) != all {
				return !all
			}
		}
		return all
	}, nil
}

func compileFlags(names []string) (condition, error) {
	var want filter.Flags
	for i, n := range names {
		f, ok := filter.ParseFlag(n)
		if !ok {
			return nil, field.Index(errors.New("unknown response flag "+n), "response_flag_filter.flags", i)
		}
		want |= f
	}
	if len(names) == 0 { // any flag at all
		want = ^filter.Flags(0)
	}
	return func(e *Entry) bool { return e.Exchange.Flags&want != 0 }, nil
}

func compare(c *accesslogv3.ComparisonFilter) (func(int64) bool, error) {
	v := int64(c.GetValue().GetDefaultValue())
	switch c.GetOp() {
	case accesslogv3.ComparisonFilter_EQ:
		return func(n int64) bool { return n == v }, nil
	case accesslogv3.ComparisonFilter_GE:
		return func(n int64) bool { return n >= v }, nil
	case accesslogv3.ComparisonFilter_LE:
		return func(n int64) bool { return n <= v }, nil
	case accesslogv3.ComparisonFilter_NE:
		return func(n int64) bool { return n != v }, nil
	}
	return nil, field.Errorf("op", "unknown value %d", c.GetOp())
}
