package message

// Classes of octets.
const (
	classToken     = 1 << iota // RFC 9110 section 5.6.2
	classValue                 // field-vchar, SP, HTAB, obs-text (RFC 9110 section 5.5)
	classTarget                // visible ASCII without "#" and blanks: what may stand in a request target
	classAuthority             // of reg-name, IP literal and port (RFC 3986 section 3.2), without userinfo
	classUpper
	classHost // of the names and addresses that are usual
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		digit := '0' <= c && c <= '9'
		if letter || digit || contains("!#$%&'*+-.^_`|~", c) {
			t[c] |= classToken
		}
		if c >= 0x20 && c != 0x7f || c == '\t' {
			t[c] |= classValue
		}
		if c > 0x20 && c < 0x7f && c != '#' {
			t[c] |= classTarget
		}
		if letter || digit || contains("-._~!$&'()*+,;=%:[]", c) {
			t[c] |= classAuthority
		}
		if 'A' <= c && c <= 'Z' {
			t[c] |= classUpper
		}
		if letter || digit || contains("-._", c) {
			t[c] |= classHost
		}
	}
	return t
}()

func contains(s string, c int) bool {
	for i := range len(s) {
		if int(s[i]) == c {
			return true
		}
	}
	return false
}

func all(s string, class uint8) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// Token says that s is a token (RFC 9110 section 5.6.2): a method, a field's name.
func Token(s string) bool { return s != "" && all(s, classToken) }

// LowerToken says that s is a token without capital letters, as field names of HTTP/2 must be.
func LowerToken(s string) bool {
	for i := range len(s) {
		if classes[s[i]]&(classToken|classUpper) != classToken {
			return false
		}
	}
	return s != ""
}

// Value says that s is a field value: no control characters, no blank at either end (RFC 9110 section 5.5).
func Value(s string) bool {
	if s == "" {
		return true
	}
	return all(s, classValue) && !blank(s[0]) && !blank(s[len(s)-1])
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// PathAndQuery says that s is a path, with or without a query, that one can send on: absolute, visible ASCII, no fragment.
func PathAndQuery(s string) bool { return s != "" && s[0] == '/' && all(s, classTarget) }

// Authority says that s is a host with or without a port: no userinfo, no blank, brackets and colons where they belong.
// Whether the host exists is not its concern.
func Authority(s string) bool {
	i := 0
	for i < len(s) && classes[s[i]]&classHost != 0 {
		i++
	}
	switch {
	case i == len(s):
		return i > 0
	case i > 0 && s[i] == ':':
		return len(s)-i <= 6 && digits(s[i+1:])
	}
	return unusual(s)
}

// unusual is Authority for IPv6 addresses and for names with octets that are rare.
func unusual(s string) bool {
	if s == "" || !all(s, classAuthority) {
		return false
	}
	host, port := s, ""
	if s[0] == '[' {
		end := index(s, ']')
		if end < 3 {
			return false
		}
		if !literal(s[1:end]) {
			return false
		}
		host, port = "", s[end+1:]
		if port != "" && port[0] != ':' {
			return false
		}
		if port != "" {
			port = port[1:]
		}
	} else if i := index(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
		if host == "" {
			return false
		}
	}
	if index(host, '[') >= 0 || index(host, ']') >= 0 || !escapes(host) {
		return false
	}
	return len(port) <= 5 && digits(port)
}

// literal says that s looks like an IPv6 address: its zone, if it had one, has no place in an HTTP message.
func literal(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if !('0' <= s[i] && s[i] <= '9' || 'a' <= c && c <= 'f' || s[i] == ':' || s[i] == '.') {
			return false
		}
	}
	return true
}

// escapes says that every "%" is followed by two hexadecimal digits.
func escapes(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		if i+2 >= len(s) || !hex(s[i+1]) || !hex(s[i+2]) {
			return false
		}
		i += 2
	}
	return true
}

func hex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func index(s string, c byte) int {
	for i := range len(s) {
		if s[i] == c {
			return i
		}
	}
	return -1
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// Method says that s is a method that one can send on: a token, and not a standard method in other letters. Methods are
// case-sensitive, but not everyone behind us may know.
func Method(s string) bool {
	if !Token(s) {
		return false
	}
	lower := false
	for i := range len(s) {
		lower = lower || 'a' <= s[i] && s[i] <= 'z'
	}
	if !lower {
		return true
	}
	for _, m := range [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"} {
		if EqualFold(s, m) {
			return false
		}
	}
	return true
}

// EqualFold compares ASCII strings without regard to case.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// Length parses a Content-Length: digits only, no list (RFC 9110 section 8.6), at most 2^62.
func Length(s string) (int64, bool) {
	if s == "" || len(s) > 19 || !digits(s) {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if n > (1<<62)/10 {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, n <= 1<<62
}

// ConnectionField says that a field of this name speaks of the connection and not of the message (RFC 9110 section 7.6.1).
func ConnectionField(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return false
}
