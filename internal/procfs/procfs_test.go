package procfs

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

func TestAProcessIsReadWhateverItsName(t *testing.T) {
	const rest = "S 12 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1"
	for _, name := range []string{"kubelet", "a b", ") S 1 (", "", "("} {
		got, err := parseStat(fmt.Appendf(nil, "7 (%s) %s", name, rest))
		if want := (Stat{name, 12, 4711}); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, bad := range []string{"", "7", "7 (x", "7 (x) S 1", "7 (x) S x" + rest[4:], "7 x) (" + rest} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v", bad, got)
		}
	}
}

func TestOneselfIsAProcess(t *testing.T) {
	got, err := ReadStat("/proc/self")
	if err != nil || got.Parent != os.Getppid() || got.Started == 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ReadStat("/proc/self/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("7 (x) S 12 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseStat(b) })
}
