package peer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// Istio's constants (redirection.md 1.6).
const (
	proxyMark  = 0x539
	tproxyMark = 0x111
	markMask   = 0xfff
	routeTable = 100
	rulePref   = 32764

	outboundPort  = 15001
	plaintextPort = 15006
	hbonePort     = 15008
)

const tableName = "istio-ambient"

// Redirect installs, or installs anew, Istio's in-pod redirection in a namespace: its rules of redirection.md 1.6, one nftables table for
// each family, and the policy route for replies to a client address that the ztunnel has borrowed. DNS and kubelet
// probes are left out.
func Redirect(ns *netns.NS) error {
	for _, f := range []family{ip4, ip6} {
		if err := f.route(ns); err != nil {
			return fmt.Errorf("route marked packets: %w", err)
		}
		if err := f.rules(ns); err != nil {
			return fmt.Errorf("redirect by nftables: %w", err)
		}
	}
	return nil
}

// Unredirect removes what Redirect installed.
func Unredirect(ns *netns.NS) error {
	var errs []error
	for _, f := range []family{ip4, ip6} {
		errs = append(errs, f.unroute(ns))
		c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.DelTable(&nftables.Table{Family: f.nft, Name: tableName})
		errs = append(errs, c.Flush())
	}
	return errors.Join(errs...)
}

// A family is what differs between IPv4 and IPv6.
type family struct {
	nft      nftables.TableFamily
	af       int
	loopback netip.Addr
	dst      uint32 // offset of the destination address in the header
	all      netip.Prefix
}

var (
	ip4 = family{nftables.TableFamilyIPv4, unix.AF_INET, netip.AddrFrom4([4]byte{127, 0, 0, 1}), 16,
		netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	ip6 = family{nftables.TableFamilyIPv6, unix.AF_INET6, netip.IPv6Loopback(), 24,
		netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
)

func (f family) rules(ns *netns.NS) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: f.nft, Name: tableName})
	c.DelTable(t) // an earlier one goes in the same transaction as the new one comes
	c.AddTable(t)
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: prio})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t, Chain: ch}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}
	manglePre := chain("mangle-prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	mangleOut := chain("mangle-output", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	natPre := chain("nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	natOut := chain("nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)

	rule(manglePre, mark(expr.CmpOpEq, proxyMark), setConnmark(tproxyMark))
	rule(mangleOut, connmark(tproxyMark), restoreMark())
	rule(natPre, tcp(), f.to(expr.CmpOpNeq, f.loopback), port(expr.CmpOpNeq, hbonePort), mark(expr.CmpOpNeq, proxyMark),
		redirect(plaintextPort))
	rule(natOut, tcp(), mark(expr.CmpOpEq, tproxyMark), accept())
	rule(natOut, outLoopback(), f.to(expr.CmpOpNeq, f.loopback), accept())
	rule(natOut, tcp(), f.to(expr.CmpOpNeq, f.loopback), mark(expr.CmpOpNeq, proxyMark), redirect(outboundPort))
	return c.Flush()
}

// The pieces of rules. Each works on register 1.

func cmp(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func tcp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		cmp(expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
	}
}

// port compares the destination port.
func port(op expr.CmpOp, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		cmp(op, binaryutil.BigEndian.PutUint16(p)),
	}
}

// to compares the destination address.
func (f family) to(op expr.CmpOp, a netip.Addr) []expr.Any {
	b := a.AsSlice()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: uint32(len(b))},
		cmp(op, b),
	}
}

func mark(op expr.CmpOp, v uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, masked(markMask, 0), cmp(op, native(v))}
}

func connmark(v uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, masked(markMask, 0), cmp(expr.CmpOpEq, native(v))}
}

// setConnmark puts v into the masked part of the connection's mark.
func setConnmark(v uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		masked(^uint32(markMask), v),
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
}

func restoreMark() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// masked is register = (register & mask) ^ xor.
func masked(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(mask), Xor: native(xor)}
}

func outLoopback() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, cmp(expr.CmpOpEq, []byte("lo\x00"))}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func redirect(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// route sends marked packets to the loopback device.
func (f family) route(ns *netns.NS) error {
	h, err := ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RuleAdd(f.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add rule: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.RouteReplace(f.local(lo)); err != nil {
		return fmt.Errorf("add local route: %w", err)
	}
	return nil
}

func (f family) unroute(ns *netns.NS) error {
	h, err := ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(h.RuleDel(f.rule()), h.RouteDel(f.local(lo)))
}

func (f family) rule() *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(markMask)
	r.Family, r.Mark, r.Mask, r.Table, r.Priority = f.af, tproxyMark, &mask, routeTable, rulePref
	return r
}

func (f family) local(lo netlink.Link) *netlink.Route {
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: routeTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: ipNet(f.all), Family: f.af,
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
