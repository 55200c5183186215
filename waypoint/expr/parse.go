package expr

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parser reads an expression token by token.
type parser struct {
	in     string
	at     int    // behind tok
	tok    string // "" at the end
	quoted bool   // tok is a string literal's text
	depth  int
	bad    error // of a token
}

func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

// next reads the next token.
func (p *parser) next() {
	p.tok, p.quoted = "", false
	for p.at < len(p.in) && strings.IndexByte(" \t\r\n", p.in[p.at]) >= 0 {
		p.at++
	}
	if p.at == len(p.in) {
		return
	}
	from, c := p.at, p.in[p.at]
	switch {
	case c == '"' || c == '\'':
		p.str(c)
		return
	case letter(c):
		for p.at < len(p.in) && (letter(p.in[p.at]) || digit(p.in[p.at])) {
			p.at++
		}
	case digit(c):
		for p.at < len(p.in) && (digit(p.in[p.at]) || p.in[p.at] == '.' && p.at+1 < len(p.in) && digit(p.in[p.at+1])) {
			p.at++
		}
	default:
		p.at++
		if p.at < len(p.in) {
			switch p.in[from : p.at+1] {
			case "==", "!=", "<=", ">=", "&&", "||":
				p.at++
			}
		}
	}
	p.tok = p.in[from:p.at]
}

// str reads a string literal.
func (p *parser) str(quote byte) {
	p.quoted = true
	var b strings.Builder
	for p.at++; p.at < len(p.in); p.at++ {
		c := p.in[p.at]
		switch {
		case c == quote:
			p.at++
			p.tok = b.String()
			return
		case c == '\\' && p.at+1 < len(p.in):
			p.at++
			switch e := p.in[p.at]; e {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case '\\', '\'', '"', '`', '?':
				b.WriteByte(e)
			default:
				p.fail(fmt.Errorf("unknown escape \\%c", e))
			}
		default:
			b.WriteByte(c)
		}
	}
	p.fail(errors.New("string without end"))
}

func (p *parser) fail(err error) {
	if p.bad == nil {
		p.bad = err
	}
}

func (p *parser) expect(tok string) error {
	if p.quoted || p.tok != tok {
		return fmt.Errorf("%q instead of %q", p.tok, tok)
	}
	p.next()
	return nil
}

func constant(v Value) node { return func(*Env) Value { return v } }

func (p *parser) primary() (node, error) {
	tok := p.tok
	switch {
	case p.quoted:
		p.next()
		return constant(text(tok)), nil
	case tok == "":
		return nil, errors.New("unexpected end")
	case digit(tok[0]):
		p.next()
		if strings.Contains(tok, ".") {
			f, err := strconv.ParseFloat(tok, 64)
			return constant(Value{Kind: Double, f: f}), err
		}
		n, err := strconv.ParseInt(tok, 10, 64)
		return constant(number(n)), err
	case tok == "(":
		p.next()
		n, err := p.ternary()
		if err != nil {
			return nil, err
		}
		return n, p.expect(")")
	case tok == "[":
		p.next()
		return p.list()
	case !letter(tok[0]):
		return nil, fmt.Errorf("unexpected %q", tok)
	}
	p.next()
	switch {
	case tok == "true" || tok == "false":
		return constant(boolean(tok == "true")), nil
	case p.tok == "(" && !p.quoted:
		p.next()
		return p.function(tok)
	}
	return p.attribute(tok)
}

// list reads a list, whose opening bracket is gone.
func (p *parser) list() (node, error) {
	var of []node
	for p.quoted || p.tok != "]" {
		if len(of) > 0 {
			if err := p.expect(","); err != nil {
				return nil, err
			}
		}
		n, err := p.ternary()
		if err != nil {
			return nil, err
		}
		of = append(of, n)
	}
	p.next()
	return func(e *Env) Value {
		v := Value{Kind: list, list: make([]Value, len(of))}
		for i, n := range of {
			v.list[i] = n(e)
		}
		return v
	}, nil
}

// function compiles the call of a function, whose opening parenthesis is gone.
func (p *parser) function(name string) (node, error) {
	arg, err := p.ternary()
	if err == nil {
		err = p.expect(")")
	}
	if err != nil {
		return nil, err
	}
	var f func(Value) Value
	switch name {
	case "has":
		f = func(v Value) Value { return boolean(v.Kind != Missing) }
	case "string":
		f = func(v Value) Value {
			if v.Kind == Missing || v.Kind == list {
				return Value{}
			}
			return text(v.String())
		}
	case "int":
		f = func(v Value) Value {
			switch v.Kind {
			case Int:
				return v
			case Double:
				return number(int64(v.f))
			case Text:
				if n, err := strconv.ParseInt(v.s, 10, 64); err == nil {
					return number(n)
				}
			}
			return Value{}
		}
	case "double":
		f = func(v Value) Value {
			if f, err := strconv.ParseFloat(v.String(), 64); err == nil {
				return Value{Kind: Double, f: f}
			}
			return Value{}
		}
	case "duration":
		f = func(v Value) Value {
			if d, err := time.ParseDuration(v.s); err == nil && v.Kind == Text {
				return Value{Kind: Duration, i: int64(d)}
			}
			return Value{}
		}
	case "size":
		f = size
	default:
		return nil, fmt.Errorf("unknown function %q", name)
	}
	return func(e *Env) Value { return f(arg(e)) }, nil
}

// attribute reads the rest of an attribute's name. Behind a name that is one in whole, a dot begins a method.
func (p *parser) attribute(name string) (node, error) {
	for {
		if f, ok := plain[name]; ok {
			return node(f), nil
		}
		keyed := keyed[name]
		var part string
		switch {
		case p.quoted:
			return nil, fmt.Errorf("unknown attribute %q", name)
		case p.tok == ".":
			p.next()
			part = p.tok
			if p.quoted || part == "" || !letter(part[0]) {
				return nil, fmt.Errorf("no name behind %q", name)
			}
			p.next()
		case p.tok == "[":
			p.next()
			part = p.tok
			if !p.quoted {
				return nil, fmt.Errorf("the key of %q has to be a string", name)
			}
			p.next()
			if err := p.expect("]"); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("unknown attribute %q; known are %s", name, strings.Join(Attributes(), ", "))
		}
		if keyed != nil {
			return func(e *Env) Value { return keyed(e, part) }, nil
		}
		if name += "." + part; len(name) > 64 {
			return nil, fmt.Errorf("unknown attribute %q", name)
		}
	}
}
