package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

func meshLogsCommand() *cobra.Command {
	f := &meshFlags{}
	var o logOptions
	var all bool
	c := &cobra.Command{
		Use: "logs [OBJECT] [-f]", Short: "Logs of the proxies of an object, or of the control plane", Args: f.objectOrLabels(),
		Long: `Logs of the programs of the mesh. OBJECT is yours, [pod/]NAME, deploy/NAME or svc/NAME: its proxies are found, and lines that name its pods or
Services are shown (--all-lines: all). ztunnel/NODE, waypoint/NAME and controlplane show all. Without OBJECT all programs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			list, subject, err := f.target(w, namespace, args)
			if err != nil {
				return err
			}
			var words []string
			if subject != nil && !all {
				words = wordsOf(subject)
			}
			return copyLogs(cmd.Context(), cmd.OutOrStdout(), s, list, o, words)
		},
	}
	f.register(c)
	f.registerSelector(c, "proxies of the pods and Services")
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on as the logs grow")
	c.Flags().Int64Var(&o.tail, "tail", -1, "lines of each program from the end, of those that are shown (default: all)")
	c.Flags().StringVar(&o.part, "part", "", "part of a ztunnel: capture or proxy (default: proxy)")
	c.Flags().BoolVar(&all, "all-lines", false, "also lines that do not name the object")
	return c
}

// wordsOf are what lines about an object have one of.
func wordsOf(s *diagnose.Subject) (out []string) {
	for _, p := range s.Pods {
		out = append(out, `"`+p.Name+`"`, p.Namespace+"/"+p.Name)
		for _, ip := range p.Status.PodIPs {
			out = append(out, ip.IP+":")
		}
	}
	for _, x := range s.Services {
		out = append(out, x.Name+"."+x.Namespace+".svc")
	}
	return out
}

// copyLogs copies the logs of programs, each line after the program's name when there are several. Of lines with one of the
// words the tail counts those alone.
func copyLogs(ctx context.Context, out io.Writer, s source, list []*diagnose.Proxy, o logOptions, words []string) error {
	if len(list) == 1 && words == nil {
		return s.logs(ctx, out, list[0], o)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, p := range list {
		x := o
		if p.Role != diagnose.Ztunnel {
			x.part = ""
		}
		show := func(line []byte) {
			mu.Lock()
			defer mu.Unlock()
			if len(list) > 1 {
				fmt.Fprintf(out, "[%s] ", p.Name)
			}
			out.Write(line)
		}
		wg.Go(func() {
			if err := copyMatching(ctx, s, p, x, words, show); err != nil {
				errs[i] = fmt.Errorf("%s: %w", p, err)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// copyMatching shows the lines of one log that have one of the words.
func copyMatching(ctx context.Context, s source, p *diagnose.Proxy, o logOptions, words []string, show func([]byte)) error {
	if words == nil || o.tail < 0 {
		return eachLine(ctx, s, p, o, func(line []byte) {
			if hasWord(line, words) {
				show(line)
			}
		})
	}
	all := logOptions{part: o.part, tail: -1}
	var last [][]byte
	seen := 0
	err := eachLine(ctx, s, p, all, func(line []byte) {
		if seen++; hasWord(line, words) {
			if last = append(last, line); int64(len(last)) > o.tail {
				last = last[1:]
			}
		}
	})
	for _, line := range last {
		show(line)
	}
	if err != nil || !o.follow {
		return err
	}
	all.follow = true
	return eachLine(ctx, s, p, all, func(line []byte) {
		if seen--; seen < 0 && hasWord(line, words) {
			show(line)
		}
	})
}

// eachLine calls f with each line of a log; f may keep it.
func eachLine(ctx context.Context, s source, p *diagnose.Proxy, o logOptions, f func(line []byte)) error {
	r, w := io.Pipe()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { w.CloseWithError(s.logs(ctx, w, p, o)) })
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			f(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func hasWord(line []byte, words []string) bool {
	for _, w := range words {
		if bytes.Contains(line, []byte(w)) {
			return true
		}
	}
	return len(words) == 0
}

func logCommand() *cobra.Command {
	f := &meshFlags{}
	var level string
	var reset bool
	c := &cobra.Command{
		Use: "log [OBJECT] [--level LEVEL]", Short: "Show or change the log level of the proxies of an object", Args: f.objectOrLabels(),
		Long: `Show or change the log level of the proxies of OBJECT: [pod/]NAME, deploy/NAME, svc/NAME, ztunnel/NODE, waypoint/NAME; without OBJECT of all.
LEVEL is off, error, warn, info, debug or trace, or SCOPE=LEVEL,...; --reset goes back to what the proxies were started with. It
holds until they restart.`,
		Example: "  ambit log -n shop svc/cart --level proxy=debug\n  ambit log --reset",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			list, _, err := f.target(w, namespace, args)
			if err != nil {
				return err
			}
			q := url.Values{}
			if reset {
				q.Set("reset", "")
			}
			if level != "" {
				q.Set("level", level)
			}
			failed := false
			for _, p := range list {
				if p.Role == diagnose.ControlPlane {
					continue
				}
				body, err := s.admin(cmd.Context(), p, http.MethodPost, "/logging?"+q.Encode())
				if err != nil {
					failed = true
					fmt.Fprintf(os.Stderr, "%s: %v\n", p, err)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", p, strings.Join(strings.Fields(string(body)), " "))
			}
			if failed {
				return errProblem
			}
			return nil
		},
	}
	f.register(c)
	f.registerSelector(c, "proxies of the pods and Services")
	c.Flags().StringVar(&level, "level", "", "LEVEL, or SCOPE=LEVEL,...")
	c.Flags().BoolVar(&reset, "reset", false, "back to the levels of the start")
	return c
}
