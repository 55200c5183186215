// Package memory gives memory back that a program has needed for its start, or for a large push, and does not need any more.
package memory

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack returns to the kernel what the process does not need any more: garbage, free pages of the heap, and the mapped
// pages of the program. Around each page that is touched the kernel maps 64 KiB and more, and the start touches nearly the
// whole program: 18 MB, of which the data path uses a fifth. What is needed comes back from the page cache by itself. It costs a garbage collection, and blocks for that long.
func GiveBack() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer smaps.Close()
	for _, m := range programMaps(smaps, exe) {
		unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED) // fails to no harm
	}
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// programMaps finds the mappings of the file exe, in the text of /proc/PID/smaps, that are as they are in the file: they
// cannot be written to and have no pages of their own (relocations of a program that can be loaded anywhere).
func programMaps(smaps io.Reader, exe string) (list []mapping) {
	var m mapping
	ours := false
	for s := bufio.NewScanner(smaps); s.Scan(); {
		var at mapping
		var perms string
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x %s", &at.from, &at.to, &perms); n == 3 {
			m, ours = at, strings.HasSuffix(s.Text(), " "+exe) && !strings.Contains(perms, "w")
			continue
		}
		if f := strings.Fields(s.Text()); ours && len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" {
			list = append(list, m)
		}
	}
	return list
}
