package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/echo"
)

// The load before something happens, and after it has.
const (
	loadBefore = 300 * time.Millisecond
	loadAfter  = 500 * time.Millisecond
)

// client is the command line of the echo client.
func (d *demo) client(args ...string) []string {
	return append(append(append([]string{}, d.c.echo()...), "client", "--json", "--data="+marker), args...)
}

// load runs the echo client in a pod and returns its summary.
func (d *demo) load(ctx context.Context, namespace, pod string, args ...string) (*echo.Summary, error) {
	b := d.command(ctx, args...)
	err := d.c.start(ctx, namespace, pod, b.cmd)
	if err != nil {
		return nil, err
	}
	return b.wait()
}

func summary(text []byte) (*echo.Summary, error) {
	sum := &echo.Summary{}
	if err := json.Unmarshal(text, sum); err != nil {
		return nil, fmt.Errorf("read summary: %w", err)
	}
	return sum, nil
}

// background is a load under way.
type background struct {
	cmd         *exec.Cmd
	out, errOut bytes.Buffer
}

// loadBehind starts load in shop/client and returns at once. It goes on until end, which must be called.
func (d *demo) loadBehind(ctx context.Context, args ...string) (*background, error) {
	b := d.command(ctx, append(args, "--duration="+claimTime.String())...)
	return b, d.c.start(ctx, "shop", "client", b.cmd)
}

// command is the echo client, not started.
func (d *demo) command(ctx context.Context, args ...string) *background {
	argv := d.client(args...)
	b := &background{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.errOut
	return b
}

// end has the load stop once what is under way is answered, and tells what came of it.
func (b *background) end() (*echo.Summary, error) {
	_ = b.cmd.Process.Signal(os.Interrupt) // it fails if the load has ended by itself
	return b.wait()
}

func (b *background) wait() (*echo.Summary, error) {
	if err := b.cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run load: %w: %s", err, strings.TrimSpace(b.errOut.String()))
	}
	return summary(b.out.Bytes())
}

// under runs f while the client opens new connections at the rate, on a watched wire.
func (d *demo) under(ctx context.Context, rate int, f func() error) (seen string, sum *echo.Summary, err error) {
	stop, err := d.tap(ctx, "node-1")
	if err != nil {
		return "", nil, err
	}
	b, err := d.loadBehind(ctx, web, "--fresh", "--parallel=64", fmt.Sprintf("--rate=%d", rate))
	if err == nil {
		err = errors.Join(wait(ctx, loadBefore), f(), wait(ctx, loadAfter))
		var lerr error
		sum, lerr = b.end()
		err = errors.Join(err, lerr)
	}
	r := stop()
	if sum == nil {
		return "", nil, err
	}
	seen = fmt.Sprintf("%d connections served, %d failed (%s), %d refused, slowest %.2f s; %s", sum.OK, sum.Failed, failures(sum), refused(sum), sum.Longest, wireWords(r))
	switch {
	case err != nil:
	case sum.OK < rate/2:
		err = errors.New("that is too little load to say anything")
	default:
		err = encrypted(r)
	}
	return seen, sum, err
}

func wait(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refused counts the connections that nobody took.
func refused(sum *echo.Summary) (n int) {
	for text, k := range sum.Errors {
		if strings.Contains(text, "connection refused") {
			n += k
		}
	}
	return n
}

// failures puts what went wrong in a load into words.
func failures(sum *echo.Summary) string {
	var parts []string
	for e, n := range sum.Errors {
		parts = append(parts, fmt.Sprintf("%d x %s", n, e))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
