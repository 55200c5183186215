package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestNamesMeanWhatTheyDoInKubernetes(t *testing.T) {
	v := view(t, fixture()...)
	const a, aaaa = dns.TypeA, dns.TypeAAAA
	for _, c := range []struct {
		claim, name string
		qtype       uint16
		want        string // addresses, "forward", "alias: addresses", "" for none; "known forward" if the mesh knows it
	}{
		{"a service in full", "web.shop.svc.cluster.local", a, "10.96.0.1"},
		{"a service of another namespace in full", "web.other.svc.cluster.local", a, "10.96.0.2"},
		{"a service without the domain", "web.shop.svc", a, "10.96.0.1"},
		{"a service and its namespace", "web.other", a, "10.96.0.2"},
		{"a service alone is that of the own namespace", "web", a, "10.96.0.1"},
		{"a service alone of another namespace is not", "api", a, "forward"},
		{"with the first search domain", "web.other.shop.svc.cluster.local", a, "web.other: 10.96.0.2"},
		{"svc and the first search domain", "web.other.svc.shop.svc.cluster.local", a, "web.other.svc: 10.96.0.2"},
		{"in full and with the first search domain", "web.other.svc.cluster.local.shop.svc.cluster.local", a, "web.other.svc.cluster.local: 10.96.0.2"},
		{"in full and with the last search domain", "web.other.svc.cluster.local.cluster.local", a, "web.other.svc.cluster.local: 10.96.0.2"},
		{"with another namespace's search domain", "web.other.elsewhere.svc.cluster.local", a, "forward"},
		{"no such service", "nobody.shop.svc.cluster.local", a, "forward"},
		{"no such namespace", "web.nowhere", a, "forward"},

		{"two families: the first", "api.other.svc.cluster.local", a, "10.96.0.3"},
		{"two families: the second", "api.other.svc.cluster.local", aaaa, "fd00::3"},
		{"one family: no address of the other", "web.shop.svc.cluster.local", aaaa, ""},
		{"IPv6 alone: no address of IPv4", "six.shop.svc.cluster.local", a, ""},
		{"the service's families count", "four.shop.svc.cluster.local", aaaa, ""},
		{"other types are the nameserver's", "web.shop.svc.cluster.local", dns.TypeTXT, "known forward"},
		{"SRV too", "_http._tcp.web.shop.svc.cluster.local", dns.TypeSRV, "forward"},
		{"ANY too", "web.shop.svc.cluster.local", dns.TypeANY, "known forward"},

		{"headless: the ready endpoints of this network", "db.shop.svc.cluster.local", a, "10.1.0.10 10.1.0.11"},
		{"headless, short", "db", a, "10.1.0.10 10.1.0.11"},
		{"headless: the other family", "db.shop.svc.cluster.local", aaaa, "fd00:1::10"},
		{"headless without endpoints may be news to us", "empty.shop.svc.cluster.local", a, "maybe forward"},
		{"a StatefulSet's pod", "db-0.db.shop.svc.cluster.local", a, "10.1.0.10"},
		{"a StatefulSet's pod, short", "db-1.db", a, "10.1.0.11"},
		{"a StatefulSet's pod has no address of the family", "db-1.db.shop.svc.cluster.local", aaaa, ""},
		{"a StatefulSet's pod that is not ready", "db-2.db.shop.svc.cluster.local", a, "forward"},
		{"a pod we do not know is not a service of the same name", "db-7.db.shop.svc.cluster.local", a, "forward"},
		{"a Deployment's pod has no name", "plain-5d4c7-x2x2x.plain.shop.svc.cluster.local", a, "forward"},
		{"an endpoint by its address", "10-1-0-20.plain.shop.svc.cluster.local", a, "10.1.0.20"},
		{"a name below a service with an address", "a.web.shop.svc.cluster.local", a, "forward"},

		{"a ServiceEntry", "api.example.com", a, "240.240.0.1"},
		{"a ServiceEntry, IPv6", "api.example.com", aaaa, "2001:2::1"},
		{"a ServiceEntry with the first search domain", "api.example.com.shop.svc.cluster.local", a, "api.example.com: 240.240.0.1"},
		{"a ServiceEntry with a search domain, no address", "private.example.com.svc.cluster.local", aaaa, ""},
		{"a ServiceEntry of this namespace only", "private.example.com", a, "240.240.0.2"},
		{"a wildcard", "x.wild.example.com", a, "240.240.0.3"},
		{"a wildcard over two labels", "y.x.wild.example.com", a, "240.240.0.3"},
		{"a wildcard does not match itself without a label", "wild.example.com", a, "forward"},
		{"a wildcard with a search domain has no alias", "x.wild.example.com.shop.svc.cluster.local", a, "240.240.0.3"},
		{"a range of addresses is no address", "range.example.com", a, "forward"},
		{"a ServiceEntry without address", "none.example.com", a, "forward"},
		{"an address in another network", "far.example.com", a, ""},
		{"the own namespace's entry of two", "twice.example.com", a, "240.240.0.5"},
		{"outside", "example.com", a, "forward"},
		{"the root", "", a, "forward"},
		{"a star", "*.wild.example.com", a, "240.240.0.3"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if got := show(lookup.Find(v, "shop", c.name, c.qtype)); got != c.want {
				t.Errorf("%s: got %q, want %q", c.name, got, c.want)
			}
		})
	}
}

// show writes an answer as the table above does.
func show(a Answer) string {
	switch {
	case a.Forward && a.Known && !a.Exists:
		return "maybe forward"
	case a.Forward && a.Known:
		return "known forward"
	case a.Forward:
		return "forward"
	}
	addrs := slices.Clone(a.Addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	out := strings.Trim(fmt.Sprint(addrs), "[]")
	if a.Alias != "" && out != "" {
		out = a.Alias + ": " + out
	}
	return out
}

func TestWhoAsksDecidesWhatIsSeen(t *testing.T) {
	v := view(t, fixture()...)
	for _, c := range []struct {
		claim, ns, name, want string
		l                     Lookup
	}{
		{"the other namespace's service", "other", "web", "10.96.0.2", lookup},
		{"what another namespace keeps to itself", "other", "private.example.com", "forward", lookup},
		{"the other entry of two", "other", "twice.example.com", "240.240.0.6", lookup},
		{"from a third namespace the older of two", "third", "twice.example.com", "240.240.0.5", lookup},
		{"unless one is preferred", "third", "twice.example.com", "240.240.0.6", Lookup{Domain: "cluster.local", Prefer: "other"}},
		{"in another network", "shop", "far.example.com", "240.240.0.4", Lookup{Domain: "cluster.local", Network: "far"}},
		{"in a cluster of another domain", "shop", "web.shop.svc.cluster.local", "10.96.0.1", Lookup{Domain: "mesh.example"}},
		{"and its short names", "shop", "web", "forward", Lookup{Domain: "mesh.example"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if got := show(c.l.Find(v, c.ns, c.name, dns.TypeA)); got != c.want {
				t.Errorf("%s asks for %s: got %q, want %q", c.ns, c.name, got, c.want)
			}
		})
	}
	if got := show((&Lookup{Domain: "cluster.local", NoIPv6: true}).Find(v, "shop", "api.other", dns.TypeAAAA)); got != "" {
		t.Errorf("AAAA without IPv6: got %q, want no address", got)
	}
}

// The table of ztunnel's to_kube_fqdns.
func TestShortNamesAreExpandedAsInKubernetes(t *testing.T) {
	for name, want := range map[string]string{
		"name":             "name.ns.svc.cluster.local",
		"name.ns2":         "name.ns2.svc.cluster.local name.ns2.ns.svc.cluster.local",
		"name.ns2.svc":     "name.ns2.svc.cluster.local name.ns2.svc.svc.cluster.local",
		"a.name.ns2":       "a.name.ns2.svc.cluster.local",
		"a.name.ns2.svc":   "a.name.ns2.svc.cluster.local",
		"a.b.name.ns2":     "",
		"a.b.name.ns2.svc": "",
	} {
		if got := strings.Join(kubernetes(name, "ns", "cluster.local"), " "); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got := strings.Join(slices.Collect(wildcards("a.b.c.d")), " "); got != "*.b.c.d *.c.d *.d" {
		t.Errorf("wildcards: got %q", got)
	}
}

func BenchmarkFind(b *testing.B) {
	v := view(b, fixture()...)
	for _, name := range []string{"web.shop.svc.cluster.local", "www.example.org.shop.svc.cluster.local"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				lookup.Find(v, "shop", name, dns.TypeA)
			}
		})
	}
}
