//go:build linux

package redirect

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestConfigIsChecked(t *testing.T) {
	for _, x := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"defaults", Config{PinDir: "/x"}, ""},
		{"no directory", Config{}, "pin directory"},
		{"mark outside of mask", Config{PinDir: "/x", Mark: 3, Mask: 1}, "does not fit"},
		{"mask without mark", Config{PinDir: "/x", Mask: 1}, "does not fit"},
		{"main table", Config{PinDir: "/x", Table: 254}, "kernel's"},
		{"priority behind main", Config{PinDir: "/x", Priority: 32766}, "priority"},
		{"privileged ports", Config{PinDir: "/x", AppPorts: PortRange{80, 90}}, "port range"},
		{"empty range", Config{PinDir: "/x", AppPorts: PortRange{2000, 1999}}, "port range"},
		{"ports of connections away from pods", Config{PinDir: "/x", AppPorts: PortRange{50000, 61000}}, "overlaps 61000-65535"},
	} {
		_, err := x.cfg.withDefaults()
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}

func TestDefaultsKeepClearOfOthers(t *testing.T) {
	for name, bits := range map[string]uint32{
		"Cilium": 0x0f00, "kube-proxy": 0xc000, "Calico": 0xffff0000, "AWS CNI": 0x80,
	} {
		if DefaultMask&bits != 0 {
			t.Errorf("mask %#x has bits %#x of %s", DefaultMask, bits, name)
		}
	}
	for _, istio := range []uint32{0x111, 0x539} {
		if DefaultMark&0xfff == istio {
			t.Errorf("mark %#x looks like Istio's %#x", DefaultMark, istio)
		}
	}
	pods := PortRange{32768, 60999}
	if DefaultTable == 100 || DefaultAppPorts.overlaps(pods) || UpstreamPorts.overlaps(pods) || UpstreamPorts.overlaps(DefaultAppPorts) {
		t.Error("table or ports are those of others")
	}
}

func FuzzEscapedUIDsComeBack(f *testing.F) {
	for _, uid := range []string{"0f3c-99", "ns/pod.name", "_5f", "a_b", "\xff\x00", "", "..", "pod-" + strings.Repeat("x", 300)} {
		f.Add(uid)
	}
	f.Fuzz(func(t *testing.T, uid string) {
		name := escape(uid)
		if strings.ContainsAny(name, "./") {
			t.Errorf("escape(%q) = %q has a dot or slash", uid, name)
		}
		back, ok := unescape(name)
		if ok != (uid != "") || back != uid {
			t.Errorf("unescape(escape(%q)) = %q, %t", uid, back, ok)
		}
		if other, ok := unescape(uid); ok && escape(other) != uid {
			t.Errorf("unescape(%q) = %q, which is not its escape", uid, other)
		}
	})
}

func TestUIDsThatMakeNoNameAreRefused(t *testing.T) {
	for uid, ok := range map[string]bool{"a": true, "": false, strings.Repeat("x", 300): false, strings.Repeat("/", 80): true} {
		if err := checkUID(uid); (err == nil) != ok {
			t.Errorf("checkUID(%.10q...) = %v", uid, err)
		}
	}
}

func FuzzMarkOfASocketMessage(f *testing.F) {
	f.Add(make([]byte, diagMessageLen))
	f.Add(append(make([]byte, diagMessageLen), 8, 0, diagMark, 0, 0x51, 0x20, 0, 0))
	f.Add(append(make([]byte, diagMessageLen), 7, 0, diagMark, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) { markOf(b) })
}

func ipnet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// The table carries the source addresses that the main table would choose (3.1 item 1).
func TestTableFollowsTheMainTable(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	route := func(dst, via, src string, dev, metric int) netlink.Route {
		r := netlink.Route{Family: unix.AF_INET, LinkIndex: dev, Priority: metric, Type: unix.RTN_UNICAST}
		if dst != "" {
			r.Dst = ipnet(dst)
		}
		if via != "" {
			r.Gw = addr(via).AsSlice()
		}
		if src != "" {
			r.Src = addr(src).AsSlice()
		}
		return r
	}
	any4 := prefix("0.0.0.0/0")
	links := map[int][]netip.Prefix{2: {prefix("10.0.0.2/32")}, 3: {prefix("192.168.5.2/24"), prefix("192.168.6.2/24")}}
	for _, x := range []struct {
		name  string
		main  []netlink.Route
		addrs []netip.Addr
		want  []wantRoute
	}{
		{"one interface", []netlink.Route{route("", "169.254.1.1", "", 2, 0)}, []netip.Addr{addr("10.0.0.2")},
			[]wantRoute{{any4, addr("10.0.0.2")}}},
		{"no route at all", nil, []netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("10.0.0.2")}}},
		{"no address", nil, nil, []wantRoute{{any4, netip.Addr{}}}},
		{"second network", []netlink.Route{route("0.0.0.0/0", "169.254.1.1", "", 2, 0), route("192.168.5.0/24", "", "192.168.5.2", 3, 0)},
			[]netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("10.0.0.2")}, {prefix("192.168.5.0/24"), addr("192.168.5.2")}}},
		{"gateway in the second subnet of an interface", []netlink.Route{route("", "", "", 2, 0), route("10.9.0.0/16", "192.168.6.1", "", 3, 0)},
			[]netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("10.0.0.2")}, {prefix("10.9.0.0/16"), addr("192.168.6.2")}}},
		{"default route by the second interface", []netlink.Route{route("", "192.168.5.1", "", 3, 5), route("", "169.254.1.1", "", 2, 9)},
			[]netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("192.168.5.2")}}},
		{"default route with a source", []netlink.Route{route("", "169.254.1.1", "192.168.6.2", 2, 0)},
			[]netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("192.168.6.2")}}},
		{"link-local gateway", []netlink.Route{route("", "169.254.1.1", "", 2, 0), route("169.254.1.1/32", "", "", 2, 0)},
			[]netip.Addr{addr("10.0.0.2")}, []wantRoute{{any4, addr("10.0.0.2")}}},
	} {
		s := &space{links: links, main: map[int][]netlink.Route{unix.AF_INET: x.main}, own: []netip.Addr{addr("10.0.0.2"), addr("192.168.5.2"), addr("192.168.6.2")}}
		if x.addrs == nil {
			s.own = nil
		}
		got := s.wanted(unix.AF_INET, x.addrs)
		if d := cmp.Diff(x.want, got, cmp.AllowUnexported(wantRoute{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("%s: (-want +got)\n%s", x.name, d)
		}
	}
}

func TestWhoCannotRecogniseTheKubeletIsToldWhatDoesWithout(t *testing.T) {
	err := explainProbes(unix.EPERM)
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_BPF") || !strings.Contains(err.Error(), `probes "address" or "captured" do without`) {
		t.Errorf("got %v", err)
	}
	for p, ok := range map[Probes]bool{"": true, ProbesCaptured: true, ProbesOfKubelet: true, ProbesByAddress: true, "kublet": false} {
		if err := p.Check(); (err == nil) != ok {
			t.Errorf("%q: %v", p, err)
		}
	}
}
