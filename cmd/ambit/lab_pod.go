package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func execCommand(f *labFlags) *cobra.Command {
	var namespace, container string
	c := &cobra.Command{
		Use: "exec [-n NS] POD|NODE [-c C] -- CMD...", Short: "Run a command inside of a pod or node", Args: arguments(cobra.MinimumNArgs(2)),
		Long: "Run a command in the namespaces of a pod (network, mounts, host name, IPC) or a node (network).\nThe command takes this process's place: files, signals and exit status are its own.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			a, err := cl.Access(cmd.Context(), namespace, args[0], container)
			if err != nil {
				return err
			}
			if term, ok := os.LookupEnv("TERM"); ok {
				return a.Exec(args[1:], "TERM="+term)
			}
			return a.Exec(args[1:])
		},
	}
	c.Flags().SetInterspersed(true)
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	c.Flags().StringVarP(&container, "container", "c", "", "container whose environment is used (default: the first)")
	return c
}

func netnsCommand(f *labFlags) *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use: "netns [-n NS] POD|NODE|controlplane", Short: "Print the name of a network namespace, for `ip netns exec`", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			a, err := cl.Access(cmd.Context(), namespace, args[0], "")
			if err != nil {
				return err
			}
			fmt.Println(a.NetNS)
			return nil
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	return c
}

func logsCommand(f *labFlags) *cobra.Command {
	var namespace, container, part string
	var follow bool
	c := &cobra.Command{
		Use: "logs [-f] [-n NS] POD | ztunnel/NODE | controlplane | supervisor", Short: "Print a log", Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			if strings.HasPrefix(args[0], "ztunnel/") {
				container = part
			}
			path, err := cl.LogFile(cmd.Context(), namespace, args[0], container)
			if err != nil {
				return err
			}
			return copyLog(cmd.Context(), os.Stdout, path, follow)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as the log grows")
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().StringVar(&part, "part", "proxy", "process of the ztunnel: capture or proxy")
	return c
}

// copyLog copies the file, and what is added to it until ctx ends or the file is removed.
func copyLog(ctx context.Context, w io.Writer, path string, follow bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !follow {
		return nil // nothing was written yet
	}
	for errors.Is(err, os.ErrNotExist) {
		if !pause(ctx) {
			return nil
		}
		f, err = os.Open(path)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("copy log: %w", err)
		}
		if !follow || !pause(ctx) {
			return nil
		}
		if _, err := os.Stat(path); err != nil {
			_, _ = io.Copy(w, f)
			return nil
		}
	}
}

func pause(ctx context.Context) bool {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
