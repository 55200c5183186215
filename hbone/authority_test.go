package hbone

import (
	"strings"
	"testing"
)

func TestParseAuthorityTakesTheThreeFormsOfH12(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1:80":                        "10.0.0.1:80",
		"[fd00::1]:80":                       "[fd00::1]:80",
		"[FD00:0::1]:65535":                  "[fd00::1]:65535",
		"[::ffff:10.0.0.1]:80":               "10.0.0.1:80",
		"host.ns.svc.cluster.local:80":       "host.ns.svc.cluster.local:80",
		"Host.NS.svc.cluster.local.:80":      "host.ns.svc.cluster.local:80",
		"a:1":                                "a:1",
		"_http._tcp.x-y.example:8080":        "_http._tcp.x-y.example:8080",
		"1.2.3.example:80":                   "1.2.3.example:80",
		strings.Repeat("a", 63) + ".com:443": strings.Repeat("a", 63) + ".com:443",
	} {
		a, err := ParseAuthority(in)
		if err != nil || a.String() != want {
			t.Errorf("%q: %v, %v; want %q", in, a, err, want)
		}
		if a.IsName() == a.AddrPort().IsValid() {
			t.Errorf("%q: name %v, address %v", in, a.IsName(), a.AddrPort())
		}
	}
}

func TestParseAuthorityRefusesEverythingElse(t *testing.T) { // B22
	for _, in := range []string{
		"", ":", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:00", "10.0.0.1:080", "10.0.0.1:+80", "10.0.0.1:-1", "10.0.0.1:65536", "10.0.0.1:70000",
		"10.0.0.1:8 0", "10.0.0.1: 80", " 10.0.0.1:80", "fd00::1:80", "fd00::1", "[fd00::1]", "[fd00::1]80", "[fd00::1%eth0]:80", "fe80::1%1:80", "[10.0.0.1]:80",
		"[fd00::1:80", "[]:80", "user@10.0.0.1:80", "http://x:80", "x/y:80", "x y:80", "x\x00:80", "x\n:80", "ü.example:80", "a..b:80", ".a:80", "a.:.:80", "-a:80", "a-:80",
		"127.1:80", "2130706433:80", "0x7f.1:80", "0x7f000001:80", "1.2.3.4.5:80", "010.0.0.1:80", "10.0.0.256:80", "x.123:80",
		strings.Repeat("a", 64) + ".com:80", strings.Repeat("a.", 127) + "a:80", "host:80:80",
	} {
		if a, err := ParseAuthority(in); err == nil {
			t.Errorf("%q was taken for %v", in, a)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "a.b:1", "[::ffff:1.2.3.4]:9", "x.0x1:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := ParseAuthority(in)
		if err != nil {
			return
		}
		again, err := ParseAuthority(a.String())
		if err != nil || again != a {
			t.Errorf("%q becomes %v, which becomes %v, %v", in, a, again, err)
		}
		if a.Port == 0 || a.IsName() == a.Addr.IsValid() || a.Addr.Zone() != "" || a.Addr.Is4In6() {
			t.Errorf("%q becomes %#v", in, a)
		}
	})
}
