package main

import "fmt"

// Names of the waypoint's systems.
const (
	oursWaypoint    = "ours-wp"
	oursWaypoint1   = "ours-wp-1"
	envoyWaypoint1  = "envoy-wp-1"
	envoyWaypoint2  = "envoy-wp-2"
	oursPlain       = "ours-plain"
	envoyPlainName  = "envoy-plain"
	nginxPlain      = "nginx"
	haproxyPlain    = "haproxy"
	nghttpxPlain    = "nghttpx"
	waypointWorkers = 2
)

// proxiesOfRequests are the systems of the waypoint's suite that can run here; the others are named with the reason.
func (b *bencher) proxiesOfRequests() []system {
	var all []system
	ours := waypointSystem{label: oursWaypoint, bin: b.cfg.bin, workers: waypointWorkers}
	one := ours
	one.label, one.workers = oursWaypoint1, 1
	all = append(all, ours, one)
	plain := []plainProxy{{label: oursPlain, paths: []path{plainHTTP1, plainHTTP2}}}
	if b.cfg.envoy != "" {
		e1, e2 := one, ours
		e1.label, e1.envoy = envoyWaypoint1, b.cfg.envoy
		e2.label, e2.envoy = envoyWaypoint2, b.cfg.envoy
		all = append(all, e1, e2)
		plain = append(plain, plainProxy{envoyPlainName, b.cfg.envoy, []path{plainHTTP1, plainHTTP2}, envoyPlain})
	} else {
		b.skip("envoy", fmt.Errorf("neither -envoy nor ENVOY_BIN names one"))
	}
	for _, p := range []plainProxy{
		{nginxPlain, "nginx", []path{plainHTTP1}, nginxCommand},
		{haproxyPlain, "haproxy", []path{plainHTTP1, plainHTTP2}, haproxyCommand},
		{nghttpxPlain, "nghttpx", []path{plainHTTP2}, nghttpxCommand},
	} {
		var err error
		if p.program, err = haveProgram(p.program); err != nil {
			b.skip(p.label, err)
			continue
		}
		plain = append(plain, p)
	}
	for _, p := range plain {
		all = append(all, p)
	}
	return all
}

// skip says why a system is left out.
func (b *bencher) skip(name string, why error) {
	b.printf("%s is left out: %v\n", name, why)
	b.notes = append(b.notes, fmt.Sprintf("%s was left out: %v", name, why))
}

// requestGoals are T14 to T16 of performance.md section 7.
func requestGoals() []goal {
	over := func(id, workload string, m metric, x, y string, limit float64) goal {
		return goal{id: id, text: fmt.Sprintf("%s, %s of %s over %s", workload, m.name, x, y), limit: limit, get: func(b *bencher) spread {
			return b.ratio(key{x, workload}, m, key{y, workload}, m)
		}}
	}
	var gs []goal
	for _, peer := range []string{envoyWaypoint1, envoyWaypoint2} {
		gs = append(gs,
			over("T14", "wp-h1-32", proxyCPU, oursWaypoint, peer, 0.3), over("T14", "wp-h1-32-log", proxyCPU, oursWaypoint, peer, 0.3),
			over("T14", "wp-h1-1000", proxyCPU, oursWaypoint, peer, 0.35), over("T14", "wp-h1-1000-log", proxyCPU, oursWaypoint, peer, 0.35),
			over("T15", "wp-h2-8x10", proxyCPU, oursWaypoint, peer, 0.35), over("T15", "wp-grpc-8x10", proxyCPU, oursWaypoint, peer, 0.35),
			over("T15", "wp-grpc-8x10-log", proxyCPU, oursWaypoint, peer, 0.35), over("T15", "wp-grpc-1000", proxyCPU, oursWaypoint, peer, 0.35),
			over("T15", "wp-stream-8x10", proxyCPU, oursWaypoint, peer, 0.35))
		for _, w := range requestWorkloads {
			if w.Path == throughWaypoint {
				gs = append(gs, over("p50", w.Name, p50, oursWaypoint, peer, 1), over("p99", w.Name, p99, oursWaypoint, peer, 1))
			}
		}
	}
	return append(gs,
		over("T14", "h1-32", proxyCPU, oursPlain, nginxPlain, 0.6), over("T14", "h1-1000", proxyCPU, oursPlain, nginxPlain, 0.6),
		over("T14", "h1-32", proxyCPU, oursPlain, envoyPlainName, 0.25), over("T15", "h2-8x10", proxyCPU, oursPlain, nghttpxPlain, 1.3),
		goal{id: "T14", text: "resident memory of the waypoint, MB", limit: 25, get: func(b *bencher) spread {
			return spreadOf(b.values(key{oursWaypoint, "wp-h1-32"}, resident))
		}})
}
