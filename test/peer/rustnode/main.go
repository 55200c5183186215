// Command rustnode runs a Rust ztunnel, named by ZTUNNEL_BIN, in place of ours on a node of the lab:
//
//	ZTUNNEL_BIN=/path/to/ztunnel ambit lab up --ztunnel-of node-2=/path/to/rustnode
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambit-mesh/ambit/test/peer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := peer.LabNode(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "rustnode:", err)
		os.Exit(1)
	}
}
