package envoy

import (
	"cmp"
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// perNode says whether endpoints of one locality are told apart by node.
func perNode(e edsCluster) bool {
	return slices.Contains(e.service.message.GetLoadBalancing().GetRoutingPreference(), workloadpb.LoadBalancing_NODE)
}

// prioritise orders localities by how near they are to the instance: as the DestinationRule says, else as the service
// says (3.7). Priorities are numbered without gaps, as Envoy wants them.
func (b *builder) prioritise(a *endpointv3.ClusterLoadAssignment, groups []*located, e edsCluster, at Place) {
	if at == (Place{}) {
		return
	}
	setting := e.policy.GetLoadBalancer().GetLocalityLbSetting()
	if setting != nil && setting.Enabled != nil && !setting.Enabled.Value {
		return
	}
	var rank func(*located) int
	switch {
	case setting != nil && len(setting.Distribute) > 0:
		distribute(a, groups, setting.Distribute, at)
		return
	case e.service.message.GetLoadBalancing().GetMode() == workloadpb.LoadBalancing_FAILOVER:
		rank = preferenceRank(e.service.message.LoadBalancing.RoutingPreference, at)
	case e.policy.GetOutlierDetection() != nil:
		rank = failoverRank(setting, at)
	default:
		return
	}
	ranks := make([]int, len(groups))
	for i, g := range groups {
		ranks[i] = rank(g)
	}
	levels := slices.Compact(slices.Sorted(slices.Values(ranks)))
	for i := range groups {
		n, _ := slices.BinarySearch(levels, ranks[i])
		a.Endpoints[i].Priority = uint32(n)
	}
	slices.SortStableFunc(a.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int { return cmp.Compare(a.Priority, b.Priority) })
}

// preferenceRank counts how many of the scopes, from the first, a locality shares with the instance.
func preferenceRank(scopes []workloadpb.LoadBalancing_Scope, at Place) func(*located) int {
	return func(g *located) int {
		w := &workloadpb.Workload{Network: g.network, Locality: &workloadpb.Locality{Region: g.locality.Region, Zone: g.locality.Zone, Subzone: g.locality.Subzone}, Node: firstNode(g)}
		for i, s := range scopes {
			if !near(s, w, at) {
				return len(scopes) - i
			}
		}
		return 0
	}
}

// failoverRank is the order of failoverPriority, of explicit fail-over regions, or of nearness.
func failoverRank(setting *networking.LocalityLoadBalancerSetting, at Place) func(*located) int {
	if len(setting.GetFailoverPriority()) > 0 {
		return func(g *located) int {
			for i, label := range setting.FailoverPriority {
				name, value, fixed := strings.Cut(label, "=")
				mine, theirs := placeLabel(name, at), placeLabel(name, g.locality)
				if fixed {
					mine = value
				}
				if mine != theirs {
					return len(setting.FailoverPriority) - i
				}
			}
			return 0
		}
	}
	return func(g *located) int {
		p := g.locality
		switch {
		case p.Region == at.Region && p.Zone == at.Zone && p.Subzone == at.Subzone:
			return 0
		case p.Region == at.Region && p.Zone == at.Zone:
			return 1
		case p.Region == at.Region:
			return 2
		}
		for _, f := range setting.GetFailover() {
			if f.From == at.Region && f.To != p.Region {
				return 4
			}
		}
		return 3
	}
}

func placeLabel(name string, p Place) string {
	switch name {
	case "topology.kubernetes.io/region":
		return p.Region
	case "topology.kubernetes.io/zone":
		return p.Zone
	case "topology.istio.io/subzone":
		return p.Subzone
	case "topology.istio.io/network":
		return p.Network
	case "kubernetes.io/hostname":
		return p.Node
	}
	return ""
}

// distribute gives localities the weights that the rule names for where the instance is; the others get nothing.
func distribute(a *endpointv3.ClusterLoadAssignment, groups []*located, rules []*networking.LocalityLoadBalancerSetting_Distribute, at Place) {
	for _, r := range rules {
		if !placeMatches(r.From, at) {
			continue
		}
		used := map[int]bool{}
		var kept []*endpointv3.LocalityLbEndpoints
		for _, to := range sortedKeys(r.To) {
			var matched []int
			total := uint32(0)
			for i, g := range groups {
				if !used[i] && placeMatches(to, g.locality) {
					used[i] = true
					matched = append(matched, i)
					total += g.weight
				}
			}
			for _, i := range matched {
				share := (r.To[to]*groups[i].weight + total - 1) / max(total, 1)
				if share > 0 {
					a.Endpoints[i].LoadBalancingWeight = u32(share)
					kept = append(kept, a.Endpoints[i])
				}
			}
		}
		a.Endpoints = kept
		return
	}
}

// placeMatches compares a place with region/zone/subzone, where * stands for the rest.
func placeMatches(pattern string, p Place) bool {
	for i, part := range strings.Split(pattern, "/") {
		if part == "*" {
			return true
		}
		if i > 2 || part != []string{p.Region, p.Zone, p.Subzone}[i] {
			return false
		}
	}
	return true
}
