package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func record() *Record {
	return &Record{
		Time:        time.Date(2026, 8, 21, 9, 14, 3, 518204000, time.UTC),
		Src:         netip.MustParseAddrPort("10.20.1.7:40112"),
		SrcWorkload: "cart-6f9-x2", SrcNamespace: "shop", SrcIdentity: "spiffe://cluster.local/ns/shop/sa/cart", SrcCluster: "c1",
		Dst: netip.MustParseAddrPort("10.20.3.9:15008"), DstHBONE: "10.20.3.9:8080", DstService: "pay.shop.svc.cluster.local",
		DstWorkload: "pay-77c-kq", DstNamespace: "shop", DstIdentity: "spiffe://cluster.local/ns/shop/sa/pay", DstCluster: "c1",
		Direction: "outbound", BytesSent: 512, BytesRecv: 20480, Duration: 37*time.Millisecond + 900*time.Microsecond,
	}
}

func TestAccessRecordsAreByteExact(t *testing.T) { // M6, the composed examples of 9.5
	early := time.Date(2026, 8, 21, 9, 14, 5, 131000, time.UTC)
	for name, tc := range map[string]struct {
		r    *Record
		json bool
		want string
	}{
		"plain": {record(), false, "2026-08-21T09:14:03.518204Z\tinfo\taccess\tconnection complete\t" +
			`src.addr=10.20.1.7:40112 src.workload="cart-6f9-x2" src.namespace="shop" src.identity="spiffe://cluster.local/ns/shop/sa/cart" src.cluster="c1" ` +
			`dst.addr=10.20.3.9:15008 dst.hbone_addr=10.20.3.9:8080 dst.service="pay.shop.svc.cluster.local" dst.workload="pay-77c-kq" dst.namespace="shop" ` +
			`dst.identity="spiffe://cluster.local/ns/shop/sa/pay" dst.cluster="c1" direction="outbound" bytes_sent=512 bytes_recv=20480 duration="37ms"` + "\n"},
		"JSON with error": {
			&Record{Time: early, Src: netip.MustParseAddrPort("10.20.1.7:40120"), Direction: "outbound", Duration: 10001 * time.Millisecond, Err: "x"}, true,
			`{"level":"error","time":"2026-08-21T09:14:05.000131Z","scope":"access","message":"connection complete","src.addr":"10.20.1.7:40120",` +
				`"direction":"outbound","bytes_sent":0,"bytes_recv":0,"duration":"10001ms","error":"x"}` + "\n",
		},
		"opened": {
			&Record{Event: Opened, Time: early, Src: netip.MustParseAddrPort("[fd00::7]:1"), Direction: "inbound", Via: "same-node"}, false,
			"2026-08-21T09:14:05.000131Z\tdebug\taccess\tconnection opened\t" + `src.addr=[fd00::7]:1 direction="inbound" via="same-node"` + "\n",
		},
		"refused": {
			&Record{Event: Refused, Time: early, Src: netip.MustParseAddrPort("1.1.1.1:1"), SrcWorkload: "no", Dst: netip.MustParseAddrPort("2.2.2.2:2"), Direction: "outbound", Err: "e"}, false,
			"2026-08-21T09:14:05.000131Z\twarn\taccess\tconnection failed\t" + `src.addr=1.1.1.1:1 dst.addr=2.2.2.2:2 direction="outbound" error="e"` + "\n",
		},
		"no fields": {&Record{Event: Opened, Time: early}, true, `{"level":"debug","time":"2026-08-21T09:14:05.000131Z","scope":"access","message":"connection opened"}` + "\n"},
	} {
		got := string(tc.r.AppendPlain(nil))
		if tc.json {
			got = string(tc.r.AppendJSON(nil))
		}
		if got != tc.want {
			t.Errorf("%s:\n got %s want %s", name, got, tc.want)
		}
	}
}

func TestAHostileValueStaysInOneBoundedLine(t *testing.T) { // B43
	evil := []string{"a\nb\r\n\"c\" \x1b[31m\x00\u2028\u202e\u0085\xff", strings.Repeat("\x1b\"", 40000), strings.Repeat("\u00e9", 50000)}
	for _, e := range evil {
		r := record()
		for _, p := range []*string{
			&r.SrcWorkload, &r.SrcNamespace, &r.SrcIdentity, &r.SrcCluster, &r.DstHBONE, &r.DstService, &r.DstWorkload, &r.DstNamespace,
			&r.DstIdentity, &r.DstCluster, &r.Direction, &r.Via, &r.Err,
		} {
			*p = e
		}
		plain, obj := string(r.AppendPlain(nil)), r.AppendJSON(nil)
		for _, l := range []string{plain, string(obj)} {
			if len(l) > maxLine || strings.Count(l, "\n") != 1 {
				t.Errorf("a line of %d bytes with %d line ends", len(l), strings.Count(l, "\n"))
			}
			if strings.ContainsAny(l, "\x1b\x00\r\u2028\u202e\u0085") {
				t.Errorf("control bytes survive: %.200q", l)
			}
		}
		if !json.Valid(obj) {
			t.Errorf("not JSON: %.200s", obj)
		}
	}
}

func TestWritingARecordAllocatesNothing(t *testing.T) {
	levels, _ := NewLevels("")
	w := NewWriter(WriterConfig{Out: &blocking{}, MaxLines: 1})
	l := NewAccessLog(w, Plain, levels)
	r := record()
	l.Write(r)
	if n := testing.AllocsPerRun(100, func() { l.Write(r) }); n > 0.1 {
		t.Errorf("allocations = %v, want 0", n)
	}
}

func TestAccessRecordsFollowTheirLevel(t *testing.T) {
	levels, err := NewLevels("info,access=error")
	if err != nil {
		t.Fatal(err)
	}
	out := &blocking{}
	w := NewWriter(WriterConfig{Out: out})
	l := NewAccessLog(w, Plain, levels)
	l.Write(record())
	r := record()
	r.Err = "broken"
	l.Write(r)
	w.flush(nil)
	if got := out.got.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `error="broken"`) {
		t.Errorf("log = %q, want the failed one only", got)
	}
	if l.Enabled(Complete, false) || !l.Enabled(Complete, true) {
		t.Error("Enabled disagrees")
	}
}

func TestLevels(t *testing.T) { // M7
	enabled := func(list, scope string, level Level) bool {
		l, err := NewLevels(list)
		if err != nil {
			t.Fatal(err)
		}
		return l.enabled(scope, level)
	}
	for _, tc := range []struct {
		list, scope string
		level       Level
		want        bool
	}{
		{"", "xds", LevelInfo, true}, {"", "xds", LevelDebug, false}, {"warn", "xds", LevelInfo, false}, {"off", "xds", LevelError, false},
		{"info,access=debug,ztunnel::proxy=trace", "access", LevelDebug, true}, {"info,access=debug", "xds", LevelDebug, false},
		{"info,ztunnel::proxy=trace", "proxy", LevelTrace, true}, {"info,ztunnel::proxy=trace", "proxy::outbound", LevelTrace, true},
		{"info,proxy=trace", "proxying", LevelTrace, false}, {"proxy=debug,proxy::outbound=error", "proxy::outbound", LevelWarn, false},
		{"proxy::outbound=error,proxy=debug", "proxy::outbound::x", LevelWarn, false}, {"INFO,Access=x", "access", LevelInfo, true}, {"ztunnel=debug", "xds", LevelDebug, true},
	} {
		if strings.Contains(tc.list, "=x") {
			if _, err := NewLevels(tc.list); err == nil {
				t.Errorf("NewLevels(%q) accepts a bad level", tc.list)
			}
			continue
		}
		if got := enabled(tc.list, tc.scope, tc.level); got != tc.want {
			t.Errorf("%q: %s at %s = %v, want %v", tc.list, tc.scope, tc.level, got, tc.want)
		}
	}
}

func TestLevelsChangeAtRunTime(t *testing.T) { // change_log_level
	l, err := NewLevels("hickory_server::server=off,info")
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		if got := l.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
	is("hickory_server::server=off,info")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	check(l.Merge("debug"))
	is("hickory_server::server=off,debug")
	check(l.Merge("access=trace,ztunnel::proxy=warn"))
	is("hickory_server::server=off,access=trace,ztunnel::proxy=warn,debug")
	check(l.Merge("proxy=error"))
	is("hickory_server::server=off,access=trace,proxy=error,debug")
	for _, bad := range []string{"access", "xds=", "=info", "a b=info", "info,foo", "proxy=loud", "ztunnel::=info"} {
		if err := l.Merge(bad); err == nil {
			t.Errorf("Merge(%q) is accepted", bad)
		}
	}
	is("hickory_server::server=off,access=trace,proxy=error,debug")
	check(l.Reset(""))
	is("hickory_server::server=off,info")
	check(l.Reset("warn"))
	is("hickory_server::server=off,warn")
}

func TestTheProgramLogLooksLikeZtunnels(t *testing.T) {
	for _, f := range []Format{Plain, JSON} {
		levels, _ := NewLevels("info,xds=debug")
		out := &blocking{}
		w := NewWriter(WriterConfig{Out: out})
		log := NewHandler(w, f, levels).Scope("xds")
		log.With("type", "Address").WithGroup("g").Debug("push\napplied", "n", 3, "ok", true, "err", errors.New("a\nb"), "dur", time.Second,
			slog.Group("in", "x", netip.MustParseAddrPort("1.2.3.4:5")))
		slog.New(NewHandler(w, f, levels)).Debug("not shown")
		log.Info("bare")
		w.flush(nil)
		got := strings.Split(strings.TrimSuffix(out.got.String(), "\n"), "\n")
		if len(got) != 2 {
			t.Fatalf("log = %q, want two lines", got)
		}
		if f == Plain {
			want := "\tdebug\txds\tpush\\napplied\t" + `type="Address" g.n=3 g.ok=true g.err="a\nb" g.dur="1s" g.in.x=1.2.3.4:5`
			if !strings.HasSuffix(got[0], want) || !strings.HasSuffix(got[1], "\tinfo\txds\tbare") {
				t.Errorf("log = %q, want %q", got, want)
			}
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(got[0]), &m); err != nil {
			t.Fatal(err)
		}
		if m["level"] != "debug" || m["scope"] != "xds" || m["message"] != "push\napplied" || m["g.n"] != 3.0 || m["g.in.x"] != "1.2.3.4:5" {
			t.Errorf("log = %v", m)
		}
	}
}

func TestTheHandlerIsDisabledBelowItsLevel(t *testing.T) {
	levels, _ := NewLevels("warn")
	h := NewHandler(NewWriter(WriterConfig{Out: &blocking{}}), Plain, levels)
	if h.Enabled(context.Background(), slog.LevelInfo) || !h.Enabled(context.Background(), slog.LevelWarn) {
		t.Error("Enabled does not follow the level")
	}
}

func FuzzLevels(f *testing.F) {
	f.Add("info,access=debug,ztunnel::proxy=trace")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := NewLevels(s)
		if err != nil {
			return
		}
		again, err := NewLevels(l.String())
		if err != nil || again.String() != l.String() {
			t.Fatalf("%q becomes %q, then %v", s, l, again)
		}
	})
}

func FuzzAccessRecord(f *testing.F) {
	f.Add("a\nb", "\xff")
	f.Fuzz(func(t *testing.T, a, b string) {
		r := record()
		r.SrcWorkload, r.DstHBONE, r.Err = a, b, a+b
		if l := r.AppendJSON(nil); !json.Valid(l) || len(l) > maxLine {
			t.Fatalf("bad line %q", l)
		}
		if l := string(r.AppendPlain(nil)); strings.Count(l, "\n") != 1 || len(l) > maxLine {
			t.Fatalf("bad line %q", l)
		}
	})
}

func BenchmarkAccessRecord(b *testing.B) {
	r := record()
	buf := make([]byte, 0, maxLine)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendPlain(buf[:0])
	}
}

func TestLinesWaitForOthersAndAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out countingWriter
		w := NewWriter(WriterConfig{Out: &out, Delay: time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		for range 10 {
			w.Line([]byte("line\n"))
			time.Sleep(50 * time.Millisecond)
		}
		synctest.Wait()
		if out.writes.Load() != 0 {
			t.Errorf("%d writes before the delay was over", out.writes.Load())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if out.writes.Load() != 1 || out.bytes.Load() != 50 {
			t.Errorf("%d writes of %d bytes, want one of all lines", out.writes.Load(), out.bytes.Load())
		}
		w.Line(bytes.Repeat([]byte("x"), muchBytes+1)) // does not wait
		synctest.Wait()
		if out.writes.Load() != 2 {
			t.Error("much waits for more")
		}
		w.Line([]byte("last\n"))
		cancel()
		if err := <-done; err != nil || out.writes.Load() != 3 {
			t.Errorf("%v, %d writes: what waits at the end is lost", err, out.writes.Load())
		}
	})
}

type countingWriter struct{ writes, bytes atomic.Int64 }

func (c *countingWriter) Write(p []byte) (int, error) {
	c.writes.Add(1)
	c.bytes.Add(int64(len(p)))
	return len(p), nil
}
