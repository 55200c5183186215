package proxy

import "net/netip"

// PodState describes a pod for dumps.
type PodState struct {
	UID, Name, Namespace, ServiceAccount string
	// Conns are its open connections.
	Conns []ConnState
}

// ConnState describes an open connection.
type ConnState struct {
	Inbound bool
	// Peer is who connected, Orig what it meant to reach, Actual what was dialled.
	Peer, Orig, Actual netip.AddrPort
	// Service is the service's hostname, if it is known.
	Service string
	// Protocol is HBONE, TCP or SAMENODE.
	Protocol string
}

// Pods describes the pods and their connections. Any goroutine; it waits for every worker in turn.
func (p *Proxy) Pods() []PodState {
	var out []PodState
	index := map[*Pod]int{}
	for _, pod := range p.pods.Load().byUID {
		index[pod] = len(out)
		out = append(out, PodState{UID: pod.UID, Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount})
	}
	for _, w := range p.workers {
		w.loop.OnLoop(func() {
			for f := w.flows.head; f != nil; f = f.next {
				if i, ok := index[f.pod]; ok {
					out[i].Conns = append(out[i].Conns, f.state())
				}
			}
		})
	}
	return out
}

func (f *flow) state() ConnState {
	c := ConnState{Inbound: f.direction == inboundDir, Peer: f.peer, Orig: f.orig, Actual: f.actual, Protocol: "TCP"}
	switch f.security {
	case mutualTLS:
		c.Protocol = "HBONE"
	case sameNode:
		c.Protocol = "SAMENODE"
	}
	if f.service != nil {
		c.Service = f.service.Hostname
	}
	return c
}
