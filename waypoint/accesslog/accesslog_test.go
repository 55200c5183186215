package accesslog

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// values answers operators from a map.
type values map[string]string

func (v values) AppendValue(b []byte, operator, _ string) ([]byte, bool) {
	s, ok := v[operator]
	return append(b, s...), ok
}

func entry(path string, v values) *Entry {
	req := &message.Request{Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: path, Proto: message.HTTP11}
	req.Header.Add("user-agent", "curl/8.0")
	x := &filter.Exchange{Req: req, Flags: filter.UpstreamFailure}
	return &Entry{
		Context: &route.Context{Req: req, Resp: &message.Response{Status: 503}, Values: v}, Exchange: x, Status: 503, Duration: 12 * time.Millisecond,
	}
}

func compileOne(t *testing.T, text string) (*Log, error) {
	t.Helper()
	var p accesslogv3.AccessLog
	if err := protojson.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	ls, err := Compile([]*accesslogv3.AccessLog{&p})
	if err != nil {
		return nil, err
	}
	return ls[0], nil
}

const file = `"typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout"`

func TestDefaultFormatIsIstios(t *testing.T) {
	l, err := compileOne(t, `{`+file+`}}`)
	if err != nil {
		t.Fatal(err)
	}
	got := string(l.Append(nil, entry("/a", values{
		"START_TIME": "2026-11-25T00:00:00.000Z", "RESPONSE_FLAGS": "UF", "BYTES_RECEIVED": "0", "BYTES_SENT": "91", "DURATION": "12", "ROUTE_NAME": "default",
	})))
	want := `[2026-11-25T00:00:00.000Z] "GET /a HTTP/1.1" 503 UF - - "-" 0 91 12 - "-" "curl/8.0" "-" "reviews:9080" "-" - - - - - default` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestALogGoesToAStandardStreamOrIsRefused(t *testing.T) {
	const at = `{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.%s", %s}}`
	for _, c := range []struct {
		kind, field  string
		errors, fine bool
	}{
		{"file.v3.FileAccessLog", `"path": "/dev/stdout"`, false, true},
		{"file.v3.FileAccessLog", `"path": "/dev/stderr"`, true, true},
		{"stream.v3.StdoutAccessLog", `"log_format": {"text_format": "x"}`, false, true},
		{"stream.v3.StderrAccessLog", `"log_format": {"text_format": "x"}`, true, true},
		{"file.v3.FileAccessLog", `"path": "/var/log/access.log"`, false, false},
		{"file.v3.FileAccessLog", `"path": "/dev/../etc/passwd"`, false, false},
		{"file.v3.FileAccessLog", `"path": "stdout"`, false, false},
		{"file.v3.FileAccessLog", `"path": ""`, false, false},
	} {
		l, err := compileOne(t, fmt.Sprintf(at, c.kind, c.field))
		switch {
		case (err == nil) != c.fine:
			t.Errorf("%s %s: %v", c.kind, c.field, err)
		case err != nil:
			if !strings.Contains(err.Error(), "access_log[0].typed_config.path") || !strings.Contains(err.Error(), "/dev/stdout or /dev/stderr") {
				t.Errorf("%s %s: %v says neither where nor what to do", c.kind, c.field, err)
			}
		case l.Errors != c.errors:
			t.Errorf("%s %s: to standard error: %v", c.kind, c.field, l.Errors)
		}
	}
}

func TestJSONFormatHasNumbersAndNulls(t *testing.T) {
	l, err := compileOne(t, `{`+file+`, "log_format": {"json_format": {"code": "%RESPONSE_CODE%", "path": "%REQ(:PATH)%", "bytes": "%BYTES_SENT%", "host": "%UPSTREAM_HOST%", "in": {"took": "%DURATION%ms"}}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	line := string(l.Append(nil, entry("/a\"b\\", values{"BYTES_SENT": "91", "DURATION": "12"})))
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if got["code"] != 503.0 || got["bytes"] != 91.0 || got["path"] != "/a\"b\\" || got["host"] != nil || got["in"].(map[string]any)["took"] != "12ms" {
		t.Errorf("line: %s", line)
	}
}

func TestALineStaysALineWhateverAPeerSends(t *testing.T) { // log injection
	for _, format := range []string{`{"text_format": "%REQ(:PATH)%\n"}`, `{"json_format": {"p": "%REQ(:PATH)%"}}`} {
		l, err := compileOne(t, `{`+file+`, "log_format": `+format+`}}`)
		if err != nil {
			t.Fatal(err)
		}
		line := string(l.Append(nil, entry("/a\r\n[fake] \x1b[31m\x00", nil)))
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || strings.ContainsAny(line, "\r\x1b\x00") {
			t.Errorf("line: %q", line)
		}
	}
}

func TestAPeerCannotEndAQuotedField(t *testing.T) { // what CVE-2024-45808 was about
	l, err := compileOne(t, `{`+file+`}}`)
	if err != nil {
		t.Fatal(err)
	}
	e := entry(`/a" 200 - via_upstream "`, values{"REQUESTED_SERVER_NAME": "x\n\"y\\\u009b"})
	e.Exchange.Req.Header.Set("user-agent", `curl" "fake-id" "\x22`)
	got := string(l.Append(nil, e))
	want := `[-] "GET /a\x22 200 - via_upstream \x22 HTTP/1.1" 503 - - - "-" - - - - "-" "curl\x22 \x22fake-id\x22 \x22\x5Cx22" "-" "reviews:9080" "-" - - - - x\x0A\x22y\x5C\xC2\x9B -` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestConditionsChooseWhatIsLogged(t *testing.T) {
	for cond, want := range map[string]bool{
		`{"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500}}}}`:                                                    true,
		`{"status_code_filter": {"comparison": {"op": "LE", "value": {"default_value": 499}}}}`:                                                    false,
		`{"duration_filter": {"comparison": {"op": "GE", "value": {"default_value": 12}}}}`:                                                        true,
		`{"response_flag_filter": {"flags": ["NR", "UF"]}}`:                                                                                        true,
		`{"response_flag_filter": {"flags": ["NR"]}}`:                                                                                              false,
		`{"response_flag_filter": {}}`:                                                                                                             true,
		`{"header_filter": {"header": {"name": "user-agent", "string_match": {"prefix": "curl"}}}}`:                                                true,
		`{"or_filter": {"filters": [{"response_flag_filter": {"flags": ["NR"]}}, {"grpc_status_filter": {"statuses": ["OK"], "exclude": true}}]}}`: true,
		`{"and_filter": {"filters": [{"response_flag_filter": {"flags": ["NR"]}}, {"not_health_check_filter": {}}]}}`:                              false,
	} {
		l, err := compileOne(t, `{"filter": `+cond+`, `+file+`}}`)
		if err != nil {
			t.Errorf("%s: %v", cond, err)
			continue
		}
		if got := l.Wants(entry("/", nil)); got != want {
			t.Errorf("%s: %v", cond, got)
		}
	}
}

func TestBadLogsAreRefusedWithTheFieldsPath(t *testing.T) {
	for text, want := range map[string]string{
		`{` + file + `, "log_format": {"text_format": "%NOPE%"}}}`:               `access_log[0].typed_config.log_format.text_format: position 1 of "%NOPE%": unknown operator "NOPE"`,
		`{"filter": {"response_flag_filter": {"flags": ["??"]}}, ` + file + `}}`: `access_log[0].filter.response_flag_filter.flags[0]: unknown response flag ??`,
		`{"name": "x"}`: `access_log[0].typed_config: unknown access log "x" of type ""; known are files, standard output, standard error and OpenTelemetry`,
	} {
		_, err := compileOne(t, text)
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
