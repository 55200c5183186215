//go:build linux

package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// Sweep visits the detached pods once; see SweepPod. It returns how many are left, and stops early when ctx is done. Call
// it now and then; nothing waits for it.
func (n *Node) Sweep(ctx context.Context) (left int, err error) {
	var errs []error
	for _, p := range n.Pods() {
		if p.Attached {
			continue
		}
		if ctx.Err() != nil {
			return left, ctx.Err()
		}
		done, err := n.SweepPod(p.UID)
		if err != nil {
			errs = append(errs, err)
		}
		if !done {
			left++
		}
	}
	return left, errors.Join(errs...)
}

// SweepPod removes routes, rules and sysctls of a detached pod when none of its sockets has the mark any more, or
// Config.SweepAfter after Detach, or when its namespace has ended. It reports whether nothing of the pod is left; true
// also for a pod that is not known. An attached pod is left alone.
func (n *Node) SweepPod(uid string) (done bool, err error) {
	end, err := n.begin()
	if err != nil {
		return false, err
	}
	defer end()
	st, err := n.openPod(uid)
	if errors.Is(err, ErrUnknownPod) {
		return true, n.forget(uid)
	}
	if err != nil {
		return false, err
	}
	defer st.Close()
	if st.rec.Detached == 0 {
		return false, nil
	}
	if done, err = n.sweep(uid, st); err != nil {
		return false, fmt.Errorf("sweep pod %q: %w", uid, err)
	}
	return done, nil
}

func (n *Node) sweep(uid string, st *podPins) (bool, error) {
	if err := n.detach(uid, st); err != nil { // if a crash interrupted it
		return false, err
	}
	k, err := n.namespace(uid, st)
	if errors.Is(err, os.ErrNotExist) {
		return true, n.forget(uid)
	}
	if err != nil {
		return false, err
	}
	if n.cfg.SweepAfter < 0 || now()-st.rec.Detached < uint64(n.cfg.SweepAfter/time.Nanosecond) {
		busy, err := hasMarked(k.ns, st.rec.Mark, st.rec.Mask)
		if err != nil {
			n.cfg.Logger.Warn("sockets not listed; routes stay until the deadline", "pod", uid, "err", err)
			return false, nil
		}
		if busy {
			return false, nil
		}
	}
	if err := undo(k.ns, st); err != nil {
		return false, err
	}
	return true, n.forget(uid)
}

// undo removes from a namespace all that a record says was put there.
func undo(ns *netns.NS, st *podPins) error {
	h, err := ns.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(st.routing().reroute(h, nil), st.routing().remove(h), restoreSysctls(ns, st.rec.Sysctls))
}

// struct inet_diag_req_v2, struct inet_diag_msg and the attribute of linux/inet_diag.h.
const (
	diagRequestLen = 56
	diagMessageLen = 72
	diagMark       = 15 // INET_DIAG_MARK, present for CAP_NET_ADMIN
)

// openStates are the states of TCP in which a socket still has something to send or get: not LISTEN, TIME_WAIT, CLOSE.
const openStates = 0xfff &^ (1<<10 | 1<<6 | 1<<7)

// diagRequest asks for all TCP sockets of a family.
type diagRequest struct{ family uint8 }

func (diagRequest) Len() int { return diagRequestLen }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestLen) // family, protocol, extensions, padding, states, id
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], openStates)
	return b
}

// hasMarked reports whether a TCP socket of the namespace has the mark.
func hasMarked(ns *netns.NS, mark, mask uint32) (found bool, err error) {
	err = ns.Do(func() error {
		for _, family := range families() {
			req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.AddData(diagRequest{uint8(family)})
			msgs, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
			for _, m := range msgs {
				if v, ok := markOf(m); ok && v&mask == mark {
					found = true
				}
			}
		}
		return nil
	})
	return found, err
}

// markOf reads the mark from a message about a socket; false if it has none (a mark of 0 is not sent). Attributes are
// length and type, 16 bits each, and the value, padded to 4 bytes; the length counts header and value.
func markOf(m []byte) (uint32, bool) {
	if len(m) < diagMessageLen {
		return 0, false
	}
	for m = m[diagMessageLen:]; len(m) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(m))
		if size < unix.SizeofNlAttr || size > len(m) {
			break
		}
		if binary.NativeEndian.Uint16(m[2:]) == diagMark && size == unix.SizeofNlAttr+4 {
			return binary.NativeEndian.Uint32(m[unix.SizeofNlAttr:]), true
		}
		m = m[min((size+3)&^3, len(m)):]
	}
	return 0, false
}
