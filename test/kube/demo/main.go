// Command demo installs the mesh in the cluster of kubectl and shows its claims there: what `ambit lab demo` shows, where it
// makes sense. The cluster is that of test/kube/cluster, whose nodes are on this machine.
//
//	demo -ambit bin/ambit -image ghcr.io/ambit-mesh/ambit-ambit:V [-claims=false] [-set KEY=VALUE]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ambit := flag.String("ambit", "bin/ambit", "the command line")
	image := flag.String("image", "", "image of the program ambit, on every node")
	manifests := flag.String("manifests", "deploy/examples/demo", "directory with the demo's manifests")
	flag.Parse()
	begin := time.Now()
	fmt.Println("$ ambit install")
	install := exec.CommandContext(ctx, *ambit, "install")
	install.Stdout, install.Stderr = os.Stdout, os.Stdout
	if err := install.Run(); err != nil {
		return fmt.Errorf("ambit install: %w", err)
	}
	fmt.Printf("Installed in %.1f s.\n", time.Since(begin).Seconds())
	return demo.RunInKubernetes(ctx, demo.KubeConfig{Image: *image, Manifests: *manifests, Out: os.Stdout})
}
