package route

import (
	"strings"
)

// EscapedSlashes says what is done with a path in which a slash or backslash is escaped.
type EscapedSlashes uint8

// The ways to treat escaped slashes.
const (
	KeepEscaped EscapedSlashes = iota
	RejectEscaped
	UnescapeAndRedirect
	UnescapeAndForward
)

// PathVerdict is what is done with a request because of its path.
type PathVerdict uint8

// The verdicts.
const (
	// PathGood: on with the path as it is now.
	PathGood PathVerdict = iota
	// PathBad: 400.
	PathBad
	// PathRedirect: 307 to the path as it is now.
	PathRedirect
)

// PathPolicy says how paths are made canonical before anything looks at them.
type PathPolicy struct {
	Normalize    bool
	MergeSlashes bool
	Escaped      EscapedSlashes
}

// Apply makes a path (with query) canonical. It allocates only if something changes.
func (p PathPolicy) Apply(path string) (string, PathVerdict) {
	if strings.IndexByte(path, '#') >= 0 {
		return path, PathBad // as Envoy: a fragment has no place in a request
	}
	if path == "" || path[0] != '/' {
		return path, PathGood // "*", or an ordinary CONNECT
	}
	verdict := PathGood
	if p.Escaped != KeepEscaped {
		if s, changed := unescapeSlashes(path); changed {
			switch p.Escaped {
			case RejectEscaped:
				return path, PathBad
			case UnescapeAndRedirect:
				verdict = PathRedirect
			}
			path = s
		}
	}
	if p.Normalize {
		var ok bool
		if path, ok = NormalizePath(path); !ok {
			return path, PathBad
		}
	}
	if p.MergeSlashes {
		path = mergeSlashes(path)
	}
	return path, verdict
}

// split cuts a path before its query.
func split(path string) (string, string) {
	if i := strings.IndexByte(path, '?'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// bare is a path without query and fragment.
func bare(path string) string {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		return path[:i]
	}
	return path
}

// NormalizePath does what Envoy's normalize_path does (RFC 3986 6.2.2, with the rules of the WHATWG URL standard): dot
// segments are resolved, escaped or not; a backslash is a slash; escaped unreserved characters are unescaped; characters
// that must be escaped are. Double slashes and the query stay. It is false for a path that is not absolute or has a NUL,
// escaped or not. What comes out stays as it is when it is done again; Envoy's need not, where a dot with parameters or a
// percent sign before an escape was escaped itself. It allocates only if something changes.
func NormalizePath(path string) (string, bool) {
	p, query := split(path)
	if p == "" || p[0] != '/' {
		return path, false
	}
	if isNormal(p) {
		return path, true
	}
	b := make([]byte, 0, len(p)+16)
	b = append(b, '/')
	for i := 1; i < len(p); {
		// at the beginning of a segment or within one
		if n := dot(p[i:]); n > 0 {
			if b[len(b)-1] == '/' {
				if m, up, ok := dotSegment(p[i:]); ok {
					if up {
						b = parent(b)
					}
					i += m
					continue
				}
			}
			b = append(b, '.')
			i += n
			continue
		}
		c := p[i]
		switch {
		case c == 0:
			return path, false
		case c == '\\':
			b = append(b, '/')
		case c == '%' && i+2 < len(p) && isHex(p[i+1]) && isHex(p[i+2]):
			v := unhex(p[i+1])<<4 | unhex(p[i+2])
			if v == 0 {
				return path, false
			}
			if unreserved(v) && !completes(b, v) {
				b = append(b, v)
			} else {
				b = append(b, p[i:i+3]...)
			}
			i += 2
		case mustEscape(c):
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		default:
			b = append(b, c)
		}
		i++
	}
	return string(b) + query, true
}

const upperHex = "0123456789ABCDEF"

// isNormal says that normalizing would change nothing, with some false negatives.
func isNormal(p string) bool {
	for i := range len(p) {
		switch c := p[i]; {
		case c == '%' || c == '\\' || mustEscape(c):
			return false
		case c == '.' && p[i-1] == '/': // p begins with a slash
			return false
		}
	}
	return true
}

// dot is the length of a dot, escaped or not, at the beginning of s, or 0.
func dot(s string) int {
	if s[0] == '.' {
		return 1
	}
	if len(s) >= 3 && s[0] == '%' && s[1] == '2' && (s[2] == 'e' || s[2] == 'E') {
		return 3
	}
	return 0
}

// dotSegment recognises "." and "..", with parameters and the slash behind them, at the beginning of s.
func dotSegment(s string) (n int, up, ok bool) {
	n = dot(s)
	if n < len(s) {
		if m := dot(s[n:]); m > 0 {
			up = true
			n += m
		}
	}
	switch {
	case n == len(s):
		return n, up, true
	case s[n] == '/' || s[n] == '\\':
		return n + 1, up, true
	case s[n] == ';': // some servers take ..;x as .. with parameters
		if i := strings.IndexByte(s[n:], '/'); i >= 0 {
			return n + i + 1, up, true
		}
		return len(s), up, true
	}
	return 0, false, false
}

// parent drops the last segment of b, which ends with a slash.
func parent(b []byte) []byte {
	i := len(b) - 1
	if i == 0 {
		return b
	}
	for i--; b[i] != '/'; i-- {
	}
	return b[:i+1]
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '~'
}

func mustEscape(c byte) bool {
	return c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>^`{|}", c) >= 0
}

// completes says that b, with v behind it, would end in an escape that was not there: what comes out has to be normal.
func completes(b []byte, v byte) bool {
	n := len(b)
	return isHex(v) && (b[n-1] == '%' || n >= 2 && b[n-2] == '%' && isHex(b[n-1]))
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// mergeSlashes makes one slash of several in a row, not in the query.
func mergeSlashes(path string) string {
	p, query := split(path)
	if !strings.Contains(p, "//") {
		return path
	}
	b := make([]byte, 0, len(path))
	for i := range len(p) {
		if p[i] == '/' && i > 0 && p[i-1] == '/' {
			continue
		}
		b = append(b, p[i])
	}
	return string(append(b, query...))
}

// unescapeSlashes undoes the escaping of slashes and backslashes, not in the query.
func unescapeSlashes(path string) (string, bool) {
	p, query := split(path)
	var b []byte
	last := 0
	for i := 0; i+2 < len(p); i++ {
		if p[i] != '%' {
			continue
		}
		var c byte
		switch {
		case p[i+1] == '2' && (p[i+2] == 'f' || p[i+2] == 'F'):
			c = '/'
		case p[i+1] == '5' && (p[i+2] == 'c' || p[i+2] == 'C'):
			c = '\\'
		default:
			continue
		}
		b = append(append(b, p[last:i]...), c)
		last = i + 3
	}
	if last == 0 {
		return path, false
	}
	return string(append(append(b, p[last:]...), query...)), true
}
