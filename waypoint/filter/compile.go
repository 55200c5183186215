package filter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

// kind is what is known of one type of configuration.
type kind struct {
	// compile makes the filter of the chain; nil: there is nothing to do here, because the data path does it by itself.
	compile func(any *anypb.Any) (Filter, error)
	// part compiles what typed_per_filter_config may hold of the type; nil: nothing.
	part func(any *anypb.Any) (any, error)
}

const prefix = "type.googleapis.com/"

// kinds are the types that are understood, by their full names.
var kinds = map[string]kind{
	"envoy.extensions.filters.http.rbac.v3.RBAC":                              {compile: typed(compileRBAC)},
	"envoy.extensions.filters.http.rbac.v3.RBACPerRoute":                      {part: part(compileRBACPart)},
	"envoy.extensions.filters.http.fault.v3.HTTPFault":                        {compile: typed(compileFault), part: part(compileFaultPart)},
	"envoy.extensions.filters.http.cors.v3.Cors":                              {compile: typed(compileCORS)},
	"envoy.extensions.filters.http.cors.v3.CorsPolicy":                        {part: part(compileCORSPolicy)},
	"envoy.extensions.filters.http.header_mutation.v3.HeaderMutation":         {compile: typed(compileMutation)},
	"envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute": {part: part(compileMutationPart)},

	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication": {compile: typed(compileJWT)},
	"envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig":    {part: part(compileJWTPart)},

	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":             {compile: typed(compileExtAuthz)},
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute":     {part: part(compileExtAuthzPart)},
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": {compile: typed(compileLocalLimit), part: part(compileLocalLimitPart)},
	"envoy.extensions.filters.http.ratelimit.v3.RateLimit":            {compile: typed(compileGlobalLimit)},
	"envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute":    {part: part(compileGlobalPart)},

	// Done by the data path: the end of the chain, the state that a tunnel carries, and metrics.
	"envoy.extensions.filters.http.router.v3.Router":           {},
	"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": {},
	"envoy.extensions.filters.http.set_filter_state.v3.Config": {},
	"stats.PluginConfig":                 {},
	"io.istio.http.peer_metadata.Config": {},
	// Done by the cluster that it is meant for, which resolves the request's host (cluster.Dynamic).
	"envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig": {},
}

// typed makes a compile function of one that takes the message.
func typed[M any, P interface {
	*M
	proto.Message
}](f func(P) (Filter, error)) func(*anypb.Any) (Filter, error) {
	return func(a *anypb.Any) (Filter, error) {
		m := P(new(M))
		if err := a.UnmarshalTo(m); err != nil {
			return nil, err
		}
		return f(m)
	}
}

// part is typed for a part's configuration.
func part[M any, P interface {
	*M
	proto.Message
}](f func(P) (any, error)) func(*anypb.Any) (any, error) {
	return func(a *anypb.Any) (any, error) {
		m := P(new(M))
		if err := a.UnmarshalTo(m); err != nil {
			return nil, err
		}
		return f(m)
	}
}

// Compile makes a filter of its configuration. The result is nil if there is nothing to do for it in the chain. A type that
// is not known is an error, unless the configuration says that it may be left out.
func Compile(f *hcmv3.HttpFilter) (Filter, error) {
	c := f.GetTypedConfig()
	if f.GetConfigDiscovery() != nil {
		return nil, field.Errorf("config_discovery", "filters by extension discovery are not supported")
	}
	if c == nil {
		return nil, field.Errorf("typed_config", "required")
	}
	name, err := typeName(c)
	if err != nil {
		return nil, field.At(err, "typed_config")
	}
	k, ok := kinds[name]
	if !ok {
		if f.GetIsOptional() {
			return nil, nil
		}
		return nil, field.Errorf("typed_config", "unknown type %q of filter %q; known are %s", name, f.GetName(), known())
	}
	if k.compile == nil {
		if k.part != nil {
			return nil, field.Errorf("typed_config", "type %q is not one of a filter, but of its settings for a route", name)
		}
		return nil, nil
	}
	out, err := k.compile(c)
	if err != nil {
		return nil, field.At(err, "typed_config")
	}
	if f.GetDisabled() {
		out = &switched{name: f.GetName(), Filter: out}
	}
	if n, ok := out.(named); ok {
		n.setName(f.GetName())
	}
	return out, nil
}

// CompilePart compiles an entry of typed_per_filter_config.
func CompilePart(name string, c *anypb.Any) (any, error) {
	t, err := typeName(c)
	if err != nil {
		return nil, err
	}
	k, ok := kinds[t]
	switch {
	case !ok:
		return nil, fmt.Errorf("unknown type %q of filter %q", t, name)
	case k.part == nil:
		return nil, fmt.Errorf("type %q has no settings for a part of the routes", t)
	}
	return k.part(c)
}

// typeName is the full name of what c holds; a TypedStruct stands for the type that it names.
func typeName(c *anypb.Any) (string, error) {
	t := c.GetTypeUrl()
	switch strings.TrimPrefix(t, prefix) {
	case "udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct":
		// Both have the type URL as their field 1.
		s, err := structType(c.GetValue())
		if err != nil {
			return "", err
		}
		t = s
	}
	name, ok := strings.CutPrefix(t, prefix)
	if !ok || name == "" {
		return "", fmt.Errorf("type URL %q does not begin with %q", t, prefix)
	}
	return name, nil
}

// known lists the types for an error.
func known() string {
	return strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
}

// named is a filter that has to know by which name routes configure it.
type named interface{ setName(string) }

// name is the part of a filter that holds that name.
type name struct{ name string }

func (n *name) setName(s string) { n.name = s }

// settings is what the route says for the filter of that name: the most specific typed_per_filter_config, and whether it
// switches the filter off.
func (x *Exchange) settings(name string) (value any, off bool) {
	r := x.Route()
	if r == nil {
		return nil, false
	}
	c, ok := r.FilterConfig(x.action, name)
	if !ok {
		return nil, false
	}
	return c.Value, c.Disabled
}

// switched is a filter that is off unless a route says otherwise.
type switched struct {
	Filter
	name string
}

// Request implements Filter.
func (s *switched) Request(x *Exchange) Action {
	r := x.Route()
	if r == nil {
		return Continue
	}
	if c, ok := r.FilterConfig(x.action, s.name); !ok || c.Disabled {
		return Continue
	}
	x.Note(s, true)
	return s.Filter.Request(x)
}

// Answer implements Answering.
func (s *switched) Answer(x *Exchange) {
	if f, ok := s.Filter.(Answering); ok && x.Noted(s) != nil {
		f.Answer(x)
	}
}

// End implements Ending.
func (s *switched) End(x *Exchange) {
	if f, ok := s.Filter.(Ending); ok && x.Noted(s) != nil {
		f.End(x)
	}
}

// setName passes the name on.
func (s *switched) setName(n string) {
	if f, ok := s.Filter.(named); ok {
		f.setName(n)
	}
}

// Gate is a compiled network filter: it lets a connection in, or does not.
type Gate interface {
	// Admit says whether a connection may go on. x has no request but an empty one.
	Admit(x *Exchange) bool
}

// CompileGate makes a Gate of a network filter in front of a TCP proxy; nil if there is nothing to do.
func CompileGate(filterName string, c *anypb.Any) (Gate, error) {
	t, err := typeName(c)
	if err != nil {
		return nil, err
	}
	switch t {
	case "envoy.extensions.filters.network.rbac.v3.RBAC":
		var m networkrbacv3.RBAC
		if err := c.UnmarshalTo(&m); err != nil {
			return nil, err
		}
		return compileNetworkRBAC(&m)
	case "stats.PluginConfig", "envoy.tcp.metadataexchange.config.MetadataExchange", "envoy.extensions.network_filters.peer_metadata.Config",
		"envoy.extensions.network_filters.peer_metadata.UpstreamConfig", "envoy.extensions.filters.network.set_filter_state.v3.Config",
		"envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy":
		return nil, nil
	}
	return nil, fmt.Errorf("unknown type %q of network filter %q", t, filterName)
}

// structType reads the type URL of a TypedStruct, of either package: field 1.
func structType(b []byte) (string, error) {
	for len(b) > 0 {
		n, t, l := protowire.ConsumeTag(b)
		if l < 0 {
			return "", protowire.ParseError(l)
		}
		b = b[l:]
		if n == 1 && t == protowire.BytesType {
			v, l := protowire.ConsumeBytes(b)
			if l < 0 {
				return "", protowire.ParseError(l)
			}
			return string(v), nil
		}
		if l = protowire.ConsumeFieldValue(n, t, b); l < 0 {
			return "", protowire.ParseError(l)
		}
		b = b[l:]
	}
	return "", errors.New("TypedStruct without a type URL")
}
