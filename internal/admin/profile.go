package admin

import (
	"net/http"
	"runtime"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"
)

// number reads an integer parameter between lo and hi, or def when it is absent.
func number(r *http.Request, name string, def, lo, hi int) (int, bool) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return def, true
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= lo && n <= hi
}

// cpuProfile takes a CPU profile of ?seconds (1 to 300, 10). ?frequency (1 to 1000) is checked and otherwise ignored: the
// runtime samples at 100 Hz.
func cpuProfile(w http.ResponseWriter, r *http.Request) {
	seconds, ok := number(r, "seconds", 10, 1, 300)
	if _, fok := number(r, "frequency", 100, 1, 1000); !ok || !fok {
		text(w, http.StatusBadRequest, "seconds must be 1 to 300 and frequency 1 to 1000")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="profile.pb.gz"`)
	if err := pprof.StartCPUProfile(w); err != nil {
		w.Header().Del("Content-Disposition")
		text(w, http.StatusConflict, "%v", err)
		return
	}
	t := time.NewTimer(time.Duration(seconds) * time.Second)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
	pprof.StopCPUProfile()
}

func heapProfile(w http.ResponseWriter, _ *http.Request) {
	runtime.GC() // the profile shows the last collection
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="heap.pb.gz"`)
	// The client is gone if this fails; there is nobody to tell.
	_ = pprof.Lookup("heap").WriteTo(w, 0)
}

func goroutines(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = pprof.Lookup("goroutine").WriteTo(w, 1)
}

// heapSwitch turns heap sampling on and off.
type heapSwitch struct {
	mu   sync.Mutex
	rate int // guarded by mu; the rate before it was turned off
}

// ServeHTTP implements http.Handler.
func (s *heapSwitch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	on, err := strconv.ParseBool(r.URL.Query().Get("activate"))
	if err != nil {
		text(w, http.StatusBadRequest, "usage: /debug/pprof/heap/profiling?activate=true|false")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case on && runtime.MemProfileRate == 0:
		runtime.MemProfileRate = max(s.rate, 512<<10)
	case !on && runtime.MemProfileRate != 0:
		s.rate = runtime.MemProfileRate
		runtime.MemProfileRate = 0
	}
	text(w, http.StatusOK, "heap profiling active: %v", on)
}
