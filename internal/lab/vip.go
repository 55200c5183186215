package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// vipPort is one port of a service's VIP with its ready endpoints of the same family.
type vipPort struct {
	VIP       netip.Addr
	Proto     byte // unix.IPPROTO_TCP or _UDP
	Port      uint16
	Endpoints []netip.AddrPort
}

// vipTable keeps a node's translation of VIPs, as kube-proxy would: a random endpoint per connection, a refusal where
// there is none. The table is replaced in one transaction; connections that exist keep their translation.
type vipTable struct {
	ns *netNS

	mu   sync.Mutex
	have []vipPort
	done bool
}

const vipTableName = "ambit-lab"

// program makes the kernel's table say what ports says; without a change it does nothing.
func (t *vipTable) program(ports []vipPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done && reflect.DeepEqual(t.have, ports) {
		return nil
	}
	c, err := nftables.New(nftables.WithNetNSFd(t.ns.FD()))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: vipTableName, Family: nftables.TableFamilyINet}
	c.AddTable(table) // so that the deletion finds one
	c.DelTable(table)
	c.AddTable(table)
	b := &vipBuilder{c: c, table: table}
	b.build(ports)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables: %w", err)
	}
	t.have, t.done = ports, true
	return nil
}

type vipBuilder struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (b *vipBuilder) chain(name string, hook *nftables.ChainHook, typ nftables.ChainType, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.table, Hooknum: hook, Type: typ, Priority: prio})
}

func (b *vipBuilder) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: b.table, Chain: ch}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	b.c.AddRule(r)
}

func (b *vipBuilder) build(ports []vipPort) {
	services := b.c.AddChain(&nftables.Chain{Name: "services", Table: b.table})
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	pre := b.chain("prerouting", nftables.ChainHookPrerouting, nat, nftables.ChainPriorityNATDest)
	out := b.chain("output", nftables.ChainHookOutput, nat, nftables.ChainPriorityNATDest)
	post := b.chain("postrouting", nftables.ChainHookPostrouting, nat, nftables.ChainPriorityNATSource)
	for _, ch := range []*nftables.Chain{pre, out} {
		b.rule(ch, jump("services"))
	}
	hairpins := map[netip.Addr]bool{}
	for i, p := range ports {
		if len(p.Endpoints) == 0 {
			continue
		}
		name := fmt.Sprintf("svc-%d", i)
		ch := b.c.AddChain(&nftables.Chain{Name: name, Table: b.table})
		b.rule(services, dest(p.VIP), l4port(p.Proto, p.Port), jump(name))
		for j, ep := range p.Endpoints {
			b.rule(ch, oneIn(len(p.Endpoints)-j), l4(p.Proto), dnat(ep))
			hairpins[ep.Addr()] = true
		}
	}
	// A pod that reached itself by a VIP must see the answer come from outside.
	for _, p := range ports {
		for _, ep := range p.Endpoints {
			if hairpins[ep.Addr()] {
				delete(hairpins, ep.Addr())
				b.rule(post, source(ep.Addr()), dest(ep.Addr()), []expr.Any{&expr.Masq{}})
			}
		}
	}
	// What still goes to a VIP has no endpoint or no such port.
	for name, hook := range map[string]*nftables.ChainHook{"refuse": nftables.ChainHookPrerouting, "refuse-own": nftables.ChainHookOutput} {
		ch := b.chain(name, hook, filter, nftables.ChainPriorityFilter)
		for _, p := range []netip.Prefix{serviceV4, serviceV6} {
			b.rule(ch, destIn(p), l4(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
			b.rule(ch, destIn(p), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
		}
	}
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func family(a netip.Addr) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

// Offsets of the addresses in the two IP headers.
func addrOffset(a netip.Addr, dst bool) uint32 {
	switch {
	case a.Is4() && dst:
		return 16
	case a.Is4():
		return 12
	case dst:
		return 24
	default:
		return 8
	}
}

func addrIs(a netip.Addr, dst bool) []expr.Any {
	return append(family(a),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset(a, dst), Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func dest(a netip.Addr) []expr.Any   { return addrIs(a, true) }
func source(a netip.Addr) []expr.Any { return addrIs(a, false) }

func destIn(p netip.Prefix) []expr.Any {
	a := p.Addr()
	n := uint32(a.BitLen() / 8)
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(family(a),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset(a, true), Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func l4(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

func l4port(proto byte, port uint16) []expr.Any {
	return append(l4(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)})
}

// oneIn matches one connection of n by chance; always for n = 1.
func oneIn(n int) []expr.Any {
	if n == 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 0)},
	}
}

func dnat(ep netip.AddrPort) []expr.Any {
	f := uint32(unix.NFPROTO_IPV4)
	if ep.Addr().Is6() {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: ep.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(ep.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: f, RegAddrMin: 1, RegProtoMin: 2},
	}
}
