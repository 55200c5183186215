package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// podObject is a pod as the lab lists it.
type podObject struct {
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Status struct {
		Phase  string
		PodIPs []struct{ IP netip.Addr }
	}
}

// addrs are the pod's addresses; the second one is IPv6 in a lab of both families.
func (p *podObject) addrs() (out []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

func (p *podObject) captured() bool {
	return p.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled"
}

func (m *mesh) pods(namespace string) []podObject {
	m.t.Helper()
	return objects[podObject](m, "pod", namespace, "")
}

// addrs are the addresses of the first pod whose name begins so.
func (m *mesh) addrs(namespace, prefix string) []netip.Addr {
	m.t.Helper()
	for _, p := range m.pods(namespace) {
		if strings.HasPrefix(p.Metadata.Name, prefix) {
			return p.addrs()
		}
	}
	m.t.Fatalf("no pod %s/%s...", namespace, prefix)
	return nil
}

// serviceObject is a service as the lab lists it.
type serviceObject struct {
	Spec struct {
		ClusterIPs []netip.Addr
		Ports      []struct{ Port uint16 }
	}
}

func (m *mesh) service(namespace, name string) serviceObject {
	m.t.Helper()
	all := objects[serviceObject](m, "service", namespace, name)
	if len(all) != 1 {
		m.t.Fatalf("%d services %s/%s", len(all), namespace, name)
	}
	return all[0]
}

// vips are a service's addresses.
func (m *mesh) vips(namespace, name string) []netip.Addr {
	m.t.Helper()
	return m.service(namespace, name).Spec.ClusterIPs
}

// serviceTargets are all of a service's addresses with all of its ports.
func (m *mesh) serviceTargets(namespace, name string) (out []netip.AddrPort) {
	m.t.Helper()
	svc := m.service(namespace, name)
	for _, p := range svc.Spec.Ports {
		out = append(out, ports(svc.Spec.ClusterIPs, p.Port)...)
	}
	return out
}

// ports are addresses, each with the port.
func ports(as []netip.Addr, port uint16) (out []netip.AddrPort) {
	for _, a := range as {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

func objects[T any](m *mesh, kind, namespace, name string) []T {
	m.t.Helper()
	raw, err := m.c.Objects(m.t.Context(), kind, namespace, name)
	netnstest.Must(m.t, err)
	out := make([]T, len(raw))
	for i := range raw {
		netnstest.Must(m.t, json.Unmarshal(raw[i], &out[i]))
	}
	return out
}

// proxyDump is what the tests read of a proxy's config_dump.
type proxyDump struct {
	Workloads    []struct{ Name, Protocol string }
	Certificates []struct {
		Identity  string
		CertChain []struct{ PEM string }
	}
}

func (m *mesh) dump(node string) (d proxyDump, err error) {
	text, err := m.c.Fetch(m.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15000/config_dump")
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return d, fmt.Errorf("read config_dump of %s: %w", node, err)
	}
	return d, nil
}

// tunnelled waits until a node's ztunnel knows that a pod is reached by a tunnel. Before, its clients speak to it as to any
// address outside of the mesh.
func (m *mesh) tunnelled(node, pod string, want bool) {
	m.t.Helper()
	m.await(fmt.Sprintf("%s to know that tunnels to %s: %t", node, pod, want), 20*time.Second, func() error {
		dump, err := m.dump(node)
		if err != nil {
			return err
		}
		for _, l := range dump.Workloads {
			if strings.HasPrefix(l.Name, pod) && (l.Protocol == "HBONE") == want {
				return nil
			}
		}
		return fmt.Errorf("it knows %v", dump.Workloads)
	})
}
