// Package command implements keel's verbs, one file each. A verb reports what it does in
// sentences for a person, and its errors say what to do next. The exit code is 2 for incorrect
// usage and 1 for any other failure.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// env is the state that the verbs share.
type env struct {
	home string
	out  io.Writer
	err  io.Writer
	// lock is the lock of the home while this process holds it.
	lock *os.File
}

// usageError is an error in the command line.
type usageError struct{ error }

// Run executes one command line and returns its exit code.
func Run(ctx context.Context, args []string, out, errOut io.Writer) int {
	e := &env{out: out, err: errOut}
	root := e.root()
	root.SetOut(out)
	root.SetErr(errOut)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	if errors.Is(err, supervise.ErrDown) {
		err = hinted(err, "run `keel up --home %s` to start it", e.home)
	}
	fmt.Fprintf(errOut, "keel: %v\n", err)
	var usage usageError
	// The last two are cobra's errors, which have no types of their own.
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "required flag") {
		return 2
	}
	return 1
}

// root returns the keel command with all its verbs.
func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "keel",
		Short:         "Start, inspect and stop Keelson clusters on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&e.home, "home", defaultHome(), "`directory` of the cluster")
	root.AddCommand(e.up(), e.down(), e.delete(), e.list(), e.status(), e.image(), e.node(), e.member(), e.snapshot(), e.trace(), e.why(), e.kubeconfig(), e.pki(), e.balance(), e.chart(), e.supervise(), e.version())
	refuseUnknown(root)
	return root
}

// refuseUnknown makes every group of verbs reject unknown ones. Cobra does so only for the
// root; for a group it prints the help and reports success.
func refuseUnknown(group *cobra.Command) {
	for _, verb := range group.Commands() {
		refuseUnknown(verb)
		if verb.Runnable() || !verb.HasSubCommands() {
			continue
		}
		verb.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
			cmd.SuggestionsMinimumDistance = 2
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usageError{errors.New(text)}
		}
	}
}

func defaultHome() string {
	if h := os.Getenv("KEELSON_HOME"); h != "" {
		return h
	}
	return "/var/lib/keelson"
}

func (e *env) say(format string, args ...any) { fmt.Fprintf(e.out, format+"\n", args...) }

// dir returns the directory of a cluster's supervisor.
func dir(c *cluster.Cluster) supervise.Dir { return supervise.Dir(c.Path("run")) }

// programs returns the directory of Keelson's programs, which is the one that contains keel.
func programs() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	bin := filepath.Dir(exe)
	for _, name := range []string{"apiserver", "scheduler", "controller-manager", "cloud-controller", "node"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", fmt.Errorf("%s is not in keel's directory %s: run `make build`", name, bin)
		}
	}
	return bin, nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root (for network namespaces and containers): run it with sudo")
	}
	return nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s: expected %d argument, got %d", strings.TrimSuffix(cmd.UseLine(), " [flags]"), n, len(args))}
		}
		return nil
	}
}
