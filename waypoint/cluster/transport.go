package cluster

import (
	"crypto/tls"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

// socketMatch is the metadata of an endpoint by which its transport is chosen.
const socketMatch = "envoy.transport_socket_match"

// Transport is what is spoken to an endpoint below HTTP or the plain stream, inside a tunnel if there is one.
type Transport struct {
	// Name is that of the entry of transport_socket_matches, "" for the cluster's own.
	Name string
	// Tunnel says that the transport reaches internal addresses. Endpoint.Via is what counts.
	Tunnel bool
	// Proxy is the version of the PROXY protocol whose header comes first, 1 or 2; 0: none.
	Proxy int
	// TLS is the client's side of TLS; nil: none.
	TLS *TLS
}

type transportMatch struct {
	match map[string]*structpb.Value
	t     *Transport
}

// TLS are the settings of a TLS client, and of a server's side where package listener says so. Immutable.
type TLS struct {
	// SNI is the name sent; "": none, unless AutoSNI of the cluster's HTTP makes one.
	SNI  string
	ALPN []string
	// Min and Max are versions as crypto/tls counts them; 0 means its default.
	Min, Max uint16
	// CertNames are the SDS names of the own certificate, Certs those that are given here.
	CertNames []string
	Certs     []Certificate
	// CAName is the SDS name of the trusted authorities, CA those that are given here. Without both the peer is not verified.
	CAName string
	CA     Source
	// SANs are who the peer may be, one of them; none means that any name of a verified peer will do.
	SANs []SAN
	// ClientCert demands a certificate of clients.
	ClientCert bool
}

// Verify says whether the peer's certificate has to be verified.
func (t *TLS) Verify() bool { return t.CAName != "" || !t.CA.IsZero() }

// Certificate is a certificate and its key.
type Certificate struct{ Chain, Key Source }

// Source is where PEM text comes from.
type Source struct {
	File string
	Text []byte
}

// IsZero says that there is no source.
func (s Source) IsZero() bool { return s.File == "" && len(s.Text) == 0 }

// SANType is a kind of name in a certificate.
type SANType uint8

// The kinds.
const (
	// AnySAN is a name of any of the kinds below.
	AnySAN SANType = iota
	DNSSAN
	URISAN
	EmailSAN
	IPSAN
)

// SAN is a name that a peer may have.
type SAN struct {
	Type  SANType
	Match *route.StringMatcher
}

func (c *Config) compileTransports(p *clusterv3.Cluster) (err error) {
	if c.transport, err = compileTransport(p.GetTransportSocket()); err != nil {
		return field.At(err, "transport_socket")
	}
	for i, m := range p.GetTransportSocketMatches() {
		t, err := compileTransport(m.GetTransportSocket())
		if err != nil {
			return field.Index(field.At(err, "transport_socket"), "transport_socket_matches", i)
		}
		t.Name = m.GetName()
		c.transports = append(c.transports, transportMatch{m.GetMatch().GetFields(), t})
	}
	return nil
}

// transportFor is the transport of an endpoint: the first whose match is in the endpoint's metadata, or the cluster's own.
func (c *Config) transportFor(e *Endpoint) *Transport {
	for i := range c.transports {
		if contains(e.match.GetFields(), c.transports[i].match) {
			return c.transports[i].t
		}
	}
	return c.transport
}

func contains(have, want map[string]*structpb.Value) bool {
	for k, v := range want {
		if !proto.Equal(have[k], v) {
			return false
		}
	}
	return true
}

func compileTransport(s *corev3.TransportSocket) (*Transport, error) {
	t := &Transport{}
	if s == nil {
		return t, nil
	}
	return t, field.At(t.compile(s), "typed_config")
}

func (t *Transport) compile(s *corev3.TransportSocket) error {
	a := s.GetTypedConfig()
	switch {
	case a == nil && s.GetName() == "envoy.transport_sockets.raw_buffer", a.MessageIs((*rawbufferv3.RawBuffer)(nil)):
		return nil
	case a.MessageIs((*internalupstreamv3.InternalUpstreamTransport)(nil)):
		var m internalupstreamv3.InternalUpstreamTransport
		if err := a.UnmarshalTo(&m); err != nil {
			return err
		}
		t.Tunnel = true
		return t.inner(m.GetTransportSocket())
	case a.MessageIs((*proxyprotocolv3.ProxyProtocolUpstreamTransport)(nil)):
		var m proxyprotocolv3.ProxyProtocolUpstreamTransport
		if err := a.UnmarshalTo(&m); err != nil {
			return err
		}
		t.Proxy = 1
		if m.GetConfig().GetVersion() == corev3.ProxyProtocolConfig_V2 {
			t.Proxy = 2
		}
		return t.inner(m.GetTransportSocket())
	case a.MessageIs((*tlsv3.UpstreamTlsContext)(nil)):
		var m tlsv3.UpstreamTlsContext
		if err := a.UnmarshalTo(&m); err != nil {
			return err
		}
		x, err := CompileTLS(m.GetCommonTlsContext())
		if err != nil {
			return field.At(err, "common_tls_context")
		}
		x.SNI = m.GetSni()
		t.TLS = x
		return nil
	}
	return field.Errorf("type_url", "unknown transport socket %q of type %q", s.GetName(), a.GetTypeUrl())
}

func (t *Transport) inner(s *corev3.TransportSocket) error {
	if s == nil {
		return field.Errorf("transport_socket", "required")
	}
	return field.At(field.At(t.compile(s), "typed_config"), "transport_socket")
}

// CompileTLS compiles what is the same for clients and servers.
func CompileTLS(p *tlsv3.CommonTlsContext) (*TLS, error) {
	t := &TLS{ALPN: p.GetAlpnProtocols()}
	var err error
	if t.Min, err = tlsVersion(p.GetTlsParams().GetTlsMinimumProtocolVersion()); err != nil {
		return nil, field.At(err, "tls_params.tls_minimum_protocol_version")
	}
	if t.Max, err = tlsVersion(p.GetTlsParams().GetTlsMaximumProtocolVersion()); err != nil {
		return nil, field.At(err, "tls_params.tls_maximum_protocol_version")
	}
	for i, s := range p.GetTlsCertificateSdsSecretConfigs() {
		if s.GetName() == "" {
			return nil, field.Index(field.Errorf("name", "required"), "tls_certificate_sds_secret_configs", i)
		}
		t.CertNames = append(t.CertNames, s.GetName())
	}
	for i, s := range p.GetTlsCertificates() {
		var c Certificate
		if c.Chain, err = compileSource("certificate_chain", s.GetCertificateChain()); err == nil {
			c.Key, err = compileSource("private_key", s.GetPrivateKey())
		}
		if err != nil {
			return nil, field.Index(err, "tls_certificates", i)
		}
		t.Certs = append(t.Certs, c)
	}
	return t, t.compileValidation(p)
}

func (t *TLS) compileValidation(p *tlsv3.CommonTlsContext) error {
	switch v := p.GetValidationContextType().(type) {
	case nil:
		return nil
	case *tlsv3.CommonTlsContext_ValidationContext:
		return field.At(t.validation(v.ValidationContext), "validation_context")
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.CAName = v.ValidationContextSdsSecretConfig.GetName()
		return nil
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		t.CAName = v.CombinedValidationContext.GetValidationContextSdsSecretConfig().GetName()
		return field.At(t.validation(v.CombinedValidationContext.GetDefaultValidationContext()), "combined_validation_context.default_validation_context")
	default:
		return field.Unsupported(p, "validation_context_type")
	}
}

func (t *TLS) validation(v *tlsv3.CertificateValidationContext) (err error) {
	switch {
	case len(v.GetVerifyCertificateHash()) > 0:
		return field.Errorf("verify_certificate_hash", "unsupported")
	case len(v.GetVerifyCertificateSpki()) > 0:
		return field.Errorf("verify_certificate_spki", "unsupported")
	case v.GetCustomValidatorConfig() != nil:
		return field.Errorf("custom_validator_config", "unsupported")
	case v.GetCrl() != nil:
		return field.Errorf("crl", "unsupported")
	}
	if t.CA, err = compileSource("trusted_ca", v.GetTrustedCa()); err != nil {
		return err
	}
	for i, m := range v.GetMatchSubjectAltNames() {
		s, err := route.CompileString(m)
		if err != nil {
			return field.Index(err, "match_subject_alt_names", i)
		}
		t.SANs = append(t.SANs, SAN{AnySAN, s})
	}
	for i, m := range v.GetMatchTypedSubjectAltNames() {
		s, err := compileSAN(m)
		if err != nil {
			return field.Index(err, "match_typed_subject_alt_names", i)
		}
		t.SANs = append(t.SANs, s)
	}
	return nil
}

func compileSAN(m *tlsv3.SubjectAltNameMatcher) (SAN, error) {
	var s SAN
	switch m.GetSanType() {
	case tlsv3.SubjectAltNameMatcher_DNS:
		s.Type = DNSSAN
	case tlsv3.SubjectAltNameMatcher_URI:
		s.Type = URISAN
	case tlsv3.SubjectAltNameMatcher_EMAIL:
		s.Type = EmailSAN
	case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		s.Type = IPSAN
	default:
		return s, field.Errorf("san_type", "unsupported value %v", m.GetSanType())
	}
	var err error
	s.Match, err = route.CompileString(m.GetMatcher())
	return s, field.At(err, "matcher")
}

func compileSource(part string, d *corev3.DataSource) (Source, error) {
	switch s := d.GetSpecifier().(type) {
	case nil:
		return Source{}, nil
	case *corev3.DataSource_Filename:
		return Source{File: s.Filename}, nil
	case *corev3.DataSource_InlineBytes:
		return Source{Text: s.InlineBytes}, nil
	case *corev3.DataSource_InlineString:
		return Source{Text: []byte(s.InlineString)}, nil
	default:
		return Source{}, field.At(field.Unsupported(d, "specifier"), part)
	}
}

func tlsVersion(v tlsv3.TlsParameters_TlsProtocol) (uint16, error) {
	switch v {
	case tlsv3.TlsParameters_TLS_AUTO:
		return 0, nil
	case tlsv3.TlsParameters_TLSv1_0:
		return tls.VersionTLS10, nil
	case tlsv3.TlsParameters_TLSv1_1:
		return tls.VersionTLS11, nil
	case tlsv3.TlsParameters_TLSv1_2:
		return tls.VersionTLS12, nil
	case tlsv3.TlsParameters_TLSv1_3:
		return tls.VersionTLS13, nil
	}
	return 0, field.Errorf("", "unknown value %d", v)
}
