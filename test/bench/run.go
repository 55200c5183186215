package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/test/bed"
)

// caseTimeout bounds one run of one workload on one system.
const caseTimeout = time.Minute

// A sample is one system's run of one workload in one round. It is a line of results.jsonl.
type sample struct {
	Round    int                    `json:"round"`
	System   string                 `json:"system"`
	Workload workload               `json:"workload"`
	Result   clientResult           `json:"result"`
	CPU      map[role]time.Duration `json:"cpu_ns"` // proxies by node, client, server
	Memory   map[role]memory        `json:"memory,omitempty"`
	Switches int64                  `json:"switches"` // of the proxies' threads
	Load     float64                `json:"load1"`    // of the machine
	Invalid  string                 `json:"invalid,omitempty"`
}

// The applications' roles in sample.CPU.
const (
	clientRole role = "client"
	serverRole role = "server"
)

// units are what the workload counts: round trips, or bytes.
func (s *sample) units() float64 {
	if s.Workload.bytes() {
		return float64(s.Result.Bytes)
	}
	return float64(s.Result.Ops)
}

// A bencher runs rounds and keeps what they gave.
type bencher struct {
	cfg     *config
	stdout  io.Writer
	systems []system
	running []*instance // parallel to systems
	samples []*sample
	memory  []*memorySample
	about   map[string]map[string]string // by system
	notes   []string
	log     *json.Encoder
}

// bench runs the whole plan and writes the report, also when it ends early.
func bench(ctx context.Context, cfg *config, stdout io.Writer) (err error) {
	if err := os.MkdirAll(cfg.out, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(cfg.out, "results.jsonl"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := &bencher{cfg: cfg, stdout: stdout, about: map[string]map[string]string{}, log: json.NewEncoder(f)}
	if b.systems, err = chooseSystems(cfg); err != nil {
		return err
	}
	if err := b.log.Encode(map[string]any{"host": hostFacts(), "profile": cfg.profile.name, "time": time.Now()}); err != nil {
		return err
	}
	err = b.traffic(ctx)
	if err == nil {
		err = b.memoryCases(ctx)
	}
	if len(b.samples)+len(b.memory) == 0 {
		return err
	}
	return errors.Join(err, b.report())
}

// chooseSystems are those of the flag, or all that can run here.
func chooseSystems(cfg *config) ([]system, error) {
	all := []system{direct{}, splice{}, bare{}}
	own := ours{bin: cfg.bin, workers: cfg.workers}
	peer := rust{bin: cfg.rust, ours: cfg.bin}
	if cfg.rust != "" {
		all = append(all, peer, rust{bin: cfg.rust, ours: cfg.bin, noVAES: true})
	}
	all = append(all, own)
	if cfg.before != "" {
		all = append(all, ours{bin: cfg.before, workers: cfg.workers, before: true})
	}
	if len(cfg.systems) == 0 {
		return all, nil
	}
	if cfg.rust != "" { // only when asked for
		all = append(all, mixed{ours: own, rust: peer}, mixed{ours: own, rust: peer, back: true})
	}
	var chosen []system
	for _, name := range cfg.systems {
		i := slices.IndexFunc(all, func(s system) bool { return s.name() == name })
		if i < 0 {
			return nil, fmt.Errorf("system %q is not known or cannot run here", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (b *bencher) printf(format string, args ...any) { fmt.Fprintf(b.stdout, format, args...) }

// traffic starts every system, checks that it carries bytes unharmed, and runs the rounds.
func (b *bencher) traffic(ctx context.Context) (err error) {
	workloads := selected(b.cfg.workloads)
	if len(workloads) == 0 {
		return nil
	}
	defer func() { err = errors.Join(err, b.stopAll()) }()
	for _, s := range b.systems {
		if err := b.startSystem(ctx, s); err != nil {
			return fmt.Errorf("system %s: %w", s.name(), err)
		}
	}
	extra := map[string]int{}
	for round := range b.cfg.profile.rounds {
		b.printf("round %d of %d\n", round+1, b.cfg.profile.rounds)
		for _, w := range workloads {
			if err := b.round(ctx, w, round); err != nil {
				return err
			}
			if extra[w.Name] < b.cfg.profile.extraRounds && b.astray(w) {
				extra[w.Name]++
				if err := b.round(ctx, w, b.cfg.profile.rounds+extra[w.Name]-1); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *bencher) startSystem(ctx context.Context, s system) error {
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	in, err := s.start(start, options{dir: dir})
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	in.undo = slices.Insert(in.undo, 0, func() error { return os.RemoveAll(dir) })
	b.running = append(b.running, in)
	b.about[s.name()] = in.about
	for _, p := range []path{crossNode, sameNode, passthrough} {
		t, ok := in.targets[p]
		if !ok {
			continue
		}
		if err := check(start, in.client, t); err != nil {
			return fmt.Errorf("check that bytes pass unharmed, %s: %w", p, err)
		}
	}
	b.printf("%-8s ready, bytes pass unharmed\n", s.name())
	return nil
}

func (b *bencher) stopAll() error {
	var errs []error
	for _, in := range b.running {
		if in.notes != nil {
			b.notes = append(b.notes, in.notes()...)
		}
		errs = append(errs, in.stop())
	}
	b.running = nil
	return errors.Join(errs...)
}

// round runs one workload once on every system, starting with another one each time.
func (b *bencher) round(ctx context.Context, w workload, round int) error {
	for i := range b.systems {
		k := (i + round) % len(b.systems)
		in := b.running[k]
		t, ok := in.targets[w.Path]
		if !ok {
			continue
		}
		s, err := runCase(ctx, in, t, w, b.cfg.profile)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !b.cfg.keepGoing {
				return fmt.Errorf("%s on %s: %w", w.Name, b.systems[k].name(), err)
			}
			s = &sample{Workload: w, Invalid: err.Error()}
		}
		s.Round, s.System = round, b.systems[k].name()
		b.samples = append(b.samples, s)
		if err := b.log.Encode(s); err != nil {
			return err
		}
		b.printf("  %-12s %-8s %s\n", w.Name, s.System, s.line())
	}
	return nil
}

// astray says that the latest sample of the direct control is far from the median of those before.
func (b *bencher) astray(w workload) bool {
	var cpu []float64
	for _, s := range b.samples {
		if s.System == "direct" && s.Workload == w && s.Invalid == "" {
			cpu = append(cpu, s.cpuPerUnit(clientRole, serverRole))
		}
	}
	if len(cpu) < 3 {
		return false
	}
	r := cpu[len(cpu)-1] / quantile(cpu, .5)
	return r > 1.25 || r < 0.75
}

// runCase runs one workload and samples around its window.
func runCase(ctx context.Context, in *instance, t target, w workload, p profile) (*sample, error) {
	ctx, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	c, err := startClient(ctx, in.client, t, "-kind", string(w.Kind), "-conns", strconv.Itoa(w.Conns),
		"-size", strconv.Itoa(w.Size), "-rate", strconv.Itoa(w.Rate), "-window", p.window.String(), "-warm", p.warm.String())
	if err != nil {
		return nil, err
	}
	defer c.stop()
	s := &sample{Workload: w, CPU: map[role]time.Duration{}, Memory: map[role]memory{}, Load: loadAverage()}
	procs := map[role][]int{clientRole: {c.process.PID()}, serverRole: in.servers}
	for r, pids := range in.procs {
		procs[r] = pids
	}
	proxies := slices.Concat(in.procs[proxyA], in.procs[proxyB])
	if err := c.await("START"); err != nil {
		return nil, err
	}
	if err := s.sampleCPU(procs, proxies, -1); err != nil {
		return nil, err
	}
	if err := c.await("END"); err != nil {
		return nil, err
	}
	if err := s.sampleCPU(procs, proxies, 1); err != nil {
		return nil, err
	}
	for r, pids := range in.procs {
		if s.Memory[r], err = memoryOfAll(pids); err != nil {
			return nil, err
		}
	}
	if s.Result, err = c.result(); err != nil {
		return nil, err
	}
	switch {
	case s.Result.Errors > 0:
		s.Invalid = fmt.Sprintf("%d errors, the first: %s", s.Result.Errors, s.Result.Error)
	case s.units() == 0:
		s.Invalid = "nothing passed"
	}
	return s, nil
}

// sampleCPU adds sign times the counters of now.
func (s *sample) sampleCPU(procs map[role][]int, proxies []int, sign int64) error {
	for r, pids := range procs {
		d, err := cpuTimes(pids)
		if err != nil {
			return err
		}
		s.CPU[r] += time.Duration(sign) * d
	}
	n, err := switches(proxies)
	s.Switches += sign * n
	return err
}

// A clientProcess is a running client.
type clientProcess struct {
	ctx     context.Context // of the one run; bounds every wait
	process *bed.Process
	in, out *os.File // ends of its stdin and stdout
	lines   *bufio.Scanner
}

// startClient starts a client in a namespace.
func startClient(ctx context.Context, ns *bed.NS, t target, args ...string) (*clientProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer stdout.Close()
	cmd := exec.Command(self, append([]string{"client", "-host", t.addr.String(), "-offset", strconv.Itoa(t.offset)}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	p, err := ns.Start(cmd)
	if err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	return &clientProcess{ctx: ctx, process: p, in: in, out: out, lines: bufio.NewScanner(out)}, nil
}

// await reads until the client says want.
func (c *clientProcess) await(want string) error {
	line, err := c.line()
	if err != nil {
		return fmt.Errorf("wait for client's %s: %w", want, err)
	}
	if line != want {
		return fmt.Errorf("wait for client's %s: it said %q", want, line)
	}
	return nil
}

func (c *clientProcess) line() (string, error) {
	stop := context.AfterFunc(c.ctx, func() { _ = c.out.SetReadDeadline(time.Now()) }) // wakes the reader
	defer stop()
	if c.lines.Scan() {
		return c.lines.Text(), nil
	}
	return "", errors.Join(errors.New("client ended early"), c.lines.Err(), c.ctx.Err())
}

// result lets the client go and reads what it found.
func (c *clientProcess) result() (r clientResult, err error) {
	if _, err := c.in.Write([]byte{'\n'}); err != nil {
		return r, err
	}
	line, err := c.line()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(line), &r)
}

func (c *clientProcess) stop() {
	c.process.Stop(0)
	_ = c.in.Close()
	_ = c.out.Close()
}

// check has a client verify sums over a target.
func check(ctx context.Context, ns *bed.NS, t target) error {
	c, err := startClient(ctx, ns, t, "-kind", "check")
	if err != nil {
		return err
	}
	defer c.stop()
	return c.await("CHECKED")
}
