package waypoint

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// sections are the members of /config_dump. Nothing secret is among them: of the configuration no token, of certificates
// the public half.
func (w *waypoint) sections() []admin.Section {
	return []admin.Section{
		{Key: "listeners", Value: func() any { return w.config.dumpListeners() }},
		{Key: "clusters", Value: func() any { return w.config.dumpClusters() }},
		{Key: "config", Value: func() any { return w.configDump() }},
		{Key: "certificates", Value: func() any { return w.certificates() }},
	}
}

// chainDump is a filter chain.
type chainDump struct {
	Name     string   `json:"name"`
	Protocol string   `json:"protocol"`
	Routes   []string `json:"routes,omitempty"`
	Clusters []string `json:"clusters,omitempty"`
	Filters  []string `json:"filters,omitempty"`
}

type listenerDump struct {
	Name   string      `json:"name"`
	Chains []chainDump `json:"chains"`
}

func (s *store) dumpListeners() []listenerDump {
	out := []listenerDump{}
	p := s.dump.Load()
	if p == nil {
		return out
	}
	for _, n := range slices.Sorted(maps.Keys(*p)) {
		d := listenerDump{Name: n, Chains: []chainDump{}}
		for _, c := range (*p)[n].Chains {
			d.Chains = append(d.Chains, dumpChain(c))
		}
		out = append(out, d)
	}
	return out
}

func dumpChain(c *listener.Chain) chainDump {
	d := chainDump{Name: c.Name, Protocol: "tcp"}
	if c.TCP != nil {
		d.Clusters = c.TCP.Clusters()
	}
	if h := c.HTTP; h != nil {
		d.Protocol = "http"
		for _, f := range h.Filters {
			d.Filters = append(d.Filters, fmt.Sprintf("%T", f))
		}
		if h.Routes != nil {
			for _, v := range h.Routes.Hosts {
				for _, r := range v.Routes {
					d.Routes = append(d.Routes, r.String())
				}
			}
		}
	}
	return d
}

type clusterDump struct {
	Name      string         `json:"name"`
	Known     bool           `json:"endpointsKnown"`
	Usage     cluster.Usage  `json:"usage"`
	Endpoints []endpointDump `json:"endpoints"`
}

type endpointDump struct {
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

func (s *store) dumpClusters() []clusterDump {
	out := []clusterDump{}
	for _, c := range s.clusters.View().All() {
		d := clusterDump{Name: c.Name, Known: c.Known(), Usage: c.Usage(), Endpoints: []endpointDump{}}
		for _, h := range c.Hosts() {
			e := h.Endpoint()
			total, failed := h.Requests()
			d.Endpoints = append(d.Endpoints, endpointDump{
				Address: h.String(), Health: e.Health.String(), Ejected: h.Ejected(), Weight: e.Weight, Priority: e.Priority,
				Active: h.Active(), Requests: total, Failed: failed, Workload: e.Workload.Name,
			})
		}
		out = append(out, d)
	}
	return out
}

// configDump is what an operator asks for first.
func (w *waypoint) configDump() any {
	c := &w.cfg
	return struct {
		Gateway     string `json:"gateway"`
		Pod         string `json:"pod"`
		Identity    string `json:"identity"`
		Network     string `json:"network"`
		ClusterID   string `json:"clusterId"`
		TrustDomain string `json:"trustDomain"`
		XDSAddress  string `json:"xdsAddress"`
		CAAddress   string `json:"caAddress"`
		Version     string `json:"version"`
	}{
		c.PodNamespace + "/" + c.Gateway, c.PodNamespace + "/" + c.PodName, w.id.String(), c.Network, c.ClusterID, c.TrustDomain,
		c.XDSAddress, c.CAAddress, c.Version,
	}
}

func (w *waypoint) certificates() []admin.Certificate {
	out := []admin.Certificate{}
	for _, s := range w.certs.Snapshot() {
		status, chain, roots := s.Describe()
		out = append(out, admin.NewCertificate(s.ID.String(), status, chain, roots))
	}
	admin.SortCertificates(out)
	return out
}
