package loop

import (
	"errors"
	"io"
	"testing"
)

// shout is a PipeHandler that sends back what it reads, until it reads an 'x' and panics.
type shout struct {
	p       Pipe
	aborted chan error
}

func (s *shout) PipeReady() {
	for {
		n, err := s.p.Read(s.p.Loop().Buffer())
		switch {
		case err == ErrAgain:
			return
		case err == io.EOF:
			s.p.Close()
			return
		case s.p.Loop().Buffer()[0] == 'x':
			panic("test")
		}
		s.p.Write(s.p.Loop().Buffer()[:n])
	}
}

func (s *shout) Abort(err error) { s.aborted <- err }

func TestAPipeOfASocketTellsItsHandlerOfBytesHalfCloseAndPanics(t *testing.T) {
	l := running(t)
	aborted := make(chan error, 1)
	open := func() io.ReadWriteCloser {
		outer, inner := tcpPair(t)
		fd := steal(t, inner)
		l.OnLoop(func() {
			f, err := l.Add(fd, nil)
			if err != nil {
				t.Error(err)
				return
			}
			s := &shout{p: NewPipe(f), aborted: aborted}
			s.p.SetHandler(s)
			s.p.Wake()
		})
		return outer
	}
	c := open()
	got := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("echoed %q, %v", got, err)
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	if _, err := c.Read(got); err != io.EOF {
		t.Errorf("after the half-close: %v", err)
	}
	if _, err := open().Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-aborted; !errors.Is(err, ErrPanic) {
		t.Errorf("aborted with %v", err)
	}
}
