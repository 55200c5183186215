package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ports are keys of endpoints at 127.0.0.1.
func ports(from, to int) []string {
	var out []string
	for p := from; p <= to; p++ {
		out = append(out, fmt.Sprintf("127.0.0.1:%d", p))
	}
	return out
}

func even(n int) []float64 { return slices.Repeat([]float64{1 / float64(n)}, n) }

func TestTheRingIsEnvoys(t *testing.T) {
	// The numbers are of Envoy's own test (test/extensions/load_balancing_policies/ring_hash, "Basic").
	want := `94 833437586790550860
92 928266305478181108
90 1033482794131418490
95 3551244743356806947
93 3851675632748031481
91 5583722120771150861
91 6311230543546372928
93 7700377290971790572
95 13144177310400110813
92 13444792449719432967
94 15516499411664133160
90 16117243373044804889`
	var got []string
	for _, e := range buildRing(ports(90, 95), even(6), 12, maxRing) {
		got = append(got, fmt.Sprintf("%d %d", 90+e.host, e.hash))
	}
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}

func TestTheMaglevTableIsEnvoys(t *testing.T) {
	// The numbers are of Envoy's own test (test/extensions/load_balancing_policies/maglev, "Basic").
	if got, want := fmt.Sprint(buildMaglev(ports(90, 95), even(6), 7)), "[2 4 0 1 5 0 3]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTheOrderOfEndpointsDoesNotCountForMaglev(t *testing.T) {
	const size = 251
	a := buildMaglev([]string{"10.0.0.1:80", "10.0.0.2:80"}, []float64{0.25, 0.75}, size)
	b := buildMaglev([]string{"10.0.0.2:80", "10.0.0.1:80"}, []float64{0.75, 0.25}, size)
	for i := range a {
		if a[i] != 1-b[i] {
			t.Fatalf("place %d: endpoint %d, listed the other way round %d", i, a[i], 1-b[i])
		}
	}
}
