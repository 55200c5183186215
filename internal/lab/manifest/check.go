package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checker collects what is wrong with one object.
type checker struct {
	file, object string
	errs         []error
}

func (c *checker) add(n *yaml.Node, field, cause, accepted string) {
	c.errs = append(c.errs, &Error{File: c.file, Line: n.Line, Object: c.object, Field: field, Cause: cause, Accepted: accepted})
}

func (c *checker) err() error { return errors.Join(c.errs...) }

func (c *checker) kind(n *yaml.Node) *Kind {
	kn, vn := child(n, "kind"), child(n, "apiVersion")
	if kn == nil || kn.Value == "" {
		c.add(n, "kind", "missing", strings.Join(Names(), ", "))
		return nil
	}
	if vn == nil || vn.Value == "" {
		c.object = strings.ToLower(kn.Value)
		c.add(n, "apiVersion", "missing", "for example v1 or apps/v1")
		return nil
	}
	i := slices.IndexFunc(kinds, func(k *Kind) bool { return k.Name == kn.Value })
	if i < 0 {
		c.add(kn, "kind", fmt.Sprintf("unknown kind %q", kn.Value), strings.Join(Names(), ", "))
		return nil
	}
	group, _, ok := strings.Cut(vn.Value, "/")
	if !ok {
		group = ""
	}
	if !slices.Contains(kinds[i].Groups, group) {
		want := kinds[i].Groups[0]
		if want == "" {
			want = "v1"
		} else {
			want += "/v1"
		}
		c.object = strings.ToLower(kn.Value)
		c.add(vn, "apiVersion", fmt.Sprintf("%q does not have kind %s", vn.Value, kn.Value), want)
		return nil
	}
	return kinds[i]
}

var (
	dnsLabel     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsSubdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

const nameRule = "lower-case letters, digits, '-' (and '.' where Kubernetes takes it), beginning and ending with a letter or digit"

// metadata reads name and namespace into o; false if they are unusable.
func (c *checker) metadata(n *yaml.Node, o *Object) bool {
	meta := child(n, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode {
		c.add(n, "metadata", "missing", "metadata with a name")
		return false
	}
	name := child(meta, "name")
	if name == nil || name.Value == "" {
		c.add(meta, "metadata.name", "missing", nameRule)
		return false
	}
	o.Name = name.Value
	rule := dnsSubdomain
	if k := o.Kind.Name; k == "Namespace" || k == "Service" {
		rule = dnsLabel
	}
	if !rule.MatchString(o.Name) || len(o.Name) > 253 {
		c.add(name, "metadata.name", fmt.Sprintf("%q is not a name", o.Name), nameRule)
		return false
	}
	ns := child(meta, "namespace")
	if o.Kind.Cluster {
		if ns != nil && ns.Value != "" {
			c.add(ns, "metadata.namespace", "objects of this kind have no namespace", "leave it out")
			return false
		}
		return true
	}
	o.Namespace = "default"
	if ns != nil && ns.Value != "" {
		o.Namespace = ns.Value
		if !dnsLabel.MatchString(ns.Value) {
			c.add(ns, "metadata.namespace", fmt.Sprintf("%q is not a name", ns.Value), nameRule)
			return false
		}
	}
	return true
}

// goType checks a document against the fields of a Go type of k8s.io/api.
func goType[T any](c *checker, n *yaml.Node) {
	before := len(c.errs)
	c.value("", n, reflect.TypeFor[T]())
	if len(c.errs) == before {
		c.enums("", n)
	}
}

var jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (c *checker) value(path string, n *yaml.Node, t reflect.Type) {
	if n.Tag == "!!null" {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(jsonUnmarshaler) {
		c.leaf(path, n, t)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.structValue(path, n, t)
	case reflect.Map:
		if c.want(path, n, yaml.MappingNode, "a mapping") {
			for i := 0; i+1 < len(n.Content); i += 2 {
				c.value(join(path, n.Content[i].Value), n.Content[i+1], t.Elem())
			}
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			c.leaf(path, n, t)
		} else if c.want(path, n, yaml.SequenceNode, "a list") {
			for i, e := range n.Content {
				c.value(fmt.Sprintf("%s[%d]", path, i), e, t.Elem())
			}
		}
	default:
		c.leaf(path, n, t)
	}
}

func (c *checker) structValue(path string, n *yaml.Node, t reflect.Type) {
	if !c.want(path, n, yaml.MappingNode, "a mapping") {
		return
	}
	fields := map[string]reflect.Type{}
	collectFields(t, fields)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		ft, ok := fields[k.Value]
		if !ok {
			c.add(k, join(path, k.Value), "unknown field", acceptedFields(k.Value, sortedKeys(fields)))
			continue
		}
		c.value(join(path, k.Value), v, ft)
	}
}

func collectFields(t reflect.Type, out map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			collectFields(f.Type, out)
		} else if name != "" && name != "-" {
			out[name] = f.Type
		}
	}
}

// leaf lets the type itself say whether it takes the value.
func (c *checker) leaf(path string, n *yaml.Node, t reflect.Type) {
	var v any
	if err := n.Decode(&v); err != nil {
		_, cause := yamlCause(err)
		c.add(n, path, cause, "")
		return
	}
	b, err := json.Marshal(normalise(v))
	if err == nil {
		err = json.Unmarshal(b, reflect.New(t).Interface())
	}
	if err != nil {
		c.add(n, path, fmt.Sprintf("%s does not fit", kindWord(n)), typeWord(t))
	}
}

func (c *checker) want(path string, n *yaml.Node, k yaml.Kind, word string) bool {
	if n.Kind == k {
		return true
	}
	c.add(n, path, "expected "+word+", found "+kindWord(n), word)
	return false
}

// enumFields are fields of Kubernetes types that are strings to Go but enumerations to the API server.
var enumFields = map[string][]string{
	"protocol":            {"TCP", "UDP", "SCTP"},
	"restartPolicy":       {"Always", "OnFailure", "Never"},
	"spec.type":           {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
	"spec.strategy.type":  {"RollingUpdate", "Recreate"},
	"spec.ipFamilyPolicy": {"SingleStack", "PreferDualStack", "RequireDualStack"},
}

var indexes = regexp.MustCompile(`\[\d+\]`)

func (c *checker) enums(path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if path == "" && key == "metadata" {
				continue
			}
			c.enums(join(path, key), n.Content[i+1])
		}
	case yaml.SequenceNode:
		for i, e := range n.Content {
			c.enums(fmt.Sprintf("%s[%d]", path, i), e)
		}
	case yaml.ScalarNode:
		plain := indexes.ReplaceAllString(path, "")
		ok, known := enumFields[plain]
		if !known {
			ok, known = enumFields[plain[strings.LastIndexByte(plain, '.')+1:]]
		}
		if known && !slices.Contains(ok, n.Value) {
			c.add(n, path, fmt.Sprintf("unknown value %q", n.Value), strings.Join(ok, ", "))
		}
	}
}

// message checks a mapping against a protobuf message in its JSON form.
func (c *checker) message(path string, n *yaml.Node, d protoreflect.MessageDescriptor) {
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") || n.Tag == "!!null" {
		return
	}
	if !c.want(path, n, yaml.MappingNode, "a mapping") {
		return
	}
	fields := d.Fields()
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		f := fields.ByJSONName(k.Value)
		if f == nil {
			f = fields.ByTextName(k.Value)
		}
		if f == nil {
			names := map[string]reflect.Type{}
			for j := range fields.Len() {
				names[fields.Get(j).JSONName()] = nil
			}
			c.add(k, join(path, k.Value), "unknown field", acceptedFields(k.Value, sortedKeys(names)))
			continue
		}
		c.field(join(path, k.Value), v, f)
	}
}

func (c *checker) field(path string, n *yaml.Node, f protoreflect.FieldDescriptor) {
	switch {
	case n.Tag == "!!null":
	case f.IsMap():
		if c.want(path, n, yaml.MappingNode, "a mapping") {
			for i := 0; i+1 < len(n.Content); i += 2 {
				c.single(join(path, n.Content[i].Value), n.Content[i+1], f.MapValue())
			}
		}
	case f.IsList():
		if c.want(path, n, yaml.SequenceNode, "a list") {
			for i, e := range n.Content {
				c.single(fmt.Sprintf("%s[%d]", path, i), e, f)
			}
		}
	default:
		c.single(path, n, f)
	}
}

func (c *checker) single(path string, n *yaml.Node, f protoreflect.FieldDescriptor) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		c.message(path, n, f.Message())
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		if values.ByName(protoreflect.Name(n.Value)) == nil {
			var names []string
			for i := range values.Len() {
				names = append(names, string(values.Get(i).Name()))
			}
			c.add(n, path, fmt.Sprintf("unknown value %q", n.Value), strings.Join(names, ", "))
		}
	case protoreflect.StringKind:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
			c.add(n, path, kindWord(n)+" does not fit", "a string (in quotes)")
		}
	case protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			c.add(n, path, kindWord(n)+" does not fit", "true, false")
		}
	default:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" && n.Tag != "!!str" {
			c.add(n, path, kindWord(n)+" does not fit", "a number")
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func sortedKeys(m map[string]reflect.Type) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// acceptedFields lists the fields, those that look like the typed one first, and not more than a line holds.
func acceptedFields(typed string, names []string) string {
	lower := strings.ToLower(typed)
	sort.SliceStable(names, func(i, j int) bool { return alike(lower, names[i]) > alike(lower, names[j]) })
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// alike rates how much a name looks like what was typed.
func alike(typed, name string) int {
	name = strings.ToLower(name)
	n := min(len(typed), len(name), 3)
	switch {
	case strings.HasPrefix(name, typed) || strings.HasPrefix(typed, name):
		return 3
	case strings.Contains(name, typed) || strings.Contains(typed, name):
		return 2
	case typed[:n] == name[:n]:
		return 1
	}
	return 0
}

func kindWord(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

func typeWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string (in quotes)"
	case reflect.Bool:
		return "true, false"
	case reflect.Int32:
		return "a whole number of 32 bits"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Struct:
		switch t.Name() {
		case "IntOrString":
			return "a number or a string (port name, percentage)"
		case "Time":
			return "a time as in 2026-01-31T12:00:00Z"
		case "Quantity":
			return "a quantity as in 100m or 64Mi"
		}
	}
	return "a value of type " + t.Name()
}
