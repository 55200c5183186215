package loop

import "sync"

// Sizes of the pieces that a Queue is made of, in bytes. A queue that never held more than a small one keeps to it.
const (
	smallPiece = 2 << 10
	largePiece = 32 << 10
)

var (
	smallPieces = sync.Pool{New: func() any { return &piece{buf: make([]byte, smallPiece)} }}
	largePieces = sync.Pool{New: func() any { return &piece{buf: make([]byte, largePiece)} }}
)

type piece struct {
	next *piece
	r, w int // buf[r:w] is queued
	buf  []byte
}

// Queue holds bytes that a socket, or an application, would not take yet. Its memory comes from a pool and goes back
// as soon as it has been read; an empty queue holds none. The zero value is ready. It is not safe for concurrent use,
// but need not be used on a loop.
type Queue struct {
	head, tail *piece
	n          int
}

// Len is the number of bytes held.
func (q *Queue) Len() int { return q.n }

// Append copies p to the end.
func (q *Queue) Append(p []byte) {
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			q.grow(len(p))
		}
		k := copy(q.tail.buf[q.tail.w:], p)
		q.tail.w += k
		q.n += k
		p = p[k:]
	}
}

func (q *Queue) grow(need int) {
	pool := &largePieces
	if q.n+need <= smallPiece {
		pool = &smallPieces
	}
	b := pool.Get().(*piece)
	b.next, b.r, b.w = nil, 0, 0
	if q.tail == nil {
		q.head = b
	} else {
		q.tail.next = b
	}
	q.tail = b
}

// Front is the first contiguous piece, empty only if the queue is. It is valid until the next call of another method.
func (q *Queue) Front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.buf[q.head.r:q.head.w]
}

// Discard drops the first n bytes, or all if there are fewer.
func (q *Queue) Discard(n int) {
	for n > 0 && q.head != nil {
		b := q.head
		k := min(n, b.w-b.r)
		b.r += k
		q.n -= k
		n -= k
		if b.r < b.w {
			return
		}
		q.drop()
	}
}

// drop gives the first piece back.
func (q *Queue) drop() {
	b := q.head
	if q.head = b.next; q.head == nil {
		q.tail = nil
	}
	b.next = nil
	if len(b.buf) == smallPiece {
		smallPieces.Put(b)
	} else {
		largePieces.Put(b)
	}
}

// Read moves up to len(p) bytes into p and returns their number.
func (q *Queue) Read(p []byte) int {
	done := 0
	for done < len(p) && q.n > 0 {
		k := copy(p[done:], q.Front())
		q.Discard(k)
		done += k
	}
	return done
}

// WriteTo writes what f takes now and returns the number of bytes; the rest stays. Errors are those of FD.Write.
func (q *Queue) WriteTo(f *FD) (int, error) {
	done := 0
	for q.n > 0 {
		p := q.Front()
		send := f.Write
		if len(p) < q.n {
			send = f.WriteMore
		}
		n, err := send(p)
		q.Discard(n)
		done += n
		if err != nil || n < len(p) {
			return done, err
		}
	}
	return done, nil
}

// Clear drops everything.
func (q *Queue) Clear() { q.Discard(q.n) }
