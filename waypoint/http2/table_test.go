package http2

import (
	"math/rand/v2"
	"testing"
)

func TestTheTableFindsWhatIsInIt(t *testing.T) {
	var tb table
	in := map[uint32]*stream{}
	rnd := rand.New(rand.NewPCG(1, 2))
	next := uint32(1)
	for i := range 20_000 {
		if limit := []int{3, 300, 40}[i/5000%3]; rnd.IntN(2) == 0 && len(in) < limit {
			s := &stream{id: next}
			next += 2 * (1 + uint32(rnd.IntN(3)))
			in[s.id] = s
			tb.put(s)
		} else {
			for id, s := range in {
				tb.del(s)
				delete(in, id)
				if tb.get(id) != nil {
					t.Fatalf("%d is found after it was taken out", id)
				}
				break
			}
		}
		if tb.n != len(in) {
			t.Fatalf("%d, want %d", tb.n, len(in))
		}
		if i%50 == 0 {
			for id, s := range in {
				if tb.get(id) != s {
					t.Fatalf("%d is not found", id)
				}
			}
		}
	}
}
