package route

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/secret"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Values answers the operators of format strings that are not about the two heads, such as DOWNSTREAM_REMOTE_ADDRESS.
type Values interface {
	// AppendValue appends the value of an operator with its argument, and says whether there is one.
	AppendValue(dst []byte, operator, arg string) ([]byte, bool)
}

// Context is what format strings are about. Each of its parts may be nil.
type Context struct {
	Req    *message.Request
	Resp   *message.Response
	Values Values

	space []byte // for Values
}

// For is the context of a message with the memory of c.
func (c *Context) For(req *message.Request, resp *message.Response, values Values) {
	*c = Context{Req: req, Resp: resp, Values: values, space: c.space}
}

func setOf(names string) map[string]bool {
	m := map[string]bool{}
	for _, n := range strings.Fields(names) {
		m[n] = true
	}
	return m
}

// knownOperators are those of Envoy's format strings that are accepted.
var knownOperators = setOf(`
REQ REQ_WITHOUT_QUERY RESP TRAILER REQUEST_HEADER RESPONSE_HEADER PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_FLAGS
RESPONSE_FLAGS_LONG START_TIME START_TIME_LOCAL EMIT_TIME DURATION REQUEST_DURATION RESPONSE_DURATION RESPONSE_TX_DURATION
COMMON_DURATION REQUEST_TX_DURATION BYTES_RECEIVED BYTES_SENT UPSTREAM_WIRE_BYTES_SENT UPSTREAM_WIRE_BYTES_RECEIVED
UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DOWNSTREAM_WIRE_BYTES_RECEIVED
DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_HOST UPSTREAM_HOST_NAME
UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_REMOTE_ADDRESS
UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT
UPSTREAM_LOCAL_PORT UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_CONNECTION_ID UPSTREAM_PROTOCOL UPSTREAM_METADATA
UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TLS_VERSION UPSTREAM_TLS_CIPHER UPSTREAM_PEER_URI_SAN UPSTREAM_PEER_SUBJECT
UPSTREAM_LOCAL_URI_SAN DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT
DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_PORT
DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT DOWNSTREAM_PEER_URI_SAN
DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_LOCAL_DNS_SAN
DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_FINGERPRINT_1
DOWNSTREAM_PEER_CERT DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_CIPHER
DOWNSTREAM_TRANSPORT_FAILURE_REASON REQUESTED_SERVER_NAME CONNECTION_ID CONNECTION_TERMINATION_DETAILS STREAM_ID UNIQUE_ID
ROUTE_NAME VIRTUAL_CLUSTER_NAME VIRTUAL_HOST_NAME FILTER_CHAIN_NAME DYNAMIC_METADATA CLUSTER_METADATA METADATA FILTER_STATE
UPSTREAM_FILTER_STATE HOSTNAME ENVIRONMENT GRPC_STATUS GRPC_STATUS_NUMBER TRACE_ID QUERY_PARAM QUERY_PARAMS PATH
REQUEST_HEADERS_BYTES RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES LOCAL_REPLY_BODY ACCESS_LOG_TYPE CEL
`)

// piece is a literal, or an operator with its argument and greatest length.
type piece struct {
	text     string // the literal, if operator is ""
	operator string
	arg, alt string // alt is the second choice of REQ and RESP
	max      int    // -1: any
	show     show   // what of arg may be shown, showAlt of alt
	showAlt  show
}

// show says what of a value people may see.
type show uint8

const (
	showAll   show = iota
	showURL        // a URL without secrets
	showPlain      // what is no token
	showNone       // that it is there
)

func (h show) of(v string) string {
	switch h {
	case showURL:
		return secret.URL(v)
	case showPlain:
		return secret.Value(v)
	case showNone:
		return secret.Hidden
	}
	return v
}

// showHeader is what may be shown of a header. The usual ones are not searched for tokens.
func showHeader(name string) show {
	switch {
	case secret.Named(name):
		return showNone
	case secret.IsURL(name):
		return showURL
	case strings.HasPrefix(name, ":"), name == "user-agent", name == "x-request-id", strings.HasPrefix(name, "x-forwarded-"), strings.HasPrefix(name, "x-envoy-"):
		return showAll
	}
	return showPlain
}

// Format is a compiled format string. It is immutable.
type Format struct {
	pieces []piece
}

// CompileFormat compiles one of Envoy's format strings: %OPERATOR(argument):length% with literals between, and %% for a
// percent sign. An unknown operator is an error, as it is in Envoy.
func CompileFormat(s string) (*Format, error) {
	f := &Format{}
	lit := func(t string) {
		if n := len(f.pieces); n > 0 && f.pieces[n-1].operator == "" {
			f.pieces[n-1].text += t
		} else if t != "" {
			f.pieces = append(f.pieces, piece{text: t})
		}
	}
	for rest := s; rest != ""; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			lit(rest)
			break
		}
		lit(rest[:i])
		rest = rest[i+1:]
		if strings.HasPrefix(rest, "%") {
			lit("%")
			rest = rest[1:]
			continue
		}
		p, n, err := parseOperator(rest)
		if err != nil {
			return nil, fmt.Errorf("position %d of %q: %w", len(s)-len(rest), s, err)
		}
		f.pieces = append(f.pieces, p)
		rest = rest[n:]
	}
	return f, nil
}

// CompileShown compiles a format string for what people and collectors get to see: secrets (package secret) are not in it,
// also where the format asks for them.
func CompileShown(s string) (*Format, error) {
	f, err := CompileFormat(s)
	if err != nil {
		return nil, err
	}
	for i := range f.pieces {
		p := &f.pieces[i]
		switch p.operator {
		case "REQ", "RESP", "TRAILER", "REQUEST_HEADER", "RESPONSE_HEADER", "REQ_WITHOUT_QUERY":
			p.show, p.showAlt = showHeader(p.arg), showHeader(p.alt)
		case "PATH":
			p.show = showURL
		case "QUERY_PARAM", "ENVIRONMENT":
			if p.show = showPlain; secret.Named(p.arg) {
				p.show = showNone
			}
		}
	}
	return f, nil
}

// parseOperator reads an operator, whose opening percent sign is gone, and how long it is with the closing one.
func parseOperator(s string) (piece, int, error) {
	n := 0
	for n < len(s) && (s[n] == '_' || 'A' <= s[n] && s[n] <= 'Z' || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	p := piece{operator: s[:n], max: -1}
	if !knownOperators[p.operator] {
		return p, 0, fmt.Errorf("unknown operator %q", p.operator)
	}
	if n < len(s) && s[n] == '(' {
		end := closing(s[n:])
		if end < 0 {
			return p, 0, fmt.Errorf("%s: no closing parenthesis", p.operator)
		}
		p.arg = s[n+1 : n+end]
		n += end + 1
	}
	if n < len(s) && s[n] == ':' {
		d := n + 1
		for d < len(s) && '0' <= s[d] && s[d] <= '9' {
			d++
		}
		max, err := strconv.Atoi(s[n+1 : d])
		if err != nil {
			return p, 0, fmt.Errorf("%s: malformed length", p.operator)
		}
		p.max, n = max, d
	}
	if n >= len(s) || s[n] != '%' {
		return p, 0, fmt.Errorf("%s: no closing %%", p.operator)
	}
	switch p.operator {
	case "REQ", "RESP", "TRAILER", "REQUEST_HEADER", "RESPONSE_HEADER", "REQ_WITHOUT_QUERY":
		p.arg, p.alt, _ = strings.Cut(lower(p.arg), "?")
		if p.arg == "" {
			return p, 0, fmt.Errorf("%s: no header name", p.operator)
		}
	}
	return p, n + 1, nil
}

// closing finds the parenthesis that ends an argument: the one that the end of the operator follows.
func closing(s string) int {
	for i := range len(s) {
		if s[i] != ')' {
			continue
		}
		j := i + 1
		if j < len(s) && s[j] == ':' {
			for j++; j < len(s) && '0' <= s[j] && s[j] <= '9'; j++ {
			}
		}
		if j < len(s) && s[j] == '%' {
			return i
		}
	}
	return -1
}

// Literal is the text of a format without operators.
func (f *Format) Literal() (string, bool) {
	switch {
	case len(f.pieces) == 0:
		return "", true
	case len(f.pieces) == 1 && f.pieces[0].operator == "":
		return f.pieces[0].text, true
	}
	return "", false
}

// Append appends the formatted text; missing stands for values that are not there.
func (f *Format) Append(dst []byte, c *Context, missing string) []byte {
	return f.append(dst, c, missing, false, math.MaxInt)
}

// AppendCut is Append with values of at most most bytes.
func (f *Format) AppendCut(dst []byte, c *Context, missing string, most int) []byte {
	return f.append(dst, c, missing, false, most)
}

// AppendEscaped is AppendCut for a line of a log: no value can end a quoted field or the line. As in nginx's logs quotes,
// backslashes, control characters and all that is not ASCII become \xXX in values.
func (f *Format) AppendEscaped(dst []byte, c *Context, missing string, most int) []byte {
	return f.append(dst, c, missing, true, most)
}

func (f *Format) append(dst []byte, c *Context, missing string, escaped bool, most int) []byte {
	for i := range f.pieces {
		p := &f.pieces[i]
		if p.operator == "" {
			dst = append(dst, p.text...)
			continue
		}
		at := len(dst)
		var ok bool
		if dst, ok = c.value(dst, p); !ok {
			dst = append(dst[:at], missing...)
			continue
		}
		if p.max >= 0 && len(dst)-at > p.max {
			dst = dst[:at+p.max]
		}
		if escaped {
			dst = escape(dst, at)
		}
		if len(dst)-at > most {
			dst = dst[:at+most]
			if i := bytes.LastIndexByte(dst[max(at, len(dst)-3):], '\\'); escaped && i >= 0 { // no part of an escape
				dst = dst[:max(at, len(dst)-3)+i]
			}
		}
	}
	return dst
}

// escape rewrites the value that begins at at.
func escape(b []byte, at int) []byte {
	clean := at
	for clean < len(b) && !special(b[clean]) {
		clean++
	}
	if clean == len(b) {
		return b
	}
	value := string(b[clean:])
	b = b[:clean]
	for i := range len(value) {
		c := value[i]
		if !special(c) {
			b = append(b, c)
			continue
		}
		b = append(b, `\x`...)
		b = append(b, "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
	}
	return b
}

func special(c byte) bool { return c < 0x20 || c >= 0x7f || c == '"' || c == '\\' }

func (c *Context) value(dst []byte, p *piece) ([]byte, bool) {
	switch p.operator {
	case "REQ", "REQUEST_HEADER", "REQ_WITHOUT_QUERY":
		if c.Req == nil {
			return dst, false
		}
		show := p.show
		v, ok := RequestHeader(c.Req, p.arg)
		if !ok && p.alt != "" {
			show = p.showAlt
			v, ok = RequestHeader(c.Req, p.alt)
		}
		if p.operator == "REQ_WITHOUT_QUERY" {
			v, _, _ = strings.Cut(v, "?")
		}
		return append(dst, show.of(v)...), ok
	case "RESP", "RESPONSE_HEADER":
		if c.Resp == nil {
			return dst, false
		}
		show := p.show
		v, ok := ResponseHeader(c.Resp, p.arg)
		if !ok && p.alt != "" {
			show = p.showAlt
			v, ok = ResponseHeader(c.Resp, p.alt)
		}
		return append(dst, show.of(v)...), ok
	case "PROTOCOL":
		if c.Req != nil {
			return append(dst, c.Req.Proto.String()...), true
		}
		return dst, false
	case "RESPONSE_CODE":
		if c.Resp != nil {
			return strconv.AppendInt(dst, int64(c.Resp.Status), 10), true
		}
		return append(dst, '0'), true
	}
	if c.Values == nil {
		return dst, false
	}
	// Not into dst: what is handed to an interface cannot stay on the stack.
	v, ok := c.Values.AppendValue(c.space[:0], p.operator, p.arg)
	c.space = v[:0]
	if p.show != showAll && ok {
		return append(dst, p.show.of(string(v))...), true
	}
	return append(dst, v...), ok
}
