package loop

// Pipe is a byte stream on a loop: a socket, or a stream of a connection that is multiplexed. Its methods behave as those
// of FD with the same names. Loop only.
type Pipe interface {
	// Read returns at least one byte, or ErrAgain, io.EOF after the peer's half-close, ErrClosed, or the error that ended the
	// stream.
	Read(p []byte) (int, error)
	// Write takes as much of p as there is room for. A short count with a nil error means full: the handler is called when
	// there is room again.
	Write(p []byte) (int, error)
	// Writev is Write of several pieces; the count tells what was taken.
	Writev(bufs [][]byte) (int, error)
	// Readable says that a Read may return something other than ErrAgain, Writable that a Write may take something.
	Readable() bool
	Writable() bool
	// CloseWrite ends this direction, behind what was written.
	CloseWrite() error
	// Close ends both directions in good order, Reset at once and so that the peer knows. The handler is not called any more.
	// Closing twice is allowed.
	Close() error
	Reset() error
	// SetHandler says who is told; Wake has it told in the next turn.
	SetHandler(h PipeHandler)
	Wake()
	Loop() *Loop
}

// PipeHandler is told that its Pipe has become readable or writable, has ended, or was woken. It should bound what it
// does in one visit and call Wake if more is left.
type PipeHandler interface {
	PipeReady()
}

// NewPipe makes a Pipe of a descriptor that is registered with a loop, and takes it over: its handler is replaced.
func NewPipe(f *FD) Pipe {
	p := &fdPipe{FD: f}
	f.SetHandler(p)
	return p
}

type fdPipe struct {
	*FD
	h PipeHandler
}

// SetHandler implements Pipe.
func (p *fdPipe) SetHandler(h PipeHandler) { p.h = h }

// Ready implements Handler.
func (p *fdPipe) Ready(*FD) {
	if p.h != nil {
		p.h.PipeReady()
	}
}

// Abort implements Aborter: after a panic the handler is told to give up, if it can be.
func (p *fdPipe) Abort(err error) {
	if a, ok := p.h.(Aborter); ok {
		a.Abort(err)
	}
}
