package forward

import (
	"bytes"
	"strings"
)

// maxHello is how long a ClientHello may be, in bytes.
const maxHello = 16 << 10

// hello reads the server name out of the beginning of a TLS connection (RFC 8446 section 4.1.2, RFC 6066 section 3). done
// is false while bytes are missing; ok is false if it is not a ClientHello. The name is lower case, and "" if there is none.
func hello(b []byte) (name string, done, ok bool) {
	var msg []byte
	for rest := b; ; {
		if len(rest) < 5 {
			return "", false, len(rest) == 0 || rest[0] == 22
		}
		n := int(rest[3])<<8 | int(rest[4])
		if rest[0] != 22 || rest[1] != 3 || n == 0 || n > 1<<14 {
			return "", true, false
		}
		body := rest[5:]
		if len(body) > n {
			body = body[:n]
		}
		if msg == nil {
			msg = body
		} else {
			msg = append(msg[:len(msg):len(msg)], body...)
		}
		if len(msg) > 0 && msg[0] != 1 {
			return "", true, false
		}
		if len(msg) >= 4 {
			size := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
			if size > maxHello {
				return "", true, false
			}
			if len(msg) >= 4+size {
				name, ok = serverNameOf(msg[4 : 4+size])
				return name, true, ok
			}
		}
		if len(rest) < 5+n {
			return "", false, true
		}
		rest = rest[5+n:]
	}
}

// cursor reads lengths and what follows them. Once something was missing, everything is.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

// vector is what follows a length of size bytes.
func (c *cursor) vector(size int) cursor {
	n := 0
	for _, x := range c.take(size) {
		n = n<<8 | int(x)
	}
	return cursor{b: c.take(n), bad: c.bad}
}

func serverNameOf(body []byte) (string, bool) {
	c := cursor{b: body}
	c.take(2 + 32) // version and random
	c.vector(1)    // session
	c.vector(2)    // cipher suites
	c.vector(1)    // compression
	if c.bad {
		return "", false
	}
	if len(c.b) == 0 {
		return "", true
	}
	name, seen := "", false
	for ext := c.vector(2); len(ext.b) > 0 || ext.bad; {
		kind := ext.take(2)
		data := ext.vector(2)
		if ext.bad {
			return "", false
		}
		if kind[0] != 0 || kind[1] != 0 {
			continue
		}
		list := data.vector(2)
		typ := list.take(1)
		host := list.vector(2)
		if seen || list.bad || typ[0] != 0 || len(host.b) == 0 || len(host.b) > 253 || len(list.b)+len(data.b) > 0 || bytes.IndexByte(host.b, 0) >= 0 {
			return "", false // also a second name: whose server might take the one that no rule has seen
		}
		name, seen = strings.ToLower(string(host.b)), true
	}
	return name, true
}
