package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// endpoints are the pods of a service, in the order of their names; with Lab.mu held.
func (l *Lab) endpoints(o *object) []*pod {
	if len(o.svc.Spec.Selector) == 0 {
		return nil
	}
	var out []*pod
	for _, p := range l.pods {
		if p.key.Namespace != o.m.Namespace || !p.readyLocked() && !(o.svc.Spec.PublishNotReadyAddresses && p.sandbox != nil) {
			continue
		}
		match := true
		for k, v := range o.svc.Spec.Selector {
			match = match && p.labels[k] == v
		}
		if match {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *pod) int { return strings.Compare(a.key.Name, b.key.Name) })
	return out
}

// vipPorts is what every node's table should hold; with Lab.mu held.
func (l *Lab) vipPorts() []vipPort {
	var out []vipPort
	for _, o := range l.sorted("Service") {
		pods := l.endpoints(o)
		for _, sp := range o.svc.Spec.Ports {
			proto := byte(unix.IPPROTO_TCP)
			switch sp.Protocol {
			case corev1.ProtocolUDP:
				proto = unix.IPPROTO_UDP
			case corev1.ProtocolSCTP:
				continue
			}
			for _, vip := range o.vips {
				v := vipPort{VIP: vip, Proto: proto, Port: uint16(sp.Port)}
				for _, p := range pods {
					if port := targetPort(p, sp); port != 0 {
						v.Endpoints = append(v.Endpoints, p.sameFamily(vip, port)...)
					}
				}
				out = append(out, v)
			}
		}
	}
	return out
}

func (p *pod) sameFamily(vip netip.Addr, port uint16) []netip.AddrPort {
	for _, a := range p.addrs {
		if a.Is4() == vip.Is4() {
			return []netip.AddrPort{netip.AddrPortFrom(a, port)}
		}
	}
	return nil
}

// targetPort is the port of a pod behind a service's port; 0 if the pod has no port of that name.
func targetPort(p *pod, sp corev1.ServicePort) uint16 {
	switch {
	case sp.TargetPort.Type == intstr.String:
		return namedPort(p, sp.TargetPort.StrVal)
	case sp.TargetPort.IntVal != 0:
		return uint16(sp.TargetPort.IntVal)
	default:
		return uint16(sp.Port)
	}
}

// hostFiles is the content of each pod's /etc/hosts, by path: the lab's stand-in for DNS. With Lab.mu held.
func (l *Lab) hostFiles() map[string]string {
	services := l.firstToLast("Service")
	perNS := map[string]string{}
	out := map[string]string{}
	for _, p := range l.pods {
		if p.sandbox == nil {
			continue
		}
		ns := p.key.Namespace
		if _, ok := perNS[ns]; !ok {
			perNS[ns] = l.serviceHosts(services, ns)
		}
		out[p.sandbox.hosts] = p.ownHosts() + perNS[ns]
	}
	return out
}

// hosts is the content of a pod's /etc/hosts, as hostFiles has it once the pod has a sandbox.
func (p *pod) hosts() string {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	return p.ownHosts() + p.l.serviceHosts(p.l.firstToLast("Service"), p.key.Namespace)
}

func (p *pod) ownHosts() string {
	var own strings.Builder
	own.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, a := range p.addrs {
		fmt.Fprintf(&own, "%s %s\n", a, p.key.Name)
	}
	return own.String()
}

// firstToLast lists the objects of a kind, the oldest first: a hosts file that is written anew in place while somebody reads
// it keeps the lines that it had. With Lab.mu held.
func (l *Lab) firstToLast(kind string) []*object {
	out := l.sorted(kind)
	slices.SortStableFunc(out, func(a, b *object) int { return a.created.Compare(b.created) })
	return out
}

// serviceHosts lists services as seen from a namespace.
func (l *Lab) serviceHosts(services []*object, ns string) string {
	var b strings.Builder
	for _, o := range services {
		addrs := o.vips
		if o.svc.Spec.ClusterIP == corev1.ClusterIPNone {
			for _, p := range l.endpoints(o) {
				addrs = append(addrs, p.addrs...)
			}
		}
		name := o.m.Name + "." + o.m.Namespace
		names := fmt.Sprintf("%s.svc.cluster.local %s.svc %s", name, name, name)
		if o.m.Namespace == ns {
			names += " " + o.m.Name
		}
		for _, a := range addrs {
			fmt.Fprintf(&b, "%s %s\n", a, names)
		}
	}
	return b.String()
}

// sorted lists the objects of a kind in the order of their keys; with Lab.mu held.
func (l *Lab) sorted(kind string) []*object {
	var out []*object
	for k, o := range l.objects {
		if k.Kind == kind {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return compareKeys(a.m.Key(), b.m.Key()) })
	return out
}

func compareKeys(a, b key) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
