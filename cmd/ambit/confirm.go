package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// dryRun is the value of --dry-run. Zero is none.
type dryRun string

const (
	dryNone   dryRun = ""
	dryClient dryRun = "client" // nothing is sent
	dryServer dryRun = "server" // the API server checks, and keeps nothing
)

func (d *dryRun) String() string {
	if *d == dryNone {
		return "none"
	}
	return string(*d)
}

// Type is the value's name in the help.
func (d *dryRun) Type() string { return "none|client|server" }

// Set reads none, client or server.
func (d *dryRun) Set(text string) error {
	if !slices.Contains([]string{"none", "client", "server"}, text) {
		return errors.New("accepted: none, client, server")
	}
	if *d = dryRun(text); text == "none" {
		*d = dryNone
	}
	return nil
}

// register declares the flag; without a value it is client.
func (d *dryRun) register(c *cobra.Command, usage string) {
	c.Flags().Var(d, "dry-run", usage)
	c.Flags().Lookup("dry-run").NoOptDefVal = string(dryClient)
}

// suffix is what kubectl says after what it did not do.
func (d dryRun) suffix() string {
	return map[dryRun]string{dryClient: " (dry run)", dryServer: " (server dry run)"}[d]
}

func registerYes(c *cobra.Command, yes *bool) {
	c.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

// confirm asks at the terminal before something is taken away. Who has none has decided already, as with kubectl.
func confirm(cmd *cobra.Command, yes bool, question string) error {
	if yes || !terminal(cmd) || asked(cmd, question) {
		return nil
	}
	return errNotConfirmed
}

var errNotConfirmed = usageError{errors.New("not confirmed; -y confirms")}

// confirmed asks at the terminal; without one nobody can confirm.
func confirmed(cmd *cobra.Command, question string) bool {
	return terminal(cmd) && asked(cmd, question)
}

// terminal says whether somebody can be asked. /dev/null is a device, too, and nobody is there.
func terminal(cmd *cobra.Command) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	return err == nil
}

func asked(cmd *cobra.Command, question string) bool {
	fmt.Fprint(cmd.ErrOrStderr(), question+" [y/N] ")
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y")
}
