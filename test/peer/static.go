package peer

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/ambit-mesh/ambit/test/bed"
)

// Workload is one workload of a static configuration (ztunnel.md X18), in the ztunnel's spelling.
type Workload struct {
	UID            string                    `json:"uid"`
	Name           string                    `json:"name"`
	Namespace      string                    `json:"namespace"`
	ServiceAccount string                    `json:"serviceAccount"`
	TrustDomain    string                    `json:"trustDomain"`
	WorkloadIPs    []netip.Addr              `json:"workloadIps"`
	Protocol       string                    `json:"protocol"` // HBONE or TCP
	Node           string                    `json:"node"`
	Network        string                    `json:"network"`
	Services       map[string]map[int]uint16 `json:"services"`
}

// NewWorkload is the record of a captured pod of a bed.
func NewWorkload(pod *bed.Pod, p PodInfo) Workload {
	return Workload{
		UID:            "bench//Pod/" + p.Namespace + "/" + p.Name,
		Name:           p.Name,
		Namespace:      p.Namespace,
		ServiceAccount: p.ServiceAccount,
		TrustDomain:    "cluster.local",
		WorkloadIPs:    []netip.Addr{pod.Addr, pod.Addr6},
		Protocol:       "HBONE",
		Node:           pod.Node.Name,
		Services:       map[string]map[int]uint16{},
	}
}

// Filler makes n workloads on a node that does not exist, to fill a proxy's tables: four to a service account.
func Filler(n int) []Workload {
	ws := make([]Workload, n)
	for i := range ws {
		ws[i] = Workload{
			UID:            fmt.Sprintf("bench//Pod/fill-%d/app-%d", i%20, i),
			Name:           fmt.Sprintf("app-%d", i),
			Namespace:      fmt.Sprintf("fill-%d", i%20),
			ServiceAccount: fmt.Sprintf("app-%d", i/4),
			TrustDomain:    "cluster.local",
			WorkloadIPs:    []netip.Addr{netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)})},
			Protocol:       "HBONE",
			Node:           fmt.Sprintf("node-%d", i%100),
			Services:       map[string]map[int]uint16{},
		}
	}
	return ws
}

// WriteConfig writes a static configuration to a file for LOCAL_XDS_PATH. JSON is YAML.
func WriteConfig(path string, workloads []Workload) error {
	b, err := json.Marshal(struct {
		Workloads []Workload `json:"workloads"`
	}{workloads})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
