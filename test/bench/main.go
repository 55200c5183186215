// Command bench is the program behind `make bench`: it measures proxies side by side.
//
// Every round runs each system once on each workload, in an order that rotates, and the figure to read is the ratio of
// two systems within one round: its median over the rounds and its middle half. CPU per unit of work comes before wall
// time, because it is what a node pays and what a busy machine disturbs least. It is the run time that the kernel counts
// for each process's threads (/proc/PID/task/*/schedstat) over the measured window.
//
// The systems:
//
//   - direct: the two applications and nothing between them;
//   - splice: our own trivial relay, no TLS, one for each node: the floor for anything in user space;
//   - rust: Istio's ztunnel, if ZTUNNEL_BIN names one;
//   - bare: our tunnel alone, without anything that makes it a mesh;
//   - ours: this repository's ztunnel and control plane;
//   - before: the same of an earlier build, if -before names one;
//   - mixed and mixed-back, only when named by -systems: ours on one node and rust on the other, which makes both use one
//     cipher.
//
// The layout of the program: main.go and plan.go say what is run, run.go runs rounds, load.go and server.go are the
// applications (this program again, in the pods' namespaces), direct.go, tunnel.go, rust.go, ours.go and
// mixed.go the systems, stats.go and targets.go the arithmetic, report.go and svg.go the output.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 {
		switch args[0] {
		case "client":
			return clientMain(args[1:])
		case "server":
			return serverMain(ctx, args[1:])
		case "relay":
			return relayMain(ctx, args[1:])
		case "tunnel":
			return tunnelMain(ctx, args[1:])
		}
	}
	cfg, err := parseFlags(args)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("need root, for network namespaces (sudo make bench)")
	}
	return bench(ctx, cfg, stdout)
}

// config is what the flags say.
type config struct {
	out       string   // directory for results
	profile   profile  // what to run
	systems   []string // in this order; empty: all that can run
	workloads string   // patterns, comma separated; empty: all, and memory
	rust      string   // the Rust ztunnel's program, or empty
	bin       string   // directory with our programs
	before    string   // with those of an earlier build, or empty
	workers   int      // event loops of our proxies
	keepGoing bool     // report invalid cases at the end instead of stopping
}

func parseFlags(args []string) (*config, error) {
	cfg := &config{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&cfg.out, "out", "out/bench", "directory for results.jsonl, summary.md and the plots")
	name := fs.String("profile", "quick", "quick (about 10 minutes) or full (about 40)")
	systems := fs.String("systems", "", "comma-separated systems to run (default: direct,splice,rust,ours; rust if ZTUNNEL_BIN is set)")
	fs.StringVar(&cfg.workloads, "workloads", "", "comma-separated patterns of workloads to run, as crr-* (default: all, and memory)")
	rounds := fs.Int("rounds", 0, "rounds (default: as the profile says)")
	fs.StringVar(&cfg.rust, "ztunnel", os.Getenv("ZTUNNEL_BIN"), "a Rust ztunnel to compare with (default: $ZTUNNEL_BIN)")
	fs.StringVar(&cfg.bin, "bin", "bin", "directory with our programs")
	fs.StringVar(&cfg.before, "before", "", "directory with our programs of an earlier build, to run as system \"before\"")
	fs.IntVar(&cfg.workers, "workers", 2, "event loops of each of our proxies (the peer has two workers)")
	fs.BoolVar(&cfg.keepGoing, "keep-going", true, "go on when a case fails, and name it in the report")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	p, ok := profiles[*name]
	if !ok {
		return nil, fmt.Errorf("profile %q: want quick or full", *name)
	}
	if *rounds > 0 {
		p.rounds = *rounds
	}
	cfg.profile = p
	if *systems != "" {
		cfg.systems = strings.Split(*systems, ",")
	}
	var err error
	if cfg.out, err = filepath.Abs(cfg.out); err != nil {
		return nil, err
	}
	if cfg.bin, err = filepath.Abs(cfg.bin); err != nil {
		return nil, err
	}
	if cfg.before != "" {
		if cfg.before, err = filepath.Abs(cfg.before); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}
