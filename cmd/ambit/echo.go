package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/spf13/cobra"
)

// echoCommand is the program behind the image ambit/echo. Without a verb it is the server.
func echoCommand() *cobra.Command {
	var s echo.ServerConfig
	var quiet bool
	c := &cobra.Command{
		Use: "echo", Short: "Echo server and client, the lab's built-in image", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Pod, s.Namespace = os.Getenv("POD_NAME"), os.Getenv("POD_NAMESPACE")
			if !quiet {
				s.Log = slog.New(slog.NewTextHandler(os.Stdout, nil))
			}
			return echo.Serve(cmd.Context(), s)
		},
	}
	c.Flags().StringArrayVar(&s.Addresses, "listen", nil, "address for HTTP/1.1, HTTP/2, gRPC and raw TCP; repeatable (default :8080)")
	c.Flags().StringArrayVar(&s.Greet, "greet", nil, "address where the server speaks first, then echoes; repeatable")
	c.Flags().StringVar(&s.FailFile, "fail-file", "", "answer HTTP requests with 503 while this file exists, but for /healthz")
	c.Flags().BoolVar(&s.Collector, "collector", false, "take spans and logs of OpenTelemetry (gRPC, HTTP) and spans of Zipkin, and print a line for each")
	c.Flags().DurationVar(&s.Drain, "drain", 0, "go on that long when told to end, asking clients to close their connections")
	c.Flags().BoolVar(&quiet, "quiet", false, "no line for each request and connection")
	c.AddCommand(echoClient())
	return c
}

func echoClient() *cobra.Command {
	var cfg echo.ClientConfig
	var headers []string
	var asJSON, untilEOF bool
	c := &cobra.Command{
		Use: "client URL", Short: "Send requests to http://, grpc:// or tcp://host:port and tell what came back", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.URL, cfg.Header = args[0], http.Header{}
			for _, h := range headers {
				k, v, ok := strings.Cut(h, ":")
				if !ok {
					return usageError{fmt.Errorf("header %q; accepted: NAME: VALUE", h)}
				}
				cfg.Header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
			}
			ctx := cmd.Context()
			if untilEOF {
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				defer cancel()
				go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }() // ends with the input or the process
			}
			sum, err := echo.Run(ctx, cfg)
			if err != nil {
				return usageError{err}
			}
			if asJSON {
				return json.NewEncoder(os.Stdout).Encode(sum)
			}
			fmt.Print(sum.First)
			for e, n := range sum.Errors {
				fmt.Fprintf(os.Stderr, "%d times: %s\n", n, e)
			}
			if sum.Failed > 0 {
				return errProblem
			}
			return nil
		},
	}
	fs := c.Flags()
	fs.BoolVar(&cfg.HTTP2, "http2", false, "HTTP/2 without TLS")
	fs.StringVarP(&cfg.Method, "method", "X", http.MethodGet, "method of HTTP requests")
	fs.StringArrayVarP(&headers, "header", "H", nil, "header NAME: VALUE; repeatable")
	fs.StringVarP(&cfg.Body, "data", "d", "", "body, or the line to send over raw TCP")
	fs.IntVarP(&cfg.Count, "count", "c", 1, "number of exchanges")
	fs.DurationVar(&cfg.Duration, "duration", 0, "go on that long")
	fs.BoolVar(&untilEOF, "until-eof", false, "end early when the standard input ends")
	fs.Float64Var(&cfg.Rate, "rate", 0, "exchanges a second (default: as fast as possible)")
	fs.BoolVar(&cfg.Fresh, "fresh", false, "a new connection for each exchange")
	fs.DurationVar(&cfg.Timeout, "timeout", 0, "timeout of an exchange (default 10s)")
	fs.IntVar(&cfg.Parallel, "parallel", 1, "exchanges under way at a time")
	fs.BoolVar(&asJSON, "json", false, "print a summary as JSON")
	return c
}
