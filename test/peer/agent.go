package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zdspb"
)

const (
	maxPacket = 1024            // the largest ZDS message, either way (ztunnel.md Z1)
	ackWait   = 5 * time.Second // as istio-cni waits
)

// errNoZtunnel is what istio-cni tells the kubelet while no ztunnel is connected.
var errNoZtunnel = errors.New("no ztunnel is connected")

// agent is a node agent's end of ZDS. Ztunnels connect, are told of the pods there are, then of changes: a new pod is told
// to the newest ztunnel, the end of one to all (redirection.md 1.5). Its methods are safe for concurrent use and block
// until the ztunnels have answered.
type agent struct {
	listener *net.UnixListener
	synced   chan struct{} // closed when the first ztunnel has answered the snapshot, or failed to
	wg       sync.WaitGroup

	mu       sync.Mutex // held while a ztunnel is asked: one message at a time
	pods     []PodInfo
	sessions []*session // oldest first
	first    error      // how the first snapshot went; valid once synced is closed
	closed   bool
}

// session is a ztunnel's connection.
type session struct {
	conn *net.UnixConn
	acks chan []byte   // capacity 1: one message is under way
	gone chan struct{} // closed when the ztunnel has hung up
}

// listenAgent listens at path and serves until close.
func listenAgent(path string, pods []PodInfo) (*agent, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for ztunnels: %w", err)
	}
	a := &agent{listener: l, pods: slices.Clone(pods), synced: make(chan struct{})}
	a.wg.Go(a.accept)
	return a, nil
}

// result is how handing over the pods went; valid once synced is closed.
func (a *agent) result() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.first
}

func (a *agent) accept() {
	for first := true; ; first = false {
		conn, err := a.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		s := &session{conn: conn, acks: make(chan []byte, 1), gone: make(chan struct{})}
		a.wg.Go(func() { a.read(s) })
		a.mu.Lock()
		err = a.snapshot(s)
		if err != nil || a.closed {
			conn.Close()
		} else {
			a.sessions = append(a.sessions, s)
		}
		if first {
			a.first = err
			close(a.synced)
		}
		a.mu.Unlock()
	}
}

// read passes on what the ztunnel answers, until it hangs up.
func (a *agent) read(s *session) {
	b := make([]byte, maxPacket)
	for {
		n, err := s.conn.Read(b)
		if n == 0 || err != nil {
			break
		}
		select {
		case s.acks <- slices.Clone(b[:n]):
		default: // there is one already, which nobody asked for
		}
	}
	close(s.gone)
	a.mu.Lock()
	a.sessions = slices.DeleteFunc(a.sessions, func(x *session) bool { return x == s })
	a.mu.Unlock()
	s.conn.Close()
}

// snapshot reads the hello, adds every pod, and ends the snapshot (Z2 to Z4); with a.mu held.
func (a *agent) snapshot(s *session) error {
	hello := &zdspb.ZdsHello{}
	if err := s.recv(hello); err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	if hello.GetVersion() != zdspb.Version_V1 {
		return fmt.Errorf("read hello: version %v, want V1", hello.GetVersion())
	}
	for _, p := range a.pods {
		if err := s.add(p); err != nil {
			return fmt.Errorf("add pod %q: %w", p.Name, err)
		}
	}
	req := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	if err := s.ask(req, nil); err != nil {
		return fmt.Errorf("end snapshot: %w", err)
	}
	return nil
}

// add hands a pod to the newest ztunnel. A pod that is known already is replaced.
func (a *agent) add(p PodInfo) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.sessions) == 0 {
		return errNoZtunnel
	}
	if err := a.sessions[len(a.sessions)-1].add(p); err != nil {
		return fmt.Errorf("add pod %q: %w", p.Name, err)
	}
	a.forget(p.UID)
	a.pods = append(a.pods, p)
	return nil
}

// remove tells every ztunnel that a pod is out of the mesh.
func (a *agent) remove(uid string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget(uid)
	var errs []error
	for _, s := range a.sessions {
		errs = append(errs, s.ask(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}}, nil))
	}
	return errors.Join(errs...)
}

func (a *agent) forget(uid string) {
	a.pods = slices.DeleteFunc(a.pods, func(p PodInfo) bool { return p.UID == uid })
}

// close ends the agent and waits for it.
func (a *agent) close() error {
	err := a.listener.Close()
	a.mu.Lock()
	a.closed = true
	for _, s := range a.sessions {
		s.conn.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
	return err
}

func (s *session) add(p PodInfo) error {
	return s.ask(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid:          p.UID,
		WorkloadInfo: &zdspb.WorkloadInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount},
	}}}, unix.UnixRights(p.NS.FD()))
}

// ask sends one request and reads its ack.
func (s *session) ask(req *zdspb.WorkloadRequest, rights []byte) error {
	b, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	if _, _, err := s.conn.WriteMsgUnix(b, rights, nil); err != nil {
		return err
	}
	resp := &zdspb.WorkloadResponse{}
	if err := s.recv(resp); err != nil {
		return err
	}
	if e := resp.GetAck().GetError(); e != "" {
		return errors.New(e)
	}
	return nil
}

func (s *session) recv(m proto.Message) error {
	t := time.NewTimer(ackWait)
	defer t.Stop()
	select {
	case b := <-s.acks:
		return proto.Unmarshal(b, m)
	case <-s.gone:
		return errors.New("ztunnel hung up")
	case <-t.C:
		return fmt.Errorf("ztunnel did not answer within %s", ackWait)
	}
}
