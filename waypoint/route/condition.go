package route

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Condition is a compiled RouteMatch by itself, for filters that have rules of their own. It is immutable.
type Condition struct{ m *match }

// CompileCondition compiles a RouteMatch.
func CompileCondition(p *routev3.RouteMatch) (*Condition, error) {
	m, err := compileMatch(p)
	return &Condition{m}, err
}

// Match says whether a request fulfils the condition. rand decides runtime_fraction; a may be nil.
func (c *Condition) Match(r *message.Request, rand uint64, a Attributes) bool {
	path := r.Path
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	return c.m.matches(r, path, rand, a)
}
