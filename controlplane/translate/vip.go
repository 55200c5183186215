package translate

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"

	"github.com/cespare/xxhash/v2"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// vip is an address of a host of a ServiceEntry without addresses in its spec.
type vip struct {
	prefix netip.Prefix
	// allocated addresses are made here, the others stand in the status.
	allocated bool
}

// Ranges of automatic addresses, Istio's.
var (
	vipRange4 = netip.MustParsePrefix("240.240.0.0/16")
	vipRange6 = netip.MustParsePrefix("2001:2::/48")
)

// labelAutoAllocate set to "false" turns automatic addresses off for a ServiceEntry.
const labelAutoAllocate = "networking.istio.io/enable-autoallocate-ip"

// wantsVIP says whether a host is to have an automatic address.
func wantsVIP(e *networkingv1.ServiceEntry, host string) bool {
	return len(e.Spec.Addresses) == 0 && !passthrough(e) && e.Labels[labelAutoAllocate] != "false" &&
		(!wildcard(host) || e.Spec.Resolution == networking.ServiceEntry_DYNAMIC_DNS)
}

// allocate gives addresses to all hosts that want one and marks the entries whose addresses changed.
//
// Two replicas that see the same objects give the same addresses, without talking: the address is a hash of namespace,
// name and host, and of those that collide the older entry has the first choice. An address that stands in the status
// is kept whatever else comes, so that writing the allocation back makes it permanent.
func (t *Translator) allocate() {
	entries := slices.Collect(kube.List[*networkingv1.ServiceEntry](t.objects))
	slices.SortFunc(entries, func(a, b *networkingv1.ServiceEntry) int {
		if older(a, b) {
			return -1
		}
		return 1
	})
	before := t.vips
	t.vips = map[kube.Key]map[string][]vip{}
	taken := t.takenVIPs(entries)
	for _, e := range entries {
		hosts := map[string][]vip{}
		for _, h := range e.Spec.Hosts {
			if v := statusVIPs(e, h); len(v) > 0 {
				hosts[h] = v
			} else if wantsVIP(e, h) {
				hosts[h] = taken.pick(e.Namespace + "/" + e.Name + "/" + h)
			}
		}
		if len(hosts) > 0 {
			t.vips[kube.KeyOf(e)] = hosts
		}
	}
	for _, e := range entries {
		if k := kube.KeyOf(e); !reflect.DeepEqual(before[k], t.vips[k]) {
			t.mark(k)
		}
	}
}

// statusVIPs are the addresses of a host that stand in the status.
func statusVIPs(e *networkingv1.ServiceEntry, host string) []vip {
	if len(e.Spec.Addresses) > 0 || passthrough(e) {
		return nil
	}
	var out []vip
	for _, a := range e.Status.Addresses {
		if p, err := kube.ParseCIDR(a.GetValue()); err == nil && (a.Host == host || a.Host == "") {
			out = append(out, vip{prefix: p})
		}
	}
	return out
}

// vipPool knows which automatic addresses are in use.
type vipPool struct {
	used   map[netip.Addr]bool
	ranges []netip.Prefix
}

// takenVIPs are the addresses that entries name themselves, in spec or status.
func (t *Translator) takenVIPs(entries []*networkingv1.ServiceEntry) *vipPool {
	pool := &vipPool{used: map[netip.Addr]bool{}}
	add := func(s string) {
		p, err := kube.ParseCIDR(s)
		switch {
		case err != nil || (!vipRange4.Overlaps(p) && !vipRange6.Overlaps(p)):
		case p.IsSingleIP():
			pool.used[p.Addr()] = true
		default:
			pool.ranges = append(pool.ranges, p)
		}
	}
	for _, e := range entries {
		for _, a := range e.Spec.Addresses {
			add(a)
		}
		for _, a := range e.Status.Addresses {
			add(a.GetValue())
		}
	}
	return pool
}

// pick gives an IPv4 and an IPv6 address to a name, none of a family that is used up.
func (p *vipPool) pick(name string) []vip {
	var out []vip
	h := xxhash.Sum64String(name)
	// .0.0 and .255.255 are left out.
	const size = 1<<16 - 2
	base := vipRange4.Addr().As4()
	for i := range uint64(size) {
		a := base
		binary.BigEndian.PutUint16(a[2:], uint16((h+i)%size)+1)
		if p.take(netip.AddrFrom4(a)) {
			out = append(out, vip{prefix: netip.PrefixFrom(netip.AddrFrom4(a), 32), allocated: true})
			break
		}
	}
	for i := range uint64(1 << 10) {
		a := vipRange6.Addr().As16()
		binary.BigEndian.PutUint64(a[8:], max(h+i, 1))
		if p.take(netip.AddrFrom16(a)) {
			out = append(out, vip{prefix: netip.PrefixFrom(netip.AddrFrom16(a), 128), allocated: true})
			break
		}
	}
	return out
}

func (p *vipPool) take(a netip.Addr) bool {
	if p.used[a] || slices.ContainsFunc(p.ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
		return false
	}
	p.used[a] = true
	return true
}
