// Command ambit is the mesh's command line: it installs a mesh, tells of it, and finds what is wrong with it; `ambit lab` runs
// one on this machine.
//
// Exit status: 0 all is well, 1 a problem was found, 2 wrong usage, 3 the lab or the cluster cannot be reached, 4 timed out.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/spf13/cobra"
)

// version is set by the linker (see the Makefile).
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ambit: %v\n", err)
	}
	os.Exit(exitStatus(err))
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "ambit", Short: "A service mesh without sidecars",
		Long: `A service mesh without sidecars: install it, ask it, find what is wrong with it. Commands take kubectl's flags.

Exit status: 0 all is well, 1 a problem was found, 2 wrong usage, 3 the cluster or the lab cannot be reached, 4 timed out.`,
		Version: version, SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		labCommand(), echoCommand(), installCommand(), upgradeCommand(), uninstallCommand(),
		statusCommand(), proxiesCommand(), configCommand(), checkCommand(), analyzeCommand(), explainCommand(),
		enrollCommand(), unenrollCommand(), waypointCommand(), meshLogsCommand(), logCommand(), certCommand(), bugReportCommand(),
		versionCommand(),
	)
	refuseUnknown(root)
	return root
}

// refuseUnknown has every command that is there for those under it alone refuse words that are none of them.
func refuseUnknown(c *cobra.Command) {
	for _, sub := range c.Commands() {
		refuseUnknown(sub)
	}
	if !c.HasSubCommands() || c.Runnable() {
		return
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		var names []string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return usageError{fmt.Errorf("unknown command %q of %q; accepted: %s", args[0], c.CommandPath(), strings.Join(names, ", "))}
	}
}

// usageError marks what the user typed wrong.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errProblem is a failure that the command already told about.
var errProblem = errors.New("not all is well")

// errTimeout marks that something did not come in the time that was given.
var errTimeout = fmt.Errorf("timed out: %w", context.DeadlineExceeded)

func exitStatus(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, lab.ErrNoLab), errors.Is(err, errUnreachable):
		return 3
	case errors.Is(err, context.DeadlineExceeded):
		return 4
	default:
		return 1
	}
}
