package route

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

import (
	"errors"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/net/http/httpguts"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maxHeaderAdds is the number of headers that one list may add, as in Envoy.
const maxHeaderAdds = 1000

// HeaderOps are changes to the headers of a message. They are immutable; nil changes nothing.
type HeaderOps struct {
	remove []string
	add    []headerAdd
}

type headerAdd struct {
	name    string
	literal string
	format  *Format // nil: literal
	action  corev3.HeaderValueOption_HeaderAppendAction
	empty   bool // an empty value is added too
}

// CompileHeaderOps compiles lists of headers to add and to remove.
func CompileHeaderOps(addField string, add []*corev3.HeaderValueOption, removeField string, remove []string) (*HeaderOps, error) {
	if len(add) == 0 && len(remove) == 0 {
		return nil, nil
	}
	if len(add) > maxHeaderAdds {
		return nil, field.Errorf(addField, "%d headers, at most %d", len(add), maxHeaderAdds)
	}
	o := &HeaderOps{}
	for i, r := range remove {
		if err := checkChangeable(r); err != nil {
			return nil, field.Index(err, removeField, i)
		}
		o.remove = append(o.remove, lower(r))
	}
	for i, a := range add {
		h, err := compileAdd(a)
		if err != nil {
			return nil, field.Index(err, addField, i)
		}
		o.add = append(o.add, h)
	}
	return o, nil
}

// checkChangeable refuses what would change the request's target, or could not be sent.
func checkChangeable(name string) error {
	switch {
	case name == "":
		return errors.New("empty header name")
	case name[0] == ':' || lower(name) == "host":
		return errors.New("pseudo headers and host may not be changed")
	case !httpguts.ValidHeaderFieldName(name):
		return errors.New("malformed header name")
	}
	return nil
}

func compileAdd(a *corev3.HeaderValueOption) (headerAdd, error) {
	h := headerAdd{name: lower(a.GetHeader().GetKey()), action: a.GetAppendAction(), empty: a.GetKeepEmptyValue()}
	if err := checkChangeable(h.name); err != nil {
		return h, field.At(err, "header.key")
	}
	if _, ok := corev3.HeaderValueOption_HeaderAppendAction_name[int32(h.action)]; !ok {
		return h, field.Errorf("append_action", "unknown value %d", h.action)
	}
	if b := a.GetAppend(); b != nil {
		if h.action != corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			return h, field.Errorf("append", "set together with append_action")
		}
		if !b.GetValue() {
			h.action = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		}
	}
	value := a.GetHeader().GetValue()
	if raw := a.GetHeader().GetRawValue(); len(raw) > 0 {
		value = string(raw)
	}
	f, err := CompileFormat(value)
	if err != nil {
		return h, field.At(err, "header.value")
	}
	if t, ok := f.Literal(); ok {
		h.literal = t
	} else {
		h.format = f
	}
	if !httpguts.ValidHeaderFieldValue(h.literal) {
		return h, field.Errorf("header.value", "character that is not allowed in a header")
	}
	return h, nil
}

// maxPending is the number of values that are worked out without a list on the heap.
const maxPending = 8

// Apply changes a header. As in Envoy all values are worked out first, after the removals; then headers are overwritten,
// and last of all added.
func (o *HeaderOps) Apply(h *message.Header, c *Context) {
	if o == nil {
		return
	}
	for _, n := range o.remove {
		h.Del(n)
	}
	var space [maxPending]message.Field
	values := space[:0]
	for i := range o.add {
		v, ok := o.add[i].value(h, c)
		if !ok {
			values = append(values, message.Field{})
			continue
		}
		values = append(values, message.Field{Name: o.add[i].name, Value: v})
	}
	for i, f := range values {
		if f.Name != "" && o.add[i].overwrites() {
			h.Set(f.Name, f.Value)
		}
	}
	for i, f := range values {
		if f.Name != "" && !o.add[i].overwrites() {
			h.Add(f.Name, f.Value)
		}
	}
}

func (a *headerAdd) overwrites() bool {
	return a.action == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS || a.action == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
}

// value is what is to be written, and whether anything is.
func (a *headerAdd) value(h *message.Header, c *Context) (string, bool) {
	switch a.action {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if h.Has(a.name) {
			return "", false
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if !h.Has(a.name) {
			return "", false
		}
	}
	v := a.literal
	if a.format != nil {
		var space [256]byte
		b := a.format.Append(space[:0], c, "")
		for i, x := range b { // a value from the request cannot smuggle in a header
			if x == '\r' || x == '\n' || x == 0 {
				b[i] = ' '
			}
		}
		v = h.HoldBytes(b)
	}
	return v, v != "" || a.empty
}
