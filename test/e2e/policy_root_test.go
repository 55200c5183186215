package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// peerAuth is a PeerAuthentication: a namespace, a mode, with a selector the server's, with modes of ports.
func peerAuth(namespace, name, mode string, server bool, ports ...string) string {
	s := "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec:\n"
	if server {
		s += "  selector: {matchLabels: {app: server}}\n"
	}
	if mode != "" {
		s += "  mtls: {mode: " + mode + "}\n"
	}
	if len(ports) > 0 {
		s += "  portLevelMtls: {" + strings.Join(ports, ", ") + "}\n"
	}
	return s
}

// served says whether a pod is served at the server's ports 8080 (by service port 80) and 9000.
func (m *mesh) served(namespace, pod string) (http, tcp bool) {
	http = m.from(namespace, pod, "--fresh", "--timeout=3s", "http://server.shop/").OK == 1
	tcp = m.from(namespace, pod, "--fresh", "--timeout=3s", "tcp://server.shop:9000").OK == 1
	return http, tcp
}

func TestRootPeerAuthenticationOfMeshNamespaceWorkloadAndPort(t *testing.T) { // I17, controlplane.md 1.7
	m := up(t, lab.Options{Name: "e2epeerauth"})
	const static = "explicitly denied by istio-system/istio_converted_static_strict"
	// Each step changes what one before it allowed or refused, so that none passes on the state of the last.
	for _, step := range []struct {
		name      string
		set       string // objects that are applied, over those of the steps before
		unset     [][2]string
		http, tcp bool   // is plaintext let in
		log       string // of the server's node, in this step
	}{
		{name: "none: PERMISSIVE is the default", http: true, tcp: true},
		{name: "mesh STRICT", set: peerAuth("istio-system", "default", "STRICT", false), log: static},
		{name: "namespace PERMISSIVE over mesh STRICT", set: peerAuth("shop", "default", "PERMISSIVE", false), http: true, tcp: true},
		{name: "workload STRICT over namespace PERMISSIVE", set: peerAuth("shop", "server", "STRICT", true), log: static},
		{name: "workload without mode takes the namespace's, its port 9000 STRICT",
			set: peerAuth("shop", "server", "", true, "9000: {mode: STRICT}"), http: true,
			log: "explicitly denied by shop/converted_peer_authentication_server"},
		{name: "namespace STRICT, the workload's port 9000 PERMISSIVE",
			set: peerAuth("shop", "default", "STRICT", false) + "---\n" + peerAuth("shop", "server", "UNSET", true, "9000: {mode: PERMISSIVE}"), tcp: true,
			log: "explicitly denied by shop/converted_peer_authentication_server"},
		{name: "namespace DISABLE over mesh STRICT is as PERMISSIVE, the workload's port 9000 STRICT",
			set: peerAuth("shop", "default", "DISABLE", false) + "---\n" + peerAuth("shop", "server", "", true, "9000: {mode: STRICT}"), http: true},
		{name: "workload STRICT, its port 9000 DISABLE", set: peerAuth("shop", "server", "STRICT", true, "9000: {mode: DISABLE}"), tcp: true},
		{name: "workload DISABLE over mesh STRICT", set: peerAuth("shop", "server", "DISABLE", true), http: true, tcp: true},
		{name: "workload and namespace gone, mesh STRICT again", unset: [][2]string{{"shop", "server"}, {"shop", "default"}}, log: static},
		{name: "all gone", unset: [][2]string{{"istio-system", "default"}}, http: true, tcp: true},
	} {
		t.Run(step.name, func(t *testing.T) {
			before := len(m.log("ztunnel/node-2", "proxy"))
			if step.set != "" {
				if err := m.c.ApplyYAML(t.Context(), step.set); err != nil {
					t.Fatal(err)
				}
			}
			for _, o := range step.unset {
				if err := m.c.DeleteObject(t.Context(), "PeerAuthentication", o[0], o[1]); err != nil {
					t.Fatal(err)
				}
			}
			var http, tcp bool
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if http, tcp = m.served("outside", "outsider"); http == step.http && tcp == step.tcp {
					break
				}
			}
			if http != step.http || tcp != step.tcp {
				t.Errorf("plaintext to 8080, 9000 is served: %v, %v; want %v, %v", http, tcp, step.http, step.tcp)
			}
			if http, tcp := m.served("shop", "client"); !http || !tcp {
				t.Errorf("mutual TLS to 8080, 9000 is served: %v, %v", http, tcp)
			}
			m.in(t).says("node-2", before, step.log)
		})
	}
}

func TestRootADenyThatOnlySeesRequestsFailsClosedWithoutAWaypointAndIsReported(t *testing.T) { // B49
	m := up(t, lab.Options{Name: "e2el7deny"})
	policy := func(action, rule string) string {
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l7, namespace: shop}\n"+
			"spec: {selector: {matchLabels: {app: server}}, action: %s, rules: [%s]}\n", action, rule)
	}
	for _, tc := range []struct {
		name, policy, reason, report string
		http, tcp                    bool
	}{
		{"DENY of a method denies everything", policy("DENY", "{to: [{operation: {methods: [DELETE]}}]}"),
			"explicitly denied by shop/converted_l7_deny_l7", "methods", false, false},
		{"DENY of a path on a port denies the port", policy("DENY", `{to: [{operation: {paths: ["/admin"], ports: ["9000"]}}]}`),
			"explicitly denied by shop/", "paths", true, false},
		{"DENY of a header of somebody else denies him only",
			policy("DENY", `{from: [{source: {namespaces: [outside]}}], when: [{key: "request.headers[x]", values: [y]}]}`), "", "request.headers[x]", true, true},
		{"ALLOW of a method allows nothing", policy("ALLOW", "{to: [{operation: {methods: [GET]}}]}"),
			"allow policies exist, but none allowed", "methods", false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, told := len(m.log("ztunnel/node-2", "proxy")), len(m.log("controlplane", ""))
			if err := m.c.ApplyYAML(t.Context(), tc.policy); err != nil {
				t.Fatal(err)
			}
			var http, tcp bool
			m.eventually("the control plane's report", 10*time.Second, func() bool {
				log := m.log("controlplane", "")[told:]
				return strings.Contains(log, "problem in the configuration") && strings.Contains(log, tc.report) && strings.Contains(log, "l7")
			})
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if http, tcp = m.served("shop", "client"); http == tc.http && tcp == tc.tcp {
					break
				}
			}
			if http != tc.http || tcp != tc.tcp {
				t.Errorf("8080, 9000 are served: %v, %v; want %v, %v", http, tcp, tc.http, tc.tcp)
			}
			m.in(t).says("node-2", before, tc.reason)
		})
	}
	if err := m.c.DeleteObject(t.Context(), "AuthorizationPolicy", "shop", "l7"); err != nil {
		t.Fatal(err)
	}
	m.eventually("answers without the policy", 10*time.Second, func() bool { http, tcp := m.served("shop", "client"); return http && tcp })
}
