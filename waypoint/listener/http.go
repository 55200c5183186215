package listener

import (
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/stats"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

// Envoy's defaults.
const (
	defaultIdle       = time.Hour
	defaultStreamIdle = 5 * time.Minute
	defaultDrain      = 5 * time.Second
	defaultHeaderKiB  = 60
	defaultHeaders    = 100
	defaultServer     = "envoy"
)

// Codec is the version of HTTP that clients speak.
type Codec uint8

// The versions.
const (
	// Any is found out from the first bytes.
	Any Codec = iota
	HTTP1
	HTTP2
)

// ServerHeader is what is done with the header "server" of answers.
type ServerHeader uint8

// The ways.
const (
	// Overwrite puts ServerName there.
	Overwrite ServerHeader = iota
	// AppendIfAbsent puts ServerName there if the endpoint gave none.
	AppendIfAbsent
	// PassThrough leaves it.
	PassThrough
)

// ClientCert is what is done with the header x-forwarded-client-cert.
type ClientCert uint8

// The ways, by Envoy's names.
const (
	Sanitize ClientCert = iota
	ForwardOnly
	AppendForward
	SanitizeSet
	AlwaysForwardOnly
)

// HTTP is a compiled HttpConnectionManager. It is immutable.
type HTTP struct {
	// Chain is the chain that it ends.
	Chain      *Chain
	StatPrefix string
	Codec      Codec
	// Gates let connections in, in order, before HTTP is spoken.
	Gates []filter.Gate
	// Filters are what requests go through, in order; those for which there is nothing to do are left out.
	Filters []filter.Filter
	// Routes is the table; nil if it comes by RDS under the name RouteName.
	Routes    *route.Table
	RouteName string
	Logs      []*accesslog.Log
	// Tracing is the configuration of spans, or nil; chains with the same one share it.
	Tracing *trace.Config
	// Stats is how metrics differ from the standard ones, or nil.
	Stats *stats.Config

	// Path says how paths are made canonical.
	Path route.PathPolicy
	// StripMatchingPort drops a port from the host that is the one of the connection, StripAnyPort any port, StripDot a dot
	// at its end.
	StripMatchingPort, StripAnyPort, StripDot bool
	// Upgrades are the protocols (lower case) that a client may change to, if the route does not say.
	Upgrades map[string]bool

	ServerName   string
	ServerHeader ServerHeader
	// Via is appended to the header "via" of requests and answers; "" is not.
	Via string
	// Scheme, if not "", replaces that of requests.
	Scheme string

	// IdleTimeout is how long a connection without requests stays, StreamIdleTimeout how long a request without progress;
	// RequestTimeout bounds the time until a request is received whole, HeaderTimeout that until its head is;
	// MaxConnectionDuration is how old a connection becomes before it is drained; MaxStreamDuration bounds a request with its
	// answer. 0: no bound.
	IdleTimeout, StreamIdleTimeout, RequestTimeout, HeaderTimeout, MaxConnectionDuration, MaxStreamDuration time.Duration
	// DrainTimeout is how long a connection that is drained still takes requests.
	DrainTimeout time.Duration
	// MaxRequestsPerConnection is how many requests a connection carries; 0: any number.
	MaxRequestsPerConnection int
	// MaxHeaderBytes and MaxHeaders bound a request's head.
	MaxHeaderBytes, MaxHeaders int
	// MaxStreams is the number of requests at a time on an HTTP/2 connection, StreamWindow and ConnWindow are HTTP/2's
	// initial windows in bytes, PingInterval and PingTimeout are of its keep-alive; 0: the default, or none.
	MaxStreams, StreamWindow, ConnWindow uint32
	PingInterval, PingTimeout            time.Duration
	// Connect allows CONNECT and extended CONNECT on HTTP/2.
	Connect bool
	// HTTP10 accepts HTTP/1.0; a request without host gets HTTP10Host.
	HTTP10     bool
	HTTP10Host string
	// Proxy100 hands on 100 (Continue) instead of answering it.
	Proxy100 bool

	// UseRemoteAddress says that the peer is the client: x-forwarded-for is appended to, and other headers of the mesh's are
	// dropped. TrustedHops is how many proxies in front are trusted.
	UseRemoteAddress bool
	SkipXFF          bool
	TrustedHops      int
	// RequestID makes an x-request-id; KeepRequestID keeps that of a client, EchoRequestID puts it into the answer,
	// SampleByRequestID decides by it which requests are traced.
	RequestID, KeepRequestID, EchoRequestID, SampleByRequestID bool
	// ClientCert and the parts of a client's certificate that are forwarded.
	ClientCert                                     ClientCert
	CertSubject, CertDNS, CertURI, CertPEM, CertCA bool
}

func (c *compiler) http(p *hcmv3.HttpConnectionManager) (*HTTP, error) {
	h := &HTTP{StatPrefix: strings.TrimSuffix(p.GetStatPrefix(), ";"), Via: p.GetVia()}
	for _, step := range []func(*hcmv3.HttpConnectionManager) error{
		h.refuse, c.statsOf(h), h.compileFilters, h.compileRoutes, h.compileTimes, h.compileLimits, h.compilePath, h.compileHeads, h.compileUpgrades,
	} {
		if err := step(p); err != nil {
			return nil, err
		}
	}
	var err error
	if h.Logs, err = c.accessLogs(p.GetAccessLog()); err != nil {
		return nil, err
	}
	h.Tracing, err = c.sharedTracing(p.GetTracing())
	return h, field.At(err, "tracing")
}

// statsOf finds the statistics filter among those of the chain.
func (c *compiler) statsOf(h *HTTP) func(*hcmv3.HttpConnectionManager) error {
	return func(p *hcmv3.HttpConnectionManager) error {
		for i, f := range p.GetHttpFilters() {
			s, ok, err := c.compileStats(f.GetTypedConfig())
			if err != nil {
				return field.Index(err, "http_filters", i)
			}
			if ok {
				h.Stats = s
			}
		}
		return nil
	}
}

// refuse names what would change answers or decisions.
func (h *HTTP) refuse(p *hcmv3.HttpConnectionManager) error {
	switch {
	case p.GetLocalReplyConfig() != nil && (len(p.GetLocalReplyConfig().GetMappers()) > 0 || p.GetLocalReplyConfig().GetBodyFormat() != nil):
		return field.Errorf("local_reply_config", "unsupported")
	case len(p.GetOriginalIpDetectionExtensions()) > 0:
		return field.Errorf("original_ip_detection_extensions", "unsupported")
	case len(p.GetEarlyHeaderMutationExtensions()) > 0:
		return field.Errorf("early_header_mutation_extensions", "unsupported")
	case p.GetPathNormalizationOptions() != nil:
		return field.Errorf("path_normalization_options", "unsupported, use normalize_path and merge_slashes")
	case p.GetForwardClientCertMatcher() != nil:
		return field.Errorf("forward_client_cert_matcher", "unsupported")
	}
	switch p.GetCodecType() {
	case hcmv3.HttpConnectionManager_AUTO:
	case hcmv3.HttpConnectionManager_HTTP1:
		h.Codec = HTTP1
	case hcmv3.HttpConnectionManager_HTTP2:
		h.Codec = HTTP2
	default:
		return field.Errorf("codec_type", "unsupported %v", p.GetCodecType())
	}
	return nil
}

const routerType = "envoy.extensions.filters.http.router.v3.Router"

func (h *HTTP) compileFilters(p *hcmv3.HttpConnectionManager) error {
	fs := p.GetHttpFilters()
	for i, f := range fs {
		if f.GetName() == "" {
			return field.Index(field.Errorf("name", "required"), "http_filters", i)
		}
		if last := i == len(fs)-1; last != (f.GetTypedConfig().MessageName() == routerType) {
			return field.Index(field.Errorf("typed_config", "the router has to be the last filter, and only that"), "http_filters", i)
		}
		x, err := filter.Compile(f)
		if err != nil {
			return field.Index(err, "http_filters", i)
		}
		if x != nil {
			h.Filters = append(h.Filters, x)
		}
	}
	if len(fs) == 0 {
		return field.Errorf("http_filters", "required: at least the router")
	}
	return nil
}

func (h *HTTP) compileRoutes(p *hcmv3.HttpConnectionManager) error {
	switch r := p.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_RouteConfig:
		t, err := route.Compile(r.RouteConfig, RouteOptions())
		h.Routes = t
		return field.At(err, "route_config")
	case *hcmv3.HttpConnectionManager_Rds:
		if h.RouteName = r.Rds.GetRouteConfigName(); h.RouteName == "" {
			return field.Errorf("rds.route_config_name", "required")
		}
		return nil
	}
	return field.Unsupported(p, "route_specifier")
}

// RouteOptions are the options by which tables are compiled, here and for RDS.
func RouteOptions() route.Options {
	return route.Options{Filter: func(name string, c *anypb.Any) (any, error) { return filter.CompilePart(name, c) }, Limits: filter.CompileLimits}
}

func (h *HTTP) compileTimes(p *hcmv3.HttpConnectionManager) error {
	o := p.GetCommonHttpProtocolOptions()
	for _, d := range []struct {
		to   *time.Duration
		part string
		p    *durationpb.Duration
		def  time.Duration
	}{
		{&h.IdleTimeout, "common_http_protocol_options.idle_timeout", o.GetIdleTimeout(), defaultIdle},
		{&h.MaxConnectionDuration, "common_http_protocol_options.max_connection_duration", o.GetMaxConnectionDuration(), 0},
		{&h.MaxStreamDuration, "common_http_protocol_options.max_stream_duration", o.GetMaxStreamDuration(), 0},
		{&h.StreamIdleTimeout, "stream_idle_timeout", p.GetStreamIdleTimeout(), defaultStreamIdle},
		{&h.RequestTimeout, "request_timeout", p.GetRequestTimeout(), 0},
		{&h.HeaderTimeout, "request_headers_timeout", p.GetRequestHeadersTimeout(), 0},
		{&h.DrainTimeout, "drain_timeout", p.GetDrainTimeout(), defaultDrain},
		{&h.PingInterval, "http2_protocol_options.connection_keepalive.interval", p.GetHttp2ProtocolOptions().GetConnectionKeepalive().GetInterval(), 0},
		{&h.PingTimeout, "http2_protocol_options.connection_keepalive.timeout", p.GetHttp2ProtocolOptions().GetConnectionKeepalive().GetTimeout(), 0},
	} {
		var err error
		if *d.to, err = field.Duration(d.part, d.p, d.def); err != nil {
			return err
		}
	}
	return nil
}

func (h *HTTP) compileLimits(p *hcmv3.HttpConnectionManager) error {
	h.MaxHeaderBytes, h.MaxHeaders = defaultHeaderKiB<<10, defaultHeaders
	if n := p.GetMaxRequestHeadersKb(); n != nil {
		if n.GetValue() == 0 || n.GetValue() > 8192 {
			return field.Errorf("max_request_headers_kb", "%d is not between 1 and 8192", n.GetValue())
		}
		h.MaxHeaderBytes = int(n.GetValue()) << 10
	}
	if n := p.GetCommonHttpProtocolOptions().GetMaxHeadersCount(); n != nil {
		h.MaxHeaders = int(n.GetValue())
	}
	h.MaxRequestsPerConnection = int(p.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection().GetValue())
	o := p.GetHttp2ProtocolOptions()
	h.MaxStreams, h.Connect = o.GetMaxConcurrentStreams().GetValue(), o.GetAllowConnect()
	h.StreamWindow, h.ConnWindow = o.GetInitialStreamWindowSize().GetValue(), o.GetInitialConnectionWindowSize().GetValue()
	h.HTTP10, h.HTTP10Host = p.GetHttpProtocolOptions().GetAcceptHttp_10(), p.GetHttpProtocolOptions().GetDefaultHostForHttp_10()
	h.Proxy100 = p.GetProxy_100Continue()
	return nil
}

func (h *HTTP) compilePath(p *hcmv3.HttpConnectionManager) error {
	h.Path = route.PathPolicy{Normalize: p.GetNormalizePath().GetValue(), MergeSlashes: p.GetMergeSlashes()}
	switch a := p.GetPathWithEscapedSlashesAction(); a {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		h.Path.Escaped = route.RejectEscaped
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.Path.Escaped = route.UnescapeAndRedirect
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.Path.Escaped = route.UnescapeAndForward
	default:
		return field.Errorf("path_with_escaped_slashes_action", "unknown value %d", a)
	}
	h.StripMatchingPort, h.StripAnyPort, h.StripDot = p.GetStripMatchingHostPort(), p.GetStripAnyHostPort(), p.GetStripTrailingHostDot()
	return nil
}

func (h *HTTP) compileHeads(p *hcmv3.HttpConnectionManager) error {
	if h.ServerName = p.GetServerName(); h.ServerName == "" {
		h.ServerName = defaultServer
	}
	switch t := p.GetServerHeaderTransformation(); t {
	case hcmv3.HttpConnectionManager_OVERWRITE:
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		h.ServerHeader = AppendIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		h.ServerHeader = PassThrough
	default:
		return field.Errorf("server_header_transformation", "unknown value %d", t)
	}
	if s, ok := p.GetSchemeHeaderTransformation().GetTransformation().(*corev3.SchemeHeaderTransformation_SchemeToOverwrite); ok {
		if h.Scheme = s.SchemeToOverwrite; !slices.Contains([]string{"http", "https"}, h.Scheme) {
			return field.Errorf("scheme_header_transformation.scheme_to_overwrite", "%q is neither http nor https", h.Scheme)
		}
	}
	h.UseRemoteAddress, h.SkipXFF, h.TrustedHops = p.GetUseRemoteAddress().GetValue(), p.GetSkipXffAppend(), int(p.GetXffNumTrustedHops())
	h.RequestID = p.GetGenerateRequestId() == nil || p.GetGenerateRequestId().GetValue()
	h.KeepRequestID, h.EchoRequestID, h.SampleByRequestID = p.GetPreserveExternalRequestId(), p.GetAlwaysSetRequestIdInResponse(), true
	if x := p.GetRequestIdExtension(); x != nil {
		var u uuidv3.UuidRequestIdConfig
		if err := x.GetTypedConfig().UnmarshalTo(&u); err != nil {
			return field.At(err, "request_id_extension.typed_config")
		}
		h.SampleByRequestID = u.GetUseRequestIdForTraceSampling() == nil || u.GetUseRequestIdForTraceSampling().GetValue()
	}
	switch c := p.GetForwardClientCertDetails(); c {
	case hcmv3.HttpConnectionManager_SANITIZE:
	case hcmv3.HttpConnectionManager_FORWARD_ONLY:
		h.ClientCert = ForwardOnly
	case hcmv3.HttpConnectionManager_APPEND_FORWARD:
		h.ClientCert = AppendForward
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		h.ClientCert = SanitizeSet
	case hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		h.ClientCert = AlwaysForwardOnly
	default:
		return field.Errorf("forward_client_cert_details", "unknown value %d", c)
	}
	d := p.GetSetCurrentClientCertDetails()
	h.CertSubject, h.CertDNS, h.CertURI, h.CertPEM, h.CertCA = d.GetSubject().GetValue(), d.GetDns(), d.GetUri(), d.GetCert(), d.GetChain()
	return nil
}

func (h *HTTP) compileUpgrades(p *hcmv3.HttpConnectionManager) error {
	h.Upgrades = map[string]bool{}
	for i, u := range p.GetUpgradeConfigs() {
		name := strings.ToLower(u.GetUpgradeType())
		switch {
		case name == "":
			return field.Index(field.Errorf("upgrade_type", "required"), "upgrade_configs", i)
		case len(u.GetFilters()) > 0:
			return field.Index(field.Errorf("filters", "unsupported"), "upgrade_configs", i)
		}
		h.Upgrades[name] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return nil
}
