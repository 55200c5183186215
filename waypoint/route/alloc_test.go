package route

import (
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestChangingHeadsDoesNotAllocate(t *testing.T) {
	table, err := compileJSON(t, `{"virtual_hosts":[{"name":"v","domains":["*"],
		"request_headers_to_add":[{"header":{"key":"x-a","value":"1"}},{"header":{"key":"x-b","value":"%REQ(:authority)% %PROTOCOL% %DURATION%"},"append_action":"OVERWRITE_IF_EXISTS_OR_ADD"}],
		"request_headers_to_remove":["x-c"],"response_headers_to_add":[{"header":{"key":"x-d","value":"%RESPONSE_CODE%"}}],
		"routes":[{"match":{"prefix":"/a"},"route":{"cluster":"c","prefix_rewrite":"/b","host_rewrite_literal":"b.com"}}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	r, resp := req("GET /a/x?q=1"), &message.Response{Status: 200}
	c := &Context{Req: r, Resp: resp, Values: duration{}}
	change := func() {
		r.Header.Reset()
		resp.Header.Reset()
		r.Path, r.Authority = "/a/x?q=1", "a.com"
		x := table.Match(r, 1)
		a := x.Action(r, 1)
		x.ChangeRequest(a, c)
		x.ChangeResponse(a, c)
	}
	change()
	if r.Path != "/b/x?q=1" || r.Authority != "b.com" || r.Header.Get("x-b") != "a.com HTTP/1.1 7" || resp.Header.Get("x-d") != "200" {
		t.Fatalf("%s %s %v %v", r.Authority, r.Path, r.Header.Fields(), resp.Header.Fields())
	}
	if n := testing.AllocsPerRun(100, change); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// duration answers every operator with 7.
type duration struct{}

func (duration) AppendValue(dst []byte, _, _ string) ([]byte, bool) { return append(dst, '7'), true }

func BenchmarkMatch(b *testing.B) {
	table := mustCompile(b,
		`{"match":{"path":"/login"},`+toA+`}`, `{"match":{"prefix":"/api","headers":[{"name":"x-canary","string_match":{"exact":"true"}}]},`+toA+`}`,
		`{"match":{"safe_regex":{"regex":"/v[0-9]+/.*"}},`+toA+`}`,
		`{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":90},{"name":"b","weight":10}]}}}`)
	r := req("GET /api/items?id=1", "user-agent: x", "accept: */*", "x-request-id: 1")
	b.ReportAllocs()
	var i uint64
	for b.Loop() {
		i++
		if table.Match(r, i).Action(r, i) == nil {
			b.Fatal("no action")
		}
	}
}
