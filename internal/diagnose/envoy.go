package diagnose

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/admin"
)

// node is a part of an Envoy's config_dump. It is read by the names of fields alone: an Envoy may have types in it that this
// program does not know. A part that is not there is nil, and has no parts.
type node struct{ v any }

// at is a field, or one below it.
func (n node) at(path ...string) node {
	for _, name := range path {
		m, _ := n.v.(map[string]any)
		n = node{m[name]}
	}
	return n
}

func (n node) text() string { s, _ := n.v.(string); return s }

func (n node) list() (out []node) {
	l, _ := n.v.([]any)
	for _, v := range l {
		out = append(out, node{v})
	}
	return out
}

// all are the values of a field of the elements of lists.
func (n node) all(field string, lists ...string) (out []node) {
	for _, l := range lists {
		for _, e := range n.at(l).list() {
			if x := e.at(field); x.v != nil {
				out = append(out, x)
			}
		}
	}
	return out
}

// readEnvoy fills in what /config_dump of an Envoy says of the parts that our own waypoints tell of too. It does nothing for
// a dump that is no Envoy's.
func (d *Dump) readEnvoy(body []byte) error {
	var root any
	if err := json.Unmarshal(body, &root); err != nil {
		return err
	}
	configs := map[string]node{}
	for _, c := range (node{root}).at("configs").list() {
		kind := c.at("@type").text()
		configs[kind[strings.LastIndex(kind, ".")+1:]] = c
	}
	if len(configs) == 0 {
		return nil
	}
	d.Envoy = true
	boot := configs["BootstrapConfigDump"].at("bootstrap")
	meta := boot.at("node", "metadata")
	d.Config.Version = meta.at("ISTIO_VERSION").text()
	d.Config.Gateway = meta.at("LABELS", "gateway.networking.k8s.io/gateway-name").text()
	listeners := envoyListeners(configs["ListenersConfigDump"], envoyRoutes(configs["RoutesConfigDump"]))
	clusters := envoyClusters(configs["ClustersConfigDump"], configs["EndpointsConfigDump"])
	d.Certificates = envoyCertificates(configs["SecretsConfigDump"])
	var err error
	for _, x := range []struct {
		to   *json.RawMessage
		from any
	}{{&d.Bootstrap, boot.v}, {&d.Listeners, listeners}, {&d.Clusters, clusters}} {
		if *x.to, err = json.Marshal(x.from); err != nil {
			return err
		}
	}
	return nil
}

// envoyRoutes are those that have a name of their own.
func envoyRoutes(dump node) map[string]node {
	out := map[string]node{}
	for _, r := range dump.all("route_config", "static_route_configs", "dynamic_route_configs") {
		out[r.at("name").text()] = r
	}
	return out
}

func envoyListeners(dump node, routes map[string]node) []listener {
	out := []listener{}
	found := dump.all("listener", "static_listeners")
	for _, s := range dump.all("active_state", "dynamic_listeners") {
		found = append(found, s.at("listener"))
	}
	for _, l := range found {
		x := listener{Name: l.at("name").text(), Chains: []chain{}}
		chains := l.at("filter_chains").list()
		if def := l.at("default_filter_chain"); def.v != nil {
			chains = append(chains, def)
		}
		for _, c := range chains {
			x.Chains = append(x.Chains, envoyChain(c, routes))
		}
		out = append(out, x)
	}
	return out
}

func envoyChain(c node, routes map[string]node) chain {
	out := chain{Name: c.at("name").text(), Protocol: "tcp"}
	for _, f := range c.at("filters").list() {
		config := f.at("typed_config")
		out.Clusters = append(out.Clusters, targets(config)...)
		if http := config.at("http_filters").list(); len(http) > 0 {
			out.Protocol = "http"
			for _, h := range http {
				out.Filters = append(out.Filters, h.at("name").text())
			}
		} else {
			out.Filters = append(out.Filters, f.at("name").text())
		}
		table := config.at("route_config")
		if name := config.at("rds", "route_config_name").text(); name != "" {
			table = routes[name]
		}
		for _, host := range table.at("virtual_hosts").list() {
			for _, r := range host.at("routes").list() {
				out.Routes = append(out.Routes, envoyRoute(host, r))
			}
		}
	}
	return out
}

// targets are the clusters that a TCP proxy or a route leads to.
func targets(n node) (out []string) {
	if c := n.at("cluster").text(); c != "" {
		out = append(out, c)
	}
	for _, w := range n.at("weighted_clusters", "clusters").list() {
		out = append(out, w.at("name").text())
	}
	return out
}

// envoyRoute is a route on one line.
func envoyRoute(host, r node) string {
	match := "*"
	for _, kind := range []string{"prefix", "path", "path_separated_prefix"} {
		if v := r.at("match", kind).text(); v != "" {
			match = strings.TrimPrefix(kind, "path_separated_") + " " + v
		}
	}
	if v := r.at("match", "safe_regex", "regex").text(); v != "" {
		match = "regex " + v
	}
	to := strings.Join(targets(r.at("route")), ", ")
	switch {
	case to != "":
	case r.at("redirect").v != nil:
		to = "redirect"
	case r.at("direct_response").v != nil:
		to = fmt.Sprint("status ", r.at("direct_response", "status").v)
	}
	return fmt.Sprintf("%s: %s -> %s", host.at("name").text(), match, to)
}

func envoyClusters(dump, endpoints node) []clusterState {
	known := map[string][]endpointState{}
	for _, e := range endpoints.all("endpoint_config", "static_endpoint_configs", "dynamic_endpoint_configs") {
		name := e.at("cluster_name").text()
		known[name] = append(known[name], envoyEndpoints(e)...)
	}
	out := []clusterState{}
	for _, c := range dump.all("cluster", "static_clusters", "dynamic_active_clusters") {
		x := clusterState{Name: c.at("name").text(), Endpoints: []endpointState{}}
		list, ok := known[x.Name]
		if assignment := c.at("load_assignment"); !ok && assignment.v != nil {
			list, ok = envoyEndpoints(assignment), true
		}
		x.Known, x.Endpoints = ok, append(x.Endpoints, list...)
		out = append(out, x)
	}
	return out
}

func envoyEndpoints(assignment node) (out []endpointState) {
	for _, locality := range assignment.at("endpoints").list() {
		for _, e := range locality.at("lb_endpoints").list() {
			a := e.at("endpoint", "address")
			x := endpointState{Health: strings.ToLower(cmp.Or(e.at("health_status").text(), "healthy"))}
			if s := a.at("socket_address"); s.v != nil {
				x.Address = fmt.Sprintf("%s:%v", s.at("address").text(), s.at("port_value").v)
			} else {
				x.Address = cmp.Or(a.at("envoy_internal_address", "endpoint_id").text(), a.at("pipe", "path").text())
			}
			out = append(out, x)
		}
	}
	return out
}

// envoyCertificates are the identity and the roots that an Envoy got as secrets.
func envoyCertificates(dump node) []Told[admin.Certificate] {
	var chains, roots []*x509.Certificate
	var out []Told[admin.Certificate]
	secrets := dump.all("secret", "static_secrets", "dynamic_active_secrets")
	for _, s := range secrets {
		roots = append(roots, parseInline(s.at("validation_context", "trusted_ca"))...)
	}
	for _, s := range secrets {
		if chains = parseInline(s.at("tls_certificate", "certificate_chain")); len(chains) == 0 {
			continue
		}
		identity := s.at("name").text()
		if i := slices.IndexFunc(chains, func(c *x509.Certificate) bool { return len(c.URIs) > 0 }); i >= 0 {
			identity = chains[i].URIs[0].String()
		}
		out = append(out, Told[admin.Certificate]{Value: admin.NewCertificate(identity, "Available", chains, roots)})
	}
	return out
}

// parseInline reads certificates from a data source of Envoy's.
func parseInline(source node) []*x509.Certificate {
	text := []byte(source.at("inline_string").text())
	if in := source.at("inline_bytes"); in.v != nil {
		body, _ := json.Marshal(in.v)
		_ = json.Unmarshal(body, &text) // what is no base64 has no certificates
	}
	if b, _ := pem.Decode(text); b == nil {
		return nil
	}
	return parseRoots(text)
}
