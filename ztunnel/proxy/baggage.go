package proxy

import (
	"strings"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// HeaderBaggage is the request and response header in which each side describes its workload (H13, H15).
const HeaderBaggage = "baggage"

// Baggage describes a workload as the other side of a tunnel knows it. Empty fields are unknown. It is the peer's claim
// about itself: good for telemetry, never for authorization.
type Baggage struct {
	Cluster      string
	Namespace    string
	WorkloadName string
	WorkloadType workload.Type
	ServiceName  string // canonical name
	Revision     string // canonical revision
	Region       string
	Zone         string
}

// The keys, in the order in which they are written (H15). Envoy's peer metadata filter reads the same ones.
const (
	baggageCluster   = "k8s.cluster.name"
	baggageNamespace = "k8s.namespace.name"
	baggageService   = "service.name"
	baggageRevision  = "service.version"
	baggageRegion    = "cloud.region"
	baggageZone      = "cloud.availability_zone"
)

// baggageTypes are the keys of the workload's name, by its type.
var baggageTypes = [...]string{
	workload.Deployment: "k8s.deployment.name",
	workload.CronJob:    "k8s.cronjob.name",
	workload.Pod:        "k8s.pod.name",
	workload.Job:        "k8s.job.name",
}

// BaggageOf describes a workload.
func BaggageOf(w *workload.Workload) Baggage {
	return Baggage{
		Cluster: w.Cluster, Namespace: w.Namespace, WorkloadName: w.WorkloadName, WorkloadType: w.Type,
		ServiceName: w.CanonicalName, Revision: w.CanonicalRevision, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// Append appends the header's value to b: the fields that are not empty, in the protocol's order.
func (g *Baggage) Append(b []byte) []byte {
	start := len(b)
	add := func(key, value string) {
		if value == "" {
			return
		}
		if len(b) > start {
			b = append(b, ',')
		}
		b = append(b, key...)
		b = append(b, '=')
		b = append(b, value...)
	}
	add(baggageCluster, g.Cluster)
	add(baggageNamespace, g.Namespace)
	add(baggageTypes[g.WorkloadType], g.WorkloadName)
	add(baggageService, g.ServiceName)
	add(baggageRevision, g.Revision)
	add(baggageRegion, g.Region)
	add(baggageZone, g.Zone)
	return b
}

// String returns the header's value.
func (g *Baggage) String() string { return string(g.Append(nil)) }

// maxBaggage bounds what is looked at of one header line; more than that is not a description of a workload.
const maxBaggage = 4096

// Parse adds the fields of one header line; later lines win (H16). Unknown keys and empty values are ignored, as is all
// of a line with bytes that could break a log or a metric. The fields share line's memory.
func (g *Baggage) Parse(line string) {
	if len(line) > maxBaggage || !printable(line) {
		return
	}
	for line != "" {
		var member string
		member, line, _ = strings.Cut(line, ",")
		key, value, _ := strings.Cut(member, "=")
		value = strings.Trim(value, " ")
		if value == "" || strings.Contains(value, "=") {
			continue
		}
		g.set(strings.Trim(key, " "), value)
	}
}

func (g *Baggage) set(key, value string) {
	switch key {
	case baggageCluster:
		g.Cluster = value
	case baggageNamespace:
		g.Namespace = value
	case baggageService:
		g.ServiceName = value
	case baggageRevision:
		g.Revision = value
	case baggageRegion:
		g.Region = value
	case baggageZone:
		g.Zone = value
	default:
		for t, k := range baggageTypes {
			if k == key {
				g.WorkloadName, g.WorkloadType = value, workload.Type(t)
			}
		}
	}
}

// printable tells whether s is printable ASCII only.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
