package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// fieldError is one thing wrong with a field of an object.
type fieldError struct {
	Field, Cause, Accepted string
}

// checker collects what is wrong with an object.
type checker struct{ errs []fieldError }

func (c *checker) add(field, accepted, cause string, args ...any) {
	c.errs = append(c.errs, fieldError{Field: field, Cause: fmt.Sprintf(cause, args...), Accepted: accepted})
}

// validate checks the fields that this control plane uses. It is not a complete validation: what an API server would
// refuse elsewhere in the object passes.
func validate(obj Object, info *kindInfo) []fieldError {
	c := &checker{}
	c.metadata(obj, info)
	switch o := obj.(type) {
	case *corev1.Pod:
		c.pod(o)
	case *corev1.Service:
		c.service(o)
	case *discoveryv1.EndpointSlice:
		c.endpointSlice(o)
	case *networkingv1.WorkloadEntry:
		c.workloadEntry(&o.Spec, "spec", true)
	case *networkingv1.ServiceEntry:
		c.serviceEntry(o)
	case *securityv1.PeerAuthentication:
		c.peerAuthentication(o)
	case *securityv1.AuthorizationPolicy:
		c.authorizationPolicy(o)
	case *gatewayv1.Gateway:
		c.gateway(o)
	}
	return c.errs
}

func (c *checker) metadata(obj Object, info *kindInfo) {
	const nameRule = "lower case letters, digits, '-' and '.', at most 253, beginning and ending with a letter or digit"
	switch name := obj.GetName(); {
	case name == "" && obj.GetGenerateName() != "":
		c.add("metadata.name", nameRule, "generateName alone gives no name: this source does not make names")
	case name == "":
		c.add("metadata.name", nameRule, "required value is missing")
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		c.add("metadata.name", nameRule, "invalid name %q", name)
	}
	ns := obj.GetNamespace()
	switch {
	case info.clusterScoped && ns != "":
		c.add("metadata.namespace", "no namespace", "kind %s has no namespace", info.kind)
	case !info.clusterScoped && len(validation.IsDNS1123Label(ns)) > 0:
		c.add("metadata.namespace", "lower case letters, digits and '-', at most 63", "invalid namespace %q", ns)
	}
	c.labels("metadata.labels", obj.GetLabels())
	for k := range obj.GetAnnotations() {
		if len(validation.IsQualifiedName(strings.ToLower(k))) > 0 {
			c.add("metadata.annotations", "[prefix/]name", "invalid key %q", k)
		}
	}
}

// labels checks keys and values, in order so that messages are stable.
func (c *checker) labels(field string, labels map[string]string) {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if len(validation.IsQualifiedName(k)) > 0 {
			c.add(field, "[prefix/]name", "invalid key %q", k)
		}
		if len(validation.IsValidLabelValue(labels[k])) > 0 {
			c.add(field+"["+k+"]", "letters, digits, '-', '_' and '.', at most 63", "invalid value %q", labels[k])
		}
	}
}

// oneOf checks an enumeration.
func oneOf[T ~string](c *checker, field string, value T, accepted ...T) {
	if slices.Contains(accepted, value) {
		return
	}
	words := make([]string, len(accepted))
	for i, a := range accepted {
		words[i] = string(a)
	}
	c.add(field, strings.Join(words, ", "), "unknown value %q", value)
}

const portRange = "1..65535"

// port checks a port number.
func (c *checker) port(field string, value int64) {
	if value < 1 || value > 65535 {
		c.add(field, portRange, "invalid port %d", value)
	}
}

// portText checks a port written as a string.
func (c *checker) portText(field, value string) {
	if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 {
		c.add(field, portRange, "invalid port %q", value)
	}
}

// ip checks an address without zone.
func (c *checker) ip(field, value string) {
	if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" {
		c.add(field, "an IPv4 or IPv6 address", "invalid address %q", value)
	}
}

// cidr checks an address or a CIDR.
func (c *checker) cidr(field, value string) {
	if _, err := ParseCIDR(value); err != nil {
		c.add(field, "an address or a CIDR, for example 10.0.0.0/8", "invalid CIDR %q", value)
	}
}

// ParseCIDR reads "10.0.0.0/8" or a single address. Bits below the prefix length are cleared.
func ParseCIDR(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("parse address %q: a zone is not allowed", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func (c *checker) pod(p *corev1.Pod) {
	for _, list := range []struct {
		field      string
		containers []corev1.Container
	}{{"spec.containers", p.Spec.Containers}, {"spec.initContainers", p.Spec.InitContainers}} {
		for i := range list.containers {
			for j, port := range list.containers[i].Ports {
				at := index(index(list.field, i)+".ports", j)
				c.port(at+".containerPort", int64(port.ContainerPort))
				oneOf(c, at+".protocol", port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
				if port.Name != "" && len(validation.IsValidPortName(port.Name)) > 0 {
					c.add(at+".name", "lower case letters, digits and '-', at most 15, one letter at least", "invalid port name %q", port.Name)
				}
			}
		}
	}
	if p.Status.Phase != "" {
		oneOf(c, "status.phase", p.Status.Phase, corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown)
	}
	for i, ip := range p.Status.PodIPs {
		c.ip(index("status.podIPs", i)+".ip", ip.IP)
	}
	if len(p.Status.PodIPs) > 0 && p.Status.PodIP != p.Status.PodIPs[0].IP {
		c.add("status.podIP", p.Status.PodIPs[0].IP, "%q is not the first of podIPs", p.Status.PodIP)
	}
	for i, cond := range p.Status.Conditions {
		oneOf(c, index("status.conditions", i)+".status", cond.Status, corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown)
	}
}

func (c *checker) service(s *corev1.Service) {
	oneOf(c, "spec.type", s.Spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	for i, ip := range s.Spec.ClusterIPs {
		if ip == corev1.ClusterIPNone && len(s.Spec.ClusterIPs) == 1 {
			continue
		}
		c.ip(index("spec.clusterIPs", i), ip)
	}
	if len(s.Spec.ClusterIPs) > 2 {
		c.add("spec.clusterIPs", "one per address family", "%d addresses", len(s.Spec.ClusterIPs))
	}
	if len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIPs[0] != s.Spec.ClusterIP {
		c.add("spec.clusterIP", s.Spec.ClusterIPs[0], "%q is not the first of clusterIPs", s.Spec.ClusterIP)
	}
	for i, f := range s.Spec.IPFamilies {
		oneOf(c, index("spec.ipFamilies", i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)
	}
	oneOf(c, "spec.ipFamilyPolicy", *s.Spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)
	oneOf(c, "spec.internalTrafficPolicy", *s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	if d := s.Spec.TrafficDistribution; d != nil {
		oneOf(c, "spec.trafficDistribution", *d, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
	c.labels("spec.selector", s.Spec.Selector)
	c.servicePorts(s.Spec.Ports)
}

func (c *checker) servicePorts(ports []corev1.ServicePort) {
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, p := range ports {
		at := index("spec.ports", i)
		c.port(at+".port", int64(p.Port))
		oneOf(c, at+".protocol", p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if p.TargetPort.StrVal != "" {
			if len(validation.IsValidPortName(p.TargetPort.StrVal)) > 0 {
				c.add(at+".targetPort", portRange+" or a port name", "invalid port %q", p.TargetPort.StrVal)
			}
		} else {
			c.port(at+".targetPort", int64(p.TargetPort.IntVal))
		}
		if p.Name == "" && len(ports) > 1 {
			c.add(at+".name", "a name for each port when there are several", "required value is missing")
		}
		if p.Name != "" && names[p.Name] {
			c.add(at+".name", "a name of its own", "port name %q appears twice", p.Name)
		}
		names[p.Name] = true
		number := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if numbers[number] {
			c.add(at+".port", "a port of its own", "port %s appears twice", number)
		}
		numbers[number] = true
	}
}

func (c *checker) endpointSlice(s *discoveryv1.EndpointSlice) {
	oneOf(c, "addressType", s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	for i, e := range s.Endpoints {
		at := index("endpoints", i) + ".addresses"
		if len(e.Addresses) == 0 {
			c.add(at, "at least one address", "required value is missing")
		}
		for j, a := range e.Addresses {
			if s.AddressType == discoveryv1.AddressTypeFQDN {
				continue
			}
			ip, err := netip.ParseAddr(a)
			if err != nil || ip.Zone() != "" || ip.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
				c.add(index(at, j), "an address of type "+string(s.AddressType), "invalid address %q", a)
			}
		}
	}
	for i, p := range s.Ports {
		at := index("ports", i)
		if p.Port != nil {
			c.port(at+".port", int64(*p.Port))
		}
		oneOf(c, at+".protocol", *p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	}
}

func (c *checker) gateway(g *gatewayv1.Gateway) {
	if g.Spec.GatewayClassName == "" {
		c.add("spec.gatewayClassName", "the name of a GatewayClass", "required value is missing")
	}
	names := map[gatewayv1.SectionName]bool{}
	for i, l := range g.Spec.Listeners {
		at := index("spec.listeners", i)
		if l.Name == "" || names[l.Name] {
			c.add(at+".name", "a name of its own", "listener name %q is empty or appears twice", l.Name)
		}
		names[l.Name] = true
		c.port(at+".port", int64(l.Port))
		if l.Protocol == "" {
			c.add(at+".protocol", "HTTP, HTTPS, TLS, TCP, UDP, HBONE", "required value is missing")
		}
		if r := l.AllowedRoutes; r != nil && r.Namespaces != nil && r.Namespaces.From != nil {
			oneOf(c, at+".allowedRoutes.namespaces.from", *r.Namespaces.From, gatewayv1.NamespacesFromAll, gatewayv1.NamespacesFromSame, gatewayv1.NamespacesFromSelector, gatewayv1.NamespacesFromNone)
		}
	}
	for i, a := range g.Status.Addresses {
		at := index("status.addresses", i)
		if a.Type == nil || *a.Type == gatewayv1.IPAddressType {
			c.ip(at+".value", a.Value)
		} else if a.Value == "" {
			c.add(at+".value", "a host name", "required value is missing")
		}
	}
}
