// Package manifest reads Kubernetes manifests for the lab: YAML files in, checked objects out.
//
// Every refusal is an *Error that names file, line, object, field, cause and what is accepted. Nothing here touches the
// machine beyond reading files. All functions are safe for concurrent use; an Object is not changed after Parse
// returned it.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"go.yaml.in/yaml/v3"
)

// Object is one object of a manifest.
type Object struct {
	// Kind is the entry of the table of kinds.
	Kind *Kind
	// Namespace is empty for kinds without namespace, and "default" where the manifest names none.
	Namespace string
	Name      string
	// Data is the object as JSON values; shared, not to be changed.
	Data map[string]any
	// Source is file:line of the document, for messages.
	Source string
}

// Key names an object within a lab.
type Key struct{ Kind, Namespace, Name string }

// String is the way kubectl names it, with the namespace before the name.
func (k Key) String() string {
	if k.Namespace == "" {
		return strings.ToLower(k.Kind) + "/" + k.Name
	}
	return strings.ToLower(k.Kind) + "/" + k.Namespace + "/" + k.Name
}

// Key returns the object's key.
func (o *Object) Key() Key { return Key{o.Kind.Name, o.Namespace, o.Name} }

// Decode fills v, a pointer to the Go type of the kind, from the object.
func (o *Object) Decode(v any) error {
	b, err := json.Marshal(o.Data)
	if err != nil {
		return fmt.Errorf("encode %s: %w", o.Key(), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", o.Key(), err)
	}
	return nil
}

// Error is a manifest that was refused.
type Error struct {
	File string
	// Line counts from 1; 0 when the file as a whole is meant.
	Line int
	// Object is KIND/NAMESPACE/NAME as far as it is known.
	Object string
	// Field is the path inside of the object, as in spec.ports[0].port.
	Field string
	// Cause says what is wrong; Accepted what would be right (empty: see the cause).
	Cause, Accepted string
}

// Error puts all that is known on one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Object != "" {
		b.WriteString(e.Object + ": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Cause)
	if e.Accepted != "" {
		b.WriteString("; accepted: " + e.Accepted)
	}
	return b.String()
}

// File is a manifest file that was read.
type File struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// Read reads files, and of directories every .yaml, .yml and .json file below them in the order of their names. "-" is
// standard input.
func Read(paths ...string) ([]File, error) {
	var out []File
	var errs []error
	for _, path := range paths {
		files, err := expand(path)
		errs = append(errs, err)
		for _, f := range files {
			data, err := read(f)
			errs = append(errs, err)
			out = append(out, File{f, data})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// ParseAll parses several files, and has the control plane's own reader look at them too: what it would reject is
// refused here, where the user sees it. All errors are reported together; with an error no object is returned.
func ParseAll(files ...File) ([]*Object, error) {
	var out []*Object
	var errs []error
	for _, f := range files {
		objs, err := Parse(f.Name, f.Data)
		if err == nil {
			err = rejected(f)
		}
		out = append(out, objs...)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// rejected is what the control plane would not take of a file.
func rejected(f File) error {
	var errs []error
	_, problems := kube.Decode(f.Name, f.Data)
	for _, p := range problems {
		if p.Severity == kube.Rejected {
			errs = append(errs, &Error{
				File: p.File, Line: p.Line, Field: p.Field, Cause: p.Cause, Accepted: p.Accepted,
				Object: keyOf(p.Object),
			})
		}
	}
	return errors.Join(errs...)
}

func expand(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if len(files) == 0 {
		return nil, &Error{File: path, Cause: "the directory holds no manifest", Accepted: "files ending in .yaml, .yml or .json"}
	}
	return files, nil
}

func read(file string) ([]byte, error) {
	var data []byte
	var err error
	if file == "-" {
		data, err = io.ReadAll(os.Stdin)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return data, nil
}

// Parse reads the documents of one file; file is only its name for messages. Lists (kind: List) are unpacked. All
// errors of the file are reported together, and then no object is returned.
func Parse(file string, data []byte) ([]*Object, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var out []*Object
	var errs []error
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, cause := yamlCause(err)
			errs = append(errs, &Error{File: file, Line: line, Cause: cause})
			break
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		size := 0
		objs, err := []*Object(nil), resolve(file, &doc, &size)
		if err == nil {
			objs, err = parseDoc(file, doc.Content[0])
		}
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, objs...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// yamlCause takes the line out of an error of the YAML library ("yaml: line 3: mapping values ...").
func yamlCause(err error) (int, string) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if n, _ := fmt.Sscanf(msg, "line %d:", &line); n == 1 {
		_, msg, _ = strings.Cut(msg, ": ")
	}
	return max(line, 1), "not YAML: " + msg // the library leaves the line out for the first
}

// maxNodes bounds a document after its aliases were replaced.
const maxNodes = 1 << 20

// resolve replaces aliases by what they stand for, so that nothing else needs to know of them.
func resolve(file string, n *yaml.Node, size *int) error {
	if *size++; *size > maxNodes {
		return &Error{File: file, Line: n.Line, Cause: "the document is too large or an alias contains itself",
			Accepted: fmt.Sprintf("at most %d nodes", maxNodes)}
	}
	for i, c := range n.Content {
		if c.Kind == yaml.AliasNode {
			n.Content[i] = c.Alias
			c = c.Alias
		}
		if err := resolve(file, c, size); err != nil {
			return err
		}
	}
	return nil
}

func parseDoc(file string, n *yaml.Node) ([]*Object, error) {
	if n.Kind != yaml.MappingNode {
		return nil, &Error{File: file, Line: n.Line, Cause: "a manifest is a mapping, not " + kindWord(n),
			Accepted: "apiVersion, kind, metadata, spec"}
	}
	if k := child(n, "kind"); k != nil && k.Value == "List" {
		var out []*Object
		var errs []error
		if items := child(n, "items"); items != nil {
			for _, item := range items.Content {
				objs, err := parseDoc(file, item)
				errs = append(errs, err)
				out = append(out, objs...)
			}
		}
		return out, errors.Join(errs...)
	}
	o, err := parseObject(file, n)
	if err != nil {
		return nil, err
	}
	return []*Object{o}, nil
}

func parseObject(file string, n *yaml.Node) (*Object, error) {
	c := &checker{file: file}
	kind := c.kind(n)
	if kind == nil {
		return nil, c.err()
	}
	o := &Object{Kind: kind, Source: fmt.Sprintf("%s:%d", file, n.Line)}
	c.object = strings.ToLower(kind.Name)
	if !c.metadata(n, o) {
		return nil, c.err()
	}
	c.object = o.Key().String()
	if kind.check != nil {
		kind.check(c, n)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := n.Decode(&o.Data); err != nil {
		line, cause := yamlCause(err)
		return nil, &Error{File: file, Line: max(line, n.Line), Object: c.object, Cause: cause}
	}
	o.Data = normalise(o.Data).(map[string]any)
	meta, _ := o.Data["metadata"].(map[string]any)
	if o.Namespace != "" {
		meta["namespace"] = o.Namespace
	}
	return o, nil
}

// normalise turns what YAML may give (maps with keys that are not strings, times) into what JSON knows.
func normalise(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = normalise(e)
		}
		return v
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[fmt.Sprint(k)] = normalise(e)
		}
		return m
	case []any:
		for i, e := range v {
			v[i] = normalise(e)
		}
		return v
	case nil, string, bool, int, int64, uint64, float64:
		return v
	case interface{ MarshalText() ([]byte, error) }:
		b, _ := v.MarshalText()
		return string(b)
	default:
		return fmt.Sprint(v)
	}
}

// New makes an object that comes from no file; meta is its metadata besides name and namespace. The kind must be known.
func New(kind, namespace, name string, meta map[string]any) *Object {
	k := Lookup(kind)
	group, version := k.Groups[0], "v1"
	if group != "" {
		version = group + "/v1"
	}
	m := map[string]any{"name": name}
	if namespace != "" {
		m["namespace"] = namespace
	}
	for f, v := range meta {
		m[f] = v
	}
	return &Object{Kind: k, Namespace: namespace, Name: name, Source: "lab:0",
		Data: map[string]any{"apiVersion": version, "kind": k.Name, "metadata": m}}
}

// Position splits Source into file and line.
func (o *Object) Position() (file string, line int) {
	i := strings.LastIndexByte(o.Source, ':')
	line, _ = strconv.Atoi(o.Source[i+1:])
	return o.Source[:max(i, 0)], line
}

// Labels are those in the object's metadata; nil if it has none.
func (o *Object) Labels() map[string]string {
	meta, _ := o.Data["metadata"].(map[string]any)
	labels, _ := meta["labels"].(map[string]any)
	if len(labels) == 0 {
		return nil
	}
	out := make(map[string]string, len(labels))
	for k, v := range labels {
		out[k] = fmt.Sprint(v)
	}
	return out
}

// keyOf names an object of the control plane's reader as we do.
func keyOf(k kube.Key) string {
	if k == (kube.Key{}) {
		return ""
	}
	return Key{Kind: string(k.Kind), Namespace: k.Name.Namespace, Name: k.Name.Name}.String()
}
