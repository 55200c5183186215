package telemetry

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Writer writes lines in the background. A producer only copies its line into a buffer; when the output is slower than the
// producers and the buffer is full, lines are dropped and counted, so that a full disk or a stuck reader never holds up a
// connection. Safe from any goroutine. Create it with NewWriter.
type Writer struct {
	out      io.Writer
	maxBytes int
	maxLines int
	delay    time.Duration

	mu    sync.Mutex // guards what follows
	buf   []byte
	lines int

	wake    chan struct{} // 1 slot; never closed: there is something
	much    chan struct{} // likewise: there is so much that it should not wait
	dropped atomic.Uint64
}

// WriterConfig sets up a Writer.
type WriterConfig struct {
	Out io.Writer
	// MaxLines and MaxBytes bound what waits. 0 means 10,000 lines and 4 MiB.
	MaxLines, MaxBytes int
	// Delay is how long a line may wait for others, to be written together. 0: not at all.
	Delay time.Duration
}

// NewWriter returns a writer; nothing is written until Run.
func NewWriter(cfg WriterConfig) *Writer {
	if cfg.MaxLines <= 0 {
		cfg.MaxLines = 10000
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 4 << 20
	}
	return &Writer{
		out: cfg.Out, maxBytes: cfg.MaxBytes, maxLines: cfg.MaxLines, delay: cfg.Delay, wake: make(chan struct{}, 1), much: make(chan struct{}, 1),
	}
}

// Line queues one whole line, which ends in '\n'. It keeps nothing of p and does not block on the output.
func (w *Writer) Line(p []byte) {
	w.mu.Lock()
	if w.lines >= w.maxLines || len(w.buf)+len(p) > w.maxBytes {
		w.mu.Unlock()
		w.dropped.Add(1)
		return
	}
	w.buf = append(w.buf, p...)
	w.lines++
	first := w.lines == 1
	much := w.delay > 0 && (len(w.buf) > muchBytes || w.lines > w.maxLines/2)
	w.mu.Unlock()
	if first {
		poke(w.wake)
	}
	if much {
		poke(w.much)
	}
}

// muchBytes is how much is written without waiting for more.
const muchBytes = 128 << 10

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were lost: to a full queue or to an output that failed.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Run writes until ctx is done and then what is still queued. An output that fails loses the lines at hand and is tried
// again with the next ones. It returns nil.
func (w *Writer) Run(ctx context.Context) error {
	var spare []byte
	for {
		select {
		case <-ctx.Done():
			w.flush(spare)
			return nil
		case <-w.wake:
			w.gather(ctx)
			spare = w.flush(spare)
		}
	}
}

// gather waits for more lines.
func (w *Writer) gather(ctx context.Context) {
	if w.delay <= 0 {
		return
	}
	t := time.NewTimer(w.delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-w.much:
	case <-t.C:
	}
}

// maxSpare is the largest buffer that is kept for reuse.
const maxSpare = 256 << 10

// flush writes what is queued, with spare as the next queue, and returns the buffer for reuse.
func (w *Writer) flush(spare []byte) []byte {
	w.mu.Lock()
	batch, lines := w.buf, w.lines
	w.buf, w.lines = spare[:0], 0
	w.mu.Unlock()
	if lines == 0 {
		return batch
	}
	if _, err := w.out.Write(batch); err != nil {
		w.dropped.Add(uint64(lines))
	}
	if cap(batch) > maxSpare {
		return nil
	}
	return batch[:0]
}
