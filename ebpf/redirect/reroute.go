//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxRerouted is MAX_REROUTED of ambit.h.
const maxRerouted = 8

// rerouteOffset is from the priority of the first rule to that of the rules of rerouted interfaces, of which there are two
// each, as of the mark: what comes in by the interface goes to the table, and nowhere else should that be flushed.
const rerouteOffset = 4

// rerouted are the interfaces of p.Reroute: by name those that rules are made for, by number those that are there. An
// interface that is not there yet is found by Verify when it is.
func (n *Node) rerouted(h *netlink.Handle, p Pod, s *space) (names []string, indexes []uint32, err error) {
	for _, name := range p.Reroute {
		l, err := h.LinkByName(name)
		missing := errors.As(err, new(netlink.LinkNotFoundError))
		if err != nil && !missing {
			return nil, nil, fmt.Errorf("find interface %q: %w", name, err)
		}
		if !missing && s.leadsOut(l.Attrs().Index, p) {
			n.cfg.Logger.Warn("interface is not rerouted: it is the pod's own way out", "pod", p.UID, "interface", name)
			continue
		}
		if len(names) == maxRerouted {
			n.cfg.Logger.Warn("interface is not rerouted: there are too many", "pod", p.UID, "interface", name, "max", maxRerouted)
			continue
		}
		names = append(names, name)
		if !missing {
			indexes = append(indexes, uint32(l.Attrs().Index))
		}
	}
	return names, indexes, nil
}

// leadsOut says that an interface is loopback, or has an address of the pod's or a default route. What comes in by it is from
// outside, and must not be taken for the pod's.
func (s *space) leadsOut(index int, p Pod) bool {
	if index == s.lo {
		return true
	}
	for _, prefix := range s.links[index] {
		if slices.Contains(p.Addrs, prefix.Addr()) {
			return true
		}
	}
	for _, f := range families() {
		for _, r := range s.main[f] {
			if dst, ok := prefixOf(r.Dst); (!ok || dst.Bits() == 0) && r.LinkIndex == index {
				return true
			}
		}
	}
	return false
}

func (r routing) rerouteRules(family int, names []string) (out []netlink.Rule) {
	for _, name := range names {
		for i := range 2 {
			rule := netlink.NewRule()
			rule.Family, rule.IifName, rule.IPProto, rule.Priority = family, name, unix.IPPROTO_TCP, r.priority+rerouteOffset+i
			if i == 0 {
				rule.Table = r.table
			} else {
				rule.Type = unix.RTN_PROHIBIT
			}
			out = append(out, *rule)
		}
	}
	return out
}

// isReroute says that a listed rule is one of rerouteRules, of whatever interface.
func (r routing) isReroute(rule netlink.Rule) bool {
	i := rule.Priority - r.priority - rerouteOffset
	return (i == 0 && rule.Table == r.table || i == 1 && rule.Table == 0) && rule.IifName != "" && rule.IPProto == unix.IPPROTO_TCP &&
		rule.Mark == 0 && rule.Src == nil && rule.Dst == nil && rule.OifName == "" && !rule.Invert
}

func sameReroute(a, b netlink.Rule) bool { return a.Priority == b.Priority && a.IifName == b.IifName }

// reroute makes the rules of these interfaces, and removes those of others. TCP that comes in by them is taken from its way
// through the pod; connections that are open on that way do not go on, and neither do rerouted ones when the rules go.
func (r routing) reroute(h *netlink.Handle, names []string) error {
	for _, f := range families() {
		have, err := h.RuleList(f)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		have = slices.DeleteFunc(have, func(rule netlink.Rule) bool { return !r.isReroute(rule) })
		want := r.rerouteRules(f, names)
		for _, rule := range have {
			if !slices.ContainsFunc(want, func(w netlink.Rule) bool { return sameReroute(w, rule) }) {
				if err := h.RuleDel(&rule); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("delete rule of interface %q: %w", rule.IifName, err)
				}
			}
		}
		// The rule that refuses first: it is used only when there is no table.
		slices.Reverse(want)
		for _, rule := range want {
			if slices.ContainsFunc(have, func(is netlink.Rule) bool { return sameReroute(is, rule) }) {
				continue
			}
			if err := h.RuleAdd(&rule); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add rule of interface %q: %w", rule.IifName, err)
			}
		}
	}
	return nil
}

// rerouteProblems returns what reroute would change.
func (r routing) rerouteProblems(h *netlink.Handle, names []string) (out []string, err error) {
	for _, f := range families() {
		have, err := h.RuleList(f)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		want := r.rerouteRules(f, names)
		for _, w := range want {
			if !slices.ContainsFunc(have, func(is netlink.Rule) bool { return r.isReroute(is) && sameReroute(is, w) }) {
				out = append(out, fmt.Sprintf("IPv%s rule of priority %d for interface %q is missing", ipVersion(f), w.Priority, w.IifName))
			}
		}
		for _, is := range have {
			if r.isReroute(is) && !slices.ContainsFunc(want, func(w netlink.Rule) bool { return sameReroute(is, w) }) {
				out = append(out, fmt.Sprintf("IPv%s rule of priority %d for interface %q is none of ours", ipVersion(f), is.Priority, is.IifName))
			}
		}
	}
	return out, nil
}
