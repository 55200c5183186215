package bed

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a program running in a namespace.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, or why it did not start; after done
}

// Start starts cmd inside the namespace. It is killed when this program dies, however it dies.
func (ns *NS) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(ns, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s in namespace %q: %w", filepath.Base(cmd.Path), ns.name, err)
	}
	return p, nil
}

// run starts and awaits the program on one thread, because the signal of a parent's death is that of the thread.
func (p *Process) run(ns *NS, started chan<- error) {
	defer close(p.done)
	running := false
	err := ns.Do(func() error {
		if p.cmd.SysProcAttr == nil {
			p.cmd.SysProcAttr = &unix.SysProcAttr{}
		}
		p.cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
		if err := p.cmd.Start(); err != nil {
			return err
		}
		running = true
		started <- nil
		return p.cmd.Wait()
	})
	p.err = err
	if !running {
		started <- err
	}
}

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended; valid once Done is closed.
func (p *Process) Err() error { return p.err }

// Stop asks the program to end, kills it after grace, and returns when it is gone. It may be called twice and on nil.
func (p *Process) Stop(grace time.Duration) {
	if p == nil {
		return
	}
	if grace > 0 {
		p.Signal(unix.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
	p.Signal(unix.SIGKILL)
	<-p.done
}

// Signal sends a signal; a program that is gone already is no matter.
func (p *Process) Signal(s unix.Signal) { _ = p.cmd.Process.Signal(s) }
