package cluster

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

// protocolOptions is the key, and the last part of the type, of HttpProtocolOptions.
const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// Protocol is the version of HTTP spoken to endpoints.
type Protocol uint8

// The versions.
const (
	HTTP1 Protocol = iota
	HTTP2
	// SameAsClient is the version in which the request came.
	SameAsClient
	// Negotiated is what TLS agrees on, and HTTP/1.1 without TLS.
	Negotiated
)

// HTTP are the options of connections that carry requests.
type HTTP struct {
	Protocol Protocol
	// IdleTimeout is how long a connection without requests stays; 0: nothing is said (Envoy's default is 1 h), negative:
	// for ever.
	IdleTimeout time.Duration
	// MaxConnectionDuration is how old a connection may become before it takes no more requests; 0: any age.
	MaxConnectionDuration time.Duration
	// MaxStreamDuration bounds a request; 0: no bound.
	MaxStreamDuration time.Duration
	// MaxRequestsPerConnection is how many requests a connection carries; 0: any number.
	MaxRequestsPerConnection int
	// MaxStreams is the number of requests at a time on an HTTP/2 connection; 0: what the peer allows.
	MaxStreams uint32
	// StreamWindow and ConnWindow are HTTP/2's initial windows in bytes; 0: the default.
	StreamWindow, ConnWindow uint32
	// PingInterval and PingTimeout are of HTTP/2's keep-alive; 0: none.
	PingInterval, PingTimeout time.Duration
	// AutoSNI makes the request's host the TLS server name, AutoSAN demands it in the peer's certificate.
	AutoSNI, AutoSAN bool
}

// HTTP2 says whether a request is sent as HTTP/2. client says that it came so.
func (h *HTTP) HTTP2(client bool) bool {
	return h.Protocol == HTTP2 || h.Protocol == SameAsClient && client
}

func (c *Config) compileHTTP(p *clusterv3.Cluster) error {
	if n := p.GetMaxRequestsPerConnection(); n != nil {
		c.MaxRequestsPerConnection = int(n.GetValue())
	}
	if p.GetHttp2ProtocolOptions() != nil {
		c.Protocol = HTTP2
		if err := c.http2(p.GetHttp2ProtocolOptions()); err != nil {
			return field.At(err, "http2_protocol_options")
		}
	}
	if p.GetProtocolSelection() == clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL {
		c.Protocol = SameAsClient
	}
	if err := c.common(p.GetCommonHttpProtocolOptions()); err != nil {
		return field.At(err, "common_http_protocol_options")
	}
	c.auto(p.GetUpstreamHttpProtocolOptions())
	for name, a := range p.GetTypedExtensionProtocolOptions() {
		if name != protocolOptions {
			continue // of a filter that is not there
		}
		var o httpv3.HttpProtocolOptions
		err := a.UnmarshalTo(&o)
		if err == nil {
			err = c.options(&o)
		}
		if err != nil {
			return field.Key(err, "typed_extension_protocol_options", name)
		}
	}
	return nil
}

func (c *Config) options(o *httpv3.HttpProtocolOptions) error {
	switch u := o.GetUpstreamProtocolOptions().(type) {
	case nil:
	case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_:
		switch x := u.ExplicitHttpConfig.GetProtocolConfig().(type) {
		case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions:
			c.Protocol = HTTP1
		case *httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions:
			c.Protocol = HTTP2
			if err := c.http2(x.Http2ProtocolOptions); err != nil {
				return field.At(err, "explicit_http_config.http2_protocol_options")
			}
		default:
			return field.At(field.Unsupported(u.ExplicitHttpConfig, "protocol_config"), "explicit_http_config")
		}
	case *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		c.Protocol = SameAsClient
		if err := c.http2(u.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions()); err != nil {
			return field.At(err, "use_downstream_protocol_config.http2_protocol_options")
		}
	case *httpv3.HttpProtocolOptions_AutoConfig:
		c.Protocol = Negotiated
		if err := c.http2(u.AutoConfig.GetHttp2ProtocolOptions()); err != nil {
			return field.At(err, "auto_config.http2_protocol_options")
		}
	default:
		return field.Unsupported(o, "upstream_protocol_options")
	}
	for i, f := range o.GetHttpFilters() {
		if f.GetName() != "envoy.filters.http.upstream_codec" {
			return field.Index(field.Errorf("typed_config", "unsupported upstream filter %q", f.GetName()), "http_filters", i)
		}
	}
	c.auto(o.GetUpstreamHttpProtocolOptions())
	return field.At(c.common(o.GetCommonHttpProtocolOptions()), "common_http_protocol_options")
}

func (c *Config) auto(u *corev3.UpstreamHttpProtocolOptions) {
	c.AutoSNI = c.AutoSNI || u.GetAutoSni()
	c.AutoSAN = c.AutoSAN || u.GetAutoSanValidation()
}

func (c *Config) common(o *corev3.HttpProtocolOptions) (err error) {
	if o == nil {
		return nil
	}
	if o.GetIdleTimeout() != nil {
		if c.IdleTimeout, err = field.Duration("idle_timeout", o.GetIdleTimeout(), 0); err != nil {
			return err
		}
		if c.IdleTimeout == 0 {
			c.IdleTimeout = -1
		}
	}
	if c.MaxConnectionDuration, err = field.Duration("max_connection_duration", o.GetMaxConnectionDuration(), c.MaxConnectionDuration); err != nil {
		return err
	}
	if c.MaxStreamDuration, err = field.Duration("max_stream_duration", o.GetMaxStreamDuration(), c.MaxStreamDuration); err != nil {
		return err
	}
	if n := o.GetMaxRequestsPerConnection(); n != nil {
		c.MaxRequestsPerConnection = int(n.GetValue())
	}
	return nil
}

func (c *Config) http2(o *corev3.Http2ProtocolOptions) (err error) {
	c.MaxStreams = o.GetMaxConcurrentStreams().GetValue()
	c.StreamWindow, c.ConnWindow = o.GetInitialStreamWindowSize().GetValue(), o.GetInitialConnectionWindowSize().GetValue()
	if c.PingInterval, err = field.Duration("connection_keepalive.interval", o.GetConnectionKeepalive().GetInterval(), 0); err != nil {
		return err
	}
	c.PingTimeout, err = field.Duration("connection_keepalive.timeout", o.GetConnectionKeepalive().GetTimeout(), 0)
	return err
}
