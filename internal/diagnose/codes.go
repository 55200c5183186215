package diagnose

import (
	"fmt"
	"strings"
)

// Code describes a kind of finding.
type Code struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Title says what is wrong in general, Fix what to do.
	Title string `json:"title"`
	Fix   string `json:"fix"`
}

// Codes are all codes in order. A code keeps its meaning for ever.
func Codes() []Code { return codes }

// Markdown is the table of codes for the documentation.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| code | severity | what is wrong | what to do |\n|---|---|---|---|\n")
	for _, c := range codes {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.Code, c.Severity, c.Title, c.Fix)
	}
	return b.String()
}

var byCode = func() map[string]Code {
	m := map[string]Code{}
	for _, c := range codes {
		m[c.Code] = c
	}
	return m
}()

// 01 is the mesh itself, 02 certificates, 03 pods, 04 waypoints, 05 policies, 06 services and routes, 09 the rest of what the
// control plane says.
var codes = []Code{
	{"AMB0101", Error, "a kind of the Gateway API or of Istio is not defined in the cluster", "install the definition: `ambit install` does, or the Gateway API's and Istio's own CRDs"},
	{"AMB0102", Error, "no control plane is ready", "`kubectl -n istio-system describe deployment ambit-controlplane`, `ambit logs controlplane`"},
	{"AMB0103", Error, "a node has no ztunnel that is ready", "`kubectl -n istio-system describe daemonset ztunnel`; pods of the mesh wait there until it is back"},
	{"AMB0104", Error, "a node has no CNI plugin: pods could start before they are captured", "set `cni.enabled` of the chart, or install istio-cni; then `ambit upgrade`"},
	{"AMB0105", Error, "a proxy has no stream from the control plane: it works with what it last knew", "is port 15012 of the control plane reachable from its node? `ambit logs` of the proxy, scope xds"},
	{"AMB0106", Error, "a proxy refused what the control plane sent: its last good configuration stays in force", "correct the object that the text names"},
	{"AMB0107", Warning, "a proxy has not acknowledged what it was sent", "is it overloaded? `ambit logs` of the proxy, scope xds"},
	{"AMB0108", Warning, "programs of the mesh have different versions", "`ambit upgrade` brings all to one version"},
	{"AMB0109", Warning, "a program of the mesh could not be asked, so less was checked", "does this user have `create` on `pods/portforward`?"},
	{"AMB0110", Error, "clocks differ: certificates are not valid yet, or no longer, for some", "set up NTP on the node or machine that is wrong"},
	{"AMB0111", Error, "Kubernetes is older than what is supported", "Kubernetes 1.30 or later"},
	{"AMB0112", Error, "a node's kernel cannot redirect", "Linux 5.17 or later on each node"},
	{"AMB0113", Warning, "another mesh is installed in the cluster", "let each namespace be in one mesh alone, or remove the other"},
	{"AMB0114", Error, "a program of the mesh is not ready", "`kubectl describe` its pod, `ambit logs`"},
	{"AMB0115", Error, "two meshes of ours are in one cluster: both capture the same pods", "`ambit uninstall -n NAMESPACE` of one of them"},
	{"AMB0116", Warning, "nodes have different MTUs: packets of the larger can be lost where the network does not say that they are too long", "one MTU for all nodes and their pods (that of the CNI plugin), or let ICMP \"fragmentation needed\" through"},
	{"AMB0201", Error, "a root certificate has expired: every connection fails", "`ambit cert rotate`, or replace the Secret `cacerts`"},
	{"AMB0202", Warning, "a root certificate expires soon", "`ambit cert rotate`, or replace the Secret `cacerts`, before that"},
	{"AMB0203", Error, "an identity has no valid certificate: its connections are refused", "`ambit logs controlplane` says why the CA refuses; is port 15012 reachable?"},
	{"AMB0204", Warning, "a certificate should have been renewed", "`ambit logs` of the proxy, scope identity, says why it is not"},
	{"AMB0205", Error, "proxies are of different trust domains and refuse each other", "one `mesh.trustDomain` for all, then `ambit upgrade`"},
	{"AMB0206", Warning, "a policy names a trust domain that nobody in this mesh has", "write the mesh's trust domain, or none: `ns/NAMESPACE/sa/ACCOUNT` is matched in all of the mesh's"},
	{"AMB0301", Error, "a label has a value that means nothing: the pods stay outside the mesh", "`istio.io/dataplane-mode` is `ambient` or `none`"},
	{"AMB0302", Error, "a pod has a sidecar: it is not captured", "remove the injection (label `istio-injection` or `sidecar.istio.io/inject`), then `kubectl rollout restart`"},
	{"AMB0303", Error, "a pod should be in the mesh and is not captured: it is in plaintext, or waits", "`ambit logs ztunnel/NODE --part capture` says why; a pod that started before the node's ztunnel is captured once that is ready"},
	{"AMB0304", Warning, "a pod of the host network asks for the mesh and cannot be in it", "no host network, or the label `istio.io/dataplane-mode: none`"},
	{"AMB0305", Warning, "a namespace asks for sidecars and for the mesh without them", "`kubectl label namespace NAME istio-injection- istio.io/rev-`"},
	{"AMB0306", Error, "a NetworkPolicy keeps out port 15008: other nodes' pods cannot reach these by the mesh", "allow TCP 15008 from the same peers in the NetworkPolicy"},
	{"AMB0307", Error, "a container listens on a port of the mesh", "another port than 15001, 15006, 15008"},
	{"AMB0308", Error, "a NetworkPolicy keeps pods from port 15008: they cannot reach other nodes' pods by the mesh", "allow TCP 15008 to the same peers in the NetworkPolicy's egress"},
	{"AMB0401", Error, "the waypoint that is asked for does not exist: connections are refused", "`ambit waypoint apply`, or correct the label `istio.io/use-waypoint`"},
	{"AMB0402", Error, "the waypoint that is asked for is not ready: connections are refused", "`ambit waypoint status`; its pods' events say more"},
	{"AMB0403", Error, "the Gateway that is asked for as a waypoint is none", "`gatewayClassName: istio-waypoint`, or another Gateway in the label `istio.io/use-waypoint`"},
	{"AMB0404", Error, "the waypoint does not let in other namespaces: connections are refused", "`allowedRoutes: {namespaces: {from: All}}` in the Gateway's listener, or a waypoint of the own namespace"},
	{"AMB0405", Warning, "the waypoint does not take this kind of traffic", "label the Gateway `istio.io/waypoint-for: all`, or take the label `istio.io/use-waypoint` away"},
	{"AMB0406", Warning, "a waypoint is asked for where nothing is in the mesh", "`ambit enroll` the namespace"},
	{"AMB0407", Warning, "a Gateway says in no known word what it takes traffic for", "`istio.io/waypoint-for` is `service`, `workload`, `all` or `none`"},
	{"AMB0408", Warning, "nothing uses a waypoint", "`ambit waypoint apply --enroll-namespace`, or label a Service `istio.io/use-waypoint`"},
	{"AMB0409", Error, "a Gateway of a waypoint is not served as written", "correct the field that the text names"},
	{"AMB0410", Warning, "a canary waypoint is not used", "correct the labels `istio.io/use-waypoint-canary*`"},
	{"AMB0501", Warning, "a policy's selector matches no pod: it has no effect", "correct the selector, or delete the policy"},
	{"AMB0502", Warning, "a policy has parts that only a waypoint can enforce", "give it `targetRefs` to a Service with a waypoint, or take out what is about requests"},
	{"AMB0503", Error, "a policy's target does not exist: nothing enforces it", "correct `targetRefs`; targets are in the policy's namespace"},
	{"AMB0504", Error, "a policy's target has no waypoint: nothing enforces it", "`ambit waypoint apply`, and label the target `istio.io/use-waypoint`"},
	{"AMB0505", Warning, "a policy is in another namespace than the pods that it means", "move it into the namespace of the pods"},
	{"AMB0506", Warning, "STRICT refuses clients that are not in the mesh", "`ambit enroll` their namespace, or PERMISSIVE until they are"},
	{"AMB0507", Error, "STRICT is asked for pods that are not in the mesh: nothing enforces it", "`ambit enroll` the namespace"},
	{"AMB0508", Error, "keys of a JWT issuer cannot be used: every token of it fails", "a JSON Web Key Set with RSA, EC or OKP keys, or a `jwksUri` that serves one"},
	{"AMB0509", Error, "keys of a JWT issuer cannot be fetched: every token of it fails", "a `jwksUri` whose host exists and can be reached from the waypoint"},
	{"AMB0510", Warning, "a policy of the whole mesh selects pods and so selects nothing", "no selector, or another namespace"},
	{"AMB0511", Error, "a policy is for pods that are not in the mesh: nothing enforces it", "`ambit enroll` the namespace"},
	{"AMB0512", Info, "pods of the mesh also take plaintext from outside of it", "when all clients are in the mesh: a PeerAuthentication with mode STRICT in the mesh's namespace"},
	{"AMB0601", Warning, "a Service selects no pod", "correct `spec.selector`, or the labels of the pods"},
	{"AMB0602", Error, "a Service has no endpoint that is ready", "why are the pods not ready? `kubectl describe pod`"},
	{"AMB0603", Warning, "a port's name and its appProtocol say different protocols", "let both say the same; appProtocol is what counts"},
	{"AMB0604", Warning, "a subset of a DestinationRule has no pod: requests for it fail", "correct the subset's labels, or those of the pods"},
	{"AMB0605", Error, "a host of a VirtualService or DestinationRule does not exist", "the name of a Service, or of a host of a ServiceEntry; another namespace's with its namespace"},
	{"AMB0606", Error, "a route is not bound to a parent: it has no effect", "a Service or ServiceEntry of its namespace as parent, with a waypoint"},
	{"AMB0607", Warning, "several objects are for one host and one of them is used", "one object for each host"},
	{"AMB0608", Warning, "ServiceEntries or Services have the same host: one of them is used", "each host once"},
	{"AMB0609", Error, "a back end of a route does not exist: its share of the requests fails", "correct `backendRefs`; another namespace's need a ReferenceGrant"},
	{"AMB0610", Error, "a Service's target port is no port of its pods", "the name or the number of a port on which a container listens"},
	{"AMB0611", Warning, "a VirtualService or a DestinationRule is for a host that has no waypoint: it has no effect", "`ambit waypoint apply`, and label the Service `istio.io/use-waypoint`"},
	{"AMB0612", Warning, "an address belongs to several Services or ServiceEntries: connections to it reach one of them", "each address once"},
	{"AMB0901", Error, "an object is refused, and what was good of it before stays in force", "correct the field that the text names"},
	{"AMB0902", Warning, "an object, or a part of it, has no effect", "correct the field that the text names, or take it out"},
	{"AMB0903", Warning, "an object works, and perhaps not as it was meant", "see the text"},
}
