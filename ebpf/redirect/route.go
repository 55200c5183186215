//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// routing names what is put into a pod's namespace: for packets with the mark a table, and behind it a rule that refuses
// them, should the table be flushed. A socket that is marked never leaves by the main table.
type routing struct {
	mark, mask      uint32
	table, priority int
}

func (c *Config) routing() routing { return routing{c.Mark, c.Mask, c.Table, c.Priority} }

// sysctls are the settings that redirection needs, by bit of the pod's record.
//
//	tcp_fwmark_accept   accepted sockets get the SYN's mark, so that the application's answers go by lo
//	fwmark_reflect      so do RSTs of closed ports; without it the proxy's dial would time out instead of being refused
var sysctls = []string{"net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"}

// setSysctls sets what is not set and returns the bits of those that were 0.
func setSysctls(ns *netns.NS) (was uint32, err error) {
	set := map[string]string{}
	for i, key := range sysctls {
		v, err := ns.Sysctl(key)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(key, "net.ipv6.") {
			continue // no IPv6 at all
		}
		if err != nil {
			return 0, err
		}
		if v == "0" {
			set[key] = "1"
			was |= 1 << i
		}
	}
	if was == 0 {
		return 0, nil
	}
	return was, ns.SetSysctls(set)
}

// restoreSysctls sets those of bits back to 0.
func restoreSysctls(ns *netns.NS, bits uint32) error {
	set := map[string]string{}
	for i, key := range sysctls {
		if bits&(1<<i) != 0 {
			set[key] = "0"
		}
	}
	if len(set) == 0 {
		return nil
	}
	return ns.SetSysctls(set)
}

// wantRoute is a route of the table: local on lo with a source, or unreachable without.
type wantRoute struct {
	dst netip.Prefix
	src netip.Addr
}

// space is what Attach reads of a namespace.
type space struct {
	own   []netip.Addr // addresses that are not loopback, sorted
	links map[int][]netip.Prefix
	main  map[int][]netlink.Route // by family
	lo    int
}

func families() []int { return []int{unix.AF_INET, unix.AF_INET6} }

// readSpace lists addresses and routes. addrs are the pod's, which need not be on an interface yet.
func readSpace(h *netlink.Handle, addrs []netip.Addr) (*space, error) {
	s := &space{links: map[int][]netip.Prefix{}, main: map[int][]netlink.Route{}}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	s.lo = lo.Attrs().Index
	for _, a := range addrs {
		s.own = append(s.own, a.Unmap().WithZone(""))
	}
	list, err := h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLoopback() {
			continue
		}
		bits, _ := a.Mask.Size()
		s.links[a.LinkIndex] = append(s.links[a.LinkIndex], netip.PrefixFrom(ip, bits))
		s.own = append(s.own, ip)
	}
	slices.SortFunc(s.own, netip.Addr.Compare)
	s.own = slices.Compact(s.own)
	for _, f := range families() {
		routes, err := h.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Type == unix.RTN_UNICAST {
				s.main[f] = append(s.main[f], r)
			}
		}
	}
	return s, nil
}

// wanted returns the table of one family. The routes carry the source that the main table would choose, because the
// kernel's choice on a local route would be the destination's own address.
func (s *space) wanted(family int, podAddrs []netip.Addr) []wantRoute {
	anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == unix.AF_INET6 {
		anywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	src := s.defaultSource(family, podAddrs)
	out := []wantRoute{{anywhere, src}}
	if !src.IsValid() {
		// A pod without an address of the family: as unreachable as without us, also if it gets one unseen.
		return out
	}
	for _, r := range s.main[family] {
		dst, ok := prefixOf(r.Dst)
		if !ok || dst.Bits() == 0 || dst.Addr().IsLinkLocalUnicast() || dst.Addr().IsMulticast() {
			continue
		}
		from := s.sourceOf(r, dst.Addr())
		if from.IsValid() && from != src && !slices.ContainsFunc(out, func(w wantRoute) bool { return w.dst == dst }) {
			out = append(out, wantRoute{dst, from})
		}
	}
	return out
}

// defaultSource is the source address of connections by the default route; invalid if there is no address.
func (s *space) defaultSource(family int, podAddrs []netip.Addr) netip.Addr {
	var best *netlink.Route
	for i, r := range s.main[family] {
		if dst, ok := prefixOf(r.Dst); (!ok || dst.Bits() == 0) && (best == nil || r.Priority < best.Priority) {
			best = &s.main[family][i]
		}
	}
	if best != nil {
		if src, ok := netip.AddrFromSlice(best.Src); ok {
			return src.Unmap()
		}
		for _, a := range podAddrs {
			if a = a.Unmap(); isFamily(a, family) && slices.ContainsFunc(s.links[best.LinkIndex], func(p netip.Prefix) bool { return p.Addr() == a }) {
				return a
			}
		}
		if src := s.sourceOf(*best, netip.Addr{}); src.IsValid() {
			return src
		}
	}
	for _, a := range slices.Concat(podAddrs, s.own) {
		if a = a.Unmap(); isFamily(a, family) && !a.IsLinkLocalUnicast() && slices.Contains(s.own, a) {
			return a
		}
	}
	return netip.Addr{}
}

// sourceOf is the source address of a route: its own, or the interface's address next to the gateway or destination, or
// the interface's first.
func (s *space) sourceOf(r netlink.Route, dst netip.Addr) netip.Addr {
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		return src.Unmap()
	}
	near := dst
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		near = gw.Unmap()
	}
	var first netip.Addr
	for _, p := range s.links[r.LinkIndex] {
		if !isFamily(p.Addr(), r.Family) || p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() {
			continue
		}
		if near.IsValid() && p.Contains(near) {
			return p.Addr()
		}
		if !first.IsValid() {
			first = p.Addr()
		}
	}
	return first
}

func isFamily(a netip.Addr, family int) bool { return a.Is4() == (family == unix.AF_INET) }

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

func (r routing) rules(family int) []netlink.Rule {
	var out []netlink.Rule
	for i := range 2 {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Mask, rule.Priority = family, r.mark, &r.mask, r.priority+i
		if i == 0 {
			rule.Table = r.table
		} else {
			rule.Type = unix.RTN_PROHIBIT
		}
		out = append(out, *rule)
	}
	return out
}

// ours reports whether a listed rule is the i-th of rules. The list does not tell the type: a rule without table and
// jump is one that refuses.
func (r routing) ours(rule netlink.Rule, i int) bool {
	return rule.Priority == r.priority+i && rule.Mark == r.mark && rule.Mask != nil && *rule.Mask == r.mask &&
		rule.Table == [2]int{r.table, 0}[i] && rule.Src == nil && rule.Dst == nil && rule.IifName == "" && rule.OifName == "" && !rule.Invert
}

// ensure makes table and rules of both families what they should be. A crash leaves routes without rules, which nothing
// uses, or a first rule without its second.
func (r routing) ensure(h *netlink.Handle, s *space, podAddrs []netip.Addr) error {
	for _, f := range families() {
		if err := r.ensureFamily(h, s, f, podAddrs); err != nil {
			if f == unix.AF_INET6 && errors.Is(err, unix.EAFNOSUPPORT) {
				continue // no IPv6 at all
			}
			return err
		}
	}
	return nil
}

func (r routing) ensureFamily(h *netlink.Handle, s *space, family int, podAddrs []netip.Addr) error {
	wanted := s.wanted(family, podAddrs)
	for _, w := range wanted {
		if err := h.RouteReplace(r.route(s, w)); err != nil {
			if !w.src.IsValid() {
				continue // IPv6 is disabled; the second rule refuses as well
			}
			return fmt.Errorf("add route to %v from %v in table %d: %w", w.dst, w.src, r.table, err)
		}
	}
	have, err := h.RouteListFiltered(family, &netlink.Route{Table: r.table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", r.table, err)
	}
	for _, route := range have {
		if !slices.ContainsFunc(wanted, func(w wantRoute) bool { return w.is(route) }) {
			if err := h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete stale route %v: %w", route, err)
			}
		}
	}
	rules, err := h.RuleList(family)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for i, rule := range r.rules(family) {
		if slices.ContainsFunc(rules, func(have netlink.Rule) bool { return r.ours(have, i) }) {
			continue
		}
		if err := h.RuleAdd(&rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule of priority %d: %w", rule.Priority, err)
		}
	}
	return nil
}

func (r routing) route(s *space, w wantRoute) *netlink.Route {
	out := &netlink.Route{Table: r.table, Dst: &net.IPNet{IP: w.dst.Addr().AsSlice(), Mask: net.CIDRMask(w.dst.Bits(), w.dst.Addr().BitLen())}}
	if !w.src.IsValid() {
		out.Type = unix.RTN_UNREACHABLE
		return out
	}
	out.Type, out.Scope, out.LinkIndex, out.Src = unix.RTN_LOCAL, netlink.SCOPE_HOST, s.lo, w.src.AsSlice()
	return out
}

// is reports whether a listed route is w.
func (w wantRoute) is(r netlink.Route) bool {
	dst, ok := prefixOf(r.Dst)
	if !ok {
		dst = netip.PrefixFrom(w.dst.Addr(), 0) // the default route may come without destination
		if w.dst.Addr() != netip.IPv4Unspecified() && w.dst.Addr() != netip.IPv6Unspecified() {
			return false
		}
	}
	src, _ := netip.AddrFromSlice(r.Src)
	kind := unix.RTN_LOCAL
	if !w.src.IsValid() {
		kind = unix.RTN_UNREACHABLE
	}
	return dst == w.dst && src.Unmap() == w.src && r.Type == kind
}

// remove removes rules and table of both families; what is not there is no error. Sockets that still have the mark
// lose their way.
func (r routing) remove(h *netlink.Handle) error {
	errs := []error{r.removeDNS(h)}
	for _, f := range families() {
		rules, err := h.RuleList(f)
		if err != nil {
			if !errors.Is(err, unix.EAFNOSUPPORT) {
				errs = append(errs, fmt.Errorf("list rules: %w", err))
			}
			continue
		}
		for i, rule := range r.rules(f) {
			for _, have := range rules {
				if !r.ours(have, i) {
					continue
				}
				if err := h.RuleDel(&rule); err != nil && !errors.Is(err, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("delete rule of priority %d: %w", rule.Priority, err))
				}
			}
		}
		routes, err := h.RouteListFiltered(f, &netlink.Route{Table: r.table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routes of table %d: %w", r.table, err))
		}
		for _, route := range routes {
			if err := h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("delete route %v: %w", route, err))
			}
		}
	}
	return errors.Join(errs...)
}

// problems returns what ensure would change.
func (r routing) problems(h *netlink.Handle, s *space, podAddrs []netip.Addr) ([]string, error) {
	var out []string
	for _, f := range families() {
		rules, err := h.RuleList(f)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for i := range 2 {
			if !slices.ContainsFunc(rules, func(have netlink.Rule) bool { return r.ours(have, i) }) {
				out = append(out, fmt.Sprintf("IPv%s rule of priority %d is missing", ipVersion(f), r.priority+i))
			}
		}
		have, err := h.RouteListFiltered(f, &netlink.Route{Table: r.table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes of table %d: %w", r.table, err)
		}
		for _, w := range s.wanted(f, podAddrs) {
			if w.src.IsValid() && !slices.ContainsFunc(have, w.is) {
				out = append(out, fmt.Sprintf("route to %v from %v in table %d is missing", w.dst, w.src, r.table))
			}
		}
	}
	return out, nil
}

func ipVersion(family int) string {
	if family == unix.AF_INET {
		return strconv.Itoa(4)
	}
	return strconv.Itoa(6)
}
