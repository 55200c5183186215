package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/test/bed"
	"github.com/ambit-mesh/ambit/test/mesh"
	"github.com/ambit-mesh/ambit/test/peer"
)

// rust is Istio's ztunnel on each node, in shared mode as in a cluster: Istio's redirection in the pods, a node agent for
// each, under our control plane. Two workers, its default; no access log.
type rust struct {
	bin  string
	ours string // directory of our programs
	// noVAES hides the vector AES instructions from its crypto library, which Go does not use either: what is left is the
	// difference of everything else.
	noVAES bool
}

func (r rust) name() string {
	if r.noVAES {
		return "rust-novaes"
	}
	return rustName
}

// noVAES is read by aws-lc: clear VAES and VPCLMULQDQ in the second pair of CPUID words (leaf 7, ECX bits 9 and 10).
const noVAES = "OPENSSL_ia32cap=:~0x60000000000"

func (r rust) start(ctx context.Context, opts options) (*instance, error) {
	in := &instance{procs: map[role][]int{}, about: map[string]string{}}
	if err := r.build(ctx, in, opts); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (r rust) build(ctx context.Context, in *instance, opts options) error {
	plane, err := in.newPlane(ctx, r.name(), r.ours, opts)
	if err != nil {
		return err
	}
	for i, n := range in.bed.Nodes {
		if err := r.node(ctx, in, opts, plane, n, []role{proxyA, proxyB}[i]); err != nil {
			return err
		}
	}
	version, err := exec.CommandContext(ctx, r.bin, "version").CombinedOutput()
	if err != nil {
		return err
	}
	in.about["version"] = strings.Join(strings.Fields(string(version)), " ")
	in.about["workers"] = "2"
	return nil
}

// node starts the ztunnel of one node.
func (r rust) node(ctx context.Context, in *instance, opts options, plane *mesh.Plane, n *bed.Node, as role) error {
	env, err := plane.PeerEnv(n)
	if err != nil {
		return err
	}
	if r.noVAES {
		env = append(env, noVAES)
	}
	dir := filepath.Join(opts.dir, n.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	z, err := peer.Start(ctx, peer.Config{Bin: r.bin, Node: n, Pods: r.pods(in.bed, n), Dir: dir, Env: env})
	if err != nil {
		return err
	}
	in.atStop(z.Stop)
	in.procs[as] = []int{z.Process.PID()}
	return nil
}

// pods are those of the mesh on a node.
func (rust) pods(b *bed.Bed, n *bed.Node) []peer.PodInfo {
	var here []peer.PodInfo
	for _, p := range meshPods(b) {
		if p.Node == n && p.Captured {
			here = append(here, peer.PodInfo{NS: p.NS.NS, UID: p.UID(), Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount})
		}
	}
	return here
}
