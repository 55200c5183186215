package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds on one object, so that a manifest of a few bytes (nested aliases) cannot cost gigabytes.
const (
	maxYAMLDepth  = 100
	maxObjectJSON = 4 << 20
)

// document is one YAML document of a file, not yet parsed.
type document struct {
	text []byte
	// line is the file's line number of the document's first line.
	line int
}

// splitDocuments cuts a file at its document markers. A "---" in the first column always is one, even inside a block
// scalar (YAML 1.2, 9.1.2), so no parser is needed; and a document that is unchanged need not be parsed again.
func splitDocuments(data []byte) []document {
	var docs []document
	start, startLine, line := 0, 1, 1
	flush := func(end int) {
		if text := data[start:end]; len(bytes.TrimSpace(text)) > 0 {
			docs = append(docs, document{text: text, line: startLine})
		}
	}
	for at := 0; at < len(data); {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		if l := data[at:next]; isMarker(l) {
			flush(at)
			start, startLine = at, line
			if len(bytes.TrimSpace(l)) == 3 {
				// The text of a document is without its marker, so that it stays the same in another place.
				start, startLine = next, line+1
			}
		}
		at = next
		line++
	}
	flush(len(data))
	return docs
}

// isMarker says whether a line starts a document.
func isMarker(line []byte) bool {
	return bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0)
}

// parse returns the root nodes of the document: one, or none when it holds comments only, or several when it uses the
// end marker "...". Line numbers in nodes count from the document's start.
func (d document) parse() (roots []*yaml.Node, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(d.text))
	for {
		var n yaml.Node
		switch err := dec.Decode(&n); {
		case errors.Is(err, io.EOF):
			return roots, nil
		case err != nil:
			return nil, err
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 && !isNull(n.Content[0]) {
			roots = append(roots, n.Content[0])
		}
	}
}

// isNull says whether a node is the null value.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// child returns the value of a key of a mapping, nil when there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// locate returns the line of the node that a field path names, or of the deepest one on the way to it.
func locate(root *yaml.Node, path string) int {
	n, line := root, root.Line
	for path != "" && n != nil {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var step string
		step, path = nextStep(path)
		if strings.HasPrefix(step, "[") {
			key := strings.Trim(step, "[]")
			if n.Kind == yaml.SequenceNode {
				i, err := strconv.Atoi(key)
				if err != nil || i < 0 || i >= len(n.Content) {
					return line
				}
				n = n.Content[i]
				line = n.Line
				continue
			}
			step = key
		}
		n, line = descend(n, step, line)
	}
	return line
}

// descend looks a key up in a mapping and returns its value and the line of the key.
func descend(n *yaml.Node, key string, line int) (*yaml.Node, int) {
	if n.Kind != yaml.MappingNode {
		return nil, line
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1], n.Content[i].Line
		}
	}
	return nil, line
}

// nextStep cuts the first step off a field path: "name" or "[index]".
func nextStep(path string) (step, rest string) {
	path = strings.TrimPrefix(path, ".")
	if strings.HasPrefix(path, "[") {
		if i := strings.IndexByte(path, ']'); i >= 0 {
			return path[:i+1], path[i+1:]
		}
		return path, ""
	}
	if i := strings.IndexAny(path, ".["); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// position is where in the JSON text a value begins, and what it is in the manifest.
type position struct {
	offset, line int
	path         string
}

// yamlError is an error of the manifest's text at a line.
type yamlError struct {
	line     int
	path     string
	cause    string
	accepted string
}

func (e *yamlError) Error() string { return e.cause }

// encoder turns YAML nodes into JSON. It is stricter than YAML: keys are unique, there is no merge key, and plain
// "yes" and "on" are strings (YAML 1.2).
type encoder struct {
	out []byte
	// record asks for positions, which only an error message needs.
	record    bool
	positions []position
}

// toJSON encodes a node and, when record is set, where its values came from.
func toJSON(n *yaml.Node, record bool) ([]byte, []position, error) {
	e := encoder{record: record, out: make([]byte, 0, 1024)}
	if err := e.value(n, "", 0); err != nil {
		return nil, nil, err
	}
	return e.out, e.positions, nil
}

func (e *encoder) value(n *yaml.Node, path string, depth int) error {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
		if depth++; depth > maxYAMLDepth {
			break
		}
	}
	if depth > maxYAMLDepth {
		return &yamlError{line: n.Line, path: path, cause: "object is nested too deeply", accepted: fmt.Sprintf("%d levels", maxYAMLDepth)}
	}
	if len(e.out) > maxObjectJSON {
		return &yamlError{line: n.Line, path: path, cause: "object is too large", accepted: fmt.Sprintf("%d bytes of JSON", maxObjectJSON)}
	}
	if e.record {
		e.positions = append(e.positions, position{offset: len(e.out), line: n.Line, path: path})
	}
	switch n.Kind {
	case yaml.MappingNode:
		return e.mapping(n, path, depth)
	case yaml.SequenceNode:
		e.out = append(e.out, '[')
		for i, c := range n.Content {
			if i > 0 {
				e.out = append(e.out, ',')
			}
			if err := e.value(c, e.join(path, "["+strconv.Itoa(i)+"]", false), depth+1); err != nil {
				return err
			}
		}
		e.out = append(e.out, ']')
		return nil
	case yaml.ScalarNode:
		return e.scalar(n, path)
	}
	return &yamlError{line: n.Line, path: path, cause: "unexpected YAML node"}
}

func (e *encoder) mapping(n *yaml.Node, path string, depth int) error {
	e.out = append(e.out, '{')
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		for k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		switch {
		case k.Kind != yaml.ScalarNode:
			return &yamlError{line: k.Line, path: path, cause: "a mapping key is not a scalar"}
		case k.ShortTag() == "!!merge":
			return &yamlError{line: k.Line, path: path, cause: "merge keys (<<) are not supported"}
		case duplicates(n, i, k.Value):
			return &yamlError{line: k.Line, path: e.join(path, k.Value, true), cause: fmt.Sprintf("key %q appears twice", k.Value)}
		}
		if i > 0 {
			e.out = append(e.out, ',')
		}
		e.string(k.Value)
		e.out = append(e.out, ':')
		if err := e.value(n.Content[i+1], e.join(path, k.Value, true), depth+1); err != nil {
			return err
		}
	}
	e.out = append(e.out, '}')
	return nil
}

// duplicates says whether a key stands among the first entries of a mapping. Mappings are small; those that are not
// are caught by the decoder, which refuses duplicate fields too.
func duplicates(n *yaml.Node, upTo int, key string) bool {
	if upTo > 512 {
		return false
	}
	for i := 0; i < upTo; i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

// join extends a path, when paths are wanted at all.
func (e *encoder) join(path, step string, key bool) string {
	if !e.record {
		return ""
	}
	if key && path != "" {
		return path + "." + step
	}
	return path + step
}

func (e *encoder) scalar(n *yaml.Node, path string) error {
	switch n.ShortTag() {
	case "!!null":
		e.out = append(e.out, "null"...)
		return nil
	case "!!bool":
		var v bool
		if err := n.Decode(&v); err != nil {
			return &yamlError{line: n.Line, path: path, cause: fmt.Sprintf("invalid boolean %q", n.Value), accepted: "true, false"}
		}
		e.out = strconv.AppendBool(e.out, v)
		return nil
	case "!!int", "!!float":
		return e.number(n, path)
	default:
		e.string(n.Value)
		return nil
	}
}

func (e *encoder) number(n *yaml.Node, path string) error {
	var v any
	if err := n.Decode(&v); err != nil {
		return &yamlError{line: n.Line, path: path, cause: fmt.Sprintf("invalid number %q", n.Value)}
	}
	switch v := v.(type) {
	case int:
		e.out = strconv.AppendInt(e.out, int64(v), 10)
	case int64:
		e.out = strconv.AppendInt(e.out, v, 10)
	case uint64:
		e.out = strconv.AppendUint(e.out, v, 10)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return &yamlError{line: n.Line, path: path, cause: fmt.Sprintf("number %q is not finite", n.Value)}
		}
		b, err := json.Marshal(v)
		if err != nil {
			return &yamlError{line: n.Line, path: path, cause: fmt.Sprintf("invalid number %q", n.Value)}
		}
		e.out = append(e.out, b...)
	default:
		e.string(n.Value)
	}
	return nil
}

const hexDigits = "0123456789abcdef"

// string appends a JSON string. Bytes that are not UTF-8 become U+FFFD, as in encoding/json.
func (e *encoder) string(s string) {
	e.out = append(e.out, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			e.out = append(e.out, '\\', c)
		case c < 0x20:
			e.out = append(e.out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			e.out = append(e.out, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			e.out = utf8.AppendRune(e.out, r)
			i += size
			continue
		}
		i++
	}
	e.out = append(e.out, '"')
}
