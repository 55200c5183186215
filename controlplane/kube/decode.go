package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// entry is a decoded object and where it stands.
type entry struct {
	object Object
	key    Key
	// line counts from 1 in the document.
	line int
}

// Decode reads the objects of one manifest: YAML or JSON, any number of documents, lists of objects. It fills in
// defaults and validates. The name is used in problems only.
//
// The objects are those of the whole manifest; when a problem has severity Rejected, the caller must not use them.
func Decode(name string, data []byte) ([]Object, []Problem) {
	var objects []Object
	var problems []Problem
	for _, d := range splitDocuments(data) {
		entries, found := decodeDocument(d)
		for _, e := range entries {
			objects = append(objects, e.object)
		}
		problems = append(problems, place(found, name, d)...)
	}
	return objects, problems
}

// place turns line numbers of a document into those of its file.
func place(found []Problem, file string, d document) []Problem {
	out := slices.Clone(found)
	for i := range out {
		out[i].File = file
		out[i].Line += d.line - 1
	}
	return out
}

// decodeDocument decodes one document. Lines in the result count from the document's start.
func decodeDocument(d document) ([]entry, []Problem) {
	roots, err := d.parse()
	if err != nil {
		line, cause := yamlSyntax(err)
		return nil, []Problem{{Line: line, Cause: cause, Accepted: "YAML or JSON"}}
	}
	var entries []entry
	var problems []Problem
	for _, root := range roots {
		e, p := decodeNode(root, true)
		entries = append(entries, e...)
		problems = append(problems, p...)
	}
	return entries, problems
}

// yamlParserError is how errors of the YAML parser, as opposed to its scanner, begin. Their line counts from 0.
var yamlParserError = regexp.MustCompile(`^did not find expected (<document start>|key|'-' indicator|node content|',' or)`)

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s*)?(?:line (\d+): )?`)

// yamlSyntax takes the line out of an error of the YAML parser.
func yamlSyntax(err error) (line int, cause string) {
	text := err.Error()
	line = 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		if text = text[len(m[0]):]; m[1] != "" && yamlParserError.MatchString(text) {
			line++
		}
	}
	return line, "invalid YAML: " + strings.TrimSpace(text)
}

// decodeNode decodes one object or, at the top of a document, a list of them.
func decodeNode(n *yaml.Node, top bool) ([]entry, []Problem) {
	if n.Kind != yaml.MappingNode {
		return nil, []Problem{{Line: n.Line, Cause: "not an object", Accepted: "a mapping with apiVersion, kind and metadata"}}
	}
	apiVersion, kind := text(child(n, "apiVersion")), text(child(n, "kind"))
	key := Key{Kind: Kind(kind), Name: Name{Namespace: text(child(child(n, "metadata"), "namespace")), Name: text(child(child(n, "metadata"), "name"))}}
	for _, f := range []struct{ name, value, accepted string }{
		{"apiVersion", apiVersion, "for example v1"}, {"kind", kind, "for example Pod"},
	} {
		if f.value == "" {
			return nil, []Problem{{Line: n.Line, Object: key, Field: f.name, Cause: "required value is missing", Accepted: f.accepted}}
		}
	}
	if items := child(n, "items"); top && strings.HasSuffix(kind, "List") && items != nil && items.Kind == yaml.SequenceNode {
		var entries []entry
		var problems []Problem
		for _, item := range items.Content {
			for item.Kind == yaml.AliasNode {
				item = item.Alias
			}
			e, p := decodeNode(item, false)
			entries = append(entries, e...)
			problems = append(problems, p...)
		}
		return entries, problems
	}
	info, near := findKind(apiVersion, kind)
	switch {
	case near != nil:
		return nil, []Problem{{Line: locate(n, "apiVersion"), Object: key, Field: "apiVersion",
			Cause: fmt.Sprintf("unsupported version %q", apiVersion), Accepted: strings.Join(near.apiVersions(), ", ")}}
	case info == nil:
		return nil, []Problem{{Severity: Ignored, Line: n.Line, Object: key,
			Cause: fmt.Sprintf("kind %s of %s has no meaning to this control plane", kind, apiVersion)}}
	}
	return decodeObject(n, info, key)
}

// text is the value of a scalar node, empty for any other.
func text(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || isNull(n) {
		return ""
	}
	return n.Value
}

func decodeObject(n *yaml.Node, info *kindInfo, key Key) ([]entry, []Problem) {
	obj := info.create()
	if info.istio {
		spec := reflect.ValueOf(obj).Elem().FieldByName("Spec").Addr().Interface().(proto.Message)
		spellDurations(child(n, "spec"), spec.ProtoReflect().Descriptor(), 0)
	}
	body, _, err := toJSON(n, false)
	if err == nil {
		err = info.decode(body, obj)
	}
	if err != nil {
		return nil, explain(n, info, key, err)
	}
	if problems := Admit(obj); len(problems) > 0 {
		for i := range problems {
			problems[i].Line = locate(n, problems[i].Field)
		}
		return nil, problems
	}
	return []entry{{object: obj, key: KeyOf(obj), line: n.Line}}, nil
}

// Admit does to an object what an API server does before it stores one: it fills in defaults and validates, as far as
// this control plane cares. An object with problems must not enter a set. Whoever calls it still owns the object.
func Admit(o Object) []Problem {
	key := KeyOf(o)
	i := slices.IndexFunc(kinds, func(k kindInfo) bool { return k.kind == key.Kind })
	if i < 0 {
		return []Problem{{Object: key, Cause: fmt.Sprintf("type %T is not accepted", o)}}
	}
	setDefaults(o, &kinds[i])
	key = KeyOf(o)
	var problems []Problem
	for _, e := range validate(o, &kinds[i]) {
		problems = append(problems, Problem{Object: key, Field: e.Field, Cause: e.Cause, Accepted: e.Accepted})
	}
	return problems
}

// decode decodes JSON into an object of the kind.
func (k *kindInfo) decode(body []byte, into Object) error {
	if k.istio {
		return decodeIstio(body, into)
	}
	return decodeStrict(body, into)
}

// strictErrors are the unknown and duplicate fields of a document that is well-formed otherwise.
type strictErrors []error

func (s strictErrors) Error() string { return errors.Join(s...).Error() }

// decodeStrict decodes JSON as an API server with strict field validation does.
func decodeStrict(body []byte, into any) error {
	strict, err := kjson.UnmarshalStrict(body, into)
	if err != nil {
		return err
	}
	if len(strict) > 0 {
		return strictErrors(strict)
	}
	return nil
}

// istioParts are the fields of every Istio object.
type istioParts struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   json.RawMessage `json:"spec,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
}

// protoError is an error in the protobuf part of an Istio object.
type protoError struct {
	part string
	body []byte
	err  error
}

func (e *protoError) Error() string { return e.err.Error() }

// decodeIstio decodes an Istio object. Its Go type has a lenient UnmarshalJSON for the spec, hence by parts.
func decodeIstio(body []byte, into Object) error {
	var parts istioParts
	if err := decodeStrict(body, &parts); err != nil {
		return err
	}
	v := reflect.ValueOf(into).Elem()
	v.FieldByName("TypeMeta").Set(reflect.ValueOf(parts.TypeMeta))
	v.FieldByName("ObjectMeta").Set(reflect.ValueOf(parts.ObjectMeta))
	for _, part := range []struct {
		name string
		body json.RawMessage
	}{{"Spec", parts.Spec}, {"Status", parts.Status}} {
		if len(part.body) == 0 || string(part.body) == "null" {
			continue
		}
		if err := protojson.Unmarshal(part.body, v.FieldByName(part.name).Addr().Interface().(proto.Message)); err != nil {
			return &protoError{part: strings.ToLower(part.name), body: part.body, err: err}
		}
	}
	return nil
}

// spellDurations rewrites durations such as "24h", which Istio's API server validation takes, in the only spelling that
// protojson takes, "86400s". What is no duration stays and becomes an error.
func spellDurations(n *yaml.Node, d protoreflect.MessageDescriptor, depth int) {
	if n == nil || n.Kind != yaml.MappingNode || depth > maxYAMLDepth {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f := d.Fields().ByJSONName(n.Content[i].Value)
		if f == nil {
			f = d.Fields().ByName(protoreflect.Name(n.Content[i].Value))
		}
		if f == nil || f.Message() == nil {
			continue
		}
		values, message := []*yaml.Node{n.Content[i+1]}, f.Message()
		switch v := n.Content[i+1]; {
		case f.IsList() && v.Kind == yaml.SequenceNode:
			values = v.Content
		case f.IsMap() && v.Kind == yaml.MappingNode:
			if message = f.MapValue().Message(); message == nil {
				continue
			}
			values = nil
			for j := 1; j < len(v.Content); j += 2 {
				values = append(values, v.Content[j])
			}
		}
		for _, v := range values {
			if message.FullName() != "google.protobuf.Duration" {
				spellDurations(v, message, depth+1)
			} else if t, err := time.ParseDuration(v.Value); err == nil && v.Kind == yaml.ScalarNode {
				v.Value, v.Tag = strconv.FormatFloat(t.Seconds(), 'f', -1, 64)+"s", "!!str"
			}
		}
	}
}
