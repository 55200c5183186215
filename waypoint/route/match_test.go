package route

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// compile compiles a table of one virtual host for all names, with the routes in proto JSON.
func compile(t testing.TB, routes ...string) (*Table, error) {
	t.Helper()
	return compileJSON(t, `{"name":"t","virtual_hosts":[{"name":"v","domains":["*"],"routes":[`+strings.Join(routes, ",")+`]}]}`)
}

func compileJSON(t testing.TB, s string) (*Table, error) {
	t.Helper()
	var c routev3.RouteConfiguration
	if err := dumptest.Unmarshal([]byte(s), &c); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return Compile(&c, Options{})
}

func mustCompile(t testing.TB, routes ...string) *Table {
	t.Helper()
	table, err := compile(t, routes...)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// req makes a request of "METHOD path" and header fields "name: value"; ":authority" is one of them.
func req(line string, fields ...string) *message.Request {
	method, path, _ := strings.Cut(line, " ")
	r := &message.Request{Method: method, Path: path, Scheme: "http", Authority: "reviews.demo:9080", Proto: message.HTTP11}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if name == ":authority" {
			r.Authority = value
			continue
		}
		r.Header.Add(name, value)
	}
	return r
}

const toA = `"route":{"cluster":"a"}`

// attrs are attributes for tests.
type attrs struct {
	state map[string]string
	meta  map[string]any
}

func (a attrs) FilterState(key string) (string, bool) { v, ok := a.state[key]; return v, ok }

func (a attrs) Metadata(filter string) *structpb.Struct {
	m, _ := a.meta[filter].(map[string]any)
	s, err := structpb.NewStruct(m)
	if err != nil {
		panic(err)
	}
	return s
}

func TestARouteMatchesWhatItsConditionsSay(t *testing.T) {
	const template = `"path_match_policy":{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig","path_template":`
	get := func(path string, fields ...string) *message.Request { return req("GET "+path, fields...) }
	post := req("POST /")
	connect := &message.Request{Method: "CONNECT", Authority: "10.0.0.1:80"}
	for name, c := range map[string]struct {
		match    string
		yes, not []*message.Request
	}{
		"a prefix":                                    {`"prefix":"/api"`, []*message.Request{get("/api"), get("/api/x"), get("/apis"), get("/api?x=/")}, []*message.Request{get("/ap"), get("/API"), get("/")}},
		"a prefix whatever the case":                  {`"prefix":"/Api","case_sensitive":false`, []*message.Request{get("/aPI/x"), get("/api")}, []*message.Request{get("/ap")}},
		"a whole path, its query aside":               {`"path":"/a"`, []*message.Request{get("/a"), get("/a?b=c")}, []*message.Request{get("/a/"), get("/ab"), get("/A")}},
		"a prefix of whole segments":                  {`"path_separated_prefix":"/a/b"`, []*message.Request{get("/a/b"), get("/a/b/"), get("/a/b/c"), get("/a/b?c")}, []*message.Request{get("/a/bc"), get("/a")}},
		"a regular expression for the whole path":     {`"safe_regex":{"regex":"/v[0-9]+"}`, []*message.Request{get("/v1"), get("/v22?x=/")}, []*message.Request{get("/v"), get("/v1/"), get("/x/v1")}},
		"an alternative is one expression":            {`"safe_regex":{"regex":"/a|/b"}`, []*message.Request{get("/a"), get("/b")}, []*message.Request{get("/a/b"), get("/ab")}},
		"a template with a segment":                   {template + `"/a/{*}/c"}}`, []*message.Request{get("/a/b/c")}, []*message.Request{get("/a/c"), get("/a//c"), get("/a/b/b/c")}},
		"a template with a tail":                      {template + `"/a/{**}"}}`, []*message.Request{get("/a/"), get("/a/b/c")}, []*message.Request{get("/a"), get("/b/")}},
		"CONNECT":                                     {`"connect_matcher":{}`, []*message.Request{connect}, []*message.Request{get("/")}},
		"a header's value":                            {`"prefix":"/","headers":[{"name":"X-User","string_match":{"exact":"jason"}}]`, []*message.Request{get("/", "x-user: jason"), get("/", "x-user: eve", "x-user: jason")}, []*message.Request{get("/"), get("/", "x-user: Jason"), get("/", "x-user: jason,eve")}},
		"a header's values are not joined":            {`"prefix":"/","headers":[{"name":"a","string_match":{"exact":"1,2"}}]`, []*message.Request{get("/", "a: 1,2")}, []*message.Request{get("/", "a: 1"), get("/", "a: 1", "a: 2")}},
		"a header's beginning":                        {`"prefix":"/","headers":[{"name":"a","string_match":{"prefix":"b"}}]`, []*message.Request{get("/", "a: bc")}, []*message.Request{get("/", "a: cb"), get("/")}},
		"a header's end":                              {`"prefix":"/","headers":[{"name":"a","string_match":{"suffix":"b","ignore_case":true}}]`, []*message.Request{get("/", "a: cB")}, []*message.Request{get("/", "a: bc")}},
		"a part of a header":                          {`"prefix":"/","headers":[{"name":"a","string_match":{"contains":"Bc","ignore_case":true}}]`, []*message.Request{get("/", "a: abCd")}, []*message.Request{get("/", "a: ab")}},
		"a header's pattern":                          {`"prefix":"/","headers":[{"name":"a","string_match":{"safe_regex":{"regex":"b+"}}}]`, []*message.Request{get("/", "a: bb")}, []*message.Request{get("/", "a: abb"), get("/", "a: ")}},
		"a header that is there":                      {`"prefix":"/","headers":[{"name":"a","present_match":true}]`, []*message.Request{get("/", "a: ")}, []*message.Request{get("/")}},
		"a header that is not there":                  {`"prefix":"/","headers":[{"name":"a","present_match":false}]`, []*message.Request{get("/")}, []*message.Request{get("/", "a: ")}},
		"a header that is not there, the other way":   {`"prefix":"/","headers":[{"name":"a","present_match":true,"invert_match":true}]`, []*message.Request{get("/")}, []*message.Request{get("/", "a: x")}},
		"a header with another value has to be there": {`"prefix":"/","headers":[{"name":"a","string_match":{"exact":"b"},"invert_match":true}]`, []*message.Request{get("/", "a: c")}, []*message.Request{get("/"), get("/", "a: b"), get("/", "a: b", "a: c")}},
		"a header with another value, or none":        {`"prefix":"/","headers":[{"name":"a","string_match":{"exact":"b"},"invert_match":true,"treat_missing_header_as_empty":true}]`, []*message.Request{get("/", "a: c"), get("/")}, []*message.Request{get("/", "a: b")}},
		"a header's number":                           {`"prefix":"/","headers":[{"name":"a","range_match":{"start":-1,"end":10}}]`, []*message.Request{get("/", "a: -1"), get("/", "a: 9")}, []*message.Request{get("/", "a: 10"), get("/", "a: x"), get("/")}},
		"the deprecated forms":                        {`"prefix":"/","headers":[{"name":"a","exact_match":"bcd"},{"name":"a","prefix_match":"b"},{"name":"a","suffix_match":"d"},{"name":"a","contains_match":"c"},{"name":"a","safe_regex_match":{"regex":"b.d"}}]`, []*message.Request{get("/", "a: bcd")}, []*message.Request{get("/", "a: bce")}},
		"the method":                                  {`"prefix":"/","headers":[{"name":":method","string_match":{"exact":"POST"}}]`, []*message.Request{post}, []*message.Request{get("/")}},
		"the authority":                               {`"prefix":"/","headers":[{"name":":authority","string_match":{"prefix":"a."}}]`, []*message.Request{get("/", ":authority: a.b")}, []*message.Request{get("/")}},
		"the scheme":                                  {`"prefix":"/","headers":[{"name":":scheme","string_match":{"exact":"http"}}]`, []*message.Request{post}, []*message.Request{{Method: "GET", Path: "/", Scheme: "https"}}},
		"a parameter":                                 {`"prefix":"/","query_parameters":[{"name":"a","string_match":{"exact":"1"}}]`, []*message.Request{get("/?a=1"), get("/?b=2&a=1&a=2")}, []*message.Request{get("/?a=2&a=1"), get("/"), get("/?a"), get("/?aa=1")}},
		"a parameter that is there":                   {`"prefix":"/","query_parameters":[{"name":"a","present_match":true}]`, []*message.Request{get("/?a"), get("/?a=")}, []*message.Request{get("/?b=a"), get("/")}},
		"a cookie":                                    {`"prefix":"/","cookies":[{"name":"a","string_match":{"exact":"1"}}]`, []*message.Request{get("/", "cookie: b=2; a=1"), get("/", "cookie: b=2", "cookie: a=\"1\"")}, []*message.Request{get("/", "cookie: a=2"), get("/")}},
		"gRPC":                                        {`"prefix":"/","grpc":{}`, []*message.Request{get("/", "content-type: application/grpc"), get("/", "content-type: application/grpc+proto")}, []*message.Request{get("/"), get("/", "content-type: application/grpc-web")}},
		"all conditions together":                     {`"prefix":"/a","headers":[{"name":"a","present_match":true},{"name":"b","present_match":true}]`, []*message.Request{get("/a", "a: 1", "b: 1")}, []*message.Request{get("/a", "a: 1"), get("/a", "b: 1"), get("/", "a: 1", "b: 1")}},
	} {
		t.Run(name, func(t *testing.T) {
			table := mustCompile(t, `{"match":{`+c.match+`},`+toA+`}`)
			for _, r := range c.yes {
				if table.Match(r, 0) == nil {
					t.Errorf("%s %s %v: no match", r.Method, r.Path, r.Header.Fields())
				}
			}
			for _, r := range c.not {
				if table.Match(r, 0) != nil {
					t.Errorf("%s %s %v: match", r.Method, r.Path, r.Header.Fields())
				}
			}
		})
	}
}

func TestConditionsOnAttributesAskTheConnection(t *testing.T) {
	a := attrs{
		state: map[string]string{"ns": "prod", "ip": "10.1.2.3", "ipp": "[fd00::1]:80", "bad": "x"},
		meta: map[string]any{"jwt": map[string]any{"payload": map[string]any{
			"sub": "eve", "n": 3.0, "ok": true, "none": nil, "groups": []any{"a", "b"}}}},
	}
	md := func(key, value string) string {
		return `"dynamic_metadata":[{"filter":"jwt","path":[{"key":"payload"},{"key":"` + key + `"}],"value":{` + value + `}}]`
	}
	for name, c := range map[string]struct {
		match string
		want  bool
	}{
		"text":                        {`"filter_state":[{"key":"ns","string_match":{"exact":"prod"}}]`, true},
		"other text":                  {`"filter_state":[{"key":"ns","string_match":{"exact":"test"}}]`, false},
		"absent state":                {`"filter_state":[{"key":"nss","string_match":{"prefix":"p"}}]`, false},
		"an address":                  {`"filter_state":[{"key":"ip","address_match":{"ranges":[{"address_prefix":"10.1.0.0","prefix_len":16}]}}]`, true},
		"an address with port":        {`"filter_state":[{"key":"ipp","address_match":{"ranges":[{"address_prefix":"fd00::","prefix_len":8}]}}]`, true},
		"an address outside":          {`"filter_state":[{"key":"ip","address_match":{"ranges":[{"address_prefix":"10.2.0.0","prefix_len":16}]}}]`, false},
		"an address inverted":         {`"filter_state":[{"key":"ip","address_match":{"ranges":[{"address_prefix":"10.2.0.0","prefix_len":16}],"invert_match":true}}]`, true},
		"no address, inverted":        {`"filter_state":[{"key":"bad","address_match":{"ranges":[{"address_prefix":"10.2.0.0","prefix_len":16}],"invert_match":true}}]`, false},
		"a claim":                     {md("sub", `"string_match":{"exact":"eve"}`), true},
		"a claim's number":            {md("n", `"double_match":{"exact":3}`), true},
		"a claim's number in range":   {md("n", `"double_match":{"range":{"start":3,"end":4}}`), true},
		"a claim's number, below":     {md("n", `"double_match":{"range":{"start":1,"end":3}}`), false},
		"a claim that is true":        {md("ok", `"bool_match":true`), true},
		"a claim that is null":        {md("none", `"null_match":{}`), true},
		"an element of a claim":       {md("groups", `"list_match":{"one_of":{"string_match":{"exact":"b"}}}`), true},
		"no element of a claim":       {md("groups", `"list_match":{"one_of":{"string_match":{"exact":"c"}}}`), false},
		"one of two":                  {md("sub", `"or_match":{"value_matchers":[{"bool_match":true},{"string_match":{"prefix":"e"}}]}`), true},
		"a claim that is there":       {md("sub", `"present_match":true`), true},
		"a claim that is not there":   {md("iss", `"present_match":true`), false},
		"a claim that must be absent": {md("iss", `"present_match":false`), true},
	} {
		t.Run(name, func(t *testing.T) {
			table := mustCompile(t, `{"match":{"prefix":"/",`+c.match+`},`+toA+`}`)
			if got := table.MatchWith(req("GET /"), 0, a) != nil; got != c.want {
				t.Errorf("match: %v, want %v", got, c.want)
			}
			if c.want && !strings.Contains(name, "absent") && table.Match(req("GET /"), 0) != nil {
				t.Error("matches without attributes")
			}
		})
	}
}

func TestTheFirstRouteThatMatchesIsTaken(t *testing.T) {
	table := mustCompile(t,
		`{"name":"one","match":{"path":"/a"},`+toA+`}`, `{"name":"two","match":{"prefix":"/a"},`+toA+`}`, `{"name":"three","match":{"prefix":"/"},`+toA+`}`)
	for path, want := range map[string]string{"/a": "one", "/ab": "two", "/b": "three"} {
		if got := table.Match(req("GET "+path), 0); got == nil || got.Name != want {
			t.Errorf("%s: route %v, want %s", path, got, want)
		}
	}
}

func TestARequestThatNoRouteMatchesGetsNone(t *testing.T) {
	if r := mustCompile(t, `{"match":{"prefix":"/a"},`+toA+`}`).Match(req("GET /b"), 0); r != nil {
		t.Errorf("got route %v", r)
	}
	table, err := compileJSON(t, `{"virtual_hosts":[{"name":"v","domains":["a.com"],"routes":[{"match":{"prefix":"/"},`+toA+`}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if r := table.Match(req("GET /", ":authority: b.com"), 0); r != nil {
		t.Errorf("got route %v of another host", r)
	}
}

func TestTheMostSpecificDomainIsTaken(t *testing.T) {
	host := func(name, domain string) string {
		return `{"name":"` + name + `","domains":["` + domain + `"],"routes":[{"match":{"prefix":"/"},` + toA + `}]}`
	}
	table, err := compileJSON(t, `{"virtual_hosts":[`+strings.Join([]string{
		host("exact", "www.Example.com"), host("port", "www.example.com:81"), host("long", "*.b.example.com"), host("short", "*.example.com"), host("head", "www.*"), host("any", "*"),
	}, ",")+`]}`)
	if err != nil {
		t.Fatal(err)
	}
	for authority, want := range map[string]string{
		"www.example.com": "exact", "WWW.example.COM": "exact", "www.example.com:81": "port", "www.example.com:82": "head", "a.example.com": "short",
		"a.b.example.com": "long", ".b.example.com": "short", "www.org": "head", "example.com": "any", "": "any",
	} {
		if got := table.Match(req("GET /", ":authority: "+authority), 0); got.Host.Name != want {
			t.Errorf("%q: host %s, want %s", authority, got.Host.Name, want)
		}
	}
}

func TestThePortOfTheHostMayBeIgnored(t *testing.T) {
	table, err := compileJSON(t, `{"ignore_port_in_host_matching":true,"virtual_hosts":[{"name":"v","domains":["a.com","[::1]"],"routes":[{"match":{"prefix":"/"},`+toA+`}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"a.com", "a.com:80", "[::1]:80", "[::1]"} {
		if table.Match(req("GET /", ":authority: "+a), 0) == nil {
			t.Errorf("%q: no match", a)
		}
	}
}

func TestAFractionOfRequestsMatches(t *testing.T) {
	table := mustCompile(t, `{"match":{"prefix":"/","runtime_fraction":{"default_value":{"numerator":25,"denominator":"HUNDRED"}}},`+toA+`}`)
	n := 0
	for i := range uint64(1000) {
		if table.Match(req("GET /"), i) != nil {
			n++
		}
	}
	if n != 250 {
		t.Errorf("%d of 1000 matched, want 250", n)
	}
}

func TestPathParametersMayBeIgnored(t *testing.T) {
	const route = `"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"path":"/a"},` + toA + `}]}]}`
	table, err := compileJSON(t, `{"ignore_path_parameters_in_path_matching":true,`+route)
	if err != nil {
		t.Fatal(err)
	}
	if table.Match(req("GET /a;v=1"), 0) == nil {
		t.Error("the parameter was not ignored")
	}
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	table := mustCompile(t,
		`{"match":{"prefix":"/x","headers":[{"name":"a","string_match":{"safe_regex":{"regex":"b+"}}}]},`+toA+`}`,
		`{"match":{"safe_regex":{"regex":"/v[0-9]/.*"},"query_parameters":[{"name":"q","string_match":{"exact":"1"}}]},`+toA+`}`,
		`{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":90},{"name":"b","weight":10}]}}}`)
	r := req("GET /v1/a?q=2", "a: b", "cookie: a=b")
	var i uint64
	if n := testing.AllocsPerRun(100, func() {
		i++
		if x := table.Match(r, i); x.Action(r, i) == nil {
			t.Fatal("no action")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
