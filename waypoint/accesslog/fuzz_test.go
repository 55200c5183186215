package accesslog

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// answers gives operators a value: a number where one is meant, nothing for some, what a peer sent for the rest.
type answers string

func (a answers) AppendValue(dst []byte, operator, arg string) ([]byte, bool) {
	switch {
	case slices.Contains(numbers, operator):
		return append(dst, "42"...), true
	case len(operator)%3 == 0:
		return append(dst, "lost"...), false
	}
	return append(append(dst, a...), arg...), true
}

// control says that a byte would change how a terminal or a reader of lines sees a line.
func control(c byte) bool { return c < 0x20 && c != '\t' || c == 0x7f }

// FuzzFormat compiles a format string, as text and as JSON. Whatever the format, and whatever a peer sends, there is no
// panic, a line is one line (unless the format's own text says otherwise), a line of JSON is JSON, and a second entry does not change what the first would be.
func FuzzFormat(f *testing.F) {
	f.Add(DefaultFormat, "/a\"b", "value", false)
	for _, s := range []string{
		"", "%%", "%", "100%", "%REQ(X-A?:PATH):3%", "%REQ(:PATH)%\n%PROTOCOL%", "%RESPONSE_CODE%", "%DURATION%", "%RESP(X-A)%%BYTES_SENT%", "%START_TIME(%Y-%m %s.%3f)%",
		"%FILTER_STATE(a:PLAIN):9%", "%DYNAMIC_METADATA(a:b:c)%", "%CEL(request.path)%", "%GRPC_STATUS(SNAKE_STRING)%", "\x00\x1b[2J", "a)%b", "%REQ(%)%", "%UPSTREAM_HOST",
	} {
		f.Add(s, "/p\r\nHTTP 200", "\x1b\xff\"\\", true)
	}
	f.Fuzz(func(t *testing.T, format, path, header string, omit bool) {
		req := &message.Request{Method: "GET", Authority: "a", Path: path, Proto: message.HTTP11}
		req.Header.Add("x-a", header)
		resp := &message.Response{Status: 200}
		resp.Header.Add("x-a", header)
		e := &Entry{Context: &route.Context{Req: req, Resp: resp, Values: answers(header)}}

		text := &Log{}
		err := text.compileFormat(&corev3.SubstitutionFormatString{OmitEmptyValues: omit, Format: &corev3.SubstitutionFormatString_TextFormat{TextFormat: format}})
		if err == nil {
			line := text.Append([]byte("before "), e)
			body := bytes.TrimSuffix(bytes.TrimPrefix(line, []byte("before ")), []byte("\n"))
			if i := slices.IndexFunc(body, control); i >= 0 && !slices.ContainsFunc([]byte(format), control) {
				t.Fatalf("format %q: control character %q in %q", format, body[i], line)
			}
			if again := text.Append([]byte("before "), e); !bytes.Equal(again, line) {
				t.Fatalf("format %q: %q, and then %q", format, line, again)
			}
		}

		value := structpb.NewStringValue(strings.ToValidUTF8(format, "?"))
		fields := &structpb.Struct{Fields: map[string]*structpb.Value{
			"a": value, strings.ToValidUTF8(header, "?"): structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"b": value}}),
		}}
		object := &Log{}
		objectErr := object.compileFormat(&corev3.SubstitutionFormatString{OmitEmptyValues: omit, Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields}})
		if objectErr != nil {
			return
		}
		line := object.Append(nil, e)
		if !json.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("format %q, header %q: %q is no line of JSON", format, header, line)
		}
	})
}
