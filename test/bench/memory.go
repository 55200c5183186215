package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// settle is how long memory may settle before it is read, and how long the CPU of an idle proxy is watched.
const (
	settle = 4 * time.Second
	quiet  = 5 * time.Second
)

// A memorySample is the memory of a freshly started system. It is a line of results.jsonl.
type memorySample struct {
	Round   int             `json:"round"`
	System  string          `json:"system"`
	Tables  int             `json:"tables"`      // workloads known
	Conns   int             `json:"conns"`       // held idle
	Base    map[role]memory `json:"base"`        // before the connections
	Held    map[role]memory `json:"held"`        // with them
	After   map[role]memory `json:"after"`       // when they are closed
	Idle    time.Duration   `json:"idle_cpu_ns"` // both proxies, over quiet, with the connections
	Invalid string          `json:"invalid,omitempty"`
}

// perConn is KB for each connection on one node: of the processes' own memory, since the pages of their programs that the
// first connection brings in are not of its like.
func (m *memorySample) perConn(r role) float64 {
	return float64(m.Held[r].Private-m.Base[r].Private) / 1e3 / float64(m.Conns)
}

// base is resident MB of one node's proxy before any connection.
func (m *memorySample) base(r role) float64 { return float64(m.Base[r].Resident) / 1e6 }

// memoryCases starts each system anew for each case, so that no case sees memory of another.
func (b *bencher) memoryCases(ctx context.Context) error {
	if b.cfg.workloads != "" && len(selected(b.cfg.workloads)) > 0 {
		return nil // the user asked for traffic only
	}
	type memoryCase struct{ tables, conns int }
	var cases []memoryCase
	for _, t := range b.cfg.profile.tables {
		cases = append(cases, memoryCase{tables: t})
	}
	for _, n := range b.cfg.profile.idle {
		cases = append(cases, memoryCase{conns: n})
	}
	for round := range b.cfg.profile.memoryRounds {
		for _, c := range cases {
			for _, s := range b.systems {
				if s.name() == "direct" {
					continue
				}
				m := &memorySample{Round: round, System: s.name(), Tables: c.tables, Conns: c.conns}
				if err := m.run(ctx, s); err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					m.Invalid = err.Error()
				}
				b.memory = append(b.memory, m)
				if err := b.log.Encode(m); err != nil {
					return err
				}
				b.printf("  memory %-8s %s\n", s.name(), m.line())
			}
		}
	}
	return nil
}

func (m *memorySample) run(ctx context.Context, s system) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*caseTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, err := s.start(ctx, options{dir: dir, tables: m.Tables})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.stop()) }()
	time.Sleep(settle)
	if m.Base, err = memoryOf(in); err != nil || m.Conns == 0 {
		return err
	}
	c, err := startClient(ctx, in.client, in.targets[crossNode], "-kind", "idle", "-conns", strconv.Itoa(m.Conns))
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.await("START"); err != nil {
		return err
	}
	time.Sleep(settle)
	pids := append(append([]int{}, in.procs[proxyA]...), in.procs[proxyB]...)
	before, err := cpuTimes(pids)
	if err != nil {
		return err
	}
	time.Sleep(quiet)
	after, err := cpuTimes(pids)
	if err != nil {
		return err
	}
	m.Idle = after - before
	if m.Held, err = memoryOf(in); err != nil {
		return err
	}
	if _, err := c.result(); err != nil {
		return fmt.Errorf("held connections: %w", err)
	}
	c.stop()
	time.Sleep(settle)
	m.After, err = memoryOf(in)
	return err
}

// memoryOf is the memory of each node's proxy.
func memoryOf(in *instance) (map[role]memory, error) {
	m := map[role]memory{}
	for _, r := range []role{proxyA, proxyB} {
		var err error
		if m[r], err = memoryOfAll(in.procs[r]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *memorySample) line() string {
	switch {
	case m.Invalid != "":
		return "INVALID: " + m.Invalid
	case m.Conns == 0:
		return fmt.Sprintf("%5d workloads: %s / %s MB, of these private %s / %s", m.Tables, short(m.base(proxyA)), short(m.base(proxyB)),
			short(float64(m.Base[proxyA].Private)/1e6), short(float64(m.Base[proxyB].Private)/1e6))
	default:
		return fmt.Sprintf("%5d idle connections: %s / %s KB each, CPU %s ms in %s", m.Conns, short(m.perConn(proxyA)),
			short(m.perConn(proxyB)), short(float64(m.Idle)/1e6), quiet)
	}
}
