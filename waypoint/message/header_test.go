package message

import (
	"slices"
	"strings"
	"testing"
)

func fields(s ...string) (f []Field) {
	for i := 0; i+1 < len(s); i += 2 {
		f = append(f, Field{s[i], s[i+1]})
	}
	return f
}

func header(s ...string) *Header {
	h := &Header{}
	for _, f := range fields(s...) {
		h.Add(f.Name, f.Value)
	}
	return h
}

func TestSetKeepsThePlaceOfTheFirstFieldAndDropsTheOthers(t *testing.T) {
	h := header("a", "1", "b", "2", "a", "3", "c", "4", "a", "5")
	h.Set("a", "6")
	if want := fields("a", "6", "b", "2", "c", "4"); !slices.Equal(h.Fields(), want) {
		t.Errorf("got %v, want %v", h.Fields(), want)
	}
	h.Set("d", "7")
	if want := fields("a", "6", "b", "2", "c", "4", "d", "7"); !slices.Equal(h.Fields(), want) {
		t.Errorf("got %v, want %v", h.Fields(), want)
	}
}

func TestDelDropsAllFieldsOfTheName(t *testing.T) {
	h := header("a", "1", "b", "2", "a", "3")
	h.Del("a")
	h.Del("x")
	if want := fields("b", "2"); !slices.Equal(h.Fields(), want) || h.Len() != 1 {
		t.Errorf("got %v, want %v", h.Fields(), want)
	}
	h = header("a", "1", "b", "2", "a", "3")
	h.DelFunc(func(f Field) bool { return f.Value != "2" })
	if want := fields("b", "2"); !slices.Equal(h.Fields(), want) {
		t.Errorf("got %v, want %v", h.Fields(), want)
	}
}

func TestValuesAreFoundByTheirName(t *testing.T) {
	h := header("a", "1", "b", "", "a", "3", "d", "x", "a", "")
	if v, ok := h.Lookup("b"); v != "" || !ok {
		t.Errorf("b: %q, %v", v, ok)
	}
	if v, ok := h.Lookup("c"); v != "" || ok || h.Has("c") || h.Get("c") != "" {
		t.Errorf("c: %q, %v", v, ok)
	}
	if h.Get("a") != "1" || !h.Has("a") {
		t.Errorf("a: %q", h.Get("a"))
	}
	for name, want := range map[string]string{"a": "1, 3, ", "b": "", "c": "", "d": "x"} {
		if got := h.Join(name); got != want {
			t.Errorf("all of %s: %q, want %q", name, got, want)
		}
	}
	if got := header("a", "", "a", "1").Join("a"); got != ", 1" {
		t.Errorf("an empty value first: %q", got)
	}
	if got, want := h.Size(), 5*32+5+3; got != want {
		t.Errorf("size %d, want %d", got, want)
	}
}

func TestTheArenaHoldsStringsUntilReset(t *testing.T) {
	var h Header
	var want, got []string
	for i := range 300 {
		s := strings.Repeat(string(rune('A'+i%26)), i)
		want = append(want, s, strings.ToLower(s))
		got = append(got, h.Hold(s), h.HoldLower(s))
		b := h.Take(i)
		copy(b, s)
		want, got = append(want, s), append(got, String(b))
	}
	if !slices.Equal(got, want) {
		t.Error("what was held has changed")
	}
	if h.Reset(); h.Len() != 0 || cap(h.arena) > maxKeptArena {
		t.Errorf("%d fields, %d bytes kept", h.Len(), cap(h.arena))
	}
	b := h.Take(3)
	if b = append(b, 'x'); len(h.arena) != 3 {
		t.Errorf("appending to %q took of the arena", b)
	}
	if n := testing.AllocsPerRun(100, func() {
		h.Reset()
		h.Add(h.Hold("name"), h.HoldBytes([]byte("value")))
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCopiesShareNothing(t *testing.T) {
	b := []byte("GET/pathvalue")
	r := &Request{Method: String(b[:3]), Path: String(b[3:8]), Authority: "h", ContentLength: 5, Upgrade: "u", Expect100: true, Proto: HTTP11, Scheme: "http"}
	r.Header.Add("name", String(b[8:]))
	var c Request
	c.Copy(r)
	c.Copy(r)
	p := &Response{Status: 200, ContentLength: 7, Proto: HTTP2, Upgrade: String(b[:3])}
	p.Header.Add("name", String(b[8:]))
	var d Response
	d.Copy(p)
	copy(b, "xxxxxxxxxxxxx")
	if c.Method != "GET" || c.Path != "/path" || c.Header.Get("name") != "value" || c.ContentLength != 5 || c.Upgrade != "u" || !c.Expect100 ||
		c.Proto != HTTP11 || c.Scheme != "http" || c.Authority != "h" || c.Header.Len() != 1 {
		t.Errorf("request %+v", c)
	}
	if d.Status != 200 || d.Header.Get("name") != "value" || d.ContentLength != 7 || d.Upgrade != "GET" || d.Proto != HTTP2 {
		t.Errorf("response %+v", d)
	}
	c.Header.Copy(&c.Header)
	if c.Header.Get("name") != "value" {
		t.Error("a copy of itself")
	}
	c.Reset()
	if c.Method != "" || c.ContentLength != -1 || c.Header.Len() != 0 {
		t.Errorf("reset: %+v", c)
	}
	d.Reset()
	if d.Status != 0 || d.ContentLength != -1 || d.Header.Len() != 0 {
		t.Errorf("reset: %+v", d)
	}
}

func TestVersionsAndCodesHaveNames(t *testing.T) {
	if got := []string{HTTP10.String(), HTTP11.String(), HTTP2.String(), Proto(0).String()}; !slices.Equal(got, []string{"HTTP/1.0", "HTTP/1.1", "HTTP/2", "unknown"}) {
		t.Errorf("versions %q", got)
	}
	if got := []string{CodeNo.String(), CodeHTTP11Required.String(), ErrCode(99).String()}; !slices.Equal(got, []string{"NO_ERROR", "HTTP_1_1_REQUIRED", "code 0x63"}) {
		t.Errorf("codes %q", got)
	}
	e := &StreamError{Code: CodeCancel, Remote: true, Cause: ErrGone}
	if got, want := e.Error(), "stream given up by the peer: CANCEL: connection closed by the peer"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if CodeOf(e, CodeNo) != CodeCancel || CodeOf(ErrGone, CodeInternal) != CodeInternal {
		t.Error("code of an error")
	}
}

// FuzzHeader runs operations on a Header and on a plain slice.
func FuzzHeader(f *testing.F) {
	f.Add([]byte("aA1aB2sA3dBrxyz"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var h Header
		var model []Field
		for len(ops) >= 3 {
			op, name, value := ops[0], string(ops[1:2]), string(ops[1:3])
			ops = ops[3:]
			switch op % 4 {
			case 0:
				h.Add(h.Hold(name), h.Hold(value))
				model = append(model, Field{name, value})
			case 1:
				h.Set(h.Hold(name), h.Hold(value))
				if i := slices.IndexFunc(model, func(f Field) bool { return f.Name == name }); i < 0 {
					model = append(model, Field{name, value})
				} else {
					model[i].Value = value
					rest := slices.DeleteFunc(slices.Clone(model[i+1:]), func(f Field) bool { return f.Name == name })
					model = append(model[:i+1], rest...)
				}
			case 2:
				h.Del(name)
				model = slices.DeleteFunc(model, func(f Field) bool { return f.Name == name })
			case 3:
				var all []string
				for _, f := range model {
					if f.Name == name {
						all = append(all, f.Value)
					}
				}
				if got, want := h.Join(name), strings.Join(all, ", "); got != want {
					t.Fatalf("join %q: %q, want %q", name, got, want)
				}
				if h.Has(name) != (len(all) > 0) || len(all) > 0 && h.Get(name) != all[0] {
					t.Fatalf("get %q: %q of %q", name, h.Get(name), all)
				}
			}
			if !slices.Equal(h.Fields(), model) {
				t.Fatalf("got %q, want %q", h.Fields(), model)
			}
		}
		var c Header
		c.Copy(&h)
		h.Reset()
		h.Hold(strings.Repeat("x", 100))
		if !slices.Equal(c.Fields(), model) {
			t.Fatalf("copy %q, want %q", c.Fields(), model)
		}
	})
}
