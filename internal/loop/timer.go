package loop

import "time"

// TimerHandler is called when a timer runs out.
type TimerHandler interface {
	Expired(t *Timer)
}

// Timer is a one-shot timer, meant to be embedded. The zero value is stopped. Loop only.
type Timer struct {
	at   time.Duration // of Loop.Now
	pos  int           // 1 + place in the heap; 0 = stopped
	heap *timerHeap
	h    TimerHandler
}

// Start makes h.Expired(t) be called d from now. A running timer is set anew.
func (l *Loop) Start(t *Timer, d time.Duration, h TimerHandler) {
	t.Stop()
	t.at, t.h, t.heap = time.Since(start)+max(d, 0), h, &l.timers
	l.timers.push(t)
}

// Running says whether the timer will expire.
func (t *Timer) Running() bool { return t.pos != 0 }

// Stop stops the timer; a stopped one may be stopped again.
func (t *Timer) Stop() {
	if t.pos != 0 {
		t.heap.remove(t)
	}
}

// timerHeap is a binary heap by time; each timer knows its place.
type timerHeap struct{ ts []*Timer }

// wait is how long to sleep in milliseconds, rounded up; -1 for ever.
func (h *timerHeap) wait(now time.Duration) int {
	if len(h.ts) == 0 {
		return -1
	}
	d := h.ts[0].at - now
	if d <= 0 {
		return 0
	}
	return int(min((d+time.Millisecond-1)/time.Millisecond, 1<<30))
}

// fire calls what is due at now. Timers that a handler starts wait for the next turn at least, if they are not already
// due before now.
func (h *timerHeap) fire(now time.Duration) {
	for len(h.ts) > 0 && h.ts[0].at <= now {
		t := h.ts[0]
		h.remove(t)
		t.h.Expired(t)
	}
}

func (h *timerHeap) push(t *Timer) {
	h.ts = append(h.ts, t)
	t.pos = len(h.ts)
	h.up(t.pos - 1)
}

func (h *timerHeap) remove(t *Timer) {
	i, last := t.pos-1, len(h.ts)-1
	if i != last {
		h.swap(i, last)
	}
	h.ts[last] = nil
	h.ts = h.ts[:last]
	t.pos = 0
	if i != last {
		h.down(i)
		h.up(i)
	}
}

func (h *timerHeap) swap(i, j int) {
	h.ts[i], h.ts[j] = h.ts[j], h.ts[i]
	h.ts[i].pos, h.ts[j].pos = i+1, j+1
}

func (h *timerHeap) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if h.ts[p].at <= h.ts[i].at {
			return
		}
		h.swap(i, p)
		i = p
	}
}

func (h *timerHeap) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(h.ts) {
			return
		}
		if c+1 < len(h.ts) && h.ts[c+1].at < h.ts[c].at {
			c++
		}
		if h.ts[i].at <= h.ts[c].at {
			return
		}
		h.swap(i, c)
		i = c
	}
}
