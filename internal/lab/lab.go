// Package lab runs a mesh on one Linux machine without Kubernetes: nodes and pods are network namespaces, manifests are
// ordinary, the programs are the real ones.
//
// A lab has a name, and everything it makes is derivable from that name, so that Down finds it also after a crash:
//
//	/run/ambit-lab/NAME        state: socket, manifests for the control plane, logs, per-node run directories, a bpffs
//	ambit-NAME-...             network namespaces (ip netns): fabric, control, node-N, pod-NAMESPACE.POD
//	CGROUP2/ambit-lab-NAME     every process, also those that were forked by others
//
// Interfaces, routes and netfilter tables live in those namespaces only and end with them; BPF pins live in the lab's
// own bpffs and end with its mount.
//
// The network: the fabric is a bridge in its own namespace; each node has eth0 on it and routes to the pods of the other
// nodes. A pod has eth0 with a /32 and a /128 and a link-local gateway, the other end of which is in its node. Labs do
// not reach each other or the machine's network, so all of them use the same addresses.
//
// A Lab does the work of the API server (objects in memory, Apply and Delete), the Deployment controller, the scheduler,
// the kubelet and kube-proxy. One mutex (Lab.mu) guards the objects and the table of pods; reconcile is the only place
// that decides, one goroutine at a time; each pod has one goroutine that owns its processes and reports its status.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Options says what a lab consists of. The zero value is two nodes with the mesh, programs beside the running
// executable.
type Options struct {
	// Name is 1 to 12 lower-case letters and digits; "lab" if empty.
	Name string
	// Nodes is their number, 2 if zero, at most 9.
	Nodes int
	// NoMesh leaves out ztunnels and control plane: no pod is captured.
	NoMesh bool
	// Families is "dual" (default), "ipv4" or "ipv6": the addresses of pods and services. Nodes always have both.
	Families string
	// Programs are the mesh's programs.
	Programs Programs
	// Log takes what a human wants to know; discarded if nil.
	Log *slog.Logger
}

// Programs are paths and extra arguments of what the lab starts.
type Programs struct {
	Ztunnel      string
	Controlplane string
	// ZtunnelOf replaces Ztunnel for single nodes, by the node's name.
	ZtunnelOf map[string]string
	// Waypoint is run for Gateways of class istio-waypoint, unless Envoy names an Envoy to be run by EnvoyAgent.
	Waypoint string
	// Envoy is a real Envoy, to be judged against; EnvoyAgent the command that feeds it certificates.
	Envoy      string
	EnvoyAgent []string
	// Echo is the command behind the image ambit/echo; arguments of the container follow it.
	Echo []string
	// CaptureArgs, ProxyArgs and ControlplaneArgs follow the lab's own arguments.
	CaptureArgs, ProxyArgs, ControlplaneArgs []string
	// WaypointArgs follow the arguments of Waypoint or EnvoyAgent.
	WaypointArgs []string
}

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if err := ValidName(o.Name); err != nil {
		return o, err
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 1 || o.Nodes > 9 {
		return o, fmt.Errorf("number of nodes %d: accepted: 1 to 9", o.Nodes)
	}
	switch o.Families {
	case "":
		o.Families = "dual"
	case "dual", "ipv4", "ipv6":
	default:
		return o, fmt.Errorf("address families %q: accepted: dual, ipv4, ipv6", o.Families)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Lab is a running lab. All methods may be called from any goroutine.
type Lab struct {
	opts  Options
	paths paths
	log   *slog.Logger
	cg    *cgroup

	nodes []*node // immutable after start
	ctl   *program

	kick  chan struct{} // capacity 1: reconcile is due
	wg    sync.WaitGroup
	stop  context.CancelFunc
	ended chan struct{}

	mu       sync.Mutex
	objects  map[key]*object
	pods     map[key]*pod // by namespace and name, also those that end
	clusters *addresses   // of services
	pub      publisher
	secret   []byte // signs tokens; nil without mesh, immutable once a pod runs
	warned   map[string]bool
}

// Up builds the lab and returns when its nodes and the mesh's programs run. The lab ends with Close, not with ctx. When
// Up fails nothing is left.
func Up(ctx context.Context, o Options) (_ *Lab, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root: it makes network namespaces")
	}
	l := &Lab{
		opts: o, paths: paths{o.Name}, log: o.Log,
		kick: make(chan struct{}, 1), ended: make(chan struct{}),
		objects: map[key]*object{}, pods: map[key]*pod{}, warned: map[string]bool{},
	}
	l.clusters = newAddresses(o.Families, serviceV4, serviceV6)
	l.clusters.claim(nameV4)
	l.clusters.claim(nameV6)
	if err := l.paths.create(); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.build(); err != nil {
		return nil, err
	}
	l.baseObjects()
	l.wg.Go(func() { l.reconcileLoop(run) })
	if err := l.serve(run); err != nil {
		return nil, err
	}
	if !o.NoMesh {
		if err := l.startMesh(ctx, run); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// build makes cgroup, bpffs, fabric and nodes.
func (l *Lab) build() error {
	cg, err := createCgroup(l.paths.cgroup())
	if err != nil {
		return err
	}
	l.cg = cg
	if err := mountBPF(l.paths.bpf()); err != nil {
		return err
	}
	if err := l.buildFabric(); err != nil {
		return err
	}
	for i := range l.opts.Nodes {
		n, err := l.buildNode(i + 1)
		if err != nil {
			return err
		}
		l.nodes = append(l.nodes, n)
	}
	return l.connectNodes()
}

// Close stops everything the lab runs and removes every trace of it. It blocks until that is done and may be called
// more than once.
func (l *Lab) Close() error {
	l.release()
	var err error
	if l.cg != nil {
		err = errors.Join(l.cg.leave(), l.cg.kill())
	}
	l.wg.Wait()
	for _, n := range l.nodes {
		n.ns.Close()
	}
	return errors.Join(err, Down(l.opts.Name, time.Minute))
}

// release ends the lab's goroutines; processes stay until they are killed.
func (l *Lab) release() {
	l.mu.Lock()
	select {
	case <-l.ended:
	default:
		close(l.ended)
	}
	l.mu.Unlock()
	l.stop()
}

// Ended is closed when the lab is being closed, also by `ambit lab down` of another process, which then does the rest.
func (l *Lab) Ended() <-chan struct{} { return l.ended }

// wake makes a reconcile happen soon.
func (l *Lab) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}
