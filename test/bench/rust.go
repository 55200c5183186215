package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/test/bed"
	"github.com/ambit-mesh/ambit/test/peer"
)

// rust is Istio's ztunnel on each node, in shared mode as in a cluster: Istio's redirection in the pods, a node agent for
// each, a static configuration for xDS, and a small CA that both trust. Two workers, its default; no access log.
type rust struct {
	bin string
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
	b, err := in.newBed(ctx, r.name())
	if err != nil {
		return err
	}
	pods := []peer.PodInfo{info(b.Pod(clientPod)), info(b.Pod(nearPod)), info(b.Pod(farPod))}
	workloads := peer.Filler(opts.tables)
	for _, p := range pods {
		workloads = append(workloads, peer.NewWorkload(p))
	}
	config := filepath.Join(opts.dir, "config.yaml")
	if err := peer.WriteConfig(config, workloads); err != nil {
		return err
	}
	ca, err := peer.NewCA(b.Nodes[0].Addr, b.Nodes[1].Addr)
	if err != nil {
		return err
	}
	in.atStop(func() error { ca.Stop(); return nil })
	for i, n := range b.Nodes {
		addr := n.Addr.String() + ":15012"
		l, err := n.NS.Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		go func() { _ = ca.Serve(l) }() // ends with Stop; a ztunnel without CA does not get ready
		dir := filepath.Join(opts.dir, n.Name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		env := []string{"LOCAL_XDS_PATH=" + config, "XDS_ADDRESS=", "CA_ADDRESS=https://" + addr, "CA_ROOT_CA=" + ca.RootPEM()}
		if r.noVAES {
			env = append(env, noVAES)
		}
		z, err := peer.Start(ctx, peer.Config{Bin: r.bin, Node: n, Pods: on(n, pods), Dir: dir, Env: env})
		if err != nil {
			return err
		}
		in.atStop(z.Stop)
		in.procs[[]role{proxyA, proxyB}[i]] = []int{z.Process.PID()}
	}
	version, err := exec.CommandContext(ctx, r.bin, "version").CombinedOutput()
	if err != nil {
		return err
	}
	in.about["version"] = strings.Join(strings.Fields(string(version)), " ")
	in.about["workers"] = "2"
	return nil
}

// info gives a pod of the bed a name in the mesh: each its own service account.
func info(p *bed.Pod) peer.PodInfo {
	return peer.PodInfo{Pod: p, UID: "uid-" + p.Name, Name: p.Name, Namespace: "bench", ServiceAccount: p.Name}
}

// on are the pods of a node.
func on(n *bed.Node, pods []peer.PodInfo) []peer.PodInfo {
	var here []peer.PodInfo
	for _, p := range pods {
		if p.Pod.Node == n {
			here = append(here, p)
		}
	}
	return here
}
