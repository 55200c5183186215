package diagnose

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Table is rows under a head. All rows are as long as the head.
type Table struct {
	Head []string
	Rows [][]string
	// Key is how many of the columns, the first ones, name what a row is about.
	Key int
	// Wide is how many of the columns, the last ones, are for those alone who ask for more.
	Wide int
}

// Narrow is the table without the columns for those who ask for more.
func (t Table) Narrow() Table {
	n := len(t.Head) - t.Wide
	out := Table{Head: t.Head[:n], Key: t.Key}
	for _, row := range t.Rows {
		out.Rows = append(out.Rows, row[:n])
	}
	return out
}

// ID tells what a row is about from what other rows are: its key, and the proxy that said it.
func (t Table) ID(row []string) string {
	id := strings.Join(row[:t.Key], "\x00")
	if i := slices.Index(t.Head, proxyColumn); i >= 0 {
		id += "\x00" + row[i]
	}
	return id
}

const proxyColumn = "PROXY"

// ConnectedColumn says how long ago something was: it changes by itself.
const ConnectedColumn = "CONNECTED"

// Item is one thing that a program has, in the program's own words.
type Item struct {
	Proxy string `json:"proxy"`
	Value any    `json:"value"`

	name string // KIND/NAME, "" = it has none
}

// Name is KIND/NAME, "" for what has no name. That of a pod or a Service is an object's.
func (i Item) Name() string { return i.name }

// section makes rows and items of what one program has of a kind.
type section struct {
	role string // of programs that have it; "" = all proxies
	word string // before an item's name; "" = its items have none
	key  int    // columns of the head that name an item
	head []string
	wide []string // columns after PROXY
	rows func(b *builder, p *Proxy) error
}

// builder collects the rows of a table.
type builder struct {
	s     *Subject
	ns    string // rows of other namespaces are left out, "" = none
	sec   section
	table Table
	items []Item
}

// add adds what a program has: its name, and the cells of all columns but PROXY.
func (b *builder) add(p *Proxy, value any, name string, row ...string) {
	if name != "" {
		name = b.sec.word + "/" + name
	}
	b.items = append(b.items, Item{p.String(), value, name})
	b.table.Rows = append(b.table.Rows, slices.Insert(row, len(b.sec.head), p.Name))
}

var sections = map[string]section{
	"workloads": {Ztunnel, "pod", 2, []string{"NAMESPACE", "POD", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL", "STATUS"},
		[]string{"SERVICE-ACCOUNT", "OWNER", "SERVICES", "POLICIES", "NETWORK", "LOCALITY", "GATEWAY", "NETWORK-MODE", "TUNNEL",
			"TRUST-DOMAIN", "CLUSTER", "CANONICAL", "CAPACITY", "STATE", "UID"}, (*builder).workloads},
	"services": {Ztunnel, "service", 2, []string{"NAMESPACE", "SERVICE", "VIP", "WAYPOINT", "ENDPOINTS"},
		[]string{"PORTS", "BALANCING", "VISIBILITY", "SANS", "NAME", "FAMILIES", "CANONICAL"}, (*builder).services},
	"policies": {Ztunnel, "policy", 2, []string{"NAMESPACE", "POLICY", "ACTION", "SCOPE", "RULES"},
		[]string{"DRY-RUN", "WORKLOADS", "MATCHES"}, (*builder).policies},
	"certs": {"", "certificate", 1, []string{"IDENTITY", "STATE", "SERIAL", "VALID-UNTIL", "ROOT-UNTIL"},
		[]string{"VALID-FROM", "CHAIN", "ROOTS", "WHOLE-SERIAL", "ROOT-SERIALS"}, (*builder).certs},
	"connections": {Ztunnel, "", 6, []string{"POD", "DIRECTION", "PEER", "DESTINATION", "ACTUAL", "PROTOCOL"},
		[]string{"SERVICE-ACCOUNT", "NODE"}, (*builder).connections},
	"listeners": {Waypoint, "listener", 2, []string{"LISTENER", "CHAIN", "PROTOCOL", "FILTERS"},
		[]string{"ROUTES", "CLUSTERS"}, (*builder).listeners},
	"routes": {Waypoint, "", 3, []string{"LISTENER", "CHAIN", "ROUTE"}, []string{"PROTOCOL", "FILTERS"}, (*builder).routes},
	"clusters": {Waypoint, "cluster", 1, []string{"CLUSTER", "ENDPOINTS", "HEALTHY"},
		[]string{"EJECTED", "ACTIVE", "REQUESTS", "FAILED"}, (*builder).clusters},
	"endpoints": {Waypoint, "endpoint", 2, []string{"CLUSTER", "ENDPOINT", "WORKLOAD", "HEALTH", "REQUESTS", "FAILED"},
		[]string{"ACTIVE", "WEIGHT", "PRIORITY"}, (*builder).endpoints},
	"bootstrap": {"", "", 1, []string{"KEY", "VALUE"}, []string{"ROLE", "NODE"}, (*builder).bootstrap},
}

// Named says whether what programs have of a kind has names.
func Named(kind string) bool { return sections[kind].word != "" }

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
	head := append(append(slices.Clone(sec.head), proxyColumn), sec.wide...)
	b := &builder{s: s, ns: namespace, sec: sec, table: Table{Head: head, Key: sec.key, Wide: len(sec.wide)}}
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
	t, items := Table{Head: head, Key: sec.key, Wide: len(sec.wide)}, []Item{}
	for _, i := range order {
		t.Rows, items = append(t.Rows, b.table.Rows[i]), append(items, b.items[i])
	}
	return t, items, nil
}

func (b *builder) skip(namespace string) bool { return b.ns != "" && namespace != b.ns }

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
		b.add(p, map[string]any{"listener": l, "chain": c}, l, l, c.Name, c.Protocol, filterNames(c),
			fmt.Sprint(len(c.Routes)), strings.Join(c.Clusters, ","))
	})
}

func filterNames(c chain) string {
	var names []string
	for _, f := range c.Filters {
		names = append(names, strings.TrimPrefix(f, "*filter."))
	}
	return strings.Join(names, ",")
}

func (b *builder) routes(p *Proxy) error {
	return b.chains(p, func(l string, c chain) {
		for _, r := range append(slices.Clone(c.Routes), prefixed("tcp -> ", c.Clusters)...) {
			b.add(p, map[string]any{"listener": l, "chain": c.Name, "route": r}, "", l, c.Name, r, c.Protocol, filterNames(c))
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
		healthy, ejected := 0, 0
		var active int64
		var requests, failed uint64
		for i := range c.Endpoints {
			e := &c.Endpoints[i]
			switch e.state() {
			case "healthy":
				healthy++
			case "ejected":
				ejected++
			}
			active, requests, failed = active+e.Active, requests+e.Requests, failed+e.Failed
		}
		b.add(p, c, c.Name, c.Name, fmt.Sprint(len(c.Endpoints)), fmt.Sprint(healthy),
			fmt.Sprint(ejected), fmt.Sprint(active), fmt.Sprint(requests), fmt.Sprint(failed))
	})
}

func (b *builder) endpoints(p *Proxy) error {
	return b.each(p, func(c *clusterState) {
		for i := range c.Endpoints {
			e := &c.Endpoints[i]
			b.add(p, map[string]any{"cluster": c.Name, "endpoint": e}, e.Address, c.Name, e.Address, e.Workload, e.state(),
				fmt.Sprint(e.Requests), fmt.Sprint(e.Failed), fmt.Sprint(e.Active), fmt.Sprint(e.Weight), fmt.Sprint(e.Priority))
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
		b.add(p, map[string]any{"key": k, "value": v}, "", k, cell(v), p.Role, p.Node)
	}
	return nil
}

// cell is a value as a cell shows it: text as it is, and what has parts as JSON.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil { // it came from JSON
		return fmt.Sprint(v)
	}
	return string(b)
}

// Proxies is a row for each program of the mesh: whether it has what it was sent.
func Proxies(w *World) (Table, []ProxyState) {
	all := make([]*Proxy, len(w.Proxies))
	for i := range w.Proxies {
		all[i] = &w.Proxies[i]
	}
	return ProxiesOf(w, all)
}

// ProxiesOf is Proxies of some programs alone.
func ProxiesOf(w *World, some []*Proxy) (Table, []ProxyState) {
	t := Table{Head: []string{"NAMESPACE", "NAME", "ROLE", "NODE", "READY", "SYNC", ConnectedColumn, "VERSION", "REFUSED", "GATEWAY", "CERTS", "CONNECTIONS", "ERROR"}, Key: 2, Wide: 4}
	list := []ProxyState{}
	for _, p := range some {
		s := syncOf(w, p)
		list = append(list, s)
		t.Rows = append(t.Rows, []string{p.Namespace, p.Name, p.Role, p.Node, fmt.Sprint(p.Ready), s.Sync, s.Connected, s.Version, s.Refused,
			p.Gateway, p.Dump.certificates(), p.Dump.connections(), s.Error})
	}
	slices.SortFunc(list, func(a, b ProxyState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(t.Rows, slices.Compare)
	return t, list
}

// certificates counts those that a proxy holds and those that it waits for; "" when it could not be asked.
func (d *Dump) certificates() string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("%d/%d", d.available(), len(d.Certificates))
}

// available counts the certificates that a proxy holds.
func (d *Dump) available() (n int) {
	for _, c := range d.Certificates {
		if c.Value.State == "Available" {
			n++
		}
	}
	return n
}

// connections counts those that are open; "" where that is not known.
func (d *Dump) connections() string {
	if d == nil || d.States == nil {
		return ""
	}
	return fmt.Sprint(d.open())
}

// open counts the connections that are.
func (d *Dump) open() (n int) {
	for _, s := range d.States {
		n += len(s.Connections.Inbound) + len(s.Connections.Outbound)
	}
	return n
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

// Names is ROLE/NAME of each program.
func Names(list []ProxyState) (out []string) {
	for _, p := range list {
		out = append(out, p.Role+"/"+p.Name)
	}
	return out
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
