package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is the run time of all live threads of a process, from schedstat. Unlike utime and stime it is exact.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has just ended
		}
		if err != nil {
			return 0, err
		}
		field, _, _ := bytes.Cut(b, []byte(" "))
		ns, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read schedstat of process %d: %w", pid, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// cpuTimes is the sum over processes.
func cpuTimes(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, p := range pids {
		d, err := cpuTime(p)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// memory of processes, in bytes.
type memory struct {
	Resident int64 `json:"resident"` // VmRSS
	Private  int64 `json:"private"`  // RssAnon: the same without the pages of the program's file
}

func memoryOfAll(pids []int) (m memory, err error) {
	for _, p := range pids {
		for name, sum := range map[string]*int64{"VmRSS:": &m.Resident, "RssAnon:": &m.Private} {
			kb, err := statusField(p, name)
			if err != nil {
				return m, err
			}
			*sum += kb << 10
		}
	}
	return m, nil
}

// switches is how often the threads of processes were switched, by themselves or not.
func switches(pids []int) (int64, error) {
	var sum int64
	for _, p := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p))
		if err != nil {
			return 0, err
		}
		for _, t := range tasks {
			for _, field := range []string{"voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"} {
				n, err := field1(t, field)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

func statusField(pid int, name string) (int64, error) {
	return field1(fmt.Sprintf("/proc/%d/status", pid), name)
}

// field1 is the number behind name in a file of "name: value" lines.
func field1(path, name string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) > 1 && fields[0] == name {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("read %s: no line %s", path, name), s.Err())
}

// hostFacts are what a reader must know to place the figures.
func hostFacts() map[string]string {
	facts := map[string]string{}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cores := 0
		for l := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(l, ":")
			k, v = strings.TrimSpace(k), strings.TrimSpace(v)
			switch k {
			case "processor":
				cores++
			case "model name", "cache size":
				facts[k] = v
			case "flags":
				for _, f := range strings.Fields(v) {
					if f == "vaes" || f == "aes" || f == "avx512f" {
						facts[f] = "yes"
					}
				}
			}
		}
		facts["cores"] = strconv.Itoa(cores)
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		facts["kernel"] = strings.TrimSpace(string(b))
	}
	if kb, err := field1("/proc/meminfo", "MemTotal:"); err == nil {
		facts["memory"] = fmt.Sprintf("%.0f GB", float64(kb)/1e6)
	}
	return facts
}

// loadAverage is the machine's one-minute load, or zero if it cannot be read.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}
