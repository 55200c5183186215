// Package route compiles Envoy's RouteConfiguration and decides by it: which route a request takes (Table.Match), to
// which cluster (Route.Action), what is changed on the way (ChangeRequest, ChangeResponse), when it is tried again
// (Retry), and by which hash an endpoint is chosen (Forward.Hash).
//
// Everything compiled is immutable and may be used by all loops. Compiling is pure; an error names the path of the field
// that it is about (package field). A configuration is refused if leaving a part of it out would make it mean something
// else; a field that is merely unknown is not looked at.
//
// Semantics are Envoy's (v3 API, envoy.config.route.v3), also where they look odd: they are named where they are coded.
package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// defaultMaxBody is Envoy's limit of a direct response's body in bytes.
const defaultMaxBody = 4096

// Options are what compiling needs from outside.
type Options struct {
	// Filter compiles the configuration of an HTTP filter for a part of the table; nil keeps it as it is.
	Filter func(name string, config *anypb.Any) (any, error)
	// Limits compiles the rate_limits of a virtual host or of a route, of which there are some; nil: they are left out.
	Limits func([]*routev3.RateLimit) (any, error)
}

func (o *Options) compileLimits(list []*routev3.RateLimit) (any, error) {
	if len(list) == 0 || o.Limits == nil {
		return nil, nil
	}
	return o.Limits(list)
}

// Table is a compiled RouteConfiguration. It is immutable.
type Table struct {
	// Name is the name of the configuration.
	Name string
	// Hosts are the virtual hosts.
	Hosts []*VirtualHost

	exact    map[string]*VirtualHost
	suffixes []wildcards // "*.example.com", longest first
	prefixes []wildcards // "example.*", longest first
	fallback *VirtualHost

	ignorePort        bool
	ignoreParams      bool
	hostHeader        string
	specificWins      bool
	maxBody           int
	request, response *HeaderOps
	filters           filters
	mirrors           []*Mirror
}

// wildcards are the domains whose fixed part is n bytes long.
type wildcards struct {
	n     int
	hosts map[string]*VirtualHost
}

// VirtualHost is a compiled VirtualHost. It is immutable.
type VirtualHost struct {
	Name   string
	Routes []*Route
	// Limits is what Options.Limits made of rate_limits; nil without any.
	Limits any

	table                                *Table
	tls                                  routev3.VirtualHost_TlsRequirementType
	request, response                    *HeaderOps
	filters                              filters
	retry                                *Retry
	mirrors                              []*Mirror
	attemptCount, attemptCountInResponse bool
}

// toTLS sends clients to https (require_tls).
var toTLS = &Route{Redirect: &Redirect{Status: 301, scheme: "https"}}

// Compile compiles a route configuration.
func Compile(c *routev3.RouteConfiguration, o Options) (*Table, error) {
	t := &Table{
		Name: c.GetName(), exact: map[string]*VirtualHost{}, maxBody: defaultMaxBody, ignorePort: c.GetIgnorePortInHostMatching(),
		ignoreParams: c.GetIgnorePathParametersInPathMatching(), hostHeader: lower(c.GetVhostHeader()), specificWins: c.GetMostSpecificHeaderMutationsWins(),
	}
	if m := c.GetMaxDirectResponseBodySizeBytes(); m != nil {
		t.maxBody = int(m.GetValue())
	}
	switch {
	case c.GetVhds() != nil:
		return nil, field.Errorf("vhds", "unsupported")
	case len(c.GetRouteSpecifiers()) > 0:
		return nil, field.Errorf("route_specifiers", "unsupported")
	}
	var err error
	if t.request, err = CompileHeaderOps("request_headers_to_add", c.GetRequestHeadersToAdd(), "request_headers_to_remove", c.GetRequestHeadersToRemove()); err != nil {
		return nil, err
	}
	if t.response, err = CompileHeaderOps("response_headers_to_add", c.GetResponseHeadersToAdd(), "response_headers_to_remove", c.GetResponseHeadersToRemove()); err != nil {
		return nil, err
	}
	if t.filters, err = o.compileFilters(c.GetTypedPerFilterConfig()); err != nil {
		return nil, err
	}
	if t.mirrors, err = compileMirrors(c.GetRequestMirrorPolicies()); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for i, vh := range c.GetVirtualHosts() {
		err := t.compileHost(vh, &o)
		if err == nil && names[vh.GetName()] {
			err = field.Errorf("name", "%q is there twice", vh.GetName())
		}
		if err != nil {
			return nil, field.Index(err, "virtual_hosts", i)
		}
		names[vh.GetName()] = true
	}
	longest := func(a, b wildcards) int { return b.n - a.n }
	slices.SortFunc(t.suffixes, longest)
	slices.SortFunc(t.prefixes, longest)
	return t, nil
}

func (t *Table) compileHost(p *routev3.VirtualHost, o *Options) error {
	vh := &VirtualHost{
		Name: p.GetName(), table: t, tls: p.GetRequireTls(), attemptCount: p.GetIncludeRequestAttemptCount(),
		attemptCountInResponse: p.GetIncludeAttemptCountInResponse(),
	}
	switch {
	case vh.Name == "":
		return field.Errorf("name", "empty name")
	case p.GetMatcher() != nil:
		return field.Errorf("matcher", "unsupported")
	case p.GetRetryPolicyTypedConfig() != nil:
		return field.Errorf("retry_policy_typed_config", "unsupported")
	case len(p.GetRouteSpecifiers()) > 0:
		return field.Errorf("route_specifiers", "unsupported")
	case len(p.GetDomains()) == 0:
		return field.Errorf("domains", "required")
	}
	var err error
	if vh.request, err = CompileHeaderOps("request_headers_to_add", p.GetRequestHeadersToAdd(), "request_headers_to_remove", p.GetRequestHeadersToRemove()); err != nil {
		return err
	}
	if vh.response, err = CompileHeaderOps("response_headers_to_add", p.GetResponseHeadersToAdd(), "response_headers_to_remove", p.GetResponseHeadersToRemove()); err != nil {
		return err
	}
	if vh.filters, err = o.compileFilters(p.GetTypedPerFilterConfig()); err != nil {
		return err
	}
	if vh.Limits, err = o.compileLimits(p.GetRateLimits()); err != nil {
		return err
	}
	if vh.retry, err = compileRetry(p.GetRetryPolicy()); err != nil {
		return field.At(err, "retry_policy")
	}
	if vh.mirrors, err = compileMirrors(p.GetRequestMirrorPolicies()); err != nil {
		return err
	}
	if len(vh.mirrors) == 0 {
		vh.mirrors = t.mirrors
	}
	for i, r := range p.GetRoutes() {
		x, err := o.compileRoute(r, vh)
		if err != nil {
			return field.Index(err, "routes", i)
		}
		vh.Routes = append(vh.Routes, x)
	}
	for i, d := range p.GetDomains() {
		if err := t.addDomain(lower(d), vh); err != nil {
			return field.Index(err, "domains", i)
		}
	}
	t.Hosts = append(t.Hosts, vh)
	return nil
}

func (t *Table) addDomain(d string, vh *VirtualHost) error {
	switch {
	case d == "":
		return errors.New("empty domain")
	case d == "*":
		if t.fallback != nil {
			return errors.New("the domain * is there twice")
		}
		t.fallback = vh
		return nil
	case d[0] == '*':
		return addWildcard(&t.suffixes, d[1:], vh)
	case d[len(d)-1] == '*':
		return addWildcard(&t.prefixes, d[:len(d)-1], vh)
	}
	if t.exact[d] != nil {
		return fmt.Errorf("the domain %q is there twice", d)
	}
	t.exact[d] = vh
	return nil
}

func addWildcard(list *[]wildcards, fixed string, vh *VirtualHost) error {
	i := slices.IndexFunc(*list, func(w wildcards) bool { return w.n == len(fixed) })
	if i < 0 {
		i = len(*list)
		*list = append(*list, wildcards{len(fixed), map[string]*VirtualHost{}})
	}
	if (*list)[i].hosts[fixed] != nil {
		return fmt.Errorf("the domain with * and %q is there twice", fixed)
	}
	(*list)[i].hosts[fixed] = vh
	return nil
}

// maxHost is the length of the longest host that is looked up without allocating, in bytes.
const maxHost = 256

// Host is the virtual host of a host name, with or without port: an exact domain, the longest that begins with "*", the
// longest that ends with "*", or "*"; nil if there is none. Letters' case does not count.
func (t *Table) Host(host string) *VirtualHost {
	if len(t.exact) == 0 && len(t.suffixes) == 0 && len(t.prefixes) == 0 {
		return t.fallback
	}
	if t.ignorePort {
		if i := portStart(host); i >= 0 {
			host = host[:i]
		}
	}
	var space [maxHost]byte
	b := append(space[:0], host...)
	for i, c := range b {
		b[i] = lowerByte(c)
	}
	if vh := t.exact[string(b)]; vh != nil {
		return vh
	}
	for i := range t.suffixes {
		if w := &t.suffixes[i]; w.n < len(b) {
			if vh := w.hosts[string(b[len(b)-w.n:])]; vh != nil {
				return vh
			}
		}
	}
	for i := range t.prefixes {
		if w := &t.prefixes[i]; w.n < len(b) {
			if vh := w.hosts[string(b[:w.n])]; vh != nil {
				return vh
			}
		}
	}
	return t.fallback
}

// Match is the route that a request takes, or nil: the first of its virtual host that matches. rand decides
// runtime_fraction; the same number gives the same route. It does not allocate, unless a header that is matched is there
// several times.
func (t *Table) Match(r *message.Request, rand uint64) *Route { return t.MatchWith(r, rand, nil) }

// MatchWith is Match for a table with conditions on filter state and dynamic metadata; a may be nil.
func (t *Table) MatchWith(r *message.Request, rand uint64, a Attributes) *Route {
	host := r.Authority
	if t.hostHeader != "" {
		host, _ = RequestHeader(r, t.hostHeader)
	}
	vh := t.Host(host)
	if vh == nil {
		return nil
	}
	if vh.tls != routev3.VirtualHost_NONE && r.Header.Get("x-forwarded-proto") != "https" &&
		(vh.tls == routev3.VirtualHost_ALL || r.Header.Get("x-envoy-internal") != "true") {
		return toTLS
	}
	path := bare(r.Path)
	if t.ignoreParams {
		if i := strings.IndexByte(path, ';'); i >= 0 {
			path = path[:i]
		}
	}
	for _, x := range vh.Routes {
		if x.match.matches(r, path, rand, a) {
			return x
		}
	}
	return nil
}
