package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/test/bed"
	"github.com/ambit-mesh/ambit/test/mesh"
)

// ours is this repository's mesh: capture and proxy on each node, under our control plane.
type ours struct {
	bin     string // directory of our programs
	workers int    // event loops of each proxy
	before  bool   // those of an earlier build
}

func (o ours) name() string {
	if o.before {
		return beforeName
	}
	return oursName
}

func (o ours) start(ctx context.Context, opts options) (*instance, error) {
	in := &instance{procs: map[role][]int{}, about: map[string]string{"workers": fmt.Sprint(o.workers)}}
	if err := o.build(ctx, in, opts); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (o ours) build(ctx context.Context, in *instance, opts options) error {
	plane, err := in.newPlane(ctx, o.name(), o.bin, opts)
	if err != nil {
		return err
	}
	for i, n := range in.bed.Nodes {
		if err := o.node(ctx, in, plane, n, []role{proxyA, proxyB}[i]); err != nil {
			return err
		}
	}
	return nil
}

// node starts the ztunnel of one node.
func (o ours) node(ctx context.Context, in *instance, plane *mesh.Plane, n *bed.Node, as role) error {
	z, err := mesh.StartNode(ctx, mesh.NodeConfig{Plane: plane, Node: n, ProxyArgs: []string{
		fmt.Sprintf("--workers=%d", o.workers), "--log-level=info,access=off",
	}})
	if err != nil {
		return err
	}
	in.atStop(z.Stop)
	in.procs[as] = []int{z.Proxy.PID(), z.Capture.PID()}
	return nil
}

// newPlane makes the bed of a mesh and starts our control plane on it: the meshes that are compared are fed by the same.
func (in *instance) newPlane(ctx context.Context, name, bin string, opts options) (*mesh.Plane, error) {
	b, err := in.newBed(ctx, name)
	if err != nil {
		return nil, err
	}
	plane, err := mesh.StartPlane(ctx, mesh.Config{Bed: b, Bin: bin, Pods: meshPods(b), Fill: opts.tables})
	if err != nil {
		return nil, err
	}
	in.atStop(plane.Stop)
	in.procs[control] = []int{plane.Process.PID()}
	return plane, nil
}

// meshPods gives the pods of the bed a place in Kubernetes: each its own service account, and only the outside one is in a
// namespace that is not in the mesh.
func meshPods(b *bed.Bed) []mesh.Pod {
	var pods []mesh.Pod
	for _, n := range b.Nodes {
		for _, p := range n.Pods {
			m := mesh.Pod{Pod: p, Namespace: "bench", ServiceAccount: p.Name, Captured: true}
			if p.Name == outsidePod {
				m.Namespace, m.Captured = "outside", false
			}
			pods = append(pods, m)
		}
	}
	return pods
}
