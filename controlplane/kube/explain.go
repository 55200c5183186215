package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// explain turns a decoding error into problems with line, field and what would be accepted. It runs after the failure
// and decodes again with positions, so that the good path pays nothing.
func explain(n *yaml.Node, info *kindInfo, key Key, err error) []Problem {
	var y *yamlError
	if errors.As(err, &y) {
		path := y.path
		if path == "" {
			_, _, again := toJSON(n, true)
			if errors.As(again, &y) {
				path = y.path
			}
		}
		return []Problem{{Line: y.line, Object: key, Field: path, Cause: y.cause, Accepted: y.accepted}}
	}
	var strict strictErrors
	if errors.As(err, &strict) {
		var problems []Problem
		for _, e := range strict {
			problems = append(problems, explainStrict(n, info, key, e))
		}
		return problems
	}
	body, positions, encodeErr := toJSON(n, true)
	if encodeErr != nil {
		return []Problem{{Line: n.Line, Object: key, Cause: encodeErr.Error()}}
	}
	var p *protoError
	if errors.As(err, &p) {
		return []Problem{explainProto(body, positions, info, key, p)}
	}
	return []Problem{explainType(body, positions, info, key, err)}
}

// explainStrict is for unknown and duplicate fields, which name their path.
func explainStrict(n *yaml.Node, info *kindInfo, key Key, err error) Problem {
	p := Problem{Line: n.Line, Object: key, Cause: err.Error()}
	var at interface{ FieldPath() string }
	if errors.As(err, &at) {
		p.Field = at.FieldPath()
		p.Line = locate(n, p.Field)
		p.Cause, _, _ = strings.Cut(err.Error(), " \"")
		t := reflect.TypeOf(info.create())
		if info.istio {
			t = reflect.TypeFor[istioParts]()
		}
		p.Accepted = goFields(t, parent(p.Field))
	}
	return p
}

// explainType is for a value of the wrong type. The strict decoder hides where it happened; encoding/json tells.
func explainType(body []byte, positions []position, info *kindInfo, key Key, err error) Problem {
	p := Problem{Object: key, Cause: err.Error()}
	if len(positions) > 0 {
		p.Line = positions[0].line
	}
	var wrong *json.UnmarshalTypeError
	into := any(info.create())
	if info.istio {
		into = &istioParts{}
	}
	if again := json.Unmarshal(body, into); errors.As(again, &wrong) {
		at := positionBefore(positions, int(wrong.Offset))
		p.Line, p.Field = at.line, at.path
		p.Cause = "unexpected " + wrong.Value
		p.Accepted = jsonName(wrong.Type)
	} else if again != nil {
		p.Cause = again.Error()
	}
	return p
}

var (
	protoPlace = regexp.MustCompile(`^(?:proto:)?[\s\x{a0}]*(?:syntax error )?\(line[\s\x{a0}]*(\d+):(\d+)\):[\s\x{a0}]*`)
	protoField = regexp.MustCompile(`unknown field "([^"]*)"`)
)

// explainProto is for errors of protojson, which name line and column of the one-line JSON text.
func explainProto(body []byte, positions []position, info *kindInfo, key Key, e *protoError) Problem {
	p := Problem{Object: key, Field: e.part, Cause: e.Error()}
	if len(positions) > 0 {
		p.Line = positions[0].line
	}
	m := protoPlace.FindStringSubmatch(e.Error())
	start := bytes.Index(body, append([]byte(`"`+e.part+`":`), e.body...))
	if m == nil || start < 0 {
		return p
	}
	column, err := strconv.Atoi(m[2])
	if err != nil {
		return p
	}
	p.Cause = e.Error()[len(m[0]):]
	// The column counts characters; the text is searched by bytes. They differ only after a character beyond ASCII.
	offset := start + len(e.part) + 3 + byteOffset(e.body, column-1)
	at := positionBefore(positions, offset+1)
	unknown := protoField.FindStringSubmatch(e.Error())
	if unknown != nil {
		// The column is that of the key, one step before the value of the field.
		at = positionAfter(positions, offset)
		p.Cause = "unknown field"
	}
	p.Line, p.Field = at.line, at.path
	message := reflect.ValueOf(info.create()).Elem().FieldByName(title(e.part)).Addr().Interface().(proto.Message)
	path := strings.TrimPrefix(strings.TrimPrefix(p.Field, e.part), ".")
	if unknown != nil {
		p.Accepted = protoFields(message.ProtoReflect().Descriptor(), parent(path))
	} else {
		p.Accepted = protoValues(message.ProtoReflect().Descriptor(), path)
	}
	return p
}

// byteOffset is the offset of the n-th character.
func byteOffset(s []byte, n int) int {
	count := 0
	for i := range string(s) {
		if count == n {
			return i
		}
		count++
	}
	return len(s)
}

// positionBefore is the last value that begins before an offset.
func positionBefore(positions []position, offset int) position {
	i, _ := slices.BinarySearchFunc(positions, offset, func(p position, o int) int { return p.offset - o })
	return positions[max(0, i-1)]
}

// positionAfter is the first value that begins at or after an offset.
func positionAfter(positions []position, offset int) position {
	i, _ := slices.BinarySearchFunc(positions, offset, func(p position, o int) int { return p.offset - o })
	return positions[min(i, len(positions)-1)]
}

// parent is a field path without its last step.
func parent(path string) string {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i]
	}
	return ""
}

// title makes the first letter a capital one.
func title(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// jsonName is what a Go type is called in JSON.
func jsonName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "true, false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("integer of %d bits", t.Bits())
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("unsigned integer of %d bits", t.Bits())
	case reflect.Slice, reflect.Array:
		return "list"
	case reflect.Map, reflect.Struct:
		return "object"
	}
	return t.Kind().String()
}

// goFields lists the JSON fields of the struct that a path leads to, empty when it leads elsewhere.
func goFields(t reflect.Type, path string) string {
	for path != "" {
		var step string
		step, path = nextStep(path)
		if t = goStep(t, step); t == nil {
			return ""
		}
	}
	if t = base(t); t.Kind() != reflect.Struct {
		return ""
	}
	names := slices.Collect(func(yield func(string) bool) {
		for _, f := range jsonFields(t) {
			if !yield(f.name) {
				return
			}
		}
	})
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// base removes pointers.
func base(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// goStep follows one step of a path into a type, nil when there is no such field.
func goStep(t reflect.Type, step string) reflect.Type {
	t = base(t)
	switch t.Kind() {
	case reflect.Slice, reflect.Map:
		return t.Elem()
	case reflect.Struct:
		for _, f := range jsonFields(t) {
			if f.name == step {
				return f.field.Type
			}
		}
	}
	return nil
}

type jsonField struct {
	name  string
	field reflect.StructField
}

// jsonFields lists the JSON fields of a struct, those of inlined structs included.
func jsonFields(t reflect.Type) []jsonField {
	var out []jsonField
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "" && f.Anonymous && base(f.Type).Kind() == reflect.Struct:
			out = append(out, jsonFields(base(f.Type))...)
		case name != "" && name != "-":
			out = append(out, jsonField{name: name, field: f})
		}
	}
	return out
}

// protoStep finds the field that a path ends at, nil when it ends elsewhere.
func protoStep(d protoreflect.MessageDescriptor, path string) protoreflect.FieldDescriptor {
	var field protoreflect.FieldDescriptor
	for path != "" {
		var step string
		step, path = nextStep(path)
		if strings.HasPrefix(step, "[") {
			continue
		}
		if field != nil && field.IsMap() {
			// The step is a key of the map.
			field = field.MapValue()
			d = field.Message()
			continue
		}
		if d == nil {
			return nil
		}
		next := d.Fields().ByJSONName(step)
		if next == nil {
			next = d.Fields().ByName(protoreflect.Name(step))
		}
		if next == nil {
			return nil
		}
		field, d = next, next.Message()
	}
	return field
}

// protoFields lists the JSON fields of the message that a path leads to.
func protoFields(d protoreflect.MessageDescriptor, path string) string {
	if path != "" {
		f := protoStep(d, path)
		if f == nil || f.Message() == nil {
			return ""
		}
		d = f.Message()
	}
	var names []string
	for i := range d.Fields().Len() {
		names = append(names, d.Fields().Get(i).JSONName())
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// protoValues says what a field accepts.
func protoValues(d protoreflect.MessageDescriptor, path string) string {
	f := protoStep(d, path)
	if f == nil {
		return ""
	}
	if f.IsList() && !strings.HasSuffix(path, "]") {
		return "list"
	}
	if e := f.Enum(); e != nil {
		var names []string
		for i := range e.Values().Len() {
			names = append(names, string(e.Values().Get(i).Name()))
		}
		return strings.Join(names, ", ")
	}
	if m := f.Message(); m != nil && !f.IsMap() && !f.IsList() {
		return "object with " + protoFields(m, "")
	}
	return f.Kind().String()
}
