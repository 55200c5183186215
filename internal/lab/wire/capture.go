package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture reads a link with a raw packet socket. Close it when done.
type Capture struct {
	fd     int
	filter func(Segment) bool

	mu      sync.Mutex
	tracker Tracker
	packets int
	dropped int
}

// Config says what to capture.
type Config struct {
	// Link is the interface; all of the namespace, and each that is made later, if "".
	Link string
	// Inside runs a function in the network namespace of the link; the calling one if nil.
	Inside func(func() error) error
	// Marker is what to look for in payloads.
	Marker []byte
	// Filter chooses the segments to look at; all if nil.
	Filter func(Segment) bool
}

// Report is what was seen so far.
type Report struct {
	Packets int
	// Dropped packets were not looked at since the reader was too slow.
	Dropped int
	Flows   []Flow
}

// Markers counts the marker in all flows.
func (r *Report) Markers() (n int) {
	for i := range r.Flows {
		n += r.Flows[i].Markers
	}
	return n
}

// Count counts the flows for which f holds.
func (r *Report) Count(f func(*Flow) bool) (n int) {
	for i := range r.Flows {
		if f(&r.Flows[i]) {
			n++
		}
	}
	return n
}

// Open begins to capture: what passes after Open is seen once Run runs. Needs CAP_NET_RAW in the namespace.
func Open(cfg Config) (*Capture, error) {
	if cfg.Inside == nil {
		cfg.Inside = func(f func() error) error { return f() }
	}
	c := &Capture{fd: -1, filter: cfg.Filter, tracker: Tracker{Marker: cfg.Marker}}
	err := cfg.Inside(func() error {
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: nothing before bind
		if err != nil {
			return err
		}
		c.fd = fd
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		index := 0 // all
		if cfg.Link != "" {
			link, err := net.InterfaceByName(cfg.Link)
			if err != nil {
				return err
			}
			index = link.Index
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("capture on %q: %w", cfg.Link, err)
	}
	// So that Run sees the end of its context.
	tv := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		c.Close()
		return nil, fmt.Errorf("capture on %s: %w", cfg.Link, err)
	}
	return c, nil
}

// Run reads until ctx ends, and then what was captured before. Nothing is captured afterwards. One Run at a time.
func (c *Capture) Run(ctx context.Context) error {
	buf := make([]byte, 1<<18)
	ended := false
	for {
		if !ended && ctx.Err() != nil {
			ended = true
			// A busy link fills the queue as fast as it is read.
			if err := c.shut(); err != nil {
				return fmt.Errorf("end capture: %w", err)
			}
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if ended {
				return nil
			}
			continue
		case err != nil:
			return fmt.Errorf("read packets: %w", err)
		}
		c.add(buf[:n])
	}
}

// shut lets no more packets into the queue: a filter that takes none.
func (c *Capture) shut() error {
	none := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	return unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none})
}

func (c *Capture) add(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.packets++
	s, ok := ParseFrame(frame)
	if ok && (c.filter == nil || c.filter(s)) {
		c.tracker.Add(s)
	}
}

// Report tells what was seen so far. Safe while Run runs.
func (c *Capture) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.dropped += int(st.Drops) // the kernel counts from the last question
	}
	return Report{c.packets, c.dropped, c.tracker.Flows()}
}

// Close ends the capture; not while Run runs.
func (c *Capture) Close() error {
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}
