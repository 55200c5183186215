// Package dumps judges our waypoint by resources that were recorded from istiod: every one must be accepted, and requests
// made from their routes and policies must get the answers that a real Envoy with the same resources gives.
//
// AMBIT_DUMPS names the folder (default: waypoint-dumps in the directory shared beside the repository), ENVOY_BIN the
// Envoy. The way to run it is
//
//	make test-dumps DUMPS=DIR
package dumps

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// least is the number of requests that all scenarios together must have been asked.
const least = 300

func TestRecordedResourcesAreServedAsByEnvoy(t *testing.T) {
	scenarios := dumptest.Load(t, os.Getenv("AMBIT_DUMPS"))
	bin := envoytest.Find(t)
	if bin == "" {
		fmt.Println("no Envoy to compare with: ENVOY_BIN does not name one; resources are only compiled")
	}
	total := 0
	for _, s := range scenarios {
		n := accept(t, s)
		fmt.Printf("%-42s %3d resources accepted\n", s.Name, n)
		if bin == "" || !strings.HasSuffix(s.Name, ".json") {
			continue // the other form of the same resources
		}
		t.Run(s.Name, func(t *testing.T) { total += compare(t, bin, s) })
	}
	if bin != "" && total < least {
		t.Errorf("%d requests compared, want at least %d", total, least)
	}
}

// compare asks both sides and returns how many requests were compared.
func compare(t *testing.T, bin string, s *dumptest.Scenario) int {
	at := backends{}
	o := startOurs(t)
	n, differ, excused, statuses := 0, 0, map[string]int{}, map[string]int{}
	for _, as := range []form{calm, faults, reach} {
		r := local(t, s, at, as)
		list := requests(t, r)
		if as == faults {
			list = faulty(t, r)
		}
		if len(list) == 0 || as == reach && !r.reached {
			continue
		}
		o.serve(t, r)
		e := startEnvoy(t, bin, r)
		for _, q := range list {
			n++
			d := difference(o, e, q, statuses)
			if d == "" {
				continue
			}
			if why := excuse(q.why, d); why != "" {
				excused[why]++
				continue
			}
			if differ++; differ <= 40 {
				t.Errorf("%v:\n%s", q, d)
			}
		}
		for _, c := range r.chains {
			for _, who := range clients {
				if c.http == nil {
					n++
					if d := lineDifference(o, e, who, c.dst); d != "" {
						differ++
						t.Errorf("%v -> %v: %s", who, c.dst, d)
					}
				}
			}
		}
	}
	fmt.Printf("%-42s %4d requests compared, %d differ", s.Name, n, differ)
	for _, why := range sorted(excused) {
		fmt.Printf(", %d differ by intent (%s)", excused[why], why)
	}
	fmt.Print("; by status:")
	for _, k := range sorted(statuses) {
		fmt.Printf(" %s: %d", k, statuses[k])
	}
	fmt.Println()
	return n
}

// lineDifference sends lines to both until they agree, or all that they may answer is known.
func lineDifference(o, e side, who client, dst netip.AddrPort) string {
	got, want := line(o, who, dst), line(e, who, dst)
	if got == want {
		return ""
	}
	return sets(func() string { return line(o, who, dst) }, func() string { return line(e, who, dst) })
}

// sets asks both sides until they have answered in the same ways, and says how they differ if they have not after many times; "":
// not. What one of them does by chance the other may do late.
func sets(ours, envoys func() string) string {
	got, want := map[string]bool{}, map[string]bool{}
	for i := range 10 * tries {
		got[ours()], want[envoys()] = true, true
		if i >= tries-1 && maps.Equal(got, want) {
			return ""
		}
	}
	return fmt.Sprintf("%q, Envoy's %q", sorted(got), sorted(want))
}

// faulty are the requests to routes that have a fault.
func faulty(t *testing.T, r *resources) []*request {
	m := &maker{t: t}
	for _, c := range r.chains {
		for _, vh := range c.http.GetRouteConfig().GetVirtualHosts() {
			for i, x := range vh.GetRoutes() {
				if faultOf(t, x) != nil {
					m.route(c, vh, x, fmt.Sprintf("%s fault of route %d", c.name, i))
				}
			}
		}
	}
	return m.out
}

// tries is how often a request is sent at least to find all clusters that its route chooses among.
const tries = 60

// difference sends the request to both, and says how the answers differ; "": not at all. It counts Envoy's statuses.
func difference(o, e side, q *request, statuses map[string]int) string {
	want, wantErr := send(e, q)
	got, gotErr := send(o, q)
	if wantErr == nil {
		statuses[fmt.Sprint(want.status)]++
	} else {
		statuses["reset"]++
	}
	if (wantErr != nil) != (gotErr != nil) {
		return fmt.Sprintf("error %v, Envoy's %v; answers %+v, Envoy's %+v", gotErr, wantErr, got, want)
	}
	if wantErr != nil {
		return ""
	}
	for i := 0; i < tries && got.cluster != want.cluster && got.cluster != "" && want.cluster != ""; i++ {
		if got, gotErr = send(o, q); gotErr != nil {
			return fmt.Sprintf("error %v", gotErr)
		}
	}
	if d := compareAnswers(got, want); d != "" {
		return d
	}
	return choices(o, e, q)
}

func compareAnswers(got, want *answer) string {
	view := func(a *answer) map[string]any {
		return map[string]any{"status": a.status, "cluster": a.cluster, "echo": a.echo, "body": a.body, "header": a.header, "trailer": a.trailer}
	}
	d := cmp.Diff(view(want), view(got))
	if d == "" {
		return ""
	}
	if h := want.header["Www-Authenticate"]; len(h) == 1 {
		want.header["Www-Authenticate"] = []string{realmQuery.ReplaceAllString(h[0], "$1")}
		if cmp.Diff(view(want), view(got)) == "" {
			return "- realm with a query"
		}
	}
	var lines []string
	for l := range strings.Lines(d) {
		if l[0] == '-' || l[0] == '+' {
			lines = append(lines, l)
		}
	}
	return fmt.Sprintf("status %d, Envoy's %d (- Envoy's, + ours)\n%s", got.status, want.status, strings.Join(lines, ""))
}

// choices compares the clusters that a route chooses among: both sides must use all of them, and no other.
func choices(o, e side, q *request) string {
	if len(q.clusters) < 2 {
		return ""
	}
	find := func(s side) func() string {
		return func() string {
			a, err := send(s, q)
			if err != nil {
				return err.Error()
			}
			return a.cluster
		}
	}
	if d := sets(find(o), find(e)); d != "" {
		return "clusters " + d
	}
	return ""
}
