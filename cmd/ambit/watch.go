package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// watchInterval is how long --watch waits before it asks again.
const watchInterval = 2 * time.Second

// show prints what find finds. With --watch it goes on until ctx ends, which is no error, and prints what has changed: rows of
// a table, or all of a document or a text.
func (f *meshFlags) show(ctx context.Context, out io.Writer, find func(context.Context) (*listing, error)) error {
	l, err := find(ctx)
	if f.watch && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	tell := teller{w: os.Stderr}
	tell.say(l.notes)
	if !f.watch {
		if err := f.print(out, l); err != nil {
			return err
		}
		return l.problem
	}
	w := &watcher{flags: f, out: out}
	for t := time.NewTimer(watchInterval); ; t.Reset(watchInterval) {
		if l != nil {
			if err := w.next(l); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		l, err = find(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // what is watched may be what is in trouble
			l = nil
			tell.say(fmt.Sprintf("ambit: %v; asked again until it answers\n", err))
		default:
			tell.say(l.notes)
		}
	}
}

// teller says what is other than what it said last.
type teller struct {
	w    io.Writer
	last string
}

func (t *teller) say(text string) {
	if text != t.last {
		t.last = text
		_, _ = io.WriteString(t.w, text)
	}
}

// watcher prints what differs from what was there before.
type watcher struct {
	flags *meshFlags
	out   io.Writer
	begun bool
	last  string              // what was compared
	rows  map[string][]string // of a table, by what was compared of each
	align aligner
}

func (w *watcher) next(l *listing) error {
	form := w.flags.output.form
	if !w.flags.output.document() && form != formName && l.prose(form) == "" {
		return w.nextRows(l.columns(form))
	}
	same := l.same
	if same == nil {
		same = l.items
	}
	b, err := json.Marshal(same)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	if w.begun && string(b) == w.last {
		return nil
	}
	separate := w.begun && w.flags.output.form == formYAML
	w.begun, w.last = true, string(b)
	if separate {
		fmt.Fprintln(w.out, "---")
	}
	if err := w.flags.print(w.out, l); err != nil {
		return err
	}
	if w.flags.output.template != nil {
		fmt.Fprintln(w.out)
	}
	return nil
}

// nextRows prints the rows that are new, or other than they were, and those that are gone.
func (w *watcher) nextRows(t diagnose.Table) error {
	var show [][]string
	if !w.begun && len(t.Rows) > 0 {
		show = append(show, t.Head)
		w.begun = true
	}
	now, about := map[string][]string{}, map[string]bool{}
	for _, row := range t.Rows {
		key := rowKey(t.Head, row)
		about[t.ID(row)] = true
		if now[key] = row; w.rows[key] == nil {
			show = append(show, row)
		}
	}
	var gone [][]string
	for _, row := range w.rows {
		if !about[t.ID(row)] {
			gone = append(gone, append(slices.Clone(row), "(gone)"))
		}
	}
	slices.SortFunc(gone, slices.Compare)
	w.rows = now
	_, err := io.WriteString(w.out, w.align.lines(append(show, gone...)))
	return err
}

// rowKey is all of a row but the times that pass by themselves.
func rowKey(head, row []string) string {
	row = slices.Clone(row)
	if i := slices.Index(head, diagnose.ConnectedColumn); i >= 0 {
		row[i] = ""
	}
	return strings.Join(row, "\x00")
}
