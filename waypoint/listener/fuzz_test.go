package listener

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// fixtures are the resources of testdata, as they come.
func fixtures(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var x listenerv3.Listener
		if err := dumptest.Unmarshal(raw, &x); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if out[f], err = proto.Marshal(&x); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestFixturesCompile(t *testing.T) {
	for f, b := range fixtures(t) {
		if _, err := Decode("", b); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// FuzzListener takes any bytes as a listener: they are refused, or make a listener that can be asked about any address, and
// whose chains can be asked about requests.
func FuzzListener(f *testing.F) {
	for _, b := range fixtures(f) {
		f.Add(b, []byte{10, 96, 0, 1, 0, 80}, "web.shop", "/a?b")
	}
	f.Fuzz(func(t *testing.T, b, dst []byte, host, path string) {
		l, err := Decode("", b)
		if err != nil {
			return
		}
		if len(dst) >= 6 {
			for n := range 6 {
				a := netip.AddrFrom4([4]byte(dst))
				if n%2 == 1 {
					a = netip.AddrFrom16(a.As16())
				}
				l.Lookup(netip.AddrPortFrom(a, binary.BigEndian.Uint16(dst[4:])+uint16(n/2)))
			}
		}
		l.LookupName(host)
		for i, c := range l.Chains {
			if c.TCP != nil {
				if c.TCP.Cluster(uint64(i)) == "" {
					t.Fatal("no cluster")
				}
				continue
			}
			if c.HTTP.Routes == nil {
				continue
			}
			r := &message.Request{Method: "GET", Scheme: "http", Authority: host, Path: path, Proto: message.HTTP11}
			r.Header.Add("a", host)
			r.Path, _ = c.HTTP.Path.Apply(r.Path)
			x := c.HTTP.Routes.Match(r, uint64(i))
			if x == nil {
				continue
			}
			if a := x.Action(r, 7); a == nil && x.Redirect == nil && x.Direct == nil {
				t.Fatal("a route that does nothing")
			}
		}
	})
}
