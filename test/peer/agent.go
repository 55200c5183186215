package peer

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zdspb"
)

// maxPacket is the largest ZDS message, either way (ztunnel.md Z1).
const maxPacket = 1024

// agent is a node agent's end of ZDS for a fixed set of pods. It serves one ztunnel at a time.
type agent struct {
	pods   []PodInfo
	fd     int
	path   string
	synced chan struct{} // closed when the first ztunnel has answered the snapshot, or failed to

	mu   sync.Mutex
	err  error // how that went
	conn int   // the ztunnel's connection, -1 without one
	done chan struct{}
}

// listenAgent listens at path and serves in the background until close.
func listenAgent(path string, pods []PodInfo) (*agent, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make ZDS socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind ZDS socket %q: %w", path, err), unix.Close(fd))
	}
	if err := unix.Listen(fd, 4); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on ZDS socket %q: %w", path, err), unix.Close(fd))
	}
	a := &agent{pods: pods, fd: fd, path: path, conn: -1, synced: make(chan struct{}), done: make(chan struct{})}
	go a.serve()
	return a, nil
}

// result is how handing over the pods went; valid once synced is closed.
func (a *agent) result() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// serve accepts ztunnels, one after the other, until the socket is shut down.
func (a *agent) serve() {
	defer close(a.done)
	for first := true; ; {
		conn, _, err := unix.Accept4(a.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		a.mu.Lock()
		a.conn = conn
		a.mu.Unlock()
		err = a.handOver(conn)
		if first {
			a.mu.Lock()
			a.err = err
			a.mu.Unlock()
			close(a.synced)
			first = false
		}
		if err == nil {
			a.await(conn)
		}
		a.mu.Lock()
		a.conn = -1
		a.mu.Unlock()
		_ = unix.Close(conn) // nothing is buffered
	}
}

// await blocks until the ztunnel hangs up.
func (a *agent) await(conn int) {
	var b [maxPacket]byte
	for {
		n, err := unix.Read(conn, b[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			return
		}
	}
}

// handOver reads the hello, adds every pod, and ends the snapshot (Z2 to Z4).
func (a *agent) handOver(conn int) error {
	hello := &zdspb.ZdsHello{}
	if err := recv(conn, hello); err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	if hello.GetVersion() != zdspb.Version_V1 {
		return fmt.Errorf("read hello: version %v, want V1", hello.GetVersion())
	}
	for _, p := range a.pods {
		req := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
			Uid:          p.UID,
			WorkloadInfo: &zdspb.WorkloadInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount},
		}}}
		if err := ask(conn, req, unix.UnixRights(p.Pod.NS.FD())); err != nil {
			return fmt.Errorf("add pod %q: %w", p.Name, err)
		}
	}
	req := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	if err := ask(conn, req, nil); err != nil {
		return fmt.Errorf("end snapshot: %w", err)
	}
	return nil
}

// ask sends one request and reads its ack.
func ask(conn int, req *zdspb.WorkloadRequest, rights []byte) error {
	b, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(conn, b, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	resp := &zdspb.WorkloadResponse{}
	if err := recv(conn, resp); err != nil {
		return err
	}
	if e := resp.GetAck().GetError(); e != "" {
		return errors.New(e)
	}
	return nil
}

func recv(conn int, m proto.Message) error {
	var b [maxPacket]byte
	for {
		n, err := unix.Read(conn, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("ztunnel hung up")
		}
		return proto.Unmarshal(b[:n], m)
	}
}

// close ends the agent and waits for it.
func (a *agent) close() error {
	a.mu.Lock()
	if a.conn >= 0 {
		_ = unix.Shutdown(a.conn, unix.SHUT_RDWR) // wakes the reader; it may have hung up already
	}
	a.mu.Unlock()
	err := unix.Shutdown(a.fd, unix.SHUT_RDWR) // wakes accept
	<-a.done
	return errors.Join(err, unix.Close(a.fd), os.Remove(a.path))
}
