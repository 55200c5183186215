package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// apiVersion of what -o json prints: fields of it are not renamed.
const apiVersion = "cli.ambit-mesh.io/v1"

// listing is what a command found, for all forms of -o.
type listing struct {
	kind  string
	items any      // of documents
	names []string // KIND/NAME of each, for -o name
	table diagnose.Table
	// text is shown instead of the table, wide instead of it with -o wide; "" = the table is.
	text, wide string
	// same is what is compared to see a change; nil = all. It has no times that pass by themselves.
	same any
	// notes are for people, beside what is shown.
	notes string
	// problem is what the command ends with.
	problem error
}

func (l *listing) document() map[string]any {
	return map[string]any{"apiVersion": apiVersion, "kind": l.kind, "items": l.items}
}

// print writes what was found in the form that was asked for.
func (f *meshFlags) print(w io.Writer, l *listing) error {
	switch {
	case f.output.document():
		b, err := f.output.encode(l.document())
		if err == nil && f.output.template == nil {
			b = append(b, '\n')
		}
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	case f.output.form == formName:
		names := slices.Clone(l.names) // more than one proxy may have the same
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			fmt.Fprintln(w, n)
		}
		return nil
	}
	if text := l.prose(f.output.form); text != "" {
		_, err := io.WriteString(w, text)
		return err
	}
	return writeTable(w, l.columns(f.output.form))
}

// prose is the text for people in a form, "" when there is a table.
func (l *listing) prose(form string) string {
	if form == formWide {
		return cmp.Or(l.wide, l.text)
	}
	return l.text
}

func (l *listing) columns(form string) diagnose.Table {
	if form == formWide {
		return l.table
	}
	return l.table.Narrow()
}

// writeTable writes a table as kubectl does.
func writeTable(w io.Writer, t diagnose.Table) error {
	if len(t.Rows) == 0 {
		fmt.Fprintln(os.Stderr, "nothing found")
		return nil
	}
	var a aligner
	_, err := io.WriteString(w, a.lines(append([][]string{t.Head}, t.Rows...)))
	return err
}

// tableText is a table as writeTable writes it, "" without rows.
func tableText(t diagnose.Table) string {
	if len(t.Rows) == 0 {
		return ""
	}
	var a aligner
	return a.lines(append([][]string{t.Head}, t.Rows...))
}

// aligner aligns the columns of rows, also with those that it had before.
type aligner struct {
	widths []int
}

func (a *aligner) lines(rows [][]string) string {
	const gap = 3
	oneLine := strings.NewReplacer("\r", "", "\n", " ", "\t", " ") // a proxy's refusal may have several
	text := func(c string) string { return cmp.Or(oneLine.Replace(c), "-") }
	for _, row := range rows {
		for i, c := range row {
			if i == len(a.widths) {
				a.widths = append(a.widths, 0)
			}
			a.widths[i] = max(a.widths[i], utf8.RuneCountInString(text(c)))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, c := range row {
			c = text(c)
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", a.widths[i]-utf8.RuneCountInString(c)+gap))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// findingList is findings; errors among them make the exit status 1.
func findingList(list []diagnose.Finding) *listing {
	if list == nil {
		list = []diagnose.Finding{}
	}
	l := &listing{kind: "FindingList", items: list, text: diagnose.FindingsText(list), wide: tableText(diagnose.FindingsTable(list)), problem: problemIn(list)}
	same := []string{}
	for _, x := range list { // a cause may say how long ago something was
		l.names = append(l.names, nameOf(x.Object))
		same = append(same, x.Code+" "+x.Object)
	}
	l.same = same
	return l
}

// nameOf is KIND/NAME of a finding's object, "Kind namespace/name".
func nameOf(object string) string {
	kind, name, ok := strings.Cut(object, " ")
	if !ok {
		return object
	}
	return strings.ToLower(kind) + "/" + name[strings.LastIndex(name, "/")+1:]
}

// printFindings writes findings, and is errProblem when there are errors among them.
func (f *meshFlags) printFindings(cmd *cobra.Command, list []diagnose.Finding) error {
	l := findingList(list)
	if err := f.print(cmd.OutOrStdout(), l); err != nil {
		return err
	}
	return l.problem
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
