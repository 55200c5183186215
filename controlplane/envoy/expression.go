package envoy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Expressions of Telemetry are CEL. A client refuses one that it cannot read, and the listener with it, so they are read
// here before: by the grammar and with the names that both Envoy and our waypoint know.

// attributes are the names of values; those that end in a dot have parts.
var attributes = strings.Fields(`request.path request.url_path request.host request.scheme request.method request.protocol request.id
	request.referer request.useragent request.query request.size request.total_size request.duration request.headers.
	response.code response.code_details response.flags response.grpc_status response.size response.total_size response.headers.
	source.address source.port source.principal destination.address destination.port
	connection.mtls connection.requested_server_name connection.uri_san_peer_certificate
	upstream.address upstream.transport_failure_reason xds.cluster_name xds.route_name xds.virtual_host_name
	filter_state.downstream_peer. filter_state.upstream_peer. downstream_peer. upstream_peer.`)

var (
	functions = []string{"has", "string", "int", "double", "duration", "size"}
	methods   = []string{"size", "startsWith", "endsWith", "contains", "matches"}
	operators = []string{"||", "&&", "==", "!=", "<", "<=", ">", ">=", "in", "+", "-"}
)

// token is one of an expression: a string, a number, a name, an operator, or nothing that is known.
var token = regexp.MustCompile(`^[ \t\r\n]*(?:("(?:[^"\\]|\\[nt\\'"` + "`" + `?])*"|'(?:[^'\\]|\\[nt\\'"` + "`" + `?])*')|([0-9]+(?:\.[0-9]+)?)|([A-Za-z_][A-Za-z_0-9]*)|(==|!=|<=|>=|&&|\|\||[-+<>!?:.,()\[\]]))`)

const (
	longestExpression = 4096
	deepestExpression = 60
)

// expression reads one.
type expression struct {
	rest string
	tok  string
	kind int // 1 string, 2 number, 3 name, 4 operator, 0 end
	deep int
}

// expressionFlaw says what is wrong with an expression, nil when nothing is.
func expressionFlaw(s string) error {
	if len(s) > longestExpression {
		return fmt.Errorf("the expression has %d characters, at most %d are read", len(s), longestExpression)
	}
	e := &expression{rest: s}
	err := e.next()
	if err == nil {
		err = e.whole()
	}
	if err == nil && e.kind != 0 {
		err = fmt.Errorf("unexpected %q", e.tok)
	}
	if err != nil {
		return fmt.Errorf("expression %q: %w", s, err)
	}
	return nil
}

func (e *expression) next() error {
	e.kind, e.tok = 0, ""
	m := token.FindStringSubmatch(e.rest)
	if m == nil {
		if left := strings.TrimLeft(e.rest, " \t\r\n"); left != "" {
			return fmt.Errorf("cannot read %q", left)
		}
		return nil
	}
	e.rest = e.rest[len(m[0]):]
	for i := 1; i < len(m); i++ {
		if m[i] != "" {
			e.kind, e.tok = i, m[i]
		}
	}
	return nil
}

func (e *expression) is(tok string) bool { return e.kind >= 3 && e.tok == tok }

func (e *expression) expect(tok string) error {
	if !e.is(tok) {
		return fmt.Errorf("%q instead of %q", e.tok, tok)
	}
	return e.next()
}

// whole reads a condition with its alternatives, or a value.
func (e *expression) whole() error {
	if e.deep++; e.deep > deepestExpression {
		return errors.New("nested too deep")
	}
	defer func() { e.deep-- }()
	for n := 0; ; n++ {
		if n > deepestExpression {
			return errors.New("too many operators")
		}
		for e.is("!") || e.is("-") {
			if e.deep++; e.deep > deepestExpression {
				return errors.New("nested too deep")
			}
			defer func() { e.deep-- }()
			if err := e.next(); err != nil {
				return err
			}
		}
		if err := e.value(); err != nil {
			return err
		}
		if e.kind < 3 || !slices.Contains(operators, e.tok) {
			break
		}
		if err := e.next(); err != nil {
			return err
		}
	}
	if !e.is("?") {
		return nil
	}
	for _, tok := range []string{"?", ":"} {
		if err := e.expect(tok); err != nil {
			return err
		}
		if err := e.whole(); err != nil {
			return err
		}
	}
	return nil
}

// value reads a value and the methods that are called on it.
func (e *expression) value() error {
	err := e.primary()
	for err == nil && e.is(".") {
		if err = e.next(); err != nil {
			return err
		}
		name := e.tok
		if !slices.Contains(methods, name) {
			return fmt.Errorf("unknown method %q; known are %s", name, strings.Join(methods, ", "))
		}
		if err = e.next(); err != nil {
			return err
		}
		if err = e.expect("("); err != nil {
			return err
		}
		if name != "size" {
			if err = e.argument(name); err != nil {
				return err
			}
		}
		err = e.expect(")")
	}
	return err
}

func (e *expression) argument(method string) error {
	if method == "matches" {
		if e.kind != 1 {
			return errors.New("matches: the pattern has to be a string")
		}
		if _, err := regexp.Compile(strings.NewReplacer(`\\`, `\`, `\'`, `'`, `\"`, `"`).Replace(e.tok[1 : len(e.tok)-1])); err != nil {
			return err
		}
	}
	return e.whole()
}

func (e *expression) primary() error {
	switch {
	case e.kind == 1:
		return e.next()
	case e.kind == 2:
		if _, err := strconv.ParseFloat(e.tok, 64); err != nil {
			return err
		}
		if _, err := strconv.ParseInt(e.tok, 10, 64); err != nil && !strings.Contains(e.tok, ".") {
			return err
		}
		return e.next()
	case e.is("("):
		return e.enclosed(")")
	case e.is("["):
		if err := e.next(); err != nil {
			return err
		}
		for n := 0; !e.is("]"); n++ {
			if n > 0 {
				if err := e.expect(","); err != nil {
					return err
				}
			}
			if err := e.whole(); err != nil {
				return err
			}
		}
		return e.next()
	case e.kind == 0:
		return errors.New("unexpected end")
	case e.kind != 3:
		return fmt.Errorf("unexpected %q", e.tok)
	}
	name := e.tok
	if err := e.next(); err != nil || name == "true" || name == "false" {
		return err
	}
	if e.is("(") {
		if !slices.Contains(functions, name) {
			return fmt.Errorf("unknown function %q; known are %s", name, strings.Join(functions, ", "))
		}
		return e.enclosed(")")
	}
	return e.attribute(name)
}

// enclosed reads an expression up to what closes it; the opening token is the current one.
func (e *expression) enclosed(end string) error {
	if err := e.next(); err != nil {
		return err
	}
	if err := e.whole(); err != nil {
		return err
	}
	return e.expect(end)
}

// attribute reads the rest of a name.
func (e *expression) attribute(name string) error {
	for !slices.Contains(attributes, name) {
		parts := slices.Contains(attributes, name+".")
		part := ""
		switch {
		case e.is("."):
			if err := e.next(); err != nil {
				return err
			}
			if part = e.tok; e.kind != 3 {
				return fmt.Errorf("no name behind %q", name)
			}
			if err := e.next(); err != nil {
				return err
			}
		case e.is("["):
			if err := e.next(); err != nil {
				return err
			}
			if part = e.tok; e.kind != 1 {
				return fmt.Errorf("the key of %q has to be a string", name)
			}
			if err := e.next(); err != nil {
				return err
			}
			if err := e.expect("]"); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown attribute %q; known are %s", name, strings.TrimSuffix(strings.ReplaceAll(strings.Join(attributes, ", ")+",", ".,", "[],"), ","))
		}
		if parts {
			return nil
		}
		if name += "." + strings.Trim(part, `"'`); len(name) > 64 {
			return fmt.Errorf("unknown attribute %q", name)
		}
	}
	return nil
}
