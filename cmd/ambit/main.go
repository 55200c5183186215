// Command ambit is the mesh's command line: `ambit lab` runs a mesh on this machine.
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
	root.AddCommand(labCommand(), echoCommand(), installCommand(), upgradeCommand(), uninstallCommand())
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
