package message

import "strings"

// Field is one header field. Name is lower case.
type Field struct{ Name, Value string }

// Header is a list of fields in the order in which they were received or added. A list is searched from its beginning:
// heads are short. The zero value is empty. Names given to its methods are lower case.
type Header struct {
	fields []Field
	arena  []byte // len is what is used; strings in earlier, smaller arenas stay valid as long as they are referred to
}

// minArena is the size of a first arena in bytes.
const minArena = 1 << 10

// maxKeptArena is the size above which an arena is not kept for the next use.
const maxKeptArena = 16 << 10

// Reset drops all fields and makes the strings of the arena invalid. Memory is kept, unless it is much.
func (h *Header) Reset() {
	clear(h.fields)
	h.fields = h.fields[:0]
	if cap(h.arena) > maxKeptArena {
		h.arena = nil
	}
	h.arena = h.arena[:0]
}

// Len is the number of fields.
func (h *Header) Len() int { return len(h.fields) }

// Fields are the fields. The slice is valid until the next change; values may be changed in place.
func (h *Header) Fields() []Field { return h.fields }

// Add appends a field. The strings are not copied: they must stay valid for as long as h is used. See Hold.
func (h *Header) Add(name, value string) { h.fields = append(h.fields, Field{name, value}) }

// Set gives the first field of the name the value and drops the others, or adds one. The strings are not copied.
func (h *Header) Set(name, value string) {
	for i := range h.fields {
		if h.fields[i].Name == name {
			h.fields[i].Value = value
			h.drop(name, i+1)
			return
		}
	}
	h.Add(name, value)
}

// Del drops all fields of the name.
func (h *Header) Del(name string) { h.drop(name, 0) }

// drop drops the fields of the name from index from on.
func (h *Header) drop(name string, from int) {
	n := from
	for i := from; i < len(h.fields); i++ {
		if h.fields[i].Name == name {
			continue
		}
		if n != i {
			h.fields[n] = h.fields[i]
		}
		n++
	}
	clear(h.fields[n:])
	h.fields = h.fields[:n]
}

// DelFunc drops the fields for which f is true.
func (h *Header) DelFunc(f func(Field) bool) {
	n := 0
	for _, x := range h.fields {
		if !f(x) {
			h.fields[n] = x
			n++
		}
	}
	clear(h.fields[n:])
	h.fields = h.fields[:n]
}

// Get is the value of the first field of the name, or "".
func (h *Header) Get(name string) string {
	v, _ := h.Lookup(name)
	return v
}

// Lookup is the value of the first field of the name, and whether there is one.
func (h *Header) Lookup(name string) (string, bool) {
	for i := range h.fields {
		if h.fields[i].Name == name {
			return h.fields[i].Value, true
		}
	}
	return "", false
}

// Has says whether there is a field of the name.
func (h *Header) Has(name string) bool {
	_, ok := h.Lookup(name)
	return ok
}

// Join is all values of the name, joined by ", ", or "". It allocates only if there are several.
func (h *Header) Join(name string) string {
	first, n, size := "", 0, 0
	for i := range h.fields {
		if f := &h.fields[i]; f.Name == name {
			if n == 0 {
				first = f.Value
			}
			n++
			size += len(f.Value) + 2
		}
	}
	if n < 2 {
		return first
	}
	var b strings.Builder
	b.Grow(size)
	for i := range h.fields {
		if f := &h.fields[i]; f.Name == name {
			if b.Len() > 0 || n == 0 {
				b.WriteString(", ")
			}
			b.WriteString(f.Value)
			n = 0
		}
	}
	return b.String()
}

// Size is the size of the list as RFC 9113 section 6.5.2 counts it: names, values and 32 bytes for each field.
func (h *Header) Size() int {
	n := 0
	for i := range h.fields {
		n += len(h.fields[i].Name) + len(h.fields[i].Value) + 32
	}
	return n
}

// Hold copies s into the arena; the result is valid until Reset.
func (h *Header) Hold(s string) string {
	if s == "" {
		return ""
	}
	b := h.grow(len(s))
	copy(b, s)
	return String(b)
}

// HoldBytes is Hold of bytes.
func (h *Header) HoldBytes(p []byte) string { return h.Hold(String(p)) }

// HoldLower is Hold with ASCII letters made lower case.
func (h *Header) HoldLower(s string) string {
	if s == "" {
		return ""
	}
	b := h.grow(len(s))
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[i] = c
	}
	return String(b)
}

// Take takes n bytes of the arena for the caller to fill and to make strings of by String. They are valid until Reset.
func (h *Header) Take(n int) []byte { return h.grow(n) }

// grow takes n bytes of the arena. A full one is replaced, not moved.
func (h *Header) grow(n int) []byte {
	at := len(h.arena)
	if cap(h.arena)-at < n {
		h.arena = make([]byte, 0, max(minArena, 2*cap(h.arena), n))
		at = 0
	}
	h.arena = h.arena[:at+n]
	return h.arena[at : at+n : at+n]
}

// Copy makes h a copy of o that shares no memory with it.
func (h *Header) Copy(o *Header) {
	if h == o {
		return
	}
	h.Reset()
	for _, f := range o.fields {
		h.Add(h.Hold(f.Name), h.Hold(f.Value))
	}
}
