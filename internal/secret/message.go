package secret

import (
	"encoding/json"

	"github.com/cncf/xds/go/udpa/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Redact takes secrets out of a message of Envoy's API: fields that the API calls sensitive, such as private keys; values of
// headers and parameters that are [Named] secrets, be they set or compared with; passwords and tokens in addresses; and
// what is private in a JSON Web Key Set. It looks into messages within messages, also packed ones of known types.
func Redact(m proto.Message) { redact(m.ProtoReflect()) }

func redact(m protoreflect.Message) {
	switch x := m.Interface().(type) {
	case *anypb.Any:
		inner, err := x.UnmarshalNew()
		if err != nil {
			return // of an unknown type: its content is not shown
		}
		Redact(inner)
		if b, err := proto.Marshal(inner); err == nil {
			x.Value = b
		}
		return
	case *structpb.Struct:
		redactStruct(x)
		return
	}
	named := namesSecret(m)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil && (f.Name() == "name" || f.Name() == "key"):
		case named || sensitive(f):
			eraseAll(m, f, v)
		case f.FullName() == "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.local_jwks":
			redactKeys(v.Message())
		case f.Message() == nil:
			redactText(m, f, v)
		default:
			each(f, v, redact)
		}
		return true
	})
}

// namesSecret says that a message is about something that is named like a secret: a header that is added, or what a header
// or a parameter is compared with.
func namesSecret(m protoreflect.Message) bool {
	var field protoreflect.Name
	switch m.Descriptor().FullName() {
	case "envoy.config.core.v3.HeaderValue":
		field = "key"
	case "envoy.config.route.v3.HeaderMatcher", "envoy.config.route.v3.QueryParameterMatcher":
		field = "name"
	default:
		return false
	}
	return Named(m.Get(m.Descriptor().Fields().ByName(field)).String())
}

// sensitive says that Envoy's API calls a field so.
func sensitive(f protoreflect.FieldDescriptor) bool {
	o, ok := f.Options().(*descriptorpb.FieldOptions)
	return ok && proto.GetExtension(o, annotations.E_Sensitive).(bool)
}

// each calls do for the messages of a field.
func each(f protoreflect.FieldDescriptor, v protoreflect.Value, do func(protoreflect.Message)) {
	switch {
	case f.IsMap():
		if f.MapValue().Message() != nil {
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { do(v.Message()); return true })
		}
	case f.IsList():
		for i := range v.List().Len() {
			do(v.List().Get(i).Message())
		}
	default:
		do(v.Message())
	}
}

// eraseAll hides all texts in a field.
func eraseAll(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	if f.Message() == nil {
		change(m, f, v, func(string) string { return Hidden })
		return
	}
	each(f, v, func(inner protoreflect.Message) {
		inner.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			eraseAll(inner, f, v)
			return true
		})
	})
}

// redactText hides what is secret in a field's text: passwords and tokens in addresses.
func redactText(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	if f.Kind() == protoreflect.StringKind {
		change(m, f, v, func(s string) string {
			if anonymous(s) == s && !isAddress(f) {
				return s
			}
			return URL(s)
		})
	}
}

// isAddress says that a field is an address that requests are sent to.
func isAddress(f protoreflect.FieldDescriptor) bool {
	switch f.FullName() {
	case "envoy.config.core.v3.HttpUri.uri", "envoy.config.trace.v3.ZipkinConfig.collector_endpoint",
		"envoy.config.route.v3.RedirectAction.path_redirect", "envoy.config.route.v3.RouteAction.prefix_rewrite":
		return true
	}
	return false
}

// change changes the texts of a field.
func change(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value, to func(string) string) {
	switch text := f.Kind() == protoreflect.StringKind; {
	case !text && f.Kind() != protoreflect.BytesKind || f.IsMap():
	case f.IsList():
		for i := range v.List().Len() {
			if text {
				v.List().Set(i, protoreflect.ValueOfString(to(v.List().Get(i).String())))
			} else {
				v.List().Set(i, protoreflect.ValueOfBytes([]byte(to(string(v.List().Get(i).Bytes())))))
			}
		}
	case text:
		m.Set(f, protoreflect.ValueOfString(to(v.String())))
	default:
		m.Set(f, protoreflect.ValueOfBytes([]byte(to(string(v.Bytes())))))
	}
}

// redactStruct hides texts whose keys are named like secrets.
func redactStruct(s *structpb.Struct) {
	for k, v := range s.GetFields() {
		if _, ok := v.GetKind().(*structpb.Value_StringValue); ok && Named(k) {
			s.Fields[k] = structpb.NewStringValue(Hidden)
			continue
		}
		redactValue(v)
	}
}

func redactValue(v *structpb.Value) {
	redactStruct(v.GetStructValue())
	for _, e := range v.GetListValue().GetValues() {
		redactValue(e)
	}
}

// privateMembers are those of a JSON Web Key that are not public (RFC 7518 sections 6.2.2, 6.3.2 and 6.4).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// redactKeys hides what is private in a source of keys.
func redactKeys(source protoreflect.Message) {
	source.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Name() == "inline_string" || f.Name() == "inline_bytes" {
			change(source, f, v, publicKeys)
		}
		return true
	})
}

// publicKeys is a JSON Web Key Set without what is private. A text that is none is hidden.
func publicKeys(text string) string {
	var set map[string]any
	if json.Unmarshal([]byte(text), &set) != nil {
		return Hidden
	}
	keys, _ := set["keys"].([]any)
	found := false
	for _, k := range keys {
		key, _ := k.(map[string]any)
		for _, name := range privateMembers {
			if _, ok := key[name]; ok {
				key[name], found = Hidden, true
			}
		}
	}
	if !found {
		return text
	}
	b, err := json.Marshal(set)
	if err != nil {
		return Hidden // not reached: it was JSON
	}
	return string(b)
}
