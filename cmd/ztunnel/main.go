// Command ztunnel is the node proxy: `ztunnel capture` owns the redirection of the node's pods, `ztunnel proxy` moves
// their bytes, `ztunnel unload` removes the redirection for good. Flags come first, then the environment variables of Istio's chart, then the defaults.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/ztunnel"
)

// version is set by the linker; without that it is the module's.
var version string

// readyTimeout is less than a probe of Kubernetes waits.
const readyTimeout = 4 * time.Second

const usage = `usage: ztunnel capture|proxy|ready|mount-bpf|unload|version [flags]

  capture   own the redirection of this node's pods and their listeners
  proxy     carry the pods' traffic
  ready     ask the process with the socket READY_SOCKET whether it is ready
  mount-bpf mount a BPF file system at /sys/fs/bpf, if there is none
  unload    remove all that capture made on this node; pods leave the mesh
  version   print the version

"ztunnel capture -h" and "ztunnel proxy -h" list flags.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once (S1)
	os.Exit(run(ctx, os.Args[1:], environment(os.Environ()), os.Stdout, os.Stderr))
}

// run is main without the process around it; it returns the exit status.
func run(ctx context.Context, args []string, env env, stdout, stderr io.Writer) int {
	verb := "proxy"
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	var err error
	switch verb {
	case "capture":
		err = capture(ctx, args, env, stderr)
	case "proxy":
		err = proxy(ctx, args, env, stderr)
	case "ready":
		err = ready(ctx, env["READY_SOCKET"])
	case "mount-bpf":
		err = redirect.Mount("/sys/fs/bpf")
	case "unload":
		err = unload(args, env, stderr)
	case "version":
		fmt.Fprintln(stdout, admin.ProgramVersion(version))
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintln(stderr, "ztunnel:", err)
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "ztunnel:", err)
		return 1
	}
	return 0
}

// usageError is a flag or variable that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func capture(ctx context.Context, args []string, env env, stderr io.Writer) error {
	cfg, log, err := captureConfig(args, env, stderr)
	if err != nil {
		return err
	}
	cfg.Logger = log.logger(stderr)
	klog.SetSlogLogger(cfg.Logger) // client-go's
	return ztunnel.RunCapture(ctx, cfg)
}

func unload(args []string, env env, stderr io.Writer) error {
	cfg, _, err := captureConfig(args, env, stderr)
	if err != nil {
		return err
	}
	return ztunnel.Unload(cfg)
}

func proxy(ctx context.Context, args []string, env env, stderr io.Writer) error {
	cfg, err := proxyConfig(args, env, stderr)
	if err != nil {
		return err
	}
	cfg.Version = admin.ProgramVersion(version)
	return ztunnel.RunProxy(ctx, cfg)
}

// ready asks for readiness at a Unix socket; the error says what is missing.
func ready(ctx context.Context, socket string) error {
	if socket == "" {
		return usageError{errors.New("READY_SOCKET is not set")}
	}
	var d net.Dialer
	client := http.Client{Timeout: readyTimeout, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/healthz/ready", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("not ready: %s", bytes.TrimSpace(text))
	}
	return nil
}

// logFlags say how to log.
type logFlags struct {
	level string
	json  bool
}

// logger writes to w at the first level that level names: what is meant for a scope alone is the telemetry's to apply.
func (f logFlags) logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: parseLevel(f.level)}
	if f.json {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
