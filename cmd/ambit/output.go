package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// apiVersion of what -o json prints: fields of it are not renamed.
const apiVersion = "cli.ambit-mesh.io/v1"

// print writes items as JSON or YAML if that was asked for, and else what table writes.
func (f *meshFlags) print(kind string, items any, table func(io.Writer) error) error {
	if f.output != "json" && f.output != "yaml" {
		return table(os.Stdout)
	}
	b, err := json.MarshalIndent(map[string]any{"apiVersion": apiVersion, "kind": kind, "items": items}, "", "  ")
	if err == nil && f.output == "yaml" {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	fmt.Println(strings.TrimRight(string(b), "\n"))
	return nil
}

// writeTable writes a table as kubectl does.
func writeTable(w io.Writer, t diagnose.Table) error {
	if len(t.Rows) == 0 {
		fmt.Fprintln(os.Stderr, "nothing found")
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.Head, "\t"))
	for _, row := range t.Rows {
		cells := make([]string, len(row))
		for i, c := range row {
			if cells[i] = c; c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// printFindings writes findings; errors among them make the exit status 1.
func (f *meshFlags) printFindings(list []diagnose.Finding) error {
	if list == nil {
		list = []diagnose.Finding{}
	}
	err := f.print("FindingList", list, func(w io.Writer) error {
		_, err := io.WriteString(w, diagnose.FindingsText(list))
		return err
	})
	if err != nil {
		return err
	}
	return problemIn(list)
}

func problemIn(list []diagnose.Finding) error {
	for _, x := range list {
		if x.Severity == diagnose.Error {
			return errProblem
		}
	}
	return nil
}

// of keeps findings about objects of a namespace, and those that are of none.
func of(list []diagnose.Finding, namespace string) (out []diagnose.Finding) {
	for _, x := range list {
		_, name, _ := strings.Cut(x.Object, " ")
		ns, _, namespaced := strings.Cut(name, "/")
		if namespace == "" || !namespaced || ns == namespace || x.Object == "Namespace "+namespace {
			out = append(out, x)
		}
	}
	return out
}
