package loop

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestQueueReturnsItsBytesInOrderAndHoldsNothingWhenEmpty(t *testing.T) {
	var q Queue
	var want []byte
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		if rnd.IntN(2) == 0 {
			p := make([]byte, rnd.IntN(50000))
			for i := range p {
				p[i] = byte(rnd.Int())
			}
			q.Append(p)
			want = append(want, p...)
		} else {
			p := make([]byte, rnd.IntN(60000))
			n := q.Read(p)
			if n != min(len(p), len(want)) || !bytes.Equal(p[:n], want[:n]) {
				t.Fatalf("read %d bytes of %d, or wrong ones", n, len(want))
			}
			want = want[n:]
		}
		if q.Len() != len(want) {
			t.Fatalf("length %d, want %d", q.Len(), len(want))
		}
	}
	q.Clear()
	if q.Len() != 0 || q.head != nil || q.tail != nil || len(q.Front()) != 0 {
		t.Errorf("after Clear: %+v", q)
	}
}

func TestQueueDoesNotAllocateInSteadyState(t *testing.T) {
	var q Queue
	p := make([]byte, 100<<10)
	if n := testing.AllocsPerRun(200, func() { q.Append(p); q.Discard(len(p)) }); n > 0 && !raceEnabled {
		t.Errorf("%v allocations per use", n)
	}
}
