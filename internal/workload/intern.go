package workload

import "hash/maphash"

func newHasher() hasher { return hasher{seed: maphash.MakeSeed()} }

// interner makes equal parts of records one object: of 10,000 workloads most share namespace, node, zone, ports and
// identity. It is used before a record is published, under the store's mutex.
type interner struct {
	strings  map[string]string
	gateways map[Gateway]*Gateway
	ports    map[string][]Port
	sets     map[string]*Identities
	churned  int
	scratch  []byte
}

func newInterner() *interner {
	in := &interner{}
	in.reset()
	return in
}

func (in *interner) reset() {
	in.strings = make(map[string]string)
	in.gateways = make(map[Gateway]*Gateway)
	in.ports = make(map[string][]Port)
	in.sets = make(map[string]*Identities)
	in.churned = 0
}

// age forgets everything once more objects were replaced than live: what is still in use stays alive by itself and is at
// worst stored twice, and what nobody uses is freed.
func (in *interner) age(churned, live int) {
	if in.churned += churned; in.churned > 2*live+4096 {
		in.reset()
	}
}

func (in *interner) str(p *string) {
	if *p == "" {
		return
	}
	if s, ok := in.strings[*p]; ok {
		*p = s
		return
	}
	in.strings[*p] = *p
}

func (in *interner) gateway(p **Gateway) {
	if *p == nil {
		return
	}
	if g, ok := in.gateways[**p]; ok {
		*p = g
		return
	}
	in.gateways[**p] = *p
}

func (in *interner) portList(p *[]Port) {
	if len(*p) == 0 {
		return
	}
	b := in.scratch[:0]
	for _, port := range *p {
		b = append(b, byte(port.Service>>8), byte(port.Service), byte(port.Target>>8), byte(port.Target))
	}
	in.scratch = b
	if l, ok := in.ports[string(b)]; ok {
		*p = l
		return
	}
	in.ports[string(b)] = *p
}

func (in *interner) set(p **Identities) {
	if s, ok := in.sets[(*p).Key]; ok {
		*p = s
		return
	}
	in.sets[(*p).Key] = *p
}

func (in *interner) workload(w *Workload) {
	for _, p := range []*string{
		&w.Namespace, &w.Network, &w.TrustDomain, &w.ServiceAccount, &w.Node, &w.Cluster, &w.Locality.Region,
		&w.Locality.Zone, &w.Locality.Subzone, &w.CanonicalName, &w.CanonicalRevision, &w.WorkloadName,
	} {
		in.str(p)
	}
	in.gateway(&w.Waypoint)
	in.gateway(&w.NetGateway)
	for i := range w.Services {
		in.str(&w.Services[i].Service)
		in.portList(&w.Services[i].Ports)
	}
	for i := range w.Policies {
		in.str(&w.Policies[i])
	}
	in.set(&w.Expect)
	if len(w.Expect.IDs) == 1 {
		w.ID = w.Expect.IDs[0]
	}
}

func (in *interner) service(s *Service) {
	in.str(&s.Namespace)
	in.str(&s.Key)
	in.gateway(&s.Waypoint)
	for i := range s.Weighted {
		in.gateway(&s.Weighted[i].Gateway)
	}
	in.portList(&s.Ports)
	in.set(&s.Expect)
}
