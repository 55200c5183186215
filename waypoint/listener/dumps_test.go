package listener

import (
	"net/netip"
	"os"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

func TestEveryRecordedListenerCompiles(t *testing.T) {
	listeners, chains := 0, 0
	for _, s := range dumptest.Load(t, os.Getenv("AMBIT_DUMPS")) {
		main := false
		for _, p := range s.Listeners {
			l, err := Compile(p)
			if err != nil {
				t.Errorf("%s: %s: %v", s.Name, p.GetName(), err)
				continue
			}
			listeners++
			chains += len(l.Chains)
			if l.Name != Main {
				continue
			}
			main = true
			for dst, want := range map[string]string{"10.96.1.1:9080": "inbound-vip|9080|http|reviews.demo.svc.cluster.local", "10.96.1.3:5432": "inbound-vip|5432|tcp|db.demo.svc.cluster.local"} {
				target := l.Lookup(netip.MustParseAddrPort(dst))
				if target == nil {
					t.Errorf("%s: %s: refused", s.Name, dst)
				} else if got := nameOf(target); got != want {
					t.Errorf("%s: %s: %s", s.Name, dst, got)
				}
			}
			if l.Lookup(netip.MustParseAddrPort("10.96.1.1:1")) != nil || l.Lookup(netip.MustParseAddrPort("10.97.0.1:80")) != nil {
				t.Errorf("%s: an undeclared port or address is served", s.Name)
			}
		}
		if !main {
			t.Errorf("%s: no %s", s.Name, Main)
		}
	}
	t.Logf("%d listeners, %d chains", listeners, chains)
}

// nameOf is the chain of a target for which nothing has to be told apart, or for HTTP/1.
func nameOf(t *Target) string {
	switch {
	case t.HTTP != nil:
		return t.HTTP.Chain.Name
	case t.TCP != nil:
		return t.TCP.Chain.Name
	}
	return ""
}
