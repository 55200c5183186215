package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/ambit-mesh/ambit/test/bed"
)

// A system is something to measure.
type system interface {
	// name is its name in the results.
	name() string
	// start makes it ready to carry traffic in namespaces of its own.
	start(ctx context.Context, opts options) (*instance, error)
}

// options of a start.
type options struct {
	dir    string // an empty directory of its own
	tables int    // workloads that it knows of besides those that take part
}

// The pods of a bed. The client and near are on node a, the others on node b; far and near are in the mesh, outside is not.
const (
	clientPod  = "client"
	nearPod    = "near"
	farPod     = "far"
	outsidePod = "outside"
)

// An instance is a started system. Its stop ends everything that start began.
type instance struct {
	bed     *bed.Bed
	client  *bed.NS                               // where clients run
	targets map[path]target                       // what clients dial; a path that is missing does not exist
	procs   map[role][]int                        // process ids
	about   map[string]string                     // versions, cipher and the like, for the report
	servers []int                                 // process ids of the server applications
	undo    []func() error                        // what stop does, last first
	prepare func(context.Context, workload) error // called before each run; may be nil
	notes   func() []string                       // asked before stop: what a reader should know; may be nil
}

// A role is a part of a system whose CPU is counted apart.
type role string

const (
	proxyA  role = "a" // on the client's node
	proxyB  role = "b"
	control role = "control" // control plane and the like; not counted as proxy
)

// target is what a client dials on a path: the server's ports plus offset at addr.
type target struct {
	addr   netip.Addr
	offset int
}

// atStop has f run by stop, before what was given earlier.
func (in *instance) atStop(f func() error) { in.undo = append(in.undo, f) }

// stop ends the system. It may be called twice.
func (in *instance) stop() error {
	var errs []error
	for i := len(in.undo) - 1; i >= 0; i-- {
		errs = append(errs, in.undo[i]())
	}
	in.undo = nil
	return errors.Join(errs...)
}

// newBed makes the bed of a system and starts the servers in it.
func (in *instance) newBed(ctx context.Context, name string) (*bed.Bed, error) {
	b, err := bed.New("ambit-bench-"+name,
		bed.NodeSpec{Name: "a", Pods: []string{clientPod, nearPod}},
		bed.NodeSpec{Name: "b", Pods: []string{farPod, outsidePod}})
	if err != nil {
		return nil, err
	}
	in.atStop(b.Close)
	in.bed = b
	in.client = b.Pod(clientPod).NS
	in.targets = map[path]target{
		crossNode:   {addr: b.Pod(farPod).Addr},
		sameNode:    {addr: b.Pod(nearPod).Addr},
		passthrough: {addr: b.Pod(outsidePod).Addr},
	}
	for _, pod := range []string{nearPod, farPod, outsidePod} {
		pid, err := in.startSelf(ctx, b.Pod(pod).NS, "server")
		if err != nil {
			return nil, err
		}
		in.servers = append(in.servers, pid)
	}
	return b, nil
}

// startSelf starts a role of this program in a namespace and waits until it says that it is ready.
func (in *instance) startSelf(ctx context.Context, ns *bed.NS, args ...string) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := ns.Start(cmd)
	err = errors.Join(err, w.Close())
	if err != nil {
		return 0, err
	}
	in.atStop(func() error { p.Stop(time.Second); return nil })
	if err := awaitLine(ctx, r, "READY"); err != nil {
		return 0, fmt.Errorf("wait for %s: %w", args[0], err)
	}
	return p.PID(), nil
}

// awaitLine reads until a line is want.
func awaitLine(ctx context.Context, r *os.File, want string) error {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) }) // wakes the reader
	defer stop()
	s := bufio.NewScanner(r)
	for s.Scan() {
		if s.Text() == want {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("ended without saying %s", want), s.Err(), ctx.Err())
}
