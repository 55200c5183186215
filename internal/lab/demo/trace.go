package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// oneTrace sends a request that is part of a trace, and looks for the trace at every hop: what the waypoint has told the
// collector and the endpoint, and what it has logged.
func (d *demo) oneTrace(ctx context.Context) (string, error) {
	const trace, client = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	if err := d.apply(ctx, "tracing.yaml"); err != nil {
		return "", err
	}
	told := "" // the span that the endpoint was told of
	err := poll(ctx, 20*time.Second, func() error {
		sum, err := d.ask(ctx, "/traced", "--header=traceparent: 00-"+trace+"-"+client+"-01")
		if err != nil {
			return err
		}
		f := strings.Split(lineOf(sum.First, "header.Traceparent="), "-")
		if len(f) != 4 || f[1] != trace || f[2] == client || f[3] != "01" {
			return fmt.Errorf("the endpoint was not told of a span of the waypoint's: %q", f)
		}
		told = f[2]
		return nil
	})
	if err != nil {
		return "", err
	}
	const own = 20
	sum, err := d.ask(ctx, "/untraced", fmt.Sprintf("--count=%d", own))
	if err != nil {
		return "", err
	}
	var span, line string
	n := 0
	err = poll(ctx, 10*time.Second, func() error {
		spans, err := d.logOf(ctx, "collector")
		if err != nil {
			return err
		}
		log, err := d.logOf(ctx, "waypoint")
		if err != nil {
			return err
		}
		span, line = withAll(spans, "trace="+trace, "span="+told, "parent="+client), withAll(log, "/traced", trace)
		if n = strings.Count(spans, reviews+"/untraced"); span == "" || line == "" || n < own {
			return fmt.Errorf("the collector has the waypoint's span: %t; its access log has the trace: %t; the collector has %d of %d spans", span != "", line != "", n, own)
		}
		return nil
	})
	seen := fmt.Sprintf("trace %s: the client's span %s, below it the waypoint's %s at the collector, of which the endpoint was told; the trace is in the waypoint's access log; of %d requests without a trace %d were recorded",
		trace, client, told, sum.OK, n)
	if err == nil && (n != own || sum.OK != own) {
		err = fmt.Errorf("expected %d answers and spans", own)
	}
	return seen, err
}

// logOf is the log of a deployment's pods.
func (d *demo) logOf(ctx context.Context, deployment string) (string, error) {
	pods, err := d.podsOf(ctx, deployment)
	if err != nil || len(pods) == 0 {
		return "", errors.Join(err, fmt.Errorf("no pod of %s", deployment))
	}
	var b strings.Builder
	for _, p := range pods {
		log, err := d.c.log(ctx, "shop", p)
		if err != nil {
			return "", err
		}
		b.WriteString(log)
	}
	return b.String(), nil
}

// withAll is the first line that holds all of the words, "" if there is none.
func withAll(text string, words ...string) string {
next:
	for l := range strings.Lines(text) {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue next
			}
		}
		return strings.TrimSpace(l)
	}
	return ""
}

// lineOf is what follows prefix on a line of text.
func lineOf(text, prefix string) string {
	for l := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(l, prefix); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
