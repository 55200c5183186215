package ztunnel

import (
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

// sections are the members of /config_dump (9.2). Nothing secret is among them (A2): of certificates the public half, of
// the configuration no token.
func (n *node) sections() []admin.Section {
	return []admin.Section{
		{Key: "workloads", Value: func() any { return n.workloads.View().DumpWorkloads() }},
		{Key: "services", Value: func() any { return n.workloads.View().DumpServices() }},
		{Key: "policies", Value: func() any { return n.policies.View().Dump() }},
		{Key: "stagedServices", Value: func() any { return n.workloads.View().DumpStaged() }},
		{Key: "staticConfig", Value: func() any { return struct{}{} }},
		{Key: "version", Value: func() any { return n.version() }},
		{Key: "config", Value: func() any { return n.configDump() }},
		{Key: "certificates", Value: func() any { return certificates(n.certs.Snapshot()) }},
		{Key: "workloadState", Value: func() any { return workloadState(n.proxy.Pods()) }},
	}
}

func (n *node) version() admin.Version {
	v := admin.Version{Version: n.cfg.Version, GoVersion: runtime.Version(), BuildProfile: "release", CryptoProvider: "crypto/tls"}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.GitRevision = s.Value
			case "vcs.modified":
				v.BuildStatus = map[string]string{"true": "Modified", "false": "Clean"}[s.Value]
			}
		}
	}
	return v
}

// configDump is what an operator asks for first.
func (n *node) configDump() any {
	c := &n.cfg
	return struct {
		Node             string `json:"localNode"`
		Network          string `json:"network"`
		ClusterID        string `json:"clusterId"`
		ClusterDomain    string `json:"clusterDomain"`
		TrustDomain      string `json:"trustDomain"`
		XDSAddress       string `json:"xdsAddress"`
		CAAddress        string `json:"caAddress"`
		CertTTL          string `json:"secretTtl"`
		SameNode         string `json:"sameNode"`
		DrainTimeout     string `json:"selfTerminationDeadline"`
		StreamWindow     uint32 `json:"windowSize"`
		ConnectionWindow uint32 `json:"connectionWindowSize"`
		FrameSize        uint32 `json:"frameSize"`
		DNSProxy         bool   `json:"dnsProxy"`
		MTU              int    `json:"mtu,omitempty"`
	}{
		c.Node, c.Network, c.ClusterID, c.ClusterDomain, c.TrustDomain, c.XDSAddress, c.CAAddress, c.CertTTL.String(),
		string(c.SameNode), c.DrainTimeout.String(), c.HBONE.StreamWindow, c.HBONE.ConnectionWindow, c.HBONE.FrameSize,
		c.DNS.Enabled, outwardMTU(),
	}
}

// outwardMTU is that of the interface by which this network leads outwards, 0 if none does. Nothing is sent.
func outwardMTU() int {
	for _, outside := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation's (RFC 5737, RFC 3849)
		conn, err := net.Dial("udp", outside)
		if err != nil {
			continue
		}
		local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
		_ = conn.Close()
		list, err := net.Interfaces()
		if err != nil {
			return 0
		}
		for _, i := range list {
			addrs, _ := i.Addrs()
			if slices.ContainsFunc(addrs, func(a net.Addr) bool {
				p, err := netip.ParsePrefix(a.String())
				return err == nil && p.Addr() == local.Addr()
			}) {
				return i.MTU
			}
		}
	}
	return 0
}

func certificates(states []svid.State) []admin.Certificate {
	out := make([]admin.Certificate, 0, len(states))
	for _, s := range states {
		status, chain, roots := s.Describe()
		out = append(out, admin.NewCertificate(s.ID.String(), status, chain, roots))
	}
	admin.SortCertificates(out)
	return out
}

func workloadState(pods []proxy.PodState) map[string]admin.WorkloadState {
	out := map[string]admin.WorkloadState{}
	for _, p := range pods {
		s := admin.WorkloadState{
			State: "Up", Info: admin.PodInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount},
			Connections: admin.Connections{Inbound: []admin.Connection{}, Outbound: []admin.Connection{}},
		}
		for _, c := range p.Conns {
			d := admin.Connection{Src: c.Peer.String(), ActualDst: c.Actual.String(), Protocol: c.Protocol}
			if c.Inbound {
				if c.Service != "" {
					d.OriginalDst = &c.Service
				}
				s.Connections.Inbound = append(s.Connections.Inbound, d)
				continue
			}
			orig := c.Orig.String()
			d.OriginalDst = &orig
			s.Connections.Outbound = append(s.Connections.Outbound, d)
		}
		for _, l := range [][]admin.Connection{s.Connections.Inbound, s.Connections.Outbound} {
			slices.SortFunc(l, func(a, b admin.Connection) int { return strings.Compare(a.Src, b.Src) })
		}
		out[p.UID] = s
	}
	return out
}
