package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// logSource is a source that has logs alone.
type logSource struct {
	source
	text, later string // later comes when the log is followed
}

func (s logSource) logs(_ context.Context, w io.Writer, _ *diagnose.Proxy, o logOptions) error {
	text := s.text
	if o.follow {
		text += s.later
	}
	if lines := strings.SplitAfter(text, "\n"); o.tail >= 0 {
		text = strings.Join(lines[max(0, len(lines)-1-int(o.tail)):], "")
	}
	_, err := io.WriteString(w, text)
	return err
}

func TestTheTailOfALogCountsWhatIsShown(t *testing.T) {
	var text strings.Builder
	for i := range 20 {
		fmt.Fprintf(&text, "line %d of %s\n", i, []string{"web", "db", "db", "db"}[i%4])
	}
	s := logSource{text: text.String(), later: "line 20 of web\nline 21 of db\n"}
	one := []*diagnose.Proxy{{Role: diagnose.Ztunnel, Name: "a"}}
	for name, c := range map[string]struct {
		o     logOptions
		words []string
		list  []*diagnose.Proxy
		want  string
	}{
		"with words":            {logOptions{tail: 2}, []string{"web"}, one, "line 12 of web\nline 16 of web\n"},
		"none":                  {logOptions{tail: 0}, []string{"web"}, one, ""},
		"more than there are":   {logOptions{tail: 9}, []string{"of web"}, one, "line 0 of web\nline 4 of web\nline 8 of web\nline 12 of web\nline 16 of web\n"},
		"followed":              {logOptions{tail: 1, follow: true}, []string{"web"}, one, "line 16 of web\nline 20 of web\n"},
		"without words":         {logOptions{tail: 1}, nil, one, "line 19 of db\n"},
		"of two, without words": {logOptions{tail: 1}, nil, []*diagnose.Proxy{{Name: "a"}, {Name: "a"}}, "[a] line 19 of db\n[a] line 19 of db\n"},
	} {
		var out bytes.Buffer
		if err := copyLogs(t.Context(), &out, s, c.list, c.o, c.words); err != nil || out.String() != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, out.String(), err, c.want)
		}
	}
}
