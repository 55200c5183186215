package workload

import (
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The JSON shapes of config_dump (9.2). Fields at their default are left out.

// WorkloadDump is a workload as config_dump shows it.
type WorkloadDump struct {
	WorkloadIPs       []netip.Addr  `json:"workloadIps"`
	Waypoint          *GatewayDump  `json:"waypoint,omitempty"`
	NetworkGateway    *GatewayDump  `json:"networkGateway,omitempty"`
	Protocol          string        `json:"protocol"`
	NetworkMode       string        `json:"networkMode,omitempty"`
	UID               string        `json:"uid"`
	Name              string        `json:"name"`
	Namespace         string        `json:"namespace"`
	TrustDomain       string        `json:"trustDomain,omitempty"`
	ServiceAccount    string        `json:"serviceAccount,omitempty"`
	Network           string        `json:"network,omitempty"`
	WorkloadName      string        `json:"workloadName,omitempty"`
	WorkloadType      string        `json:"workloadType,omitempty"`
	CanonicalName     string        `json:"canonicalName,omitempty"`
	CanonicalRevision string        `json:"canonicalRevision,omitempty"`
	Hostname          string        `json:"hostname,omitempty"`
	Node              string        `json:"node,omitempty"`
	NativeTunnel      bool          `json:"nativeTunnel,omitempty"`
	AppTunnel         *TunnelDump   `json:"applicationTunnel,omitempty"`
	Policies          []string      `json:"authorizationPolicies,omitempty"`
	Status            string        `json:"status"`
	ClusterID         string        `json:"clusterId,omitempty"`
	Locality          *LocalityDump `json:"locality,omitempty"`
	Services          []string      `json:"services,omitempty"`
	Capacity          uint32        `json:"capacity"`
}

// GatewayDump is a waypoint or network gateway.
type GatewayDump struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

// TunnelDump is an application tunnel.
type TunnelDump struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
}

// LocalityDump is a locality.
type LocalityDump struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

// ServiceDump is a service as config_dump shows it.
type ServiceDump struct {
	Name         string                  `json:"name"`
	Namespace    string                  `json:"namespace"`
	Hostname     string                  `json:"hostname"`
	VIPs         []string                `json:"vips"`
	CIDRs        []CIDRDump              `json:"cidrVips,omitempty"`
	Ports        map[string]uint16       `json:"ports"`
	Endpoints    map[string]EndpointDump `json:"endpoints"`
	SANs         []string                `json:"subjectAltNames,omitempty"`
	Waypoint     *GatewayDump            `json:"waypoint,omitempty"`
	Weighted     []WeightedDump          `json:"weightedWaypoints,omitempty"`
	LoadBalancer *BalancerDump           `json:"loadBalancer,omitempty"`
	IPFamilies   string                  `json:"ipFamilies,omitempty"`
	Canonical    bool                    `json:"canonical,omitempty"`
	Visibility   string                  `json:"visibility"`
}

// CIDRDump is a range of virtual addresses.
type CIDRDump struct {
	Network string       `json:"network"`
	CIDR    netip.Prefix `json:"cidr"`
}

// EndpointDump is one endpoint of a service.
type EndpointDump struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[string]uint16 `json:"port"`
	Status      string            `json:"status"`
}

// WeightedDump is one choice among waypoints.
type WeightedDump struct {
	Destination GatewayDump `json:"destination"`
	Weight      uint32      `json:"weight"`
}

// BalancerDump is how endpoints are chosen.
type BalancerDump struct {
	Preferences  []string `json:"routingPreferences"`
	Mode         string   `json:"mode"`
	HealthPolicy string   `json:"healthPolicy"`
}

// DumpWorkloads walks all workloads as config_dump shows them, sorted by uid (A1). Each is made when it is asked for, so
// that a dump of a large mesh never exists as a whole.
func (v *View) DumpWorkloads() iter.Seq[any] {
	return func(yield func(any) bool) {
		for _, w := range slices.SortedFunc(v.Workloads(), byUID) {
			if !yield(w.Dump()) {
				return
			}
		}
	}
}

// DumpServices walks all services as config_dump shows them, sorted by hostname (A1).
func (v *View) DumpServices() iter.Seq[any] {
	byHost := func(a, b *Service) int {
		if n := strings.Compare(a.Hostname, b.Hostname); n != 0 {
			return n
		}
		return strings.Compare(a.Namespace, b.Namespace)
	}
	return func(yield func(any) bool) {
		for _, s := range slices.SortedFunc(v.Services(), byHost) {
			if !yield(v.dumpService(s)) {
				return
			}
		}
	}
}

// DumpStaged returns the endpoints of services that are not known yet, by service and uid.
func (v *View) DumpStaged() map[string]map[string]EndpointDump {
	out := map[string]map[string]EndpointDump{}
	for key, e := range v.services.all() {
		if e.svc != nil {
			continue
		}
		out[key] = map[string]EndpointDump{}
		for _, w := range e.members {
			out[key][w.UID] = w.endpointDump(key)
		}
	}
	return out
}

// Dump returns the workload as config_dump shows it.
func (w *Workload) Dump() WorkloadDump {
	d := WorkloadDump{
		WorkloadIPs: w.Addrs, Waypoint: w.Waypoint.dump(), NetworkGateway: w.NetGateway.dump(), Protocol: w.Protocol.String(),
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		Network: w.Network, WorkloadName: w.WorkloadName, WorkloadType: w.Type.String(), CanonicalName: w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision, Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.Native, Policies: w.Policies,
		Status: w.status(), ClusterID: w.Cluster, Capacity: w.Capacity,
	}
	if d.WorkloadIPs == nil {
		d.WorkloadIPs = []netip.Addr{}
	}
	if w.HostNet {
		d.NetworkMode = "HostNetwork"
	}
	if w.Tunnel != nil {
		d.AppTunnel = &TunnelDump{Protocol: "NONE", Port: w.Tunnel.Port}
		if w.Tunnel.ProxyProtocol {
			d.AppTunnel.Protocol = "PROXY"
		}
	}
	if w.Locality != (Locality{}) {
		d.Locality = &LocalityDump{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	for i := range w.Services {
		d.Services = append(d.Services, w.Services[i].Service)
	}
	return d
}

func (w *Workload) status() string {
	if w.Unhealthy {
		return "Unhealthy"
	}
	return "Healthy"
}

func (w *Workload) endpointDump(service string) EndpointDump {
	d := EndpointDump{WorkloadUID: w.UID, Status: w.status(), Port: map[string]uint16{}}
	if m := w.Member(service); m != nil {
		d.Port = dumpPorts(m.Ports)
	}
	return d
}

func (g *Gateway) dump() *GatewayDump {
	if g == nil {
		return nil
	}
	return &GatewayDump{Destination: g.String(), HBONEMTLSPort: g.Port}
}

func dumpPorts(ports []Port) map[string]uint16 {
	out := make(map[string]uint16, len(ports))
	for _, p := range ports {
		out[strconv.Itoa(int(p.Service))] = p.Target
	}
	return out
}

var (
	scopeNames = [...]string{
		ScopeRegion: "Region", ScopeZone: "Zone", ScopeSubzone: "Subzone", ScopeNode: "Node", ScopeCluster: "Cluster", ScopeNetwork: "Network",
	}
	modeNames     = [...]string{"Standard", "Strict", "Failover", "Passthrough"}
	familiesNames = [...]string{"", "IPv4", "IPv6", "Dual"}
)

func (v *View) dumpService(s *Service) ServiceDump {
	d := ServiceDump{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, VIPs: []string{}, Ports: dumpPorts(s.Ports),
		Endpoints: map[string]EndpointDump{}, SANs: s.SANs, Waypoint: s.Waypoint.dump(), IPFamilies: familiesNames[s.Families],
		Canonical: s.Canonical, Visibility: "Public",
	}
	if s.NamespaceOnly {
		d.Visibility = "Namespace"
	}
	for _, vip := range s.VIPs {
		if vip.Prefix.IsSingleIP() {
			d.VIPs = append(d.VIPs, vip.Network+"/"+vip.Prefix.Addr().String())
		} else {
			d.CIDRs = append(d.CIDRs, CIDRDump{vip.Network, vip.Prefix})
		}
	}
	for w := range v.Endpoints(s) {
		d.Endpoints[w.UID] = w.endpointDump(s.Key)
	}
	for _, w := range s.Weighted {
		d.Weighted = append(d.Weighted, WeightedDump{*w.Gateway.dump(), w.Weight})
	}
	if s.Mode != ModeAny || s.AllowUnhealthy || len(s.Preferences) > 0 {
		d.LoadBalancer = &BalancerDump{Preferences: []string{}, Mode: modeNames[s.Mode], HealthPolicy: "OnlyHealthy"}
		if s.AllowUnhealthy {
			d.LoadBalancer.HealthPolicy = "AllowAll"
		}
		for _, p := range s.Preferences {
			d.LoadBalancer.Preferences = append(d.LoadBalancer.Preferences, scopeNames[p])
		}
	}
	return d
}
