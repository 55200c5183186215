package route

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

import (
	"errors"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// defaultTimeout is Envoy's timeout of a route that names none.
const defaultTimeout = 15 * time.Second

// Forward is a compiled RouteAction: what is the same for all clusters of a route. It is immutable.
type Forward struct {
	// Timeout bounds a request from its end to the end of the answer, retries included; 0: no bound. Use TimeoutFor.
	Timeout time.Duration
	// IdleTimeout replaces the stream idle timeout of the connection manager if HasIdle; 0: no bound.
	IdleTimeout time.Duration
	HasIdle     bool
	// MaxStreamDuration bounds a stream from its beginning; 0: no bound.
	MaxStreamDuration time.Duration
	// Retry is the retry policy, the virtual host's if the route has none; nil: no retries.
	Retry *Retry
	// Mirrors get a copy of the request.
	Mirrors []*Mirror
	// NotFoundStatus is the answer if there is no such cluster.
	NotFoundStatus int
	// AutoHostRewrite asks for the endpoint's host name as authority; see SetHost.
	AutoHostRewrite bool
	// AttemptCount asks for x-envoy-attempt-count in the request, AttemptCountInResponse in the answer.
	AttemptCount, AttemptCountInResponse bool
	// Limits is what Options.Limits made of rate_limits; nil without any. IncludeHostLimits adds those of the virtual host.
	Limits            any
	IncludeHostLimits bool

	maxGRPC, grpcOffset time.Duration
	limitGRPC           bool // the client's grpc-timeout is the timeout
	streamGRPC          bool // ... by max_stream_duration, the newer way
	hash                []hashPolicy
	path                pathRewrite
	host                hostRewrite
	upgrades            map[string]bool
}

// hostRewrite changes the authority.
type hostRewrite struct {
	literal  string
	header   string
	regex    *RegexRewrite
	format   *Format
	forwards bool // append_x_forwarded_host
}

// Mirror is a compiled RequestMirrorPolicy.
type Mirror struct {
	// Cluster gets the copy; ClusterHeader, if Cluster is "", is the header that names it.
	Cluster, ClusterHeader string

	fraction *Fraction
	host     string // literal
	noSuffix bool   // -shadow is not appended to the host
	ops      *HeaderOps
}

// Action is where a request goes: one cluster of a route. It is immutable.
type Action struct {
	*Forward
	// Cluster is the cluster's name; ClusterHeader, if Cluster is "", is the header that names it.
	Cluster, ClusterHeader string

	weight            uint64
	request, response *HeaderOps
	filters           filters
	host              string // host_rewrite_literal of the weighted cluster
}

// ClusterName is the name of the cluster for a request; "" if the request does not name one.
func (a *Action) ClusterName(r *message.Request) string {
	if a.Cluster != "" {
		return a.Cluster
	}
	v, _ := RequestHeader(r, a.ClusterHeader)
	return v
}

// Wanted says whether a request is to be mirrored. rand draws the share.
func (m *Mirror) Wanted(rand uint64) bool { return m.fraction == nil || m.fraction.Hit(rand) }

// Change makes a copy of the request into what the mirror gets: its host ends with -shadow unless that is off.
func (m *Mirror) Change(r *message.Request, c *Context) {
	m.ops.Apply(&r.Header, c)
	switch {
	case m.host != "":
		r.Authority = m.host
	case !m.noSuffix:
		if i := portStart(r.Authority); i >= 0 {
			r.Authority = r.Header.Hold(r.Authority[:i] + "-shadow" + r.Authority[i:])
		} else {
			r.Authority = r.Header.Hold(r.Authority + "-shadow")
		}
	}
}

// ClusterName is the name of the cluster that gets the copy of a request.
func (m *Mirror) ClusterName(r *message.Request) string {
	if m.Cluster != "" {
		return m.Cluster
	}
	v, _ := RequestHeader(r, m.ClusterHeader)
	return v
}

func compileMirrors(ps []*routev3.RouteAction_RequestMirrorPolicy) ([]*Mirror, error) {
	var out []*Mirror
	for i, p := range ps {
		m := &Mirror{Cluster: p.GetCluster(), ClusterHeader: lower(p.GetClusterHeader()), host: p.GetHostRewriteLiteral(), noSuffix: p.GetDisableShadowHostSuffixAppend()}
		if (m.Cluster == "") == (m.ClusterHeader == "") {
			return nil, field.Index(errors.New("one of cluster and cluster_header is required"), "request_mirror_policies", i)
		}
		var err error
		if f := p.GetRuntimeFraction(); f != nil {
			if m.fraction, err = compileRuntimeFraction(f); err != nil {
				return nil, field.Index(field.At(err, "runtime_fraction"), "request_mirror_policies", i)
			}
		}
		var add []*corev3.HeaderValueOption
		var remove []string
		for _, x := range p.GetRequestHeadersMutations() {
			if x.GetAppend() != nil {
				add = append(add, x.GetAppend())
			}
			if x.GetRemove() != "" {
				remove = append(remove, x.GetRemove())
			}
		}
		if m.ops, err = CompileHeaderOps("append", add, "remove", remove); err != nil {
			return nil, field.Index(field.At(err, "request_headers_mutations"), "request_mirror_policies", i)
		}
		out = append(out, m)
	}
	return out, nil
}

// compileForward compiles everything but the choice of a cluster. vh has the defaults.
func compileForward(a *routev3.RouteAction, m *match, vh *VirtualHost) (*Forward, error) {
	f := &Forward{
		path:         pathRewrite{match: m, prefix: a.GetPrefixRewrite()},
		AttemptCount: vh.attemptCount, AttemptCountInResponse: vh.attemptCountInResponse,
	}
	switch c := a.GetClusterNotFoundResponseCode(); c {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
		f.NotFoundStatus = 503
	case routev3.RouteAction_NOT_FOUND:
		f.NotFoundStatus = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFoundStatus = 500
	default:
		return nil, field.Errorf("cluster_not_found_response_code", "unknown value %d", c)
	}
	for _, step := range []func(*routev3.RouteAction) error{f.compileTimeouts, f.compilePath, f.compileHost, f.compileUpgrades} {
		if err := step(a); err != nil {
			return nil, err
		}
	}
	switch { // what would be wrong to leave out
	case a.GetRetryPolicyTypedConfig() != nil:
		return nil, field.Errorf("retry_policy_typed_config", "unsupported")
	case a.GetInternalRedirectPolicy() != nil:
		return nil, field.Errorf("internal_redirect_policy", "unsupported")
	case len(a.GetMetadataMatch().GetFilterMetadata()) > 0:
		return nil, field.Errorf("metadata_match", "unsupported: subsets are clusters of their own")
	}
	var err error
	if f.hash, err = compileHash(a.GetHashPolicy()); err != nil {
		return nil, err
	}
	if f.Retry, err = compileRetry(a.GetRetryPolicy()); err != nil {
		return nil, field.At(err, "retry_policy")
	}
	if a.GetRetryPolicy() == nil {
		f.Retry = vh.retry
	}
	if f.Mirrors, err = compileMirrors(a.GetRequestMirrorPolicies()); err != nil {
		return nil, err
	}
	if len(f.Mirrors) == 0 {
		f.Mirrors = vh.mirrors
	}
	return f, nil
}

func (f *Forward) compileTimeouts(a *routev3.RouteAction) (err error) {
	if f.Timeout, err = field.Duration("timeout", a.GetTimeout(), defaultTimeout); err != nil {
		return err
	}
	f.HasIdle = a.GetIdleTimeout() != nil
	if f.IdleTimeout, err = field.Duration("idle_timeout", a.GetIdleTimeout(), 0); err != nil {
		return err
	}
	f.limitGRPC = a.GetMaxGrpcTimeout() != nil
	if f.maxGRPC, err = field.Duration("max_grpc_timeout", a.GetMaxGrpcTimeout(), 0); err != nil {
		return err
	}
	if f.grpcOffset, err = field.Duration("grpc_timeout_offset", a.GetGrpcTimeoutOffset(), 0); err != nil {
		return err
	}
	d := a.GetMaxStreamDuration()
	if f.MaxStreamDuration, err = field.Duration("max_stream_duration.max_stream_duration", d.GetMaxStreamDuration(), 0); err != nil || d == nil {
		return err
	}
	if d.GetGrpcTimeoutHeaderMax() != nil {
		f.streamGRPC = true
		if f.maxGRPC, err = field.Duration("max_stream_duration.grpc_timeout_header_max", d.GetGrpcTimeoutHeaderMax(), 0); err != nil {
			return err
		}
		f.grpcOffset, err = field.Duration("max_stream_duration.grpc_timeout_header_offset", d.GetGrpcTimeoutHeaderOffset(), 0)
	}
	return err
}

func (f *Forward) compilePath(a *routev3.RouteAction) (err error) {
	n := 0
	for _, set := range []bool{a.GetPrefixRewrite() != "", a.GetRegexRewrite() != nil, a.GetPathRewrite() != "", a.GetPathRewritePolicy() != nil} {
		if set {
			n++
		}
	}
	switch {
	case n > 1:
		return field.Errorf("prefix_rewrite", "more than one way to rewrite the path")
	case a.GetPathRewritePolicy() != nil:
		return field.Errorf("path_rewrite_policy", "unsupported policy %q", a.GetPathRewritePolicy().GetName())
	case a.GetRegexRewrite() != nil:
		f.path.regex, err = CompileRewrite(a.GetRegexRewrite())
		return field.At(err, "regex_rewrite")
	case a.GetPathRewrite() != "":
		f.path.format, err = CompileFormat(a.GetPathRewrite())
		return field.At(err, "path_rewrite")
	}
	return nil
}

func (f *Forward) compileHost(a *routev3.RouteAction) (err error) {
	f.host.forwards = a.GetAppendXForwardedHost()
	switch h := a.GetHostRewriteSpecifier().(type) {
	case nil:
	case *routev3.RouteAction_HostRewriteLiteral:
		f.host.literal = h.HostRewriteLiteral
	case *routev3.RouteAction_AutoHostRewrite:
		f.AutoHostRewrite = h.AutoHostRewrite.GetValue()
	case *routev3.RouteAction_HostRewriteHeader:
		f.host.header = lower(h.HostRewriteHeader)
	case *routev3.RouteAction_HostRewritePathRegex:
		f.host.regex, err = CompileRewrite(h.HostRewritePathRegex)
		return field.At(err, "host_rewrite_path_regex")
	case *routev3.RouteAction_HostRewrite:
		f.host.format, err = CompileFormat(h.HostRewrite)
		return field.At(err, "host_rewrite")
	default:
		return field.Unsupported(a, "host_rewrite_specifier")
	}
	return nil
}

func (f *Forward) compileUpgrades(a *routev3.RouteAction) error {
	for i, u := range a.GetUpgradeConfigs() {
		name := lower(u.GetUpgradeType())
		if name == "" {
			return field.Index(field.Errorf("upgrade_type", "required"), "upgrade_configs", i)
		}
		if f.upgrades == nil {
			f.upgrades = map[string]bool{}
		}
		f.upgrades[name] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return nil
}

// Upgrade says whether the route lets a client change to the protocol (lower case); set is false if it says nothing: then
// the connection manager decides.
func (f *Forward) Upgrade(protocol string) (allowed, set bool) {
	allowed, set = f.upgrades[protocol]
	return allowed, set
}

// LimitsGRPC says that a gRPC client's own deadline counts, so that the server should hear of the one that came of it.
func (f *Forward) LimitsGRPC() bool { return f.limitGRPC || f.streamGRPC }

// TimeoutFor is the timeout of a request; 0: no bound. A gRPC client's own deadline counts if the route says so.
func (f *Forward) TimeoutFor(r *message.Request) time.Duration {
	if !f.limitGRPC && !f.streamGRPC || !IsGRPC(r) {
		return f.Timeout
	}
	d, _ := GRPCTimeout(r.Header.Get("grpc-timeout"))
	if d > 0 && f.grpcOffset > 0 && f.grpcOffset < d {
		d -= f.grpcOffset
	}
	if f.maxGRPC > 0 && (d == 0 || d > f.maxGRPC) {
		d = f.maxGRPC
	}
	if f.streamGRPC && d == 0 {
		return f.Timeout
	}
	return d
}

// GRPCTimeout reads a grpc-timeout header, and says whether it is well-formed.
func GRPCTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	i := strings.IndexByte("HMSmun", v[len(v)-1])
	if i < 0 {
		return 0, false
	}
	unit := [...]time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond, time.Microsecond, time.Nanosecond}[i]
	if n > uint64(1<<63-1)/uint64(unit) {
		return 1<<63 - 1, true
	}
	return time.Duration(n) * unit, true
}

// rewrite changes the request's host and path.
func (a *Action) rewrite(r *message.Request, c *Context) {
	old := r.Path
	h := &a.Forward.host
	switch {
	case a.host != "":
		a.SetHost(r, a.host)
	case h.literal != "":
		a.SetHost(r, h.literal)
	case h.header != "":
		if v, ok := RequestHeader(r, h.header); ok && v != "" {
			a.SetHost(r, v)
		}
	case h.regex != nil:
		a.SetHost(r, r.Header.Hold(h.regex.Replace(bare(r.Path))))
	case h.format != nil:
		var space [256]byte
		if b := h.format.Append(space[:0], c, ""); len(b) > 0 {
			a.SetHost(r, r.Header.HoldBytes(b))
		}
	}
	var space [512]byte
	space[0] = '/'
	if p, changed := a.path.appendPath(space[:1], old, c); changed {
		// What does not begin with a slash could not be sent.
		if len(p) == 1 || p[1] == '/' || old == "" || old[0] != '/' {
			p = p[1:]
		}
		r.Header.Set("x-envoy-original-path", old)
		r.Path = r.Header.HoldBytes(p)
	}
}

// SetHost makes host the request's authority, as host rewriting does: the old one is kept in x-envoy-original-host, and
// in x-forwarded-host if the route says so. host must stay valid for as long as the request is used.
func (a *Action) SetHost(r *message.Request, host string) {
	if r.Authority == host {
		return
	}
	if a.Forward.host.forwards && r.Authority != "" {
		if v, ok := r.Header.Lookup("x-forwarded-host"); ok {
			r.Header.Set("x-forwarded-host", r.Header.Hold(v+","+r.Authority))
		} else {
			r.Header.Add("x-forwarded-host", r.Authority)
		}
	}
	r.Header.Set("x-envoy-original-host", r.Authority)
	r.Authority = host
}
