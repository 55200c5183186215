package envoy

import (
	"crypto/x509"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// unusableSecret is one that nobody has: without it no connection is made.
const unusableSecret = "unusable-ca"

// backendTLS is the TLS to the application that a BackendTLSPolicy asks for; it takes the place of a DestinationRule's.
// A policy whose certificates are not there lets nothing through.
func (b *builder) backendTLS(o *clusterOptions) {
	policy := b.backendPolicy(o.service, o.port)
	if policy == nil {
		return
	}
	v := policy.Spec.Validation
	common := &tlsv3.CommonTlsContext{TlsParams: tls12()}
	checks := &tlsv3.CertificateValidationContext{}
	for _, san := range v.SubjectAltNames {
		m := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exactMatcher(string(san.Hostname))}
		if san.Type == gatewayv1.URISubjectAltNameType {
			m = &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: exactMatcher(string(san.URI))}
		}
		checks.MatchTypedSubjectAltNames = append(checks.MatchTypedSubjectAltNames, m)
	}
	if len(v.SubjectAltNames) == 0 {
		checks.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exactMatcher(string(v.Hostname))}}
	}
	roots := b.backendRoots(policy)
	switch {
	case roots != "":
		checks.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: roots}}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: checks}
	case len(v.CACertificateRefs) == 0 && v.WellKnownCACertificates != nil && *v.WellKnownCACertificates == gatewayv1.WellKnownCACertificatesSystem:
		common.ValidationContextType = combined(checks, sds("file-root:system", false))
	default:
		b.problem(kube.Warning, kube.KeyOf(policy), "spec.validation", "no certificate authority can be read: connections fail", "caCertificateRefs to a ConfigMap of the namespace with ca.crt, or wellKnownCACertificates: System")
		common.ValidationContextType = combined(checks, sds(unusableSecret, false))
	}
	if o.h2 != nil {
		common.AlpnProtocols = []string{"h2"}
	}
	o.http.UpstreamHttpProtocolOptions = nil
	o.socket = socket("envoy.transport_sockets.tls", &tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: string(v.Hostname)})
}

// backendPolicy is the oldest policy for a port of a Service; one that names the port comes before one that does not.
func (b *builder) backendPolicy(s *service, p port) *gatewayv1.BackendTLSPolicy {
	var wide *gatewayv1.BackendTLSPolicy
	for _, policy := range b.backendPolicies {
		if policy.Namespace != s.key.Namespace {
			continue
		}
		for _, ref := range policy.Spec.TargetRefs {
			kind := kube.KindService
			if ref.Group == "networking.istio.io" {
				kind = kube.KindServiceEntry
			}
			if kind != s.key.Kind || string(ref.Kind) != string(kind) || string(ref.Name) != s.key.Name.Name {
				continue
			}
			if ref.SectionName != nil && string(*ref.SectionName) == p.name {
				return policy
			}
			if ref.SectionName == nil && wide == nil {
				wide = policy
			}
		}
	}
	return wide
}

// backendRoots are the certificates of the ConfigMaps that a policy refers to, "" when one is not there.
func (b *builder) backendRoots(p *gatewayv1.BackendTLSPolicy) string {
	roots := ""
	for _, ref := range p.Spec.Validation.CACertificateRefs {
		if ref.Group != "" && ref.Group != "core" || ref.Kind != "ConfigMap" {
			return ""
		}
		cm := kube.Get[*corev1.ConfigMap](b.objects, p.Namespace, string(ref.Name))
		if cm == nil || !x509.NewCertPool().AppendCertsFromPEM([]byte(cm.Data["ca.crt"])) {
			return ""
		}
		roots += cm.Data["ca.crt"] + "\n"
	}
	return roots
}
