package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/spf13/cobra"
)

// labFlags are those that all verbs of `ambit lab` share.
type labFlags struct{ name string }

func (f *labFlags) dial() (*lab.Client, error) { return lab.Dial(f.name) }

func labCommand() *cobra.Command {
	f := &labFlags{}
	c := &cobra.Command{Use: "lab", Short: "A mesh on this machine, without Kubernetes"}
	c.PersistentFlags().StringVar(&f.name, "name", lab.DefaultName, "name of the lab; several can run side by side")
	c.AddCommand(
		upCommand(f), superviseCommand(f), downCommand(f), listCommand(),
		applyCommand(f), deleteCommand(f), getCommand(f), waitCommand(f),
		execCommand(f), logsCommand(f), netnsCommand(f), demoCommand(),
		envoyCommand(),
		programCommand(f, "restart", "Restart a program as planned: the new one takes over before the old one ends"),
		programCommand(f, "kill", "Kill a program as a crash would (SIGKILL); the lab starts it again"),
		programCommand(f, "stop", "Stop a program and keep it down"),
		programCommand(f, "start", "Start a program that was stopped"),
	)
	return c
}

// arguments wraps the check of a command's arguments so that a failure counts as wrong usage.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%w; usage: %s", err, c.UseLine())}
		}
		return nil
	}
}

func downCommand(f *labFlags) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use: "down", Short: "Remove every trace of a lab, also of one that crashed", Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if err := lab.Down(f.name, timeout); err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "lab %s is gone\n", f.name)
			return nil
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait for processes to end")
	return c
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the labs on this machine", Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			labs, err := lab.Labs()
			for _, l := range labs {
				fmt.Println(l)
			}
			return err
		},
	}
}

func applyCommand(f *labFlags) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use: "apply -f FILE|DIR...", Short: "Create or change objects of a running lab", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := readManifests(files)
			if err != nil {
				return err
			}
			cl, err := f.dial()
			if err != nil {
				return err
			}
			results, err := cl.Apply(cmd.Context(), fs...)
			printResults(os.Stdout, results)
			return err
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest file, directory, or - for standard input; repeatable")
	return c
}

func deleteCommand(f *labFlags) *cobra.Command {
	var files []string
	var namespace string
	c := &cobra.Command{
		Use: "delete -f FILE|DIR... | KIND NAME", Short: "Delete objects of a running lab", Args: arguments(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				kind, name, err := kindAndName(args)
				if err != nil {
					return err
				}
				if kind.Cluster {
					namespace = ""
				}
				return cl.DeleteObject(cmd.Context(), kind.Name, namespace, name)
			}
			fs, err := readManifests(files)
			if err != nil {
				return err
			}
			results, err := cl.Delete(cmd.Context(), fs...)
			printResults(os.Stdout, results)
			return err
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest file, directory, or - for standard input; repeatable")
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the object")
	return c
}

// kindAndName takes "KIND NAME" or "KIND/NAME".
func kindAndName(args []string) (*manifest.Kind, string, error) {
	if len(args) == 1 {
		k, n, ok := strings.Cut(args[0], "/")
		if !ok {
			return nil, "", usageError{errors.New("a name is missing: accepted: KIND NAME or KIND/NAME")}
		}
		args = []string{k, n}
	}
	kind := manifest.Lookup(args[0])
	if kind == nil {
		return nil, "", usageError{fmt.Errorf("unknown kind %q; accepted: %s", args[0], strings.Join(manifest.Names(), ", "))}
	}
	return kind, args[1], nil
}

// readManifests reads and checks, so that a mistake is found before anything is asked of a lab.
func readManifests(paths []string) ([]lab.File, error) {
	if len(paths) == 0 {
		return nil, usageError{errors.New("no manifest is named; accepted: -f FILE, -f DIR or -f -")}
	}
	files, err := manifest.Read(paths...)
	if err != nil {
		return nil, err
	}
	if _, err := manifest.ParseAll(files...); err != nil {
		return nil, err
	}
	return files, nil
}

func printResults(w io.Writer, results []lab.Result) {
	for _, r := range results {
		fmt.Fprintf(w, "%s %s\n", r.Object, r.Action)
		if r.Warning != "" {
			fmt.Fprintf(os.Stderr, "warning: %s: %s\n", r.Object, r.Warning)
		}
	}
}

func programCommand(f *labFlags, action, short string) *cobra.Command {
	var part string
	c := &cobra.Command{
		Use: action + " ztunnel/NODE|controlplane", Short: short, Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := f.dial()
			if err != nil {
				return err
			}
			return cl.Program(cmd.Context(), action, args[0], part)
		},
	}
	c.Flags().StringVar(&part, "part", "proxy", "process of the ztunnel: capture or proxy")
	return c
}
