package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// env is the environment.
type env map[string]string

func environment(list []string) env {
	e := env{}
	for _, kv := range list {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e[k] = v
		}
	}
	return e
}

// reader reads variables into fields that already have their defaults; the first error stays.
type reader struct {
	env env
	err error
}

func (r *reader) fail(name string, err error) {
	if r.err == nil {
		r.err = usageError{fmt.Errorf("read variable %s=%q: %w", name, r.env[name], err)}
	}
}

// text sets to to the first of names that is there, even if empty: XDS_ADDRESS="" means something.
func (r *reader) text(to *string, names ...string) {
	for _, n := range names {
		if v, ok := r.env[n]; ok {
			*to = v
			return
		}
	}
}

// nonEmpty is text for variables of which an empty value means nothing.
func (r *reader) nonEmpty(to *string, names ...string) {
	for _, n := range names {
		if v := r.env[n]; v != "" {
			*to = v
			return
		}
	}
}

func (r *reader) boolean(to *bool, name string) {
	if v := r.env[name]; v != "" {
		b, err := strconv.ParseBool(strings.ToLower(v))
		if err != nil {
			r.fail(name, err)
			return
		}
		*to = b
	}
}

func (r *reader) duration(to *time.Duration, name string) {
	if v := r.env[name]; v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			r.fail(name, fmt.Errorf("not a duration like 1m30s"))
			return
		}
		*to = d
	}
}

func (r *reader) unsigned(to *uint32, name string) {
	if v := r.env[name]; v != "" {
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			r.fail(name, err)
			return
		}
		*to = uint32(n)
	}
}

func (r *reader) count(to *int, name string) {
	n := uint32(*to)
	r.unsigned(&n, name)
	*to = int(min(n, math.MaxInt32))
}

// prefixed returns the variables that start with prefix, without it.
func (r *reader) prefixed(prefix string) map[string]string {
	var out map[string]string
	for k, v := range r.env {
		if name, ok := strings.CutPrefix(k, prefix); ok && name != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = v
		}
	}
	return out
}

// metadata is proxyMetadata, over it ISTIO_META_*, over that ISTIO_METAJSON_* (X8).
func (r *reader) metadata(proxyMetadata map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range proxyMetadata {
		k = strings.TrimPrefix(k, "ISTIO_META_")
		out[k] = v
	}
	for k, v := range r.prefixed("ISTIO_META_") {
		out[k] = v
	}
	for k, v := range r.prefixed("ISTIO_METAJSON_") {
		var parsed any
		if err := json.Unmarshal([]byte(v), &parsed); err != nil {
			r.fail("ISTIO_METAJSON_"+k, err)
			continue
		}
		out[k] = parsed
	}
	return out
}

// drain is how long connections may go on at the end: a bit less than Kubernetes waits (S4).
func (r *reader) drain(to *time.Duration) {
	if r.env["CONNECTION_TERMINATION_DEADLINE"] != "" {
		r.duration(to, "CONNECTION_TERMINATION_DEADLINE")
		return
	}
	if v := r.env["TERMINATION_GRACE_PERIOD_SECONDS"]; v != "" {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			r.fail("TERMINATION_GRACE_PERIOD_SECONDS", err)
			return
		}
		s := time.Duration(n) * time.Second
		if s > 10*time.Second {
			s -= 5 * time.Second
		} else {
			s -= time.Second
		}
		*to = max(s, time.Second)
	}
}

// workers is the number of loops: a number, a share of the CPUs, or from the limits that the chart passes on.
func (r *reader) workers(cpus int) int {
	const name = "ZTUNNEL_WORKER_THREADS"
	v := r.env[name]
	if v == "" {
		return r.autoWorkers(cpus)
	}
	if share, ok := strings.CutSuffix(v, "%"); ok {
		n, err := strconv.ParseFloat(share, 64)
		if err != nil || !(n > 0 && n <= 100) {
			r.fail(name, fmt.Errorf("not a share of 0%% to 100%%"))
			return 0
		}
		return max(1, int(math.Ceil(float64(cpus)*n/100)))
	}
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		r.fail(name, err)
		return 0
	}
	if n == 0 {
		return cpus
	}
	return int(n)
}

// autoWorkers: an explicit limit, raised to the request; else a quarter of the CPUs, but at least the request and 2.
func (r *reader) autoWorkers(cpus int) int {
	limit := r.cores("ZTUNNEL_RESOURCE_CPU_LIMIT")
	request := r.cores("ZTUNNEL_RESOURCE_CPU_REQUEST")
	if limit > 0 {
		return max(limit, request, 1)
	}
	var all uint32
	r.unsigned(&all, "ZTUNNEL_CPU_LIMIT")
	if all > 0 {
		cpus = int(all)
	}
	return max((cpus+3)/4, request, 2)
}

// cores reads a Kubernetes quantity of CPUs, rounded up.
func (r *reader) cores(name string) int {
	v := r.env[name]
	if v == "" {
		return 0
	}
	unit := 1.0
	if m, ok := strings.CutSuffix(v, "m"); ok {
		v, unit = m, 1000
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || !(n >= 0 && n < 1e9) {
		r.fail(name, fmt.Errorf("not a quantity of CPUs"))
		return 0
	}
	return int(math.Ceil(n / unit))
}

// parseLevel reads the level of "info", "info,access=debug" or "warn,ztunnel=debug"; info if there is none.
func parseLevel(s string) slog.Level {
	for _, part := range strings.Split(s, ",") {
		switch strings.ToLower(strings.TrimSpace(part)) {
		case "trace", "debug":
			return slog.LevelDebug
		case "info":
			return slog.LevelInfo
		case "warn", "warning":
			return slog.LevelWarn
		case "error", "off":
			return slog.LevelError
		}
	}
	return slog.LevelInfo
}

// readOptional returns a file's bytes, or nothing if there is no file.
func readOptional(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}
