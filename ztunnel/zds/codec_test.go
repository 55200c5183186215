package zds

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zdspb"
)

func TestRequestsSurviveTheWire(t *testing.T) {
	files := tempFiles(t)
	for _, r := range []Request{
		&Add{Workload{UID: "u", Name: "n", Namespace: "ns", ServiceAccount: "sa",
			Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, Files: files}},
		&Add{Workload{UID: "u", Files: files.WithoutDNS()}},
		&Del{UID: "u", Drain: true},
		&Del{UID: "u"},
		&Keep{UID: "u"},
		&SnapshotSent{},
		&NodeSetup{Setup{Mark: 1, Mask: 2, AppPortMin: 3, AppPortMax: 4, Exempt: files.NetNS}},
		&Return{UID: "u"},
	} {
		b, f, err := encodeRequest(r)
		if err != nil {
			t.Fatalf("encode %T: %v", r, err)
		}
		got, err := decodeRequest(b, f, true)
		if err != nil {
			t.Fatalf("decode %T: %v", r, err)
		}
		if d := cmp.Diff(got, r, cmp.AllowUnexported(File{}), cmpopts.IgnoreTypes(netip.Addr{}), cmp.Comparer(func(a, b *File) bool { return a == b })); d != "" {
			t.Errorf("%T changed (-got +want):\n%s", r, d)
		}
	}
}

// TestIstiosBytesAreOurs pins the numbers that istio-cni uses.
func TestIstiosBytesAreOurs(t *testing.T) {
	for _, c := range []struct {
		name string
		b    string
		want Request
	}{
		{"add with info", "\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x01s\x1a\x02sa", &Add{Workload{UID: "u", Name: "n", Namespace: "s", ServiceAccount: "sa"}}},
		{"del", "\x12\x03\x12\x01u", &Del{UID: "u"}},
		{"snapshot sent", "\x1a\x00", &SnapshotSent{}},
		{"keep", "\x2a\x03\x0a\x01u", &Keep{UID: "u"}},
	} {
		var files []*File
		if _, ok := c.want.(*Add); ok {
			files = []*File{NewFile(-1)}
		}
		got, err := decodeRequest([]byte(c.b), files, false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if d := cmp.Diff(got, c.want, cmpopts.IgnoreTypes(Files{})); d != "" {
			t.Errorf("%s (-got +want):\n%s", c.name, d)
		}
	}
}

func TestBrokenRequestsAreProtocolErrors(t *testing.T) {
	f := tempFile(t)
	enc := func(m *zdspb.WorkloadRequest) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	add := func(info *zdspb.WorkloadInfo) []byte {
		return enc(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "u", WorkloadInfo: info}}})
	}
	for _, c := range []struct {
		name      string
		b         []byte
		files     []*File
		listeners bool
	}{
		{"not protobuf", []byte{0xff}, nil, false},
		{"no payload (Z3)", nil, nil, false},
		{"add without info (Z3)", add(nil), []*File{f}, false},
		{"add without descriptor (Z3)", add(&zdspb.WorkloadInfo{}), nil, false},
		{"add with two descriptors (Z3)", add(&zdspb.WorkloadInfo{}), []*File{f, f}, false},
		{"add of istio-cni with listeners", add(&zdspb.WorkloadInfo{}), []*File{f, f, f, f}, false},
		{"add of capture without listeners", add(&zdspb.WorkloadInfo{}), []*File{f}, true},
		{"add of capture with half of DNS", add(&zdspb.WorkloadInfo{}), []*File{f, f, f, f, f}, true},
		{"add of istio-cni with DNS", add(&zdspb.WorkloadInfo{}), []*File{f, f, f, f, f, f}, false},
		{"add with a bad address", add(&zdspb.WorkloadInfo{Addresses: []string{"x"}}), []*File{f}, false},
		{"del with a descriptor (Z3)", []byte("\x12\x03\x12\x01u"), []*File{f}, false},
		{"snapshot sent with a descriptor (Z3)", []byte("\x1a\x00"), []*File{f}, false},
		{"node setup without map", enc(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_NodeSetup{NodeSetup: &zdspb.NodeSetup{}}}), nil, false},
		{"node setup with bad ports", enc(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_NodeSetup{NodeSetup: &zdspb.NodeSetup{AppPortMax: 1 << 16}}}), []*File{f}, false},
	} {
		if r, err := decodeRequest(c.b, c.files, c.listeners); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, %v, want a protocol error", c.name, r, err)
		}
	}
}

func TestALongRequestIsNotSent(t *testing.T) {
	if _, _, err := encodeRequest(&Keep{UID: strings.Repeat("u", MaxPacket)}); err == nil {
		t.Error("a request of more than 1024 bytes was encoded")
	}
}

func TestAnErrorIsNeverAnsweredWithSuccess(t *testing.T) {
	for _, text := range []string{"", "x", strings.Repeat("x", 5000), strings.Repeat("\xff", 5000), strings.Repeat("€", 600)} {
		b, err := encodeAck(errors.New(text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeAck(b)
		if err != nil || got == "" || len(b) > MaxPacket {
			t.Errorf("answer to an error of %d bytes: %q, %v, %d bytes", len(text), got, err, len(b))
		}
	}
	b, err := encodeAck(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeAck(b); got != "" || err != nil {
		t.Errorf("answer to success: %q, %v", got, err)
	}
}

func TestAHelloMustBeV1(t *testing.T) {
	b, err := encodeHello(hello{listeners: true, pid: 7})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := decodeHello(b); err != nil || h != (hello{listeners: true, pid: 7}) {
		t.Errorf("got %v, %v", h, err)
	}
	if h, err := decodeHello([]byte{8, 1}); err != nil || h.listeners {
		t.Errorf("the Rust ztunnel's hello: got %v, %v", h, err)
	}
	if _, err := decodeHello(nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("hello without version: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x01s\x1a\x02sa"), 1, false)
	f.Add([]byte("\x12\x03\x12\x01u"), 0, true)
	f.Add([]byte("\x1a\x00"), 0, false)
	f.Fuzz(func(t *testing.T, b []byte, n int, listeners bool) {
		files := make([]*File, max(0, min(n, 6)))
		for i := range files {
			files[i] = NewFile(-1)
		}
		r, err := decodeRequest(b, files, listeners)
		if (err == nil) == (r == nil) {
			t.Errorf("got %v and %v", r, err)
		}
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("not a protocol error: %v", err)
		}
		if err == nil {
			if _, back, err := encodeRequest(r); err == nil && len(back) != len(files) {
				t.Errorf("%d descriptors became %d", len(files), len(back))
			}
		}
		_, _ = decodeHello(b)
		_, _ = decodeAck(b)
	})
}
