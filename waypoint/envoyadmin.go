package waypoint

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// object is one of JSON.
type object = map[string]any

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	_ = e.Encode(v) // an error means that the client is gone
}

// clustersHandler serves /clusters in Envoy's text form, or with ?format=json in its JSON.
func (s *store) clustersHandler(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, s.clusterStatuses())
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	line := func(c *cluster.Cluster, key string, value any) { fmt.Fprintf(w, "%s::%s::%v\n", c.Name, key, value) }
	for _, c := range s.clusters.View().All() {
		line(c, "observability_name", c.StatName)
		for _, l := range limits(c) {
			line(c, "default_priority::"+l.name, l.value)
		}
		line(c, "added_via_api", true)
		if c.ServiceName != "" {
			line(c, "eds_service_name", c.ServiceName)
		}
		for _, h := range c.Hosts() {
			e := h.Endpoint()
			at := e.EnvoyAddress() + "::"
			for _, n := range hostStats(h) {
				line(c, at+n.name, n.value)
			}
			for _, l := range []struct {
				key   string
				value any
			}{
				{"hostname", e.Hostname}, {"health_flags", healthFlags(h)}, {"weight", e.Weight}, {"region", e.Locality.Region}, {"zone", e.Locality.Zone},
				{"sub_zone", e.Locality.SubZone}, {"canary", false}, {"priority", e.Priority}, {"success_rate", -1}, {"local_origin_success_rate", -1},
			} {
				line(c, at+l.key, l.value)
			}
		}
	}
}

// limits are a cluster's circuit breakers as Envoy writes them: 2^32-1 is no limit.
func limits(c *cluster.Cluster) []number {
	l := c.Limits()
	var out []number
	for _, x := range []struct {
		name  string
		value int64
	}{{"max_connections", l.Connections}, {"max_pending_requests", l.Pending}, {"max_requests", l.Requests}, {"max_retries", l.Retries}} {
		out = append(out, number{x.name, uint64(min(x.value, 1<<32-1))})
	}
	return out
}

type number struct {
	name  string
	value uint64
}

// hostStats are what is counted of an endpoint, by Envoy's names; those that end in _active are gauges.
func hostStats(h *cluster.Host) []number {
	total, failed := h.Requests()
	active := uint64(max(h.Active(), 0))
	return []number{
		{"cx_active", uint64(max(h.Connections(), 0))}, {"rq_active", active}, {"rq_error", failed}, {"rq_success", total - min(total, failed+active)}, {"rq_total", total},
	}
}

// healthFlags are Envoy's words for an endpoint's state.
func healthFlags(h *cluster.Host) string {
	flags := ""
	if h.Ejected() {
		flags = "/failed_outlier_check"
	}
	switch h.Endpoint().Health {
	case cluster.Healthy:
	case cluster.Degraded:
		flags += "/degraded_eds_health"
	default:
		flags += "/failed_eds_health"
	}
	if flags == "" {
		return "healthy"
	}
	return flags
}

// clusterStatuses is /clusters?format=json in Envoy's shape, which istioctl proxy-config endpoints reads.
func (s *store) clusterStatuses() any {
	list := []object{}
	for _, c := range s.clusters.View().All() {
		hosts := []object{}
		for _, h := range c.Hosts() {
			hosts = append(hosts, hostStatus(h))
		}
		threshold := object{}
		for _, l := range limits(c) {
			threshold[l.name] = l.value
		}
		x := object{
			"name": c.Name, "added_via_api": true, "host_statuses": hosts, "observability_name": c.StatName,
			"circuit_breakers": object{"thresholds": []object{threshold}},
		}
		if c.ServiceName != "" {
			x["eds_service_name"] = c.ServiceName
		}
		list = append(list, x)
	}
	return object{"cluster_statuses": list}
}

func hostStatus(h *cluster.Host) object {
	e := h.Endpoint()
	health := object{"eds_health_status": "HEALTHY"}
	switch e.Health {
	case cluster.Healthy:
	case cluster.Degraded:
		health["eds_health_status"] = "DEGRADED"
	case cluster.Draining:
		health["eds_health_status"] = "DRAINING"
	default:
		health["eds_health_status"] = "UNHEALTHY"
	}
	if h.Ejected() {
		health["failed_outlier_check"] = true
	}
	var stats []object
	for _, n := range hostStats(h) {
		x := object{"name": n.name, "value": strconv.FormatUint(n.value, 10)}
		if strings.HasSuffix(n.name, "_active") {
			x["type"] = "GAUGE"
		}
		stats = append(stats, x)
	}
	host := object{
		"stats": stats, "health_status": health, "weight": e.Weight, "priority": e.Priority, "hostname": e.Hostname,
		"locality": object{"region": e.Locality.Region, "zone": e.Locality.Zone, "sub_zone": e.Locality.SubZone},
	}
	listener, id, internal := e.Internal()
	switch {
	case internal:
		host["address"] = object{"envoy_internal_address": object{"server_listener_name": listener, "endpoint_id": id}}
	case e.Addr.IsValid():
		host["address"] = object{"socket_address": object{"address": e.Addr.Addr().String(), "port_value": e.Addr.Port()}}
	default:
		host["address"] = object{"socket_address": object{"address": e.Name, "port_value": e.Port}}
	}
	return host
}

// listenersHandler serves /listeners: names and addresses.
func (s *store) listenersHandler(w http.ResponseWriter, r *http.Request) {
	list := []object{}
	var text strings.Builder
	for _, x := range s.rawListeners.sorted() {
		var l listenerv3.Listener
		body, err := x.unpack()
		if err != nil || proto.Unmarshal(body, &l) != nil {
			continue
		}
		if a := l.GetAddress().GetSocketAddress(); a != nil {
			list = append(list, object{"name": x.name, "local_address": object{"socket_address": object{"address": a.GetAddress(), "port_value": a.GetPortValue()}}})
			fmt.Fprintf(&text, "%s::%s:%d\n", x.name, a.GetAddress(), a.GetPortValue())
			continue
		}
		list = append(list, object{"name": x.name, "local_address": object{"envoy_internal_address": object{"server_listener_name": x.name}}})
		fmt.Fprintf(&text, "%s::envoy://%s/\n", x.name, x.name)
	}
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, object{"listener_statuses": list})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, text.String())
}

// certsHandler serves /certs: the own certificate and the roots.
func (w *waypoint) certsHandler(rw http.ResponseWriter, _ *http.Request) {
	list := []object{}
	for _, s := range w.certs.Snapshot() {
		_, chain, roots := s.Describe()
		list = append(list, object{"ca_cert": certDetails(roots), "cert_chain": certDetails(chain)})
	}
	writeJSON(rw, object{"certificates": list})
}

func certDetails(certs []*x509.Certificate) []object {
	out := []object{}
	for _, c := range certs {
		names := []object{}
		for _, u := range c.URIs {
			names = append(names, object{"uri": u.String()})
		}
		for _, d := range c.DNSNames {
			names = append(names, object{"dns": d})
		}
		out = append(out, object{
			"path": "<inline>", "serial_number": fmt.Sprintf("%x", c.SerialNumber), "subject_alt_names": names,
			"days_until_expiration": strconv.Itoa(max(0, int(time.Until(c.NotAfter)/(24*time.Hour)))),
			"valid_from":            c.NotBefore.UTC().Format(time.RFC3339), "expiration_time": c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
	return out
}

// serverInfoHandler serves /server_info.
func (w *waypoint) serverInfoHandler(rw http.ResponseWriter, _ *http.Request) {
	state := "LIVE"
	if len(w.ready.Waiting()) > 0 {
		state = "INITIALIZING"
	}
	up := fmt.Sprintf("%ds", int(time.Since(w.started).Seconds()))
	writeJSON(rw, object{
		"version": "ambit/" + w.cfg.Version, "state": state, "uptime_current_epoch": up, "uptime_all_epochs": up,
		"hot_restart_version": "disabled", "command_line_options": object{"concurrency": w.workers()}, "node": w.envoyNode(),
	})
}

const loggingUsage = `usage: POST /logging                              (show the levels)
usage: POST /logging?level=LEVEL                  (of all scopes)
usage: POST /logging?SCOPE=LEVEL
usage: POST /logging?paths=SCOPE:LEVEL,SCOPE:LEVEL
usage: POST /logging?reset                        (back to the levels of the start)
levels: off, critical, error, warning, info, debug, trace`

// scopes are those of the waypoint's log.
var scopes = []string{"app", "config", "identity", "proxy", "xds"}

// loggingHandler serves /logging with the parameters and the answer of Envoy, which istioctl proxy-config log knows.
func (w *waypoint) loggingHandler(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		rw.WriteHeader(http.StatusMethodNotAllowed)
		fmt.Fprintln(rw, loggingUsage)
		return
	}
	if err := w.changeLevels(r); err != nil {
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(rw, "error: %v\n\n%s\n", err, loggingUsage)
		return
	}
	fmt.Fprintln(rw, "active loggers:")
	for _, s := range scopes {
		fmt.Fprintf(rw, "  %s: %s\n", s, w.levels.Of(s))
	}
}

// changeLevels does what the parameters say; with an error nothing has changed.
func (w *waypoint) changeLevels(r *http.Request) error {
	var all string
	var some []string
	reset := false
	for key, values := range r.URL.Query() {
		v := strings.Join(values, ",")
		switch {
		case key == "reset":
			reset = true
		case key == "level" && !strings.Contains(v, "="):
			all = v
		case key == "level":
			some = append(some, v)
		case key == "paths":
			some = append(some, strings.ReplaceAll(v, ":", "="))
		default:
			some = append(some, key+"="+v)
		}
	}
	list := strings.Join(some, ",")
	for p := range strings.SplitSeq(list, ",") {
		if name, _, ok := strings.Cut(p, "="); ok && !slices.Contains(scopes, name) {
			return fmt.Errorf("unknown scope %.64q; known are %s", name, strings.Join(scopes, ", "))
		}
	}
	switch {
	case reset:
		return w.levels.Reset(all + "," + list)
	case all != "":
		return w.levels.Replace(all + "," + list)
	}
	return w.levels.Merge(list)
}
