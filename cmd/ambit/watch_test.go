package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// watched runs show over moments, one each time that it asks, and ends it as ctrl-C does.
func watched(t *testing.T, form string, moments []func() (*listing, error)) (text string, err error) {
	synctest.Test(t, func(t *testing.T) {
		f := &meshFlags{watch: true}
		if err := f.output.Set(form); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		begun, n := time.Now(), 0
		var out bytes.Buffer
		err = f.show(ctx, &out, func(context.Context) (*listing, error) {
			if want := time.Duration(n) * watchInterval; time.Since(begun) != want {
				t.Errorf("asked for the %dth time after %s, want %s", n, time.Since(begun), want)
			}
			if n++; n > len(moments) {
				cancel()
				return nil, ctx.Err()
			}
			return moments[n-1]()
		})
		text = out.String()
	})
	return text, err
}

func listingOf(rows ...string) func() (*listing, error) {
	return func() (*listing, error) {
		l := &listing{kind: "ProxyList", table: diagnose.Table{Head: []string{"NAMESPACE", "NAME", "SYNC", "CONNECTED", "ERROR"}, Key: 2, Wide: 1}, problem: errProblem}
		items, same := []map[string]string{}, []string{}
		for _, r := range rows {
			c := strings.Fields(r)
			l.table.Rows = append(l.table.Rows, append(c, ""))
			l.names = append(l.names, "ztunnel/"+c[1])
			items, same = append(items, map[string]string{"name": c[1], "sync": c[2], "connected": c[3]}), append(same, c[1]+c[2])
		}
		l.items, l.same = items, same
		return l, nil
	}
}

func TestWatchedRowsAreShownWhenTheyChange(t *testing.T) {
	got, err := watched(t, formTable, []func() (*listing, error){
		listingOf("mesh a SYNCED 1s", "mesh b SYNCED 1s"),
		listingOf("mesh a SYNCED 3s", "mesh b SYNCED 3s"), // time that passes is no change
		listingOf("mesh a NACKED 5s", "mesh b SYNCED 5s"),
		func() (*listing, error) { return nil, errors.New("the API server is away") },
		listingOf("mesh a NACKED 7s", "mesh longer SYNCED 1s"),
	})
	const want = `NAMESPACE   NAME   SYNC     CONNECTED
mesh        a      SYNCED   1s
mesh        b      SYNCED   1s
mesh        a      NACKED   5s
mesh        longer   SYNCED   1s
mesh        b        SYNCED   5s          (gone)
`
	if err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

func TestAWatchedDocumentIsWrittenOncePerChange(t *testing.T) {
	moments := []func() (*listing, error){
		listingOf("mesh a SYNCED 1s"), listingOf("mesh a SYNCED 3s"), listingOf("mesh a STALE 5s"), listingOf("mesh a STALE 7s"), listingOf(),
	}
	for form, want := range map[string]string{
		"jsonpath={.items[*].sync}": "SYNCED\nSTALE\n\n",
		"name":                      "ztunnel/a\nztunnel/a\n",
		"yaml": "apiVersion: cli.ambit-mesh.io/v1\nitems:\n- connected: 1s\n  name: a\n  sync: SYNCED\nkind: ProxyList\n---\n" +
			"apiVersion: cli.ambit-mesh.io/v1\nitems:\n- connected: 5s\n  name: a\n  sync: STALE\nkind: ProxyList\n---\n" +
			"apiVersion: cli.ambit-mesh.io/v1\nitems: []\nkind: ProxyList\n",
	} {
		if got, err := watched(t, form, moments); err != nil || got != want {
			t.Errorf("-o %s: %v, got\n%s\nwant\n%s", form, err, got, want)
		}
	}
	got, err := watched(t, formJSON, moments)
	if n := strings.Count(got, `"kind": "ProxyList"`); err != nil || n != 3 {
		t.Errorf("-o json: %d documents, %v:\n%s", n, err, got)
	}
}

func TestAWatchThatCannotBeginFails(t *testing.T) {
	if _, err := watched(t, formTable, []func() (*listing, error){func() (*listing, error) { return nil, errUnreachable }}); !errors.Is(err, errUnreachable) {
		t.Errorf("%v", err)
	}
}
