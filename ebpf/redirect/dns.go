//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// DNS: a third rule per family sends what the pod itself sends to UDP port 53, wherever, to the table of redirected
// connections; on lo the lookup program gives it to a socket of ours. Connections to port 53 are redirected as all others,
// and go to a listener of ours. Nothing is rewritten: IP_ORIGDSTADDR, or getsockname, is the nameserver. As everywhere what
// goes to loopback or to the pod's own addresses is left alone.

// DNSPort is the port of the sockets for DNS, that of Istio's ztunnel; queries do not depend on it.
const DNSPort = 15053

// dnsQueue is how many bytes of datagrams wait while no process reads.
const dnsQueue = 1 << 20

// The slots of the map dns_sockets; enum dns_slot of dns.h.
const (
	slotDatagram uint32 = 0
	slotStream   uint32 = 1
)

// DNSSockets are the descriptors of the sockets that a pod's DNS queries come to: non-blocking, close-on-exec, for both
// families. Datagrams carry IP_ORIGDSTADDR or IPV6_ORIGDSTADDR.
type DNSSockets struct {
	Datagram int // UDP
	Stream   int // TCP, listening
}

func (d *DNSSockets) given() bool { return d.Datagram > 0 && d.Stream > 0 }

// Close closes those that are positive.
func (d *DNSSockets) Close() error {
	var errs []error
	for _, fd := range []*int{&d.Datagram, &d.Stream} {
		if *fd > 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = 0
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close sockets for DNS: %w", err)
	}
	return nil
}

// ListenDNS opens the sockets for DNS of a pod in its namespace. The caller closes them. The error wraps unix.EADDRINUSE as
// Listen's does.
func ListenDNS(ns *netns.NS) (DNSSockets, error) {
	datagram, err := listenDatagram(ns)
	if err != nil {
		return DNSSockets{}, fmt.Errorf("receive on port %d of %v: %w", DNSPort, ns, err)
	}
	stream, err := listen(ns, DNSPort)
	if err != nil {
		unix.Close(datagram)
		return DNSSockets{}, fmt.Errorf("listen on port %d of %v: %w", DNSPort, ns, err)
	}
	return DNSSockets{Datagram: datagram, Stream: stream}, nil
}

func listenDatagram(ns *netns.NS) (int, error) {
	family := unix.AF_INET6
	fd, err := ns.Socket(family, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		family = unix.AF_INET
		fd, err = ns.Socket(family, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	}
	if err != nil {
		return -1, err
	}
	if err := bindDatagram(fd, family); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindDatagram(fd, family int) error {
	type option struct {
		level, name, value int
		text               string
	}
	options := []option{
		{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1, "IP_RECVORIGDSTADDR"},
		// Bound to lo nobody outside can reach the socket by its own port. What the lookup program gives it comes anyway.
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopbackIndex, "SO_BINDTOIFINDEX"},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, dnsQueue, "SO_RCVBUFFORCE"},
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: DNSPort}
	if family == unix.AF_INET6 {
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_V6ONLY, 0, "IPV6_V6ONLY"},
			option{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1, "IPV6_RECVORIGDSTADDR"})
		addr = &unix.SockaddrInet6{Port: DNSPort}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// DNSMark returns the mark of datagrams to port 53 that are not captured, for the proxy's own: all bits of the mask that the
// mark of connections leaves free. An application that may set marks can do the same; capture of DNS keeps nobody in.
func DNSMark(mark, mask uint32) uint32 { return mask &^ mark }

// prepareDNS makes a pod's map of sockets for DNS and fills it, or ends the capture of datagrams. finishDNS does the rest
// when the program is the right one.
func (n *Node) prepareDNS(st *podPins, d DNSSockets, h netlinkHandle) error {
	if st.dns == nil {
		m, err := ebpf.NewMap(n.spec.Maps[lookupMapDnsSockets])
		if err != nil {
			return fmt.Errorf("make map of sockets for DNS: %w", err)
		}
		if err := m.Pin(st.path("dns")); err != nil {
			return errors.Join(fmt.Errorf("pin map of sockets for DNS: %w", err), m.Close())
		}
		st.dns = m
	}
	if !d.given() {
		return st.routing().removeDNS(h)
	}
	if DNSMark(st.rec.Mark, st.rec.Mask) == 0 {
		return fmt.Errorf("capture DNS: mark %#x leaves no other in mask %#x for the proxy's own queries", st.rec.Mark, st.rec.Mask)
	}
	for slot, fd := range map[uint32]int{slotDatagram: d.Datagram, slotStream: d.Stream} {
		if err := st.dns.Put(slot, uint64(fd)); err != nil {
			return fmt.Errorf("put socket for DNS into slot %d: %w", slot, err)
		}
	}
	return nil
}

func (st *podPins) finishDNS(d DNSSockets, h netlinkHandle) error {
	if d.given() {
		return st.routing().ensureDNS(h)
	}
	return st.clearDNS()
}

func (st *podPins) clearDNS() error {
	for _, slot := range []uint32{slotDatagram, slotStream} {
		if err := st.dns.Delete(slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("clear slot %d for DNS: %w", slot, err)
		}
	}
	return nil
}

// dnsSockets reports whether the pod's sockets for DNS are there.
func (st *podPins) dnsSockets() bool {
	var cookie uint64
	return st.dns != nil && st.dns.Lookup(slotDatagram, &cookie) == nil
}

// releaseDNS ends the capture of DNS: queries are on their own before the program that takes them goes.
func (n *Node) releaseDNS(uid string, st *podPins) error {
	k, err := n.namespace(uid, st)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return removeDNS(k.ns, st)
}

func removeDNS(ns *netns.NS, st *podPins) error {
	h, err := ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return st.routing().removeDNS(h)
}

// dnsRule is the rule for what the pod sends to UDP port 53 itself (it has no other interface that it came by), and has none
// of our marks.
func (r routing) dnsRule(family int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Mask, rule.Priority, rule.Table = family, &r.mask, r.priority+2, r.table
	rule.IifName, rule.IPProto, rule.Dport = "lo", unix.IPPROTO_UDP, netlink.NewRulePortRange(53, 53)
	return rule
}

func (r routing) oursDNS(rule netlink.Rule) bool {
	return rule.Priority == r.priority+2 && rule.Table == r.table && rule.IPProto == unix.IPPROTO_UDP &&
		rule.Dport != nil && rule.Dport.Start == 53 && rule.Dport.End == 53
}

// eachDNS calls f for each family and our rule of it, nil if there is none.
func (r routing) eachDNS(h netlinkHandle, f func(family int, have *netlink.Rule) error) error {
	for _, family := range families() {
		rules, err := h.RuleList(family)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		var have *netlink.Rule
		for i := range rules {
			if r.oursDNS(rules[i]) {
				have = &rules[i]
			}
		}
		if err := f(family, have); err != nil {
			return err
		}
	}
	return nil
}

func (r routing) ensureDNS(h netlinkHandle) error {
	return r.eachDNS(h, func(family int, have *netlink.Rule) error {
		if have != nil {
			return nil
		}
		if err := h.RuleAdd(r.dnsRule(family)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule for DNS: %w", err)
		}
		return nil
	})
}

func (r routing) removeDNS(h netlinkHandle) error {
	return r.eachDNS(h, func(family int, have *netlink.Rule) error {
		if have == nil {
			return nil
		}
		if err := h.RuleDel(r.dnsRule(family)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete rule for DNS: %w", err)
		}
		return nil
	})
}

// hasDNS reports whether the rules for DNS are there, in all families.
func (r routing) hasDNS(h netlinkHandle) (all bool, err error) {
	all = true
	err = r.eachDNS(h, func(_ int, have *netlink.Rule) error {
		all = all && have != nil
		return nil
	})
	return all, err
}
