package zds

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// peer is a connected proxy. One goroutine (work) does what others queue, one reads answers.
type peer struct {
	// immutable
	c       conn
	timeout time.Duration
	id      uint64 // set before it is shared
	dns     bool   // takes the sockets for DNS; set before it is shared
	answers chan answer
	jobs    chan job
	gone    chan struct{} // closed by end

	// work's goroutine only
	synced bool

	mu  sync.Mutex
	err error // guarded by mu; why it ended
	// ended is guarded by mu.
	ended bool
}

var errUnasked = protocolError("answer without a request")

type answer struct {
	text  string
	files []*File
}

type job struct {
	f    func() error
	done chan error // buffered
}

func newPeer(c conn, timeout time.Duration) *peer {
	return &peer{c: c, timeout: timeout, answers: make(chan answer), jobs: make(chan job), gone: make(chan struct{})}
}

// end closes the connection, the first time; err is the reason.
func (p *peer) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.err = true, err
	close(p.gone)
	p.c.close()
}

func (p *peer) cause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// hello reads the first packet.
func (p *peer) hello() (hello, error) {
	if err := p.c.setReadDeadline(time.Now().Add(p.timeout)); err != nil {
		return hello{}, err
	}
	b, files, err := p.c.read()
	if err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	if len(files) != 0 {
		closeFiles(files)
		return hello{}, protocolError("hello with descriptors")
	}
	h, err := decodeHello(b)
	if err != nil {
		return hello{}, err
	}
	return h, p.c.setReadDeadline(time.Time{})
}

// readAnswers passes answers on until the connection ends. It also notices that a proxy died while nothing is asked.
func (p *peer) readAnswers() {
	for {
		b, files, err := p.c.read()
		if err != nil {
			p.end(fmt.Errorf("read answer: %w", err))
			return
		}
		text, err := decodeAck(b)
		if err != nil {
			closeFiles(files)
			p.end(err)
			return
		}
		select {
		case p.answers <- answer{text: text, files: files}:
		case <-p.gone:
			closeFiles(files)
			return
		}
	}
}

// call sends a request and waits for its answer (Z2). Descriptors come only with the answer to a Return. Any error but a
// *PeerError has ended the connection and is fatal.
func (p *peer) call(r Request) (Files, error) {
	b, files, err := encodeRequest(r)
	if err != nil {
		return Files{}, err // ours, nothing was sent
	}
	select {
	case a := <-p.answers:
		closeFiles(a.files)
		return Files{}, p.fail(errUnasked)
	default:
	}
	if err := p.c.write(b, files); err != nil {
		return Files{}, p.fail(fmt.Errorf("send %T: %w", r, err))
	}
	t := time.NewTimer(p.timeout)
	defer t.Stop()
	select {
	case a := <-p.answers:
		return p.take(r, a)
	case <-p.gone:
		return Files{}, errGone
	case <-t.C:
		return Files{}, p.fail(fmt.Errorf("no answer to %T in %v", r, p.timeout))
	}
}

// take checks an answer against its request.
func (p *peer) take(r Request, a answer) (Files, error) {
	want := 0
	if _, ok := r.(*Return); ok && a.text == "" {
		want = listenerFiles
		if len(a.files) == maxFiles {
			want = maxFiles
		}
	}
	if len(a.files) != want {
		closeFiles(a.files)
		return Files{}, p.fail(protocolError("answer to %T with %d descriptors, not %d", r, len(a.files), want))
	}
	if a.text != "" {
		return Files{}, &PeerError{Text: a.text}
	}
	if _, ok := r.(*SnapshotSent); ok {
		p.synced = true
	}
	if want == 0 {
		return Files{}, nil
	}
	return filesOf(a.files), nil
}

func (p *peer) fail(err error) error {
	err = fmt.Errorf("%w: %w", errGone, err)
	p.end(err)
	return err
}

// work does jobs until the connection ends. An answer that nobody asked for ends it.
func (p *peer) work() error {
	for {
		select {
		case j := <-p.jobs:
			j.done <- j.f()
		case a := <-p.answers:
			closeFiles(a.files)
			return errUnasked
		case <-p.gone:
			return p.cause()
		}
	}
}

// do has f done by work and returns its error; errGone if the connection ended before.
func (p *peer) do(ctx context.Context, f func() error) error {
	j := job{f: f, done: make(chan error, 1)}
	select {
	case p.jobs <- j:
	case <-p.gone:
		return errGone
	case <-ctx.Done():
		return fmt.Errorf("wait for proxy: %w", ctx.Err())
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for proxy: %w", ctx.Err())
	}
}
