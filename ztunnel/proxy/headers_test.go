package proxy

import (
	"net/netip"
	"regexp"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/workload"
)

func TestBaggageOfAWorkload(t *testing.T) { // H15, golden bytes of section 3.8
	v := view(t, wl("cart", "10.0.0.1", func(w *pb.Workload) {
		w.ClusterId, w.Namespace, w.WorkloadName, w.WorkloadType = "c1", "shop", "cart", pb.WorkloadType_POD
		w.CanonicalName, w.CanonicalRevision, w.Locality = "cart", "v1", &pb.Locality{Region: "eu", Zone: "eu-b"}
	}))
	g := BaggageOf(v.ByUID("c//Pod/default/cart"))
	const want = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.pod.name=cart,service.name=cart,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-b"
	if got := g.String(); got != want {
		t.Errorf("baggage = %q, want %q", got, want)
	}
	var back Baggage
	if back.Parse(want); back != g {
		t.Errorf("parsed = %+v, want %+v", back, g)
	}
	for typ, key := range map[workload.Type]string{
		workload.Deployment: "k8s.deployment.name", workload.CronJob: "k8s.cronjob.name", workload.Pod: "k8s.pod.name", workload.Job: "k8s.job.name",
	} {
		if got := (&Baggage{WorkloadName: "x", WorkloadType: typ}).String(); got != key+"=x" {
			t.Errorf("baggage = %q, want %q", got, key+"=x")
		}
	}
}

func TestParseBaggage(t *testing.T) { // H16: normal, empty values, multi-line, none
	for name, tc := range map[string]struct {
		lines []string
		want  Baggage
	}{
		"none":                  {nil, Baggage{}},
		"empty":                 {[]string{""}, Baggage{}},
		"empty values":          {[]string{"k8s.cluster.name=,service.name=s,service.version="}, Baggage{ServiceName: "s"}},
		"several lines":         {[]string{"service.name=a,cloud.region=r", "service.name=b"}, Baggage{ServiceName: "b", Region: "r"}},
		"unknown keys":          {[]string{"x=y,service.name=s,z"}, Baggage{ServiceName: "s"}},
		"spaces around members": {[]string{"a=b, service.name=s"}, Baggage{ServiceName: "s"}},
		"control bytes":         {[]string{"service.name=a\nb"}, Baggage{}},
		"two equal signs":       {[]string{"service.name=a=b,cloud.region=r"}, Baggage{Region: "r"}},
	} {
		var got Baggage
		for _, l := range tc.lines {
			got.Parse(l)
		}
		if got != tc.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestForwarded(t *testing.T) { // H13, H16, build_forwarded and parse_forwarded_host
	for name, tc := range map[string]struct{ client, host, want string }{
		"with a service": {"10.20.1.7:40112", "pay.shop.svc.cluster.local", `for="10.20.1.7:40112";host=pay.shop.svc.cluster.local`},
		"without":        {"10.20.1.7:40112", "", `for="10.20.1.7:40112"`},
		"IPv6":           {"[fd00::7]:40112", "", `for="[fd00::7]:40112"`},
	} {
		got := string(AppendForwarded(nil, netip.MustParseAddrPort(tc.client), tc.host))
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
		if h := ForwardedHost(got); h != tc.host {
			t.Errorf("%s: ForwardedHost = %q, want %q", name, h, tc.host)
		}
	}
	for in, want := range map[string]string{
		`host=a`: "a", `host="a"`: "a", `Host=a`: "a", `for=1.2.3.4; host=a;proto=http`: "a", `for="x;host=evil";host=a`: "a",
		`for=a, host=b`: "b", `host=`: "", `host=""`: "", `host`: "", ``: "", `hosts=a`: "", "host=\u00e4": "", "host=a\r\n": "", `host="a`: "", `;;;`: "",
	} {
		if got := ForwardedHost(in); got != want {
			t.Errorf("ForwardedHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTraceparents(t *testing.T) { // H13, H16
	a, b := string(AppendTraceparent(nil, nil)), string(AppendTraceparent(nil, nil))
	if form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`); !form.MatchString(a) || a == b {
		t.Errorf("traceparents = %q, %q", a, b)
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=c1,k8s.pod.name=cart")
	f.Add("a==,,=")
	f.Fuzz(func(t *testing.T, s string) {
		var g Baggage
		g.Parse(s)
		// What was understood survives being written and read again.
		var again Baggage
		if again.Parse(g.String()); again != g && len(s) < maxBaggage {
			t.Fatalf("%q: parsed %+v, then %+v", s, g, again)
		}
	})
}

func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.20.1.7:40112";host=a`)
	f.Add(`host="`)
	f.Fuzz(func(t *testing.T, s string) {
		if h := ForwardedHost(s); !printable(h) {
			t.Fatalf("ForwardedHost(%q) = %q", s, h)
		}
	})
}
