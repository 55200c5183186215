package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func getCommand(f *labFlags) *cobra.Command {
	var namespace string
	var output format
	var chosen selector
	var all bool
	c := &cobra.Command{
		Use: "get KIND [NAME] [-n NS|-A] [-o wide|json|yaml|name|jsonpath=TEMPLATE] [-l SELECTOR]", Short: "Show objects of a lab", Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			kindWord, name, _ := strings.Cut(args[0], "/")
			if len(args) == 2 {
				name = args[1]
			}
			kind := manifest.Lookup(kindWord)
			if kind == nil {
				return usageError{fmt.Errorf("unknown kind %q; accepted: %s", kindWord, strings.Join(manifest.Names(), ", "))}
			}
			if name != "" && chosen.Selector != nil {
				return usageError{errors.New("NAME and --selector; accepted: one of them")}
			}
			if all {
				namespace = ""
			}
			cl, err := f.dial()
			if err != nil {
				return err
			}
			objs, err := cl.Objects(cmd.Context(), kind.Name, namespace, name)
			if err != nil {
				return err
			}
			if objs, err = withLabels(objs, chosen); err != nil {
				return err
			}
			return printObjects(cmd.OutOrStdout(), kind, objs, getOutput{format: output, all: all, single: name != ""})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace")
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces")
	c.Flags().VarP(&output, "output", "o", "one of "+strings.Join(output.accepted(), ", "))
	c.Flags().VarP(&chosen, "selector", "l", "objects by their labels, as kubectl's: a=b,c!=d,e in (f,g),h")
	return c
}

// withLabels are the objects that a selector chooses.
func withLabels(objs []json.RawMessage, chosen selector) ([]json.RawMessage, error) {
	if chosen.Selector == nil {
		return objs, nil
	}
	out := []json.RawMessage{}
	for _, raw := range objs {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(raw, &o); err != nil {
			return nil, fmt.Errorf("decode object: %w", err)
		}
		if chosen.Matches(labels.Set(o.Labels)) {
			out = append(out, raw)
		}
	}
	return out, nil
}

// getOutput says how objects are printed: of all namespaces, or a single one.
type getOutput struct {
	format
	all, single bool
}

func printObjects(w io.Writer, kind *manifest.Kind, objs []json.RawMessage, o getOutput) error {
	switch {
	case o.document():
		var doc any = map[string]any{"apiVersion": "v1", "kind": "List", "items": objs}
		if o.single {
			doc = objs[0]
		}
		b, err := o.encode(doc)
		if err != nil {
			return err
		}
		if o.template == nil {
			b = append(b, '\n')
		}
		_, err = w.Write(b)
		return err
	case o.form == formName:
		for _, raw := range objs {
			var x struct{ Metadata struct{ Name string } }
			if err := json.Unmarshal(raw, &x); err != nil {
				return fmt.Errorf("decode object: %w", err)
			}
			fmt.Fprintf(w, "%s/%s\n", strings.ToLower(kind.Name), x.Metadata.Name)
		}
		return nil
	}
	return printTable(w, kind, objs, o.form == formWide, o.all)
}
