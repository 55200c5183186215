package mesh

import (
	"fmt"
	"net/netip"
)

// object is a Kubernetes object as it is written.
type object = map[string]any

// The dataplane-mode label puts a namespace into the mesh, the redirection annotation says that a pod is captured.
const (
	modeLabel             = "istio.io/dataplane-mode"
	redirectionAnnotation = "ambient.istio.io/redirection"
)

func meta(namespace, name string) object {
	m := object{"name": name}
	if namespace != "" {
		m["namespace"] = namespace
	}
	return m
}

// writeObjects describes the bed: namespaces, nodes, pods, and the filling.
func (p *Plane) writeObjects() error {
	var all []any
	captured := map[string]bool{}
	for _, pod := range p.cfg.Pods {
		captured[pod.Namespace] = captured[pod.Namespace] || pod.Captured
	}
	for ns, yes := range captured {
		m := meta("", ns)
		if yes {
			m["labels"] = object{modeLabel: "ambient"}
		}
		all = append(all, object{"apiVersion": "v1", "kind": "Namespace", "metadata": m})
	}
	for _, n := range p.cfg.Bed.Nodes {
		all = append(all, object{"apiVersion": "v1", "kind": "Node", "metadata": meta("", n.Name),
			"status": object{"addresses": []object{{"type": "InternalIP", "address": n.Addr.String()}}}})
		// the pod that the ztunnel's token belongs to
		all = append(all, podObject("istio-system", "ztunnel-"+n.Name, "ztunnel", "ztunnel-"+n.Name, n.Name, false, n.Addr))
	}
	for _, pod := range p.cfg.Pods {
		all = append(all, podObject(pod.Namespace, pod.Name, pod.ServiceAccount, pod.UID(), pod.Node.Name, pod.Captured, pod.Addr, pod.Addr6))
	}
	for i := range p.cfg.Fill {
		name := fmt.Sprintf("app-%d", i)
		all = append(all, podObject(fmt.Sprintf("fill-%d", i%20), name, fmt.Sprintf("app-%d", i/4), "uid-"+name,
			fmt.Sprintf("node-%d", i%100), true, netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)})))
	}
	return p.Apply("bed", all...)
}

// podObject is a pod as the API server shows it when it runs.
func podObject(namespace, name, account, uid, node string, captured bool, addrs ...netip.Addr) object {
	m := meta(namespace, name)
	m["uid"] = uid
	m["labels"] = object{"app": name}
	if captured {
		m["annotations"] = object{redirectionAnnotation: "enabled"}
	}
	ips := []object{}
	for _, a := range addrs {
		ips = append(ips, object{"ip": a.String()})
	}
	ready := []object{{"type": "Ready", "status": "True"}}
	return object{
		"apiVersion": "v1", "kind": "Pod", "metadata": m,
		"spec": object{
			"nodeName": node, "serviceAccountName": account,
			"containers": []object{{"name": "app", "image": "ambit/none"}},
		},
		"status": object{"phase": "Running", "podIP": addrs[0].String(), "podIPs": ips, "conditions": ready},
	}
}

// Service is a ClusterIP service over the pod of a name.
func Service(namespace, name, pod string, vip netip.Addr, port, targetPort int) any {
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": meta(namespace, name),
		"spec": object{
			"selector": object{"app": pod}, "type": "ClusterIP", "clusterIP": vip.String(), "clusterIPs": []string{vip.String()},
			"ports": []object{{"name": "tcp", "port": port, "targetPort": targetPort, "protocol": "TCP"}},
		},
	}
}

// DenyAccount is a policy of a namespace that refuses a service account at the pod of a name.
func DenyAccount(namespace, name, pod, account string) any {
	return object{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta(namespace, name),
		"spec": object{
			"selector": object{"matchLabels": object{"app": pod}}, "action": "DENY",
			"rules": []object{{"from": []object{{"source": object{"principals": []string{"cluster.local/ns/" + namespace + "/sa/" + account}}}}}},
		},
	}
}

// Strict makes a namespace refuse plaintext.
func Strict(namespace string) any {
	return object{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta(namespace, "default"),
		"spec": object{"mtls": object{"mode": "STRICT"}},
	}
}
