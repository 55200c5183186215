package route

import (
	"bytes"
	"math"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/format"
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

// piece is a part of a format with what of its value may be shown.
type piece struct {
	format.Piece
	show, showAlt show // of Arg, and of Alt
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

// CompileFormat compiles one of Envoy's format strings (package format).
func CompileFormat(s string) (*Format, error) {
	pieces, err := format.Parse(s)
	if err != nil {
		return nil, err
	}
	f := &Format{pieces: make([]piece, len(pieces))}
	for i := range pieces {
		f.pieces[i].Piece = pieces[i]
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
		switch p.Operator {
		case "REQ", "RESP", "TRAILER", "REQUEST_HEADER", "RESPONSE_HEADER", "REQ_WITHOUT_QUERY":
			p.show, p.showAlt = showHeader(p.Arg), showHeader(p.Alt)
		case "PATH":
			p.show = showURL
		case "QUERY_PARAM", "ENVIRONMENT":
			if p.show = showPlain; secret.Named(p.Arg) {
				p.show = showNone
			}
		}
	}
	return f, nil
}

// Literal is the text of a format without operators.
func (f *Format) Literal() (string, bool) {
	switch {
	case len(f.pieces) == 0:
		return "", true
	case len(f.pieces) == 1 && f.pieces[0].Operator == "":
		return f.pieces[0].Text, true
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
		if p.Operator == "" {
			dst = append(dst, p.Text...)
			continue
		}
		at := len(dst)
		var ok bool
		if dst, ok = c.value(dst, p); !ok {
			dst = append(dst[:at], missing...)
			continue
		}
		if p.Max >= 0 && len(dst)-at > p.Max {
			dst = dst[:at+p.Max]
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
	switch p.Operator {
	case "REQ", "REQUEST_HEADER", "REQ_WITHOUT_QUERY":
		if c.Req == nil {
			return dst, false
		}
		show := p.show
		v, ok := RequestHeader(c.Req, p.Arg)
		if !ok && p.Alt != "" {
			show = p.showAlt
			v, ok = RequestHeader(c.Req, p.Alt)
		}
		if p.Operator == "REQ_WITHOUT_QUERY" {
			v, _, _ = strings.Cut(v, "?")
		}
		return append(dst, show.of(v)...), ok
	case "RESP", "RESPONSE_HEADER":
		if c.Resp == nil {
			return dst, false
		}
		show := p.show
		v, ok := ResponseHeader(c.Resp, p.Arg)
		if !ok && p.Alt != "" {
			show = p.showAlt
			v, ok = ResponseHeader(c.Resp, p.Alt)
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
	v, ok := c.Values.AppendValue(c.space[:0], p.Operator, p.Arg)
	c.space = v[:0]
	if p.show != showAll && ok {
		return append(dst, p.show.of(string(v))...), true
	}
	return append(dst, v...), ok
}
