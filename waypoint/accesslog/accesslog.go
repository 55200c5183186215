// Package accesslog compiles Envoy's access log configuration: which requests and connections are logged, and how a line
// looks. Writing the lines is the caller's.
package accesslog

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	otelv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// DefaultFormat is Istio's text format, which is used where the configuration has none.
const DefaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// Entry is what is logged: a request or a connection that is over.
type Entry struct {
	Context  *route.Context
	Exchange *filter.Exchange
	Status   int
	GRPC     string
	Duration time.Duration
	// Rand draws shares.
	Rand uint64
}

// Log is one compiled access log. It is immutable.
type Log struct {
	// Errors says that lines go to standard error, not to standard output.
	Errors bool
	// Export, if not nil, is what entries go to instead.
	Export *Exporter

	wants  condition // nil: everything
	format *route.Format
	json   *object
	omit   bool // leave values out that are not there
}

// Compile compiles the access logs of a listener, or of a connection manager. Kinds of logs that are not known are refused.
func Compile(list []*accesslogv3.AccessLog) ([]*Log, error) {
	var out []*Log
	for i, p := range list {
		l, err := compile(p)
		if err != nil {
			return nil, field.Index(err, "access_log", i)
		}
		out = append(out, l)
	}
	return out, nil
}

func compile(p *accesslogv3.AccessLog) (*Log, error) {
	l := &Log{}
	var err error
	if l.wants, err = compileFilter(p.GetFilter(), 0); err != nil {
		return nil, field.At(err, "filter")
	}
	c := p.GetTypedConfig()
	var f *corev3.SubstitutionFormatString
	switch {
	case c.MessageIs((*filev3.FileAccessLog)(nil)):
		var m filev3.FileAccessLog
		if err := c.UnmarshalTo(&m); err != nil {
			return nil, field.At(err, "typed_config")
		}
		if l.Errors, err = stream(m.GetPath()); err != nil {
			return nil, field.At(field.At(err, "path"), "typed_config")
		}
		if f, err = fileFormat(&m); err != nil {
			return nil, field.At(err, "typed_config")
		}
	case c.MessageIs((*streamv3.StdoutAccessLog)(nil)):
		var m streamv3.StdoutAccessLog
		if err := c.UnmarshalTo(&m); err != nil {
			return nil, field.At(err, "typed_config")
		}
		f = m.GetLogFormat()
	case c.MessageIs((*streamv3.StderrAccessLog)(nil)):
		var m streamv3.StderrAccessLog
		if err := c.UnmarshalTo(&m); err != nil {
			return nil, field.At(err, "typed_config")
		}
		l.Errors, f = true, m.GetLogFormat()
	case c.MessageIs((*otelv3.OpenTelemetryAccessLogConfig)(nil)):
		var m otelv3.OpenTelemetryAccessLogConfig
		if err := c.UnmarshalTo(&m); err != nil {
			return nil, field.At(err, "typed_config")
		}
		l.Export, err = compileExporter(&m)
		return l, field.At(err, "typed_config")
	default:
		return nil, field.Errorf("typed_config", "unknown access log %q of type %q; known are files, standard output, standard error and OpenTelemetry", p.GetName(), c.GetTypeUrl())
	}
	return l, field.At(l.compileFormat(f), "typed_config.log_format")
}

// stream says whether a log's file is standard error. Another than the two streams is refused: whoever may change the mesh's
// configuration is not to write any file that the waypoint can, and its own file system is read-only.
func stream(path string) (stderr bool, err error) {
	switch path {
	case "/dev/stdout":
		return false, nil
	case "/dev/stderr":
		return true, nil
	}
	return false, fmt.Errorf("%q is not supported: a waypoint writes access logs to /dev/stdout or /dev/stderr, where the node's log collector finds them", path)
}

// fileFormat is the format in whichever of its fields it is.
func fileFormat(m *filev3.FileAccessLog) (*corev3.SubstitutionFormatString, error) {
	switch f := m.GetAccessLogFormat().(type) {
	case nil:
		return nil, nil
	case *filev3.FileAccessLog_LogFormat:
		return f.LogFormat, nil
	case *filev3.FileAccessLog_Format:
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormat{TextFormat: f.Format}}, nil
	case *filev3.FileAccessLog_JsonFormat:
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: f.JsonFormat}}, nil
	}
	return nil, field.Errorf("access_log_format", "unsupported %T", m.GetAccessLogFormat())
}

func (l *Log) compileFormat(f *corev3.SubstitutionFormatString) (err error) {
	text := DefaultFormat
	l.omit = f.GetOmitEmptyValues()
	switch s := f.GetFormat().(type) {
	case nil:
	case *corev3.SubstitutionFormatString_TextFormat:
		text = s.TextFormat
	case *corev3.SubstitutionFormatString_TextFormatSource:
		switch d := s.TextFormatSource.GetSpecifier().(type) {
		case *corev3.DataSource_InlineString:
			text = d.InlineString
		case *corev3.DataSource_InlineBytes:
			text = string(d.InlineBytes)
		default:
			return field.Errorf("text_format_source", "inline data is required")
		}
	case *corev3.SubstitutionFormatString_JsonFormat:
		l.json, err = compileObject(s.JsonFormat, 0)
		return field.At(err, "json_format")
	}
	l.format, err = route.CompileShown(text)
	return field.At(err, "text_format")
}

// Wants says whether an entry is logged.
func (l *Log) Wants(e *Entry) bool { return l.wants == nil || l.wants(e) }

// A line has at most maxLine bytes: in one that would be longer values are cut, to minValue bytes if need be.
const (
	maxLine  = 8 << 10
	minValue = 32
)

// Append appends the entry's line. What came from a peer cannot end a quoted field or a line, nor make it longer than maxLine.
func (l *Log) Append(b []byte, e *Entry) []byte {
	at := len(b)
	return bounded(func(most int) []byte {
		b = b[:at]
		if l.json != nil {
			b = l.json.append(b, e, l.omit, most)
			return append(b, '\n')
		}
		missing := "-"
		if l.omit {
			missing = ""
		}
		b = l.format.AppendEscaped(b, e.Context, missing, most)
		return b
	}, at+maxLine)
}

// bounded has a text made of at most n bytes, with values of at most so many that it is.
func bounded(text func(most int) []byte, n int) []byte {
	b := text(math.MaxInt)
	for most := maxLine / 2; len(b) > n && most >= minValue; most /= 2 {
		b = text(most)
	}
	return b
}

// object is a compiled JSON format.
type object struct{ members []member }

type member struct {
	name   string // with quotes and colon
	format *route.Format
	number bool // one operator whose value is a number
	inner  *object
}

// numbers are the operators whose values are numbers in JSON.
var numbers = []string{
	"RESPONSE_CODE", "BYTES_RECEIVED", "BYTES_SENT", "DURATION", "REQUEST_DURATION", "RESPONSE_DURATION", "RESPONSE_TX_DURATION",
	"UPSTREAM_REQUEST_ATTEMPT_COUNT", "GRPC_STATUS_NUMBER", "CONNECTION_ID", "DOWNSTREAM_REMOTE_PORT", "DOWNSTREAM_LOCAL_PORT",
	"UPSTREAM_REMOTE_PORT", "UPSTREAM_LOCAL_PORT", "REQUEST_TX_DURATION",
}

func compileObject(s *structpb.Struct, depth int) (*object, error) {
	if depth > 16 {
		return nil, errors.New("nested too deep")
	}
	o := &object{}
	for _, k := range slices.Sorted(maps.Keys(s.GetFields())) {
		m := member{name: string(appendJSON(nil, k)) + ":"}
		switch v := s.GetFields()[k].GetKind().(type) {
		case *structpb.Value_StringValue:
			f, err := route.CompileShown(v.StringValue)
			if err != nil {
				return nil, field.Key(err, "fields", k)
			}
			m.format = f
			m.number = slices.Contains(numbers, strings.Trim(v.StringValue, "%")) && strings.Count(v.StringValue, "%") == 2
		case *structpb.Value_StructValue:
			inner, err := compileObject(v.StructValue, depth+1)
			if err != nil {
				return nil, field.Key(err, "fields", k)
			}
			m.inner = inner
		default:
			return nil, field.Key(fmt.Errorf("only strings and objects are supported, not %T", v), "fields", k)
		}
		o.members = append(o.members, m)
	}
	return o, nil
}

func (o *object) append(b []byte, e *Entry, omit bool, most int) []byte {
	b = append(b, '{')
	first := true
	for i := range o.members {
		m := &o.members[i]
		at := len(b)
		if !first {
			b = append(b, ',')
		}
		b = append(b, m.name...)
		if m.inner != nil {
			b = m.inner.append(b, e, omit, most)
			first = false
			continue
		}
		var space [512]byte
		text := m.format.AppendCut(space[:0], e.Context, "\x00", most)
		switch {
		case len(text) == 1 && text[0] == 0:
			if omit {
				b = b[:at]
				continue
			}
			b = append(b, "null"...)
		case m.number:
			b = append(b, text...)
		default:
			b = appendJSON(b, strings.ReplaceAll(string(text), "\x00", "-"))
		}
		first = false
	}
	return append(b, '}')
}

// appendJSON appends s as a JSON string, in which all that a terminal or a viewer could obey is escaped. Bytes that are not
// UTF-8 become U+FFFD.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case !unicode.IsPrint(r):
			for _, u := range utf16.AppendRune(nil, r) {
				b = append(b, `\u`...)
				for shift := 12; shift >= 0; shift -= 4 {
					b = append(b, "0123456789abcdef"[u>>shift&15])
				}
			}
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}

// grpcNumber is a gRPC status that is a number; -1: there is none.
func grpcNumber(s string) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return -1
}
