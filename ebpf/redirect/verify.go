//go:build linux

package redirect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Problem is something that is not as Attach left it.
type Problem string

// Verify compares a pod's redirection with what it should be: link, enrolment, listeners, rules, routes, sysctls, the
// node's own links. Nil: all is well. Attach with the pod repairs it, but for the node's links, which Open does.
func (n *Node) Verify(uid string) []Problem {
	end, err := n.begin()
	if err != nil {
		return []Problem{Problem(err.Error())}
	}
	defer end()
	st, err := n.openPod(uid)
	if err != nil {
		return []Problem{Problem(err.Error())}
	}
	defer st.Close()
	out := n.verifyPins(st)
	more, err := n.verifySpace(uid, st)
	if err != nil {
		more = append(more, Problem(err.Error()))
	}
	return append(out, more...)
}

func (n *Node) verifyPins(st *podPins) []Problem {
	var out []Problem
	add := func(format string, args ...any) { out = append(out, Problem(fmt.Sprintf(format, args...))) }
	for _, h := range connectHooks {
		if l, err := link.LoadPinnedLink(n.dir.node(h.pin), nil); err != nil {
			add("link %s of the node is missing: %v", h.pin, err)
		} else {
			if cgroupOf(l) == 0 {
				add("link %s of the node has ended", h.pin)
			}
			l.Close()
		}
	}
	if st.rec.Detached != 0 {
		return append(out, "pod is detached")
	}
	if l, err := link.LoadPinnedLink(st.path("link"), nil); err != nil {
		add("link of the lookup program is missing: %v", err)
	} else {
		if ino := namespaceOf(l); ino != st.rec.Ino {
			add("lookup program is attached to net:[%d] instead of net:[%d]", ino, st.rec.Ino)
		}
		l.Close()
	}
	var e connectEnrolment
	if err := n.maps.Enrolled.Lookup(st.rec.Cookie, &e); err != nil {
		add("namespace is not enrolled: %v", err)
	}
	for slot, name := range []string{"outbound", "plaintext", "HBONE"} {
		var cookie uint64
		if err := st.listeners.Lookup(uint32(slot), &cookie); errors.Is(err, ebpf.ErrKeyNotExist) {
			add("no %s listener", name)
		} else if err != nil {
			add("%s listener: %v", name, err)
		}
	}
	return out
}

func (n *Node) verifySpace(uid string, st *podPins) ([]Problem, error) {
	k, err := n.namespace(uid, st)
	if err != nil {
		return nil, err
	}
	h, err := k.ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	s, err := readSpace(h, k.pod.Addrs)
	if err != nil {
		return nil, err
	}
	texts, err := st.routing().problems(h, s, k.pod.Addrs)
	if err != nil {
		return nil, err
	}
	c, err := n.constants(h, k.pod, s)
	if err != nil {
		return nil, err
	}
	more, err := st.routing().rerouteProblems(h, c.rerouteNames)
	if err != nil {
		return nil, err
	}
	var out []Problem
	for _, t := range append(texts, more...) {
		out = append(out, Problem(t))
	}
	c.dns = st.dnsSockets()
	switch on, err := st.routing().hasDNS(h); {
	case err != nil:
		return nil, err
	case c.dns && !on:
		out = append(out, "rule for DNS is missing")
	case !c.dns && on:
		out = append(out, "rule for DNS is there, and no socket")
	}
	if build, err := n.build(c); err != nil {
		return out, err
	} else if st.rec.Build != build {
		out = append(out, "lookup program is of another build, or for other addresses")
	}
	for _, key := range sysctls {
		if v, err := k.ns.Sysctl(key); err == nil && v == "0" {
			out = append(out, Problem(key+" is 0"))
		}
	}
	return out, nil
}
