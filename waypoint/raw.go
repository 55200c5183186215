package waypoint

import (
	"bytes"
	"compress/flate"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// raw is an accepted resource as it came. It is kept for /config_dump only, so its bytes are packed, and decoded when
// somebody asks.
type raw struct {
	name, version string
	packed        []byte
	at            time.Time
}

// unpack returns the resource's body.
func (r *raw) unpack() ([]byte, error) { return io.ReadAll(flate.NewReader(bytes.NewReader(r.packed))) }

// rawSet holds the resources of one type. Safe from any goroutine.
type rawSet struct {
	mu  sync.Mutex
	all map[string]*raw
}

// sorted are the resources in order of their names.
func (s *rawSet) sorted() []*raw {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*raw, 0, len(s.all))
	for _, n := range slices.Sorted(maps.Keys(s.all)) {
		out = append(out, s.all[n])
	}
	return out
}

// packers are used again: a flate.Writer is large.
var packers = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.BestSpeed) // the level is a valid one
	return w
}}

func pack(body []byte) []byte {
	var b bytes.Buffer
	w := packers.Get().(*flate.Writer)
	defer packers.Put(w)
	w.Reset(&b)
	_, _ = w.Write(body) // a Buffer takes everything
	_ = w.Close()
	return bytes.Clone(b.Bytes())
}

// held is a decoded resource with its packed body.
type held[T any] struct {
	value  T
	packed []byte
}

// keepingType is t for a keeping handler.
func keepingType[T any](t xds.Type[T]) xds.Type[held[T]] {
	return xds.Type[held[T]]{URL: t.URL, Decode: func(name string, body []byte) (held[T], error) {
		v, err := t.Decode(name, body)
		if err != nil {
			return held[T]{}, err
		}
		return held[T]{v, pack(body)}, nil
	}}
}

// keeping hands resources on, and keeps the bodies of those that were accepted.
type keeping[T any] struct {
	set  *rawSet
	next xds.Handler[T]
}

// Apply implements xds.Handler.
func (k keeping[T]) Apply(up []xds.Resource[held[T]], removed []string) error {
	list := make([]xds.Resource[T], len(up))
	for i, r := range up {
		list[i] = xds.Resource[T]{Name: r.Name, Version: r.Version, Value: r.Value.value}
	}
	if err := k.next.Apply(list, removed); err != nil {
		return err
	}
	now := time.Now()
	k.set.mu.Lock()
	defer k.set.mu.Unlock()
	if k.set.all == nil {
		k.set.all = map[string]*raw{}
	}
	for _, n := range removed {
		delete(k.set.all, n)
	}
	for _, r := range up {
		k.set.all[r.Name] = &raw{r.Name, r.Version, r.Value.packed, now}
	}
	return nil
}
