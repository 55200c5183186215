package envoy

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
)

// Bootstrap is the JSON that Envoy starts from: who it is, the control plane over delta ADS with the token, the agent's
// SDS socket, and the internal listeners that istiod's and our resources need (controlplane.md 3.11). Our control plane
// knows the waypoint by the pod's name in the node's id.
func Bootstrap(cfg Config, token, sdsSocket string) ([]byte, error) {
	u, err := url.Parse(cfg.XDSAddress)
	if err != nil {
		return nil, fmt.Errorf("parse xds address %q: %w", cfg.XDSAddress, err)
	}
	xdsHost, xdsPort := u.Hostname(), portOf(u.Port(), 15012)
	adminHost, adminPort, err := net.SplitHostPort(cfg.AdminAddress)
	if err != nil {
		return nil, fmt.Errorf("parse admin address %q: %w", cfg.AdminAddress, err)
	}
	p := cfg.Pod
	ads := m{"ads": m{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
	boot := m{
		"node": m{
			"id":      "waypoint~" + p.IP + "~" + p.Name + "." + p.Namespace + "~" + p.Namespace + ".svc." + cfg.TrustDomain,
			"cluster": p.Gateway + "." + p.Namespace,
			"metadata": m{
				"NAMESPACE": p.Namespace, "SERVICE_ACCOUNT": p.ServiceAccount, "NAME": p.Name, "CLUSTER_ID": p.ClusterID,
				"NODE_NAME": p.Node, "INSTANCE_IPS": p.IP, "ENABLE_HBONE": "true", "NETWORK": p.Network,
				"LABELS": m{"gateway.networking.k8s.io/gateway-name": p.Gateway, "gateway.istio.io/managed": "istio.io-mesh-controller"},
			},
		},
		"admin": m{"address": socketAddress(adminHost, portOf(adminPort, 15000))},
		"dynamic_resources": m{
			"ads_config": m{
				"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []m{{
					"envoy_grpc": m{"cluster_name": "xds-grpc"},
					"initial_metadata": []m{
						{"key": "authorization", "value": "Bearer " + token}, {"key": "clusterid", "value": p.ClusterID},
					},
				}},
			},
			"cds_config": ads, "lds_config": ads,
		},
		"static_resources":     m{"clusters": []m{xdsCluster(xdsHost, xdsPort, cfg.RootCA), sdsCluster(sdsSocket)}},
		"bootstrap_extensions": []m{internalListeners()},
	}
	out, err := json.MarshalIndent(boot, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	return out, nil
}

// m is a JSON object.
type m = map[string]any

func portOf(s string, otherwise int) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return otherwise
}

func socketAddress(host string, port int) m {
	return m{"socket_address": m{"address": host, "port_value": port}}
}

func http2() m {
	return m{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": m{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": m{"http2_protocol_options": m{"connection_keepalive": m{"interval": "30s", "timeout": "10s"}}},
	}}
}

func assignment(name string, address m) m {
	return m{"cluster_name": name, "endpoints": []m{{"lb_endpoints": []m{{"endpoint": m{"address": address}}}}}}
}

func xdsCluster(host string, port int, rootCA string) m {
	kind, verify := "STATIC", m{"san_type": "DNS", "matcher": m{"exact": "istiod.istio-system.svc"}}
	if net.ParseIP(host) == nil {
		kind = "STRICT_DNS"
	}
	return m{
		"name": "xds-grpc", "type": kind, "connect_timeout": "5s", "typed_extension_protocol_options": http2(),
		"load_assignment": assignment("xds-grpc", socketAddress(host, port)),
		"transport_socket": m{"name": "envoy.transport_sockets.tls", "typed_config": m{
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
			"sni":   "istiod.istio-system.svc",
			"common_tls_context": m{
				"alpn_protocols": []string{"h2"},
				"validation_context": m{
					"trusted_ca": m{"filename": rootCA}, "match_typed_subject_alt_names": []m{verify},
				},
			},
		}},
	}
}

func sdsCluster(socket string) m {
	return m{
		"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2(),
		"load_assignment": assignment("sds-grpc", m{"pipe": m{"path": socket}}),
	}
}

func internalListeners() m {
	return m{"name": "envoy.bootstrap.internal_listener", "typed_config": m{
		"@type":          "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
		"buffer_size_kb": 64,
	}}
}
