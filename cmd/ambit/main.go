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
	"syscall"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/spf13/cobra"
)

// version is set by the linker (see the Makefile).
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	root := &cobra.Command{
		Use: "ambit", Short: "A service mesh without sidecars",
		Version: version, SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		labCommand(), echoCommand(), installCommand(), upgradeCommand(), uninstallCommand(),
		statusCommand(), proxiesCommand(), configCommand(), checkCommand(), analyzeCommand(), explainCommand(),
		enrollCommand(), unenrollCommand(), waypointCommand(), meshLogsCommand(), logCommand(), certCommand(), bugReportCommand(),
		versionCommand(),
	)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ambit: %v\n", err)
	}
	os.Exit(exitStatus(err))
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
