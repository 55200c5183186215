//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

type netlinkHandle = *netlink.Handle

// podPins is the open directory of a pod: what this and later processes know of it.
type podPins struct {
	dir               string
	record, listeners *ebpf.Map
	dns               *ebpf.Map // nil until prepareDNS if the pod is from before there was one
	rec               lookupPod
}

func (st *podPins) path(name string) string { return filepath.Join(st.dir, name) }
func (st *podPins) id() netns.ID            { return netns.ID{Dev: st.rec.Dev, Ino: st.rec.Ino} }

// Close closes the maps.
func (st *podPins) Close() error {
	return errors.Join(st.record.Close(), st.listeners.Close(), st.dns.Close())
}

func (st *podPins) routing() routing {
	return routing{st.rec.Mark, st.rec.Mask, int(st.rec.Table), int(st.rec.Priority)}
}

// save writes the record.
func (st *podPins) save() error {
	if err := st.record.Put(uint32(0), &st.rec); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// fill puts listeners into their slots; see Pod.Listeners.
func (st *podPins) fill(l Listeners) error {
	for slot, fd := range map[uint32]int{slotOutbound: l.Outbound, slotPlaintext: l.Plaintext, slotHBONE: l.HBONE} {
		if fd <= 0 {
			continue
		}
		if err := st.listeners.Put(slot, uint64(fd)); err != nil {
			return fmt.Errorf("put listener into slot %d: %w", slot, err)
		}
	}
	return nil
}

// openPod opens a pod's directory. Without one it returns ErrUnknownPod.
func (n *Node) openPod(uid string) (*podPins, error) { return openPod(n.dir, uid) }

func openPod(dir pinDir, uid string) (_ *podPins, err error) {
	st := &podPins{dir: dir.pod(uid)}
	st.record, err = ebpf.LoadPinnedMap(st.path("record"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open record of pod %q: %w", uid, ErrUnknownPod)
	}
	if err != nil {
		return nil, fmt.Errorf("open record of pod %q: %w", uid, err)
	}
	if err := st.record.Lookup(uint32(0), &st.rec); err != nil {
		st.record.Close()
		return nil, fmt.Errorf("read record of pod %q: %w", uid, err)
	}
	st.listeners, err = ebpf.LoadPinnedMap(st.path("listeners"), nil)
	if err != nil {
		st.record.Close()
		return nil, fmt.Errorf("open listeners of pod %q: %w", uid, err)
	}
	if st.dns, err = ebpf.LoadPinnedMap(st.path("dns"), nil); err != nil && !errors.Is(err, os.ErrNotExist) {
		st.Close()
		return nil, fmt.Errorf("open sockets for DNS of pod %q: %w", uid, err)
	}
	return st, nil
}

// createPod makes a pod's directory with its maps, in one step.
func (n *Node) createPod(uid string, cookie uint64, id netns.ID) (_ *podPins, err error) {
	// A directory that is there cannot be ours: it has no record.
	if err := n.dir.removePod(uid); err != nil {
		return nil, err
	}
	staged, err := n.dir.stage(stagedPod + escape(uid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = removeTree(staged) }() // gone after publish
	st := &podPins{dir: n.dir.pod(uid)}
	if st.record, err = ebpf.NewMap(n.spec.Maps[lookupMapRecord]); err != nil {
		return nil, fmt.Errorf("make record: %w", err)
	}
	if st.listeners, err = ebpf.NewMap(n.spec.Maps[lookupMapListeners]); err != nil {
		st.record.Close()
		return nil, fmt.Errorf("make map of listeners: %w", err)
	}
	st.rec = lookupPod{Cookie: cookie, Dev: id.Dev, Ino: id.Ino}
	err = st.save()
	if err == nil {
		err = errors.Join(st.record.Pin(staged+"/record"), st.listeners.Pin(staged+"/listeners"))
	}
	if err == nil {
		err = publish(staged, st.dir)
	}
	if err != nil {
		st.Close()
		return nil, err
	}
	return st, nil
}

// now is the time since the machine started, in nanoseconds; it goes on across restarts of the process.
func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 1 // cannot happen; 0 would mean attached
	}
	return uint64(ts.Nano())
}
