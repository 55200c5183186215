package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// program is one of the mesh's programs, kept running in its namespaces.
type program struct {
	// Immutable.
	l    *Lab
	name string
	path string
	args []string
	env  []string // in addition to the supervisor's
	log  string
	// home is the namespace it runs in. If nil, each process has one of its own, which newHome makes and its second result
	// removes: then a planned restart can start the new process before the old one is told to end.
	home    *netNS
	newHome func() (*netNS, func(), error)
	ready   func(ctx context.Context, home *netNS) error // nil error: it serves
	again   func()                                       // called when it is ready after a restart; may be nil

	mu      sync.Mutex
	current *process
	stopped bool          // by the user: not started again
	changed chan struct{} // immutable, capacity 1: current or stopped changed
	starts  int
}

// process is one run of a program.
type process struct {
	cmd  *exec.Cmd
	home *netNS
	done chan struct{} // closed when it ended and its home is gone
	err  error         // valid after done
}

// run starts the program and starts it again whenever it ends, until ctx ends.
func (p *program) run(ctx context.Context) {
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		p.mu.Lock()
		proc, stopped := p.current, p.stopped
		p.mu.Unlock()
		switch {
		case proc == nil && stopped:
			select {
			case <-p.changed:
			case <-ctx.Done():
			}
		case proc == nil:
			begin := time.Now()
			if _, err := p.spawn(); err != nil {
				p.l.log.Error("program does not start", "program", p.name, "err", err)
				sleep(ctx, time.Second)
			}
			if time.Since(begin) > time.Minute {
				wait = 100 * time.Millisecond
			}
		default:
			p.watch(ctx, proc, &wait)
		}
	}
	p.mu.Lock()
	proc := p.current
	p.mu.Unlock()
	if proc != nil {
		_ = proc.cmd.Process.Kill()
		<-proc.done
	}
}

// watch waits for the process to end or to be replaced.
func (p *program) watch(ctx context.Context, proc *process, wait *time.Duration) {
	begin := time.Now()
	select {
	case <-ctx.Done():
		return
	case <-p.changed:
		return
	case <-proc.done:
	}
	p.mu.Lock()
	mine := p.current == proc
	if mine {
		p.current = nil
	}
	stopped := p.stopped
	p.mu.Unlock()
	if !mine || stopped {
		return
	}
	p.l.log.Warn("program ended", "program", p.name, "err", proc.err, "log", p.log)
	if time.Since(begin) > 5*time.Second {
		*wait = 0 // the first crash after a good time is repaired at once
	}
	sleep(ctx, *wait)
	*wait = min(max(*wait*2, 100*time.Millisecond), 5*time.Second)
}

// spawn starts a process and makes it the current one; the one before is returned.
func (p *program) spawn() (old *process, err error) {
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = f, f, "/"
	cmd.Env = append(p.env, os.Environ()...)
	home, leave := p.home, func() {}
	if home == nil {
		if home, leave, err = p.newHome(); err != nil {
			return nil, fmt.Errorf("start %s: %w", p.name, err)
		}
	}
	if err := (spaces{net: home}).start(cmd, p.l.cg); err != nil {
		fmt.Fprintf(f, "lab: %v\n", err)
		leave()
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	proc := &process{cmd: cmd, home: home, done: make(chan struct{})}
	go func() { // ends with the process
		proc.err = cmd.Wait()
		leave()
		close(proc.done)
	}()
	p.mu.Lock()
	old, p.current = p.current, proc
	p.starts++
	again := p.starts > 1 && p.again != nil
	p.mu.Unlock()
	if again {
		p.l.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if p.awaitReady(ctx) == nil {
				p.again()
			}
		})
	}
	return old, nil
}

func (p *program) signalChange() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// awaitReady blocks until the program's current process serves; the error tells the last reason.
func (p *program) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		p.mu.Lock()
		proc := p.current
		p.mu.Unlock()
		err := errors.New("it does not run")
		if proc != nil {
			pctx, pcancel := context.WithTimeout(ctx, 2*time.Second)
			err = p.ready(pctx, proc.home)
			pcancel()
		}
		if err == nil {
			return nil
		}
		if !p.l.ctxAlive() || !sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("%s is not ready: %w; its log is %s", p.name, err, p.log)
		}
	}
}

// homeNow is the namespace of the current process.
func (p *program) homeNow() (*netNS, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil, fmt.Errorf("%s does not run", p.name)
	}
	return p.current.home, nil
}

// kill ends the program as a crash would; it is started again.
func (p *program) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return fmt.Errorf("%s does not run", p.name)
	}
	return p.current.cmd.Process.Kill()
}

// halt ends the program and keeps it down until resume.
func (p *program) halt(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = true
	proc := p.current
	p.current = nil
	p.mu.Unlock()
	p.signalChange()
	if proc == nil {
		return nil
	}
	return proc.end(ctx)
}

// end asks the process to end and waits; when ctx ends first it is killed.
func (proc *process) end(ctx context.Context) error {
	_ = proc.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-proc.done:
	case <-ctx.Done():
		_ = proc.cmd.Process.Kill()
		<-proc.done
	}
	return nil
}

// resume lets the program run again.
func (p *program) resume(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = false
	p.mu.Unlock()
	p.signalChange()
	return p.awaitReady(ctx)
}

// restart is a planned one: new before old where the program can do that.
func (p *program) restart(ctx context.Context) error {
	if p.newHome == nil {
		if err := p.halt(ctx); err != nil {
			return err
		}
		return p.resume(ctx)
	}
	old, err := p.spawn()
	if err != nil {
		return err
	}
	p.signalChange()
	if old == nil {
		return p.awaitReady(ctx)
	}
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	return old.end(ctx)
}
