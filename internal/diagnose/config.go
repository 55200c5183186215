package diagnose

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Table is rows under a head. All rows are as long as the head.
type Table struct {
	Head []string
	Rows [][]string
}

// Item is one thing that a program has, in the program's own words.
type Item struct {
	Proxy string `json:"proxy"`
	Value any    `json:"value"`
}

// section makes rows and items of what one program has of a kind.
type section struct {
	role string // of programs that have it; "" = all proxies
	head []string
	rows func(b *builder, p *Proxy) error
}

// builder collects the rows of a table.
type builder struct {
	s     *Subject
	ns    string // rows of other namespaces are left out, "" = none
	table Table
	items []Item
}

func (b *builder) add(p *Proxy, value any, row ...string) {
	b.items = append(b.items, Item{p.String(), value})
	b.table.Rows = append(b.table.Rows, append(row, p.Name))
}

var sections = map[string]section{
	"workloads":   {Ztunnel, []string{"NAMESPACE", "POD", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL", "STATUS"}, (*builder).workloads},
	"services":    {Ztunnel, []string{"NAMESPACE", "SERVICE", "VIP", "WAYPOINT", "ENDPOINTS"}, (*builder).services},
	"policies":    {Ztunnel, []string{"NAMESPACE", "POLICY", "ACTION", "SCOPE", "RULES"}, (*builder).policies},
	"certs":       {"", []string{"IDENTITY", "STATE", "SERIAL", "VALID-UNTIL", "ROOT-UNTIL"}, (*builder).certs},
	"connections": {Ztunnel, []string{"POD", "DIRECTION", "PEER", "DESTINATION", "ACTUAL", "PROTOCOL"}, (*builder).connections},
	"listeners":   {Waypoint, []string{"LISTENER", "CHAIN", "PROTOCOL", "FILTERS"}, (*builder).listeners},
	"routes":      {Waypoint, []string{"LISTENER", "CHAIN", "ROUTE"}, (*builder).routes},
	"clusters":    {Waypoint, []string{"CLUSTER", "ENDPOINTS", "HEALTHY"}, (*builder).clusters},
	"endpoints":   {Waypoint, []string{"CLUSTER", "ENDPOINT", "WORKLOAD", "HEALTH", "REQUESTS", "FAILED"}, (*builder).endpoints},
	"bootstrap":   {"", []string{"KEY", "VALUE"}, (*builder).bootstrap},
}

// Kinds are those of Config.
func Kinds() []string {
	return []string{"workloads", "services", "policies", "certs", "connections", "listeners", "routes", "clusters", "endpoints", "bootstrap"}
}

// Roles are the roles of programs that have a kind of configuration.
func Roles(kind string) []string {
	if r := sections[kind].role; r != "" {
		return []string{r}
	}
	return []string{Ztunnel, Waypoint}
}

// Config is what programs have of a kind: of the subject, or all of it when that is nil; of one namespace unless it is "".
func Config(kind string, s *Subject, namespace string, programs []*Proxy) (Table, []Item, error) {
	sec, ok := sections[kind]
	if !ok {
		return Table{}, nil, fmt.Errorf("unknown configuration %q; accepted: %s", kind, strings.Join(Kinds(), ", "))
	}
	b := &builder{s: s, ns: namespace, table: Table{Head: append(slices.Clone(sec.head), "PROXY")}}
	for _, p := range programs {
		if p.Dump == nil || !slices.Contains(Roles(kind), p.Role) {
			continue
		}
		if err := sec.rows(b, p); err != nil {
			return Table{}, nil, fmt.Errorf("read %s of %s: %w", kind, p, err)
		}
	}
	order := make([]int, len(b.items))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return slices.Compare(b.table.Rows[x], b.table.Rows[y]) })
	t, items := Table{Head: b.table.Head}, []Item{}
	for _, i := range order {
		t.Rows, items = append(t.Rows, b.table.Rows[i]), append(items, b.items[i])
	}
	return t, items, nil
}

func (b *builder) skip(namespace string) bool { return b.ns != "" && namespace != b.ns }

func (b *builder) workloads(p *Proxy) error {
	for _, w := range p.Dump.Workloads {
		if b.skip(w.Namespace) || !b.s.pod(w.Namespace, w.Name) {
			continue
		}
		waypoint := ""
		if w.Waypoint != nil {
			waypoint = w.Waypoint.Destination
		}
		b.add(p, w, w.Namespace, w.Name, joined(w.WorkloadIPs), w.Node, waypoint, w.Protocol, w.Status)
	}
	return nil
}

func joined(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}

func (b *builder) services(p *Proxy) error {
	for _, s := range p.Dump.Services {
		if b.skip(s.Namespace) || !b.s.service(s.Namespace, s.Name) {
			continue
		}
		waypoint, healthy := "", 0
		if s.Waypoint != nil {
			waypoint = s.Waypoint.Destination
		}
		for _, e := range s.Endpoints {
			if e.Status == "Healthy" {
				healthy++
			}
		}
		var vips []string
		for _, v := range s.VIPs {
			_, ip, _ := strings.Cut(v, "/")
			vips = append(vips, ip)
		}
		b.add(p, s, s.Namespace, s.Hostname, strings.Join(vips, ","), waypoint, fmt.Sprintf("%d/%d", healthy, len(s.Endpoints)))
	}
	return nil
}

func (b *builder) policies(p *Proxy) error {
	used := map[string]bool{}
	for _, w := range p.Dump.Workloads {
		for _, name := range w.Policies {
			used[name] = used[name] || b.s.pod(w.Namespace, w.Name)
		}
	}
	for _, x := range p.Dump.Policies {
		switch {
		case b.skip(x.Namespace) && x.Scope != "Global":
		case b.s == nil, x.Scope == "Global", x.Scope == "Namespace" && x.Namespace == b.s.Namespace, used[x.Namespace+"/"+x.Name]:
			b.add(p, x, x.Namespace, x.Name, x.Action, x.Scope, fmt.Sprint(len(x.Rules)))
		}
	}
	return nil
}

func (b *builder) certs(p *Proxy) error {
	for _, c := range p.Dump.Certificates {
		if p.Role == Ztunnel && !b.s.identity(c.Identity) || b.ns != "" && !strings.Contains(c.Identity, "/ns/"+b.ns+"/") {
			continue
		}
		serial, until, root := "", "", ""
		if len(c.CertChain) > 0 {
			serial, until = c.CertChain[0].SerialNumber, c.CertChain[0].ExpirationTime
			if len(serial) > 12 {
				serial = "..." + serial[len(serial)-9:]
			}
		}
		for _, r := range c.RootCerts {
			if root == "" || r.ExpirationTime < root {
				root = r.ExpirationTime
			}
		}
		b.add(p, c, c.Identity, c.State, serial, until, root)
	}
	return nil
}

func (b *builder) connections(p *Proxy) error {
	for _, s := range p.Dump.States {
		if b.skip(s.Info.Namespace) || !b.s.pod(s.Info.Namespace, s.Info.Name) {
			continue
		}
		pod := s.Info.Namespace + "/" + s.Info.Name
		for _, c := range s.Connections.Inbound {
			dst := ""
			if c.OriginalDst != nil {
				dst = *c.OriginalDst
			}
			b.add(p, map[string]any{"pod": pod, "direction": "inbound", "connection": c}, pod, "inbound", c.Src, dst, c.ActualDst, c.Protocol)
		}
		for _, c := range s.Connections.Outbound {
			dst := ""
			if c.OriginalDst != nil {
				dst = *c.OriginalDst
			}
			b.add(p, map[string]any{"pod": pod, "direction": "outbound", "connection": c}, pod, "outbound", c.Src, dst, c.ActualDst, c.Protocol)
		}
	}
	return nil
}

// chain is a filter chain as a waypoint tells of it.
type chain struct {
	Name     string   `json:"name"`
	Protocol string   `json:"protocol"`
	Routes   []string `json:"routes,omitempty"`
	Clusters []string `json:"clusters,omitempty"`
	Filters  []string `json:"filters,omitempty"`
}

type listener struct {
	Name   string  `json:"name"`
	Chains []chain `json:"chains"`
}

// chains calls f with each chain of a waypoint that has to do with the subject.
func (b *builder) chains(p *Proxy, f func(l string, c chain)) error {
	var list []listener
	if len(p.Dump.Listeners) == 0 {
		return fmt.Errorf("its /config_dump has none of its own and no Envoy's")
	}
	if err := json.Unmarshal(p.Dump.Listeners, &list); err != nil {
		return err
	}
	for _, l := range list {
		for _, c := range l.Chains {
			if b.s.mentions(strings.Join(append(append([]string{c.Name}, c.Routes...), c.Clusters...), " ")) {
				f(l.Name, c)
			}
		}
	}
	return nil
}

func (b *builder) listeners(p *Proxy) error {
	return b.chains(p, func(l string, c chain) {
		var filters []string
		for _, f := range c.Filters {
			filters = append(filters, strings.TrimPrefix(f, "*filter."))
		}
		b.add(p, map[string]any{"listener": l, "chain": c}, l, c.Name, c.Protocol, strings.Join(filters, ","))
	})
}

func (b *builder) routes(p *Proxy) error {
	return b.chains(p, func(l string, c chain) {
		for _, r := range append(slices.Clone(c.Routes), prefixed("tcp -> ", c.Clusters)...) {
			b.add(p, map[string]any{"listener": l, "chain": c.Name, "route": r}, l, c.Name, r)
		}
	})
}

func prefixed(prefix string, list []string) (out []string) {
	for _, s := range list {
		out = append(out, prefix+s)
	}
	return out
}

type clusterState struct {
	Name      string          `json:"name"`
	Known     bool            `json:"endpointsKnown"`
	Usage     json.RawMessage `json:"usage,omitempty"`
	Endpoints []endpointState `json:"endpoints"`
}

type endpointState struct {
	Address  string `json:"address"`
	Health   string `json:"health"`
	Ejected  bool   `json:"ejected"`
	Weight   uint32 `json:"weight"`
	Priority int    `json:"priority"`
	Active   int64  `json:"activeRequests"`
	Requests uint64 `json:"requests"`
	Failed   uint64 `json:"failed"`
	Workload string `json:"workload,omitempty"`
}

func (e *endpointState) state() string {
	if e.Ejected {
		return "ejected"
	}
	return strings.ToLower(e.Health)
}

func (b *builder) each(p *Proxy, f func(c *clusterState)) error {
	var list []clusterState
	if len(p.Dump.Clusters) == 0 {
		return fmt.Errorf("its /config_dump has none of its own and no Envoy's")
	}
	if err := json.Unmarshal(p.Dump.Clusters, &list); err != nil {
		return err
	}
	for i := range list {
		if b.s.mentions(list[i].Name) {
			f(&list[i])
		}
	}
	return nil
}

func (b *builder) clusters(p *Proxy) error {
	return b.each(p, func(c *clusterState) {
		healthy := 0
		for i := range c.Endpoints {
			if c.Endpoints[i].state() == "healthy" {
				healthy++
			}
		}
		b.add(p, c, c.Name, fmt.Sprint(len(c.Endpoints)), fmt.Sprint(healthy))
	})
}

func (b *builder) endpoints(p *Proxy) error {
	return b.each(p, func(c *clusterState) {
		for i := range c.Endpoints {
			e := &c.Endpoints[i]
			b.add(p, map[string]any{"cluster": c.Name, "endpoint": e}, c.Name, e.Address, e.Workload, e.state(), fmt.Sprint(e.Requests), fmt.Sprint(e.Failed))
		}
	})
}

func (b *builder) bootstrap(p *Proxy) error {
	m := map[string]any{}
	if len(p.Dump.Bootstrap) > 0 {
		dec := json.NewDecoder(bytes.NewReader(p.Dump.Bootstrap))
		dec.UseNumber()
		if err := dec.Decode(&m); err != nil {
			return err
		}
	}
	for k, v := range m {
		b.add(p, map[string]any{"key": k, "value": v}, k, fmt.Sprint(v))
	}
	return nil
}

// Proxies is a row for each program of the mesh: whether it has what it was sent.
func Proxies(w *World) (Table, []ProxyState) {
	t := Table{Head: []string{"NAMESPACE", "NAME", "ROLE", "NODE", "READY", "SYNC", "CONNECTED", "VERSION", "REFUSED"}}
	list := []ProxyState{}
	for i := range w.Proxies {
		p := &w.Proxies[i]
		s := syncOf(w, p)
		list = append(list, s)
		t.Rows = append(t.Rows, []string{p.Namespace, p.Name, p.Role, p.Node, fmt.Sprint(p.Ready), s.Sync, s.Connected, s.Version, s.Refused})
	}
	slices.SortFunc(list, func(a, b ProxyState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(t.Rows, slices.Compare)
	return t, list
}

// ProxyState is one program of the mesh and what the control plane knows of it.
type ProxyState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Role      string `json:"role"`
	Node      string `json:"node,omitempty"`
	Ready     bool   `json:"ready"`
	// Sync is SYNCED, STALE, NACKED or NOT SENT as the control plane says, NOT CONNECTED, or "-" for a control plane.
	Sync      string `json:"sync"`
	Connected string `json:"connected,omitempty"`
	Version   string `json:"version,omitempty"`
	// Refused is what the proxy said when it refused something.
	Refused string `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"`
}

func syncOf(w *World, p *Proxy) ProxyState {
	s := ProxyState{Namespace: p.Namespace, Name: p.Name, Role: p.Role, Node: p.Node, Ready: p.Ready, Version: p.version(), Error: p.Error, Sync: "NOT CONNECTED"}
	if p.Role == ControlPlane {
		s.Sync = "-"
		return s
	}
	worst := []string{"SYNCED", "NOT SENT", "STALE", "NACKED"}
	for i := range w.Proxies {
		if w.Proxies[i].Control == nil {
			continue
		}
		for _, c := range w.Proxies[i].Control.Clients {
			if clientPod(c.Client) != p.Namespace+"/"+p.Name {
				continue
			}
			s.Sync, s.Connected = "SYNCED", w.Now.Sub(c.Connected).Round(time.Second).String()
			for _, t := range c.Types {
				// Waypoints ask for types of which there is nothing to send.
				if slices.Index(worst, t.State) > slices.Index(worst, s.Sync) && t.State != "NOT SENT" {
					s.Sync = t.State
				}
				if t.NACK != "" {
					s.Refused = t.NACK
				}
			}
			return s
		}
	}
	return s
}
