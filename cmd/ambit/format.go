package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/client-go/util/jsonpath"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Forms in which a command shows what it found, beside formJSONPath with its template.
const (
	formTable    = "table"
	formWide     = "wide"
	formJSON     = "json"
	formYAML     = "yaml"
	formName     = "name"
	formJSONPath = "jsonpath="
)

// format is the value of -o. Zero is a table.
type format struct {
	form     string
	unnamed  bool // what is shown has no names
	template *jsonpath.JSONPath
}

func (f *format) String() string { return f.form }

// Type is the value's name in the help.
func (f *format) Type() string { return "FORMAT" }

func (f *format) accepted() []string {
	out := []string{formTable, formWide, formJSON, formYAML, formName, formJSONPath + "TEMPLATE"}
	if f.unnamed {
		out = slices.Delete(out, 4, 5)
	}
	return out
}

// Set reads table, wide, json, yaml, name or jsonpath=TEMPLATE.
func (f *format) Set(value string) error {
	if text, ok := strings.CutPrefix(value, formJSONPath); ok {
		t, err := parseTemplate(text)
		if err == nil {
			f.form, f.template = value, t
		}
		return err
	}
	if !slices.Contains(f.accepted(), value) {
		return fmt.Errorf("accepted: %s", strings.Join(f.accepted(), ", "))
	}
	f.form, f.template = value, nil
	return nil
}

// parseTemplate reads a template of kubectl, or a path alone, which kubectl takes where it wants no more than that: .items[0].name.
func parseTemplate(text string) (*jsonpath.JSONPath, error) {
	if text == "" {
		return nil, errors.New("the template is empty; accepted: as in jsonpath={.items[*].name}")
	}
	if !strings.ContainsAny(text, "{}") {
		text = "{." + strings.TrimPrefix(strings.TrimPrefix(text, "$"), ".") + "}"
	}
	t := jsonpath.New("output").AllowMissingKeys(true)
	if err := t.Parse(text); err != nil {
		return nil, fmt.Errorf("parse template: %w; accepted: as in jsonpath={.items[*].name}", err)
	}
	return t, nil
}

// encode writes a document as JSON, as YAML or by the template. It ends with no line break.
func (f *format) encode(doc any) ([]byte, error) {
	b, err := json.MarshalIndent(doc, "", "  ")
	switch {
	case err != nil:
	case f.form == formYAML:
		b, err = yaml.JSONToYAML(b)
		b = bytes.TrimRight(b, "\n")
	case f.template != nil:
		var v any
		if err = kjson.UnmarshalCaseSensitivePreserveInts(b, &v); err == nil {
			var out bytes.Buffer
			err = f.template.Execute(&out, v)
			b = out.Bytes()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	return b, nil
}

// document says that what is shown is a document, for programs.
func (f *format) document() bool {
	return f.form == formJSON || f.form == formYAML || f.template != nil
}
