package forward

import (
	"strings"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

// appendState is %FILTER_STATE%: what Istio's filters know of both ends is looked up here, the rest is the connection's.
func (c *inbound) appendState(dst []byte, x *filter.Exchange, h *cluster.Host, arg string) ([]byte, bool) {
	key, rest, _ := strings.Cut(arg, ":")
	var w *workload.Workload
	view := c.w.p.cfg.Workloads.View()
	switch key {
	case "downstream_peer_obj", "downstream_peer":
		w = view.Workload(c.w.p.cfg.Network, c.client.Addr.Addr())
	case "upstream_peer_obj", "upstream_peer":
		if h != nil {
			w = view.Workload(c.w.p.cfg.Network, h.Endpoint().Addr.Addr())
		}
	default:
		v, ok := x.FilterState(arg)
		return append(dst, v...), ok
	}
	name, isField := strings.CutPrefix(rest, "FIELD:")
	if w == nil || !isField {
		return dst, false
	}
	return appendText(dst, peerField(w, name))
}

// peerField is a field of Istio's description of a workload.
func peerField(w *workload.Workload, name string) string {
	switch name {
	case "name":
		return w.Name
	case "namespace":
		return w.Namespace
	case "workload":
		return w.WorkloadName
	case "type":
		return strings.ToLower(w.Type.String())
	case "cluster":
		return w.Cluster
	case "service", "app":
		return w.CanonicalName
	case "revision", "version":
		return w.CanonicalRevision
	case "identity":
		return w.ID.String()
	case "region":
		return w.Locality.Region
	case "zone":
		return w.Locality.Zone
	}
	return ""
}
