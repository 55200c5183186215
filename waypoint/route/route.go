package route

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

import (
	"errors"
	"fmt"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Route is one compiled route. Exactly one of Redirect and Direct is set, or it forwards: see Action. It is immutable.
type Route struct {
	// Name is the route's name, for logs.
	Name string
	// Host is the virtual host that the route is in; nil of the redirect that require_tls makes.
	Host *VirtualHost
	// Redirect answers with another URL.
	Redirect *Redirect
	// Direct answers without an endpoint.
	Direct *Direct
	// Operation names spans (decorator), "" if nothing is said. Propagate puts it into the answer.
	Operation string
	Propagate bool
	// Metadata is the route's metadata, or nil.
	Metadata *corev3.Metadata

	match             *match
	forward           *Forward
	actions           []Action
	total             uint64
	randHeader        string
	request, response *HeaderOps
	filters           filters
}

// Direct is a compiled DirectResponseAction.
type Direct struct {
	Status int
	Body   string
}

// filters are the filters' configurations for a part of the table, by the filter's name.
type filters map[string]FilterConfig

// FilterConfig is what typed_per_filter_config says for one filter.
type FilterConfig struct {
	// Value is what Options.Filter made of the configuration; without that hook it is the *anypb.Any itself.
	Value any
	// Disabled switches the filter off.
	Disabled bool
}

func (o *Options) compileFilters(m map[string]*anypb.Any) (filters, error) {
	if len(m) == 0 {
		return nil, nil
	}
	out := make(filters, len(m))
	for name, raw := range m {
		c, err := o.compileFilter(name, raw)
		if err != nil {
			return nil, field.Key(err, "typed_per_filter_config", name)
		}
		out[name] = c
	}
	return out, nil
}

func (o *Options) compileFilter(name string, raw *anypb.Any) (c FilterConfig, err error) {
	optional := false
	if raw.MessageIs((*routev3.FilterConfig)(nil)) {
		var w routev3.FilterConfig
		if err := raw.UnmarshalTo(&w); err != nil {
			return c, err
		}
		c.Disabled, optional, raw = w.GetDisabled(), w.GetIsOptional(), w.GetConfig()
	}
	if raw == nil {
		return c, nil
	}
	c.Value = raw
	if o.Filter != nil {
		if c.Value, err = o.Filter(name, raw); err != nil && optional {
			return FilterConfig{Disabled: c.Disabled}, nil
		}
	}
	return c, err
}

func (o *Options) compileRoute(p *routev3.Route, vh *VirtualHost) (*Route, error) {
	m, err := compileMatch(p.GetMatch())
	if err != nil {
		return nil, field.At(err, "match")
	}
	r := &Route{Name: p.GetName(), Host: vh, Operation: p.GetDecorator().GetOperation(), Metadata: p.GetMetadata(), match: m}
	r.Propagate = p.GetDecorator().GetPropagate() == nil || p.GetDecorator().GetPropagate().GetValue()
	if r.request, err = CompileHeaderOps("request_headers_to_add", p.GetRequestHeadersToAdd(), "request_headers_to_remove", p.GetRequestHeadersToRemove()); err != nil {
		return nil, err
	}
	if r.response, err = CompileHeaderOps("response_headers_to_add", p.GetResponseHeadersToAdd(), "response_headers_to_remove", p.GetResponseHeadersToRemove()); err != nil {
		return nil, err
	}
	if r.filters, err = o.compileFilters(p.GetTypedPerFilterConfig()); err != nil {
		return nil, err
	}
	if len(p.GetRouteSpecifiers()) > 0 {
		return nil, field.Errorf("route_specifiers", "unsupported")
	}
	switch a := p.GetAction().(type) {
	case *routev3.Route_Route:
		err = field.At(o.compileAction(r, a.Route), "route")
	case *routev3.Route_Redirect:
		r.Redirect, err = compileRedirect(a.Redirect, m)
		err = field.At(err, "redirect")
	case *routev3.Route_DirectResponse:
		r.Direct, err = compileDirect(a.DirectResponse, vh.table.maxBody)
		err = field.At(err, "direct_response")
	default:
		err = field.Errorf("action", "one of route, redirect and direct_response is required")
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func compileDirect(d *routev3.DirectResponseAction, limit int) (*Direct, error) {
	s := d.GetStatus()
	if s < 200 || s > 599 {
		return nil, field.Errorf("status", "%d is not between 200 and 599", s)
	}
	r := &Direct{Status: int(s)}
	switch b := d.GetBody().GetSpecifier().(type) {
	case nil:
	case *corev3.DataSource_InlineString:
		r.Body = b.InlineString
	case *corev3.DataSource_InlineBytes:
		r.Body = string(b.InlineBytes)
	default:
		return nil, field.At(field.Unsupported(d.GetBody(), "specifier"), "body")
	}
	if d.GetBodyFormat() != nil {
		return nil, field.Errorf("body_format", "unsupported")
	}
	if len(r.Body) > limit {
		return nil, field.Errorf("body", "%d bytes, at most %d", len(r.Body), limit)
	}
	return r, nil
}

func (o *Options) compileAction(r *Route, a *routev3.RouteAction) (err error) {
	if r.forward, err = compileForward(a, r.match, r.Host); err != nil {
		return err
	}
	r.forward.IncludeHostLimits = a.GetIncludeVhRateLimits().GetValue()
	if r.forward.Limits, err = o.compileLimits(a.GetRateLimits()); err != nil {
		return err
	}
	switch c := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		if c.Cluster == "" {
			return field.Errorf("cluster", "empty name")
		}
		r.actions = []Action{{Forward: r.forward, Cluster: c.Cluster}}
	case *routev3.RouteAction_ClusterHeader:
		if c.ClusterHeader == "" {
			return field.Errorf("cluster_header", "empty name")
		}
		r.actions = []Action{{Forward: r.forward, ClusterHeader: lower(c.ClusterHeader)}}
	case *routev3.RouteAction_WeightedClusters:
		return field.At(o.compileWeighted(r, c.WeightedClusters), "weighted_clusters")
	default:
		return field.Unsupported(a, "cluster_specifier")
	}
	return nil
}

func (o *Options) compileWeighted(r *Route, w *routev3.WeightedCluster) error {
	switch s := w.GetRandomValueSpecifier().(type) {
	case nil:
	case *routev3.WeightedCluster_HeaderName:
		r.randHeader = lower(s.HeaderName)
	default:
		return field.Unsupported(w, "random_value_specifier")
	}
	for i, c := range w.GetClusters() {
		a, err := o.compileWeight(r, c)
		if err != nil {
			return field.Index(err, "clusters", i)
		}
		r.total += a.weight
		r.actions = append(r.actions, a)
	}
	switch {
	case r.total == 0:
		return field.Errorf("clusters", "the sum of weights is 0")
	case r.total > 1<<32-1:
		return field.Errorf("clusters", "the sum of weights %d is too large", r.total)
	}
	if t := w.GetTotalWeight(); t != nil && uint64(t.GetValue()) != r.total {
		return field.Errorf("total_weight", "%d, and the sum of weights is %d", t.GetValue(), r.total)
	}
	return nil
}

func (o *Options) compileWeight(r *Route, c *routev3.WeightedCluster_ClusterWeight) (a Action, err error) {
	a = Action{
		Forward: r.forward, Cluster: c.GetName(), ClusterHeader: lower(c.GetClusterHeader()), weight: uint64(c.GetWeight().GetValue()),
		host: c.GetHostRewriteLiteral(),
	}
	if (a.Cluster == "") == (a.ClusterHeader == "") {
		return a, errors.New("one of name and cluster_header is required")
	}
	if len(c.GetMetadataMatch().GetFilterMetadata()) > 0 {
		return a, field.Errorf("metadata_match", "unsupported: subsets are clusters of their own")
	}
	if a.request, err = CompileHeaderOps("request_headers_to_add", c.GetRequestHeadersToAdd(), "request_headers_to_remove", c.GetRequestHeadersToRemove()); err != nil {
		return a, err
	}
	if a.response, err = CompileHeaderOps("response_headers_to_add", c.GetResponseHeadersToAdd(), "response_headers_to_remove", c.GetResponseHeadersToRemove()); err != nil {
		return a, err
	}
	a.filters, err = o.compileFilters(c.GetTypedPerFilterConfig())
	return a, err
}

// Action chooses the cluster of a route that forwards, by the random number; nil if the route answers by itself. With the
// same number it chooses the same.
func (r *Route) Action(req *message.Request, rand uint64) *Action {
	if len(r.actions) < 2 {
		if len(r.actions) == 0 {
			return nil
		}
		return &r.actions[0]
	}
	if r.randHeader != "" {
		if n, err := strconv.ParseUint(req.Header.Get(r.randHeader), 10, 64); err == nil {
			rand = n
		}
	}
	at := rand % r.total
	for i := range r.actions {
		if a := &r.actions[i]; at < a.weight {
			return a
		} else {
			at -= a.weight
		}
	}
	return nil // not reached: at is less than the sum
}

// FilterConfig is the most specific configuration of a filter: that of the cluster, the route, the virtual host, the
// table. a may be nil.
func (r *Route) FilterConfig(a *Action, name string) (FilterConfig, bool) {
	if a != nil {
		if c, ok := a.filters[name]; ok {
			return c, true
		}
	}
	if c, ok := r.filters[name]; ok || r.Host == nil {
		return c, ok
	}
	if c, ok := r.Host.filters[name]; ok {
		return c, true
	}
	c, ok := r.Host.table.filters[name]
	return c, ok
}

// levels calls f for the cluster's, the route's, the virtual host's and the table's changes, in the table's order.
func (r *Route) levels(a *Action, f func(o *HeaderOps), request bool) {
	pick := func(req, resp *HeaderOps) *HeaderOps {
		if request {
			return req
		}
		return resp
	}
	var list [4]*HeaderOps
	n := 0
	if a != nil {
		list[n] = pick(a.request, a.response)
		n++
	}
	list[n] = pick(r.request, r.response)
	n++
	reverse := false
	if h := r.Host; h != nil {
		list[n] = pick(h.request, h.response)
		list[n+1] = pick(h.table.request, h.table.response)
		n += 2
		reverse = h.table.specificWins
	}
	for i := range n {
		if reverse {
			f(list[n-1-i])
		} else {
			f(list[i])
		}
	}
}

// ChangeRequest makes the request what the cluster of a gets: headers first, then host and path. c.Req is the request.
func (r *Route) ChangeRequest(a *Action, c *Context) {
	r.levels(a, func(o *HeaderOps) { o.Apply(&c.Req.Header, c) }, true)
	a.rewrite(c.Req, c)
}

// ChangeResponse makes the answer what the client gets. a is nil if the answer is the route's own. c.Resp is the answer.
func (r *Route) ChangeResponse(a *Action, c *Context) {
	r.levels(a, func(o *HeaderOps) { o.Apply(&c.Resp.Header, c) }, false)
}

// String describes the route, for dumps and tests.
func (r *Route) String() string {
	switch {
	case r.Redirect != nil:
		return fmt.Sprintf("redirect %d", r.Redirect.Status)
	case r.Direct != nil:
		return fmt.Sprintf("direct %d", r.Direct.Status)
	}
	s := ""
	for i := range r.actions {
		a := &r.actions[i]
		if i > 0 {
			s += ","
		}
		s += a.Cluster + a.ClusterHeader
		if len(r.actions) > 1 {
			s += ":" + strconv.FormatUint(a.weight, 10)
		}
	}
	return "forward " + s
}
