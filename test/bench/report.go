package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report writes summary.md and the plots beside results.jsonl.
func (b *bencher) report() error {
	var w strings.Builder
	fmt.Fprintf(&w, "# Benchmark, profile %s\n\n", b.cfg.profile.name)
	b.writeFacts(&w)
	if len(b.samples) > 0 {
		b.writeTraffic(&w)
		b.writeRatios(&w)
	}
	if len(b.memory) > 0 {
		b.writeMemory(&w)
	}
	if b.has(oursName) || b.has(mixedName) {
		b.writeGoals(&w)
	}
	b.writeInvalid(&w)
	path := filepath.Join(b.cfg.out, "summary.md")
	errs := []error{os.WriteFile(path, []byte(w.String()), 0o644)}
	for name, draw := range map[string]func() string{"ratios.svg": b.ratioPlot, "cpu.svg": b.cpuPlot} {
		if svg := draw(); svg != "" {
			errs = append(errs, os.WriteFile(filepath.Join(b.cfg.out, name), []byte(svg), 0o644))
		}
	}
	b.printf("%s\n", path)
	return errors.Join(errs...)
}

// has says whether a system took part.
func (b *bencher) has(name string) bool {
	return slices.ContainsFunc(b.systems, func(s system) bool { return s.name() == name })
}

func (b *bencher) writeFacts(w *strings.Builder) {
	facts := hostFacts()
	for _, k := range slices.Sorted(maps.Keys(facts)) {
		fmt.Fprintf(w, "- %s: %s\n", k, facts[k])
	}
	if len(b.samples) > 0 {
		var load []float64
		for _, s := range b.samples {
			load = append(load, s.Load)
		}
		fmt.Fprintf(w, "- load average during the run: %s\n", spreadOf(load))
	}
	fmt.Fprintf(w, "- window %s after %s of warm-up, %d rounds\n", b.cfg.profile.window, b.cfg.profile.warm, b.cfg.profile.rounds)
	for _, s := range slices.Sorted(maps.Keys(b.about)) {
		for _, k := range slices.Sorted(maps.Keys(b.about[s])) {
			fmt.Fprintf(w, "- %s, %s: %s\n", s, k, b.about[s][k])
		}
	}
}

// workloads are those that have samples, in the plan's order.
func (b *bencher) workloads() []workload {
	var ws []workload
	for _, w := range allWorkloads {
		if slices.ContainsFunc(b.samples, func(s *sample) bool { return s.Workload == w }) {
			ws = append(ws, w)
		}
	}
	return ws
}

func (b *bencher) writeTraffic(w *strings.Builder) {
	w.WriteString("\n## Figures\n\nMedians over the rounds. CPU of the proxies of both nodes together, middle half in brackets; " +
		"rate in GB/s or thousands of round trips a second; latencies in us.\n")
	for _, wl := range b.workloads() {
		fmt.Fprintf(w, "\n**%s** (%s, %d)\n\n| system | proxies, %s | all, %s | rate | p50 | p99 | rounds |\n|---|---|---|---|---|---|---|\n",
			wl.Name, wl.Path, wl.Conns, wl.unit(), wl.unit())
		for _, s := range b.systems {
			k := key{s.name(), wl.Name}
			v := b.values(k, proxyCPU)
			if len(v) == 0 {
				continue
			}
			r := quantile(b.values(k, rate), .5)
			if !wl.bytes() {
				r /= 1000
			}
			latency := []string{"", ""}
			if !wl.bytes() {
				latency = []string{short(quantile(b.values(k, p50), .5)), short(quantile(b.values(k, p99), .5))}
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %d |\n", s.name(), spreadOf(v),
				short(quantile(b.values(k, totalCPU), .5)), short(r), latency[0], latency[1], len(v))
		}
	}
}

// pairs are the comparisons worth a table, of the systems that took part.
func (b *bencher) pairs() [][2]string {
	var ps [][2]string
	for _, p := range [][2]string{{oursName, beforeName}, {oursName, rustName}, {oursName, spliceName}, {"bare", rustName}, {oursName, "bare"}, {rustName, spliceName}} {
		if b.has(p[0]) && b.has(p[1]) {
			ps = append(ps, p)
		}
	}
	return ps
}

func (b *bencher) writeRatios(w *strings.Builder) {
	for _, p := range b.pairs() {
		fmt.Fprintf(w, "\n## %s over %s\n\nMedian of the per-round ratio, and its middle half.\n\n"+
			"| workload | proxy CPU | rate | p50 | p99 | less CPU in |\n|---|---|---|---|---|---|\n", p[0], p[1])
		for _, wl := range b.workloads() {
			x, y := key{p[0], wl.Name}, key{p[1], wl.Name}
			cpu := b.ratio(x, proxyCPU, y, proxyCPU)
			if cpu.n == 0 {
				continue
			}
			var latency [2]spread
			if !wl.bytes() {
				latency = [2]spread{b.ratio(x, p50, y, p50), b.ratio(x, p99, y, p99)}
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %d of %d |\n", wl.Name, cpu, b.ratio(x, rate, y, rate),
				latency[0], latency[1], b.wins(x, y), cpu.n)
		}
	}
}

// wins is the number of rounds in which x took less CPU than y.
func (b *bencher) wins(x, y key) int {
	n, ys := 0, b.series(y)
	for round, s := range b.series(x) {
		if o, ok := ys[round]; ok && proxyCPU.of(s) < proxyCPU.of(o) {
			n++
		}
	}
	return n
}

func (b *bencher) writeMemory(w *strings.Builder) {
	w.WriteString("\n## Memory\n\nResident memory of freshly started proxies, nodes a / b.\n\n" +
		"| system | workloads known | idle connections | base, MB | of these private, MB | for each connection, KB | CPU in 5 idle s, ms | after closing, MB |\n" +
		"|---|---|---|---|---|---|---|---|\n")
	type row struct {
		system        string
		tables, conns int
	}
	var seen []row
	for _, m := range b.memory {
		r := row{m.System, m.Tables, m.Conns}
		if m.Invalid != "" || slices.Contains(seen, r) {
			continue
		}
		seen = append(seen, r)
		mid := func(of func(*memorySample) float64) string {
			return short(b.memoryOf(r.system, r.tables, r.conns, of).mid)
		}
		fmt.Fprintf(w, "| %s | %d | %d | %s / %s | %s / %s |", r.system, r.tables, r.conns,
			mid(func(m *memorySample) float64 { return m.base(proxyA) }), mid(func(m *memorySample) float64 { return m.base(proxyB) }),
			mid(func(m *memorySample) float64 { return float64(m.Base[proxyA].Private) / 1e6 }),
			mid(func(m *memorySample) float64 { return float64(m.Base[proxyB].Private) / 1e6 }))
		if r.conns == 0 {
			w.WriteString(" | | |\n")
			continue
		}
		fmt.Fprintf(w, " %s / %s | %s | %s / %s |\n",
			mid(func(m *memorySample) float64 { return m.perConn(proxyA) }), mid(func(m *memorySample) float64 { return m.perConn(proxyB) }),
			mid(func(m *memorySample) float64 { return float64(m.Idle) / 1e6 }),
			mid(func(m *memorySample) float64 { return float64(m.After[proxyA].Resident) / 1e6 }),
			mid(func(m *memorySample) float64 { return float64(m.After[proxyB].Resident) / 1e6 }))
	}
}

func (b *bencher) writeInvalid(w *strings.Builder) {
	var lines []string
	for _, s := range b.samples {
		if s.Invalid != "" {
			lines = append(lines, fmt.Sprintf("- round %d, %s on %s: %s\n", s.Round+1, s.Workload.Name, s.System, s.Invalid))
		}
	}
	for _, m := range b.memory {
		if m.Invalid != "" {
			lines = append(lines, fmt.Sprintf("- memory of %s, %d workloads, %d connections: %s\n", m.System, m.Tables, m.Conns, m.Invalid))
		}
	}
	for _, n := range b.notes {
		lines = append(lines, "- "+n+"\n")
	}
	if len(lines) == 0 {
		w.WriteString("\nEvery case was valid: no errors, and bytes passed unharmed.\n")
		return
	}
	w.WriteString("\n## Invalid cases and notes\n\n" + strings.Join(lines, ""))
}
