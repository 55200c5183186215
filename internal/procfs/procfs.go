// Package procfs reads what /proc says of processes.
package procfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Stat is what proc_pid_stat(5) says of a process.
type Stat struct {
	// Name is the process' name, of at most 15 bytes.
	Name string
	// Parent is the process that started it, or the one that took it over.
	Parent int
	// Started is when it began, in ticks since the machine started. With the number it names a process for ever.
	Started uint64
}

// ReadStat reads the stat file in a process' directory. The error wraps os.ErrNotExist if the process is gone.
func ReadStat(dir string) (Stat, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Stat{}, fmt.Errorf("read process: %w", err)
	}
	s, err := parseStat(b)
	if err != nil {
		return s, fmt.Errorf("read process %s: %w", dir, err)
	}
	return s, nil
}

// parseStat reads "PID (NAME) STATE PPID ... STARTED ...", of which the name may have anything in it.
func parseStat(b []byte) (s Stat, err error) {
	const (
		parent  = 1  // field 4, from behind the name
		started = 19 // field 22
	)
	open, closed := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || closed < open {
		return s, fmt.Errorf("no name in %q", b)
	}
	f := bytes.Fields(b[closed+1:])
	if len(f) <= started {
		return s, fmt.Errorf("%d fields behind the name", len(f))
	}
	s.Name = string(b[open+1 : closed])
	if s.Parent, err = strconv.Atoi(string(f[parent])); err != nil {
		return s, fmt.Errorf("read parent: %w", err)
	}
	if s.Started, err = strconv.ParseUint(string(f[started]), 10, 64); err != nil {
		return s, fmt.Errorf("read start: %w", err)
	}
	return s, nil
}
