package main

import (
	"fmt"
	"strings"
)

// A goal is a target of performance: a figure that is to be at most, or at least, a limit.
type goal struct {
	id      string // T1 and so on
	text    string
	limit   float64
	atLeast bool
	get     func(*bencher) spread
}

// reached says whether the median keeps the limit; a goal that was not measured is not reached.
func (g goal) reached(s spread) bool {
	if g.atLeast {
		return s.mid >= g.limit
	}
	return s.mid <= g.limit
}

func (g goal) bound() string {
	if g.atLeast {
		return ">= " + short(g.limit)
	}
	return "<= " + short(g.limit)
}

// The systems that goals compare.
const (
	oursName   = "ours"
	beforeName = "before"
	rustName   = "rust"
	spliceName = "splice"
	directName = "direct"

	mixedName     = "mixed"
	mixedBackName = "mixed-back"
)

// against is a goal on one metric of a workload, ours over another system.
func against(id, workload string, m metric, other string, limit float64) goal {
	return goal{id: id, text: fmt.Sprintf("%s, %s over %s", workload, m.name, other), limit: limit,
		get: func(b *bencher) spread { return b.ratio(key{oursName, workload}, m, key{other, workload}, m) }}
}

// atLeast turns a goal's limit round.
func atLeast(g goal) goal {
	g.atLeast = true
	return g
}

// goals are the targets; a row for each figure.
func goals() []goal {
	var gs []goal
	for _, w := range []string{"up-1", "up-8", "down-1", "down-8"} {
		gs = append(gs, against("T1", w, proxyCPU, rustName, 0.85), against("T1", w, proxyCPU, spliceName, 2.1),
			goal{id: "T1", text: w + ", proxy CPU over rust, each as sender and receiver with the other, AES-128-GCM", limit: 0.85,
				get: func(b *bencher) spread { return b.equalCipher(w) }})
	}
	gs = append(gs,
		atLeast(against("T2", "up-1", rate, rustName, 1.2)),
		atLeast(against("T2", "down-1", rate, rustName, 1.0)),
		atLeast(against("T2", "up-8", rate, rustName, 1.2)),
		atLeast(against("T2", "up-1", rate, directName, 0.15)),
		against("T4", "rr-1", p50, rustName, 0.75),
		against("T4", "rr-1", proxyCPU, rustName, 0.7),
		against("T4", "rr-1", p50, directName, 4.5),
	)
	for _, w := range []string{"rr-16", "rr-128"} {
		gs = append(gs, against("T5", w, proxyCPU, rustName, 0.45), against("T5", w, proxyCPU, spliceName, 1.5))
	}
	gs = append(gs,
		against("T6", "paced-1000", proxyCPU, rustName, 0.85),
		against("T6", "paced-4000", proxyCPU, rustName, 0.6),
		perNode("T6", "paced-1000", 50), perNode("T6", "paced-4000", 50),
	)
	for _, w := range []string{"crr-1", "crr-16"} {
		gs = append(gs, against("T7", w, proxyCPU, rustName, 0.45), atLeast(against("T7", w, rate, rustName, 1.7)),
			against("T7", w, totalCPU, directName, 2.8))
	}
	gs = append(gs, memoryGoals()...)
	return append(gs,
		against("T11", "same-up-1", proxyCPU, rustName, 0.15),
		against("T11", "same-rr-1", proxyCPU, rustName, 0.4),
		against("T11", "same-rr-16", proxyCPU, rustName, 0.4),
		goal{id: "T11", text: "same-up-1, proxy CPU over the applications' own in direct", limit: 1, get: func(b *bencher) spread {
			return b.ratio(key{oursName, "same-up-1"}, proxyCPU, key{directName, "same-up-1"}, appCPU)
		}},
		against("T12", "pass-up-1", proxyCPU, rustName, 0.5),
		atLeast(against("T12", "pass-up-1", rate, rustName, 1.25)),
		against("T12", "pass-rr-16", proxyCPU, rustName, 0.85),
		atLeast(against("T12", "pass-up-1", rate, directName, 0.5)),
		goal{id: "T13", text: "p99 of rr-1 beside a stalled download and a bulk upload, over p99 of rr-1 alone", limit: 1.5,
			get: func(b *bencher) spread {
				return b.ratio(key{oursName, "stalled-rr-1"}, p99, key{oursName, "rr-1"}, p99)
			}},
	)
}

// perNode is a limit on the dearer proxy's CPU for each round trip.
func perNode(id, workload string, limit float64) goal {
	m := metric{"CPU", func(s *sample) float64 { return max(s.cpuPerUnit(proxyA), s.cpuPerUnit(proxyB)) }}
	return goal{id: id, text: workload + ", us for each round trip on the dearer node", limit: limit,
		get: func(b *bencher) spread { return spreadOf(b.values(key{oursName, workload}, m)) }}
}

// memoryGoals are T9 and T10, for both nodes together.
func memoryGoals() []goal {
	gs := []goal{}
	for _, n := range []int{1000, 10000} {
		gs = append(gs,
			goal{id: "T9", text: fmt.Sprintf("private memory of each of %d idle connections over rust", n), limit: 0.4,
				get: func(b *bencher) spread {
					return b.memoryRatio(0, n, func(m *memorySample) float64 { return m.perConn(proxyA) + m.perConn(proxyB) })
				}},
			goal{id: "T9", text: fmt.Sprintf("KB for each of %d idle connections on the dearer node", n), limit: 3,
				get: func(b *bencher) spread {
					return b.memoryOf(oursName, 0, n, func(m *memorySample) float64 { return max(m.perConn(proxyA), m.perConn(proxyB)) })
				}})
	}
	for _, n := range []int{0, 1000, 10000} {
		gs = append(gs, goal{id: "T10", text: fmt.Sprintf("resident memory of a node with %d workloads over rust", n), limit: 1,
			get: func(b *bencher) spread {
				return b.memoryRatio(n, 0, func(m *memorySample) float64 { return m.base(proxyA) + m.base(proxyB) })
			}})
	}
	return gs
}

// memoryValues are a figure of a system's memory samples, by round.
func (b *bencher) memoryValues(system string, tables, conns int, of func(*memorySample) float64) map[int]float64 {
	v := map[int]float64{}
	for _, m := range b.memory {
		if m.System == system && m.Tables == tables && m.Conns == conns && m.Invalid == "" {
			v[m.Round] = of(m)
		}
	}
	return v
}

func (b *bencher) memoryOf(system string, tables, conns int, of func(*memorySample) float64) spread {
	var v []float64
	for _, x := range b.memoryValues(system, tables, conns, of) {
		v = append(v, x)
	}
	return spreadOf(v)
}

// memoryRatio is ours over rust, round by round.
func (b *bencher) memoryRatio(tables, conns int, of func(*memorySample) float64) spread {
	ours, rust := b.memoryValues(oursName, tables, conns, of), b.memoryValues(rustName, tables, conns, of)
	var v []float64
	for round, x := range ours {
		if y, ok := rust[round]; ok {
			v = append(v, x/y)
		}
	}
	return spreadOf(v)
}

// writeGoals is the table of targets, for what was measured.
func (b *bencher) writeGoals(w *strings.Builder) {
	w.WriteString("\n## Targets\n\nMedian and middle half of the per-round figure.\n\n| | figure | target | reached | |\n|---|---|---|---|---|\n")
	for _, g := range goals() {
		s := g.get(b)
		if s.n == 0 {
			continue
		}
		verdict := "yes"
		if !g.reached(s) {
			verdict = "**no**"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", g.id, g.text, g.bound(), s, verdict)
	}
}
