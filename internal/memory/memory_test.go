package memory

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const someMaps = `00400000-00d70000 r-xp 00000000 fe:00 10707410                           /usr/bin/ztunnel
Rss:                8512 kB
Anonymous:             0 kB
00d70000-018ae000 r--p 00970000 fe:00 10707410                           /usr/bin/ztunnel
Anonymous:             4 kB
018ae000-0193f000 rw-p 014ae000 fe:00 10707410                           /usr/bin/ztunnel
Anonymous:             0 kB
7efbd64ee000-7efbd6800000 r--p 00000000 00:00 0 
Anonymous:             0 kB
7efbd7000000-7efbd7001000 r--p 00000000 fe:00 17                         /usr/lib/usr/bin/ztunnel2
Anonymous:             0 kB
7ffc1d007000-7ffc1d0e7000 r-xp 00000000 fe:00 10707410                   /usr/bin/ztunnel
Anonymous:             0 kB
`

func TestOnlyPagesThatAreAsInTheProgramsFileAreGivenBack(t *testing.T) {
	want := []mapping{{0x400000, 0xd70000}, {0x7ffc1d007000, 0x7ffc1d0e7000}}
	if got := programMaps(strings.NewReader(someMaps), "/usr/bin/ztunnel"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestAProcessGoesOnAfterItHasGivenItsMemoryBack(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		GiveBack()
		smaps, err := os.Open("/proc/self/smaps")
		if err != nil {
			t.Fatal(err)
		}
		if len(programMaps(smaps, exe)) == 0 {
			t.Error("no mapping of the test's program was found")
		}
		smaps.Close()
	}
}
