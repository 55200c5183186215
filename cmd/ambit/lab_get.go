package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func getCommand(f *labFlags) *cobra.Command {
	var namespace, output string
	var all bool
	c := &cobra.Command{
		Use: "get KIND [NAME] [-n NS|-A] [-o wide|json|yaml|name]", Short: "Show objects of a lab", Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			kindWord, name, _ := strings.Cut(args[0], "/")
			if len(args) == 2 {
				name = args[1]
			}
			kind := manifest.Lookup(kindWord)
			if kind == nil {
				return usageError{fmt.Errorf("unknown kind %q; accepted: %s", kindWord, strings.Join(manifest.Names(), ", "))}
			}
			switch output {
			case "", "wide", "json", "yaml", "name":
			default:
				return usageError{fmt.Errorf("output %q; accepted: wide, json, yaml, name", output)}
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
			return printObjects(kind, objs, output, all, name != "")
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace")
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces")
	c.Flags().StringVarP(&output, "output", "o", "", "wide, json, yaml or name (default: a table)")
	return c
}

func printObjects(kind *manifest.Kind, objs []json.RawMessage, output string, all, single bool) error {
	switch output {
	case "json", "yaml":
		var doc any = map[string]any{"apiVersion": "v1", "kind": "List", "items": objs}
		if single {
			doc = objs[0]
		}
		b, err := json.MarshalIndent(doc, "", "  ")
		if err == nil && output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return fmt.Errorf("encode objects: %w", err)
		}
		fmt.Println(strings.TrimRight(string(b), "\n"))
		return nil
	case "name":
		for _, raw := range objs {
			var o struct{ Metadata struct{ Name string } }
			if err := json.Unmarshal(raw, &o); err != nil {
				return fmt.Errorf("decode object: %w", err)
			}
			fmt.Printf("%s/%s\n", strings.ToLower(kind.Name), o.Metadata.Name)
		}
		return nil
	}
	return printTable(os.Stdout, kind, objs, output == "wide", all)
}
