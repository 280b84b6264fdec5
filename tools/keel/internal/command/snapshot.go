package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
)

// snapshot saves and restores a cluster's state. The apiserver's own program does the work, so
// that it also works where keel is not installed.
func (e *env) snapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save the cluster's state to a file, verify such a file, restore a cluster from it",
	}
	cmd.AddCommand(e.snapshotSave(), e.snapshotStatus(), e.snapshotRestore())
	return cmd
}

func (e *env) snapshotSave() *cobra.Command {
	r := &remote{env: e}
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save the state of the running cluster: both stores, including all Secrets",
		Example: `  keel snapshot save monday.snapshot
  keel snapshot save monday.snapshot --server 10.0.0.1:6444 --kubeconfig admin.conf`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var identity, apiservers string
			if r.elsewhere() {
				t, err := r.target()
				if err != nil {
					return err
				}
				dir, remove, err := t.identity()
				if err != nil {
					return err
				}
				defer remove()
				identity, apiservers = dir, strings.Join(t.endpoints, ",")
			} else {
				c, err := cluster.Load(e.home)
				if err != nil {
					return err
				}
				identity, apiservers = c.Identity("admin"), c.GRPC()
			}
			err := e.runSnapshot(cmd.Context(), e.out, "save", args[0], output,
				"--identity", identity, "--apiserver", apiservers, "--timeout", timeout.String())
			return hinted(err, "see whether the apiservers are healthy with `keel status`, then repeat the command")
		},
	}
	r.flags(cmd.Flags())
	outputFlag(cmd, &output)
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Minute, "how long it may take")
	return cmd
}

func (e *env) snapshotStatus() *cobra.Command {
	var output, work string
	cmd := &cobra.Command{
		Use:     "status FILE",
		Short:   "Verify a snapshot and show what is in it",
		Example: `  keel snapshot status monday.snapshot`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.runSnapshot(cmd.Context(), e.out, "status", args[0], output, "--work-dir", work)
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().StringVar(&work, "work-dir", "", "`directory` for temporary files, which need as much space as the file (default: the system's)")
	return cmd
}

func (e *env) snapshotRestore() *cobra.Command {
	var output string
	var apiservers int
	var setAside bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a stopped or new cluster from a snapshot of Keelson or of Kubernetes' etcd",
		Example: `  keel snapshot restore monday.snapshot --home /var/lib/other
  keel down && keel snapshot restore monday.snapshot --set-aside && keel up`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if apiservers < 0 || apiservers > 5 || apiservers > 0 && apiservers%2 == 0 {
				return usageError{fmt.Errorf("--apiservers %d: expected 1, 3 or 5", apiservers)}
			}
			return e.restore(cmd.Context(), args[0], output, apiservers, setAside)
		},
	}
	f := cmd.Flags()
	outputFlag(cmd, &output)
	f.IntVar(&apiservers, "apiservers", 0, "`number` of apiservers that a new cluster has: 1, 3 or 5 (default 1)")
	f.BoolVar(&setAside, "set-aside", false, "move the cluster's present data to before-restore-TIME beside it")
	return cmd
}

func (e *env) restore(ctx context.Context, file, output string, apiservers int, setAside bool) error {
	if _, err := cluster.Load(e.home); errors.Is(err, cluster.ErrNone) {
		// Create no cluster if the file cannot be used.
		if err := e.runSnapshot(ctx, io.Discard, "status", file, ""); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	unlock, err := e.alone(ctx, e.home)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := cluster.Load(e.home)
	switch {
	case errors.Is(err, cluster.ErrNone):
		c, err = cluster.Open(cluster.Options{Home: e.home, Nodes: 3, Simulated: -1, APIServers: apiservers, Free: unused})
	case err == nil && c.Joined != nil:
		return fmt.Errorf("%s is a node of another cluster: restore on the machine of its apiservers", c.Home)
	case err == nil && apiservers > 0 && apiservers != max(len(c.Voters()), 1):
		return usageError{fmt.Errorf("--apiservers %d: the cluster in %s has %d", apiservers, c.Home, max(len(c.Voters()), 1))}
	}
	if err != nil {
		return err
	}
	if _, err := dir(c).Status(ctx); err == nil || dir(c).AnyAlive() {
		return fmt.Errorf("the cluster in %s is running: run `keel down --home %s` first", c.Home, c.Home)
	}
	names := []string{"apiserver-0"}
	if voters := c.Voters(); len(voters) > 0 {
		names = nil
		for _, m := range voters {
			names = append(names, m.Name)
		}
		// The restored stores do not know the addresses of their members. Flags must name all
		// of them, including those that joined later.
		c.Refound()
		if err := c.Save(); err != nil {
			return err
		}
	}
	var dirs []string
	for _, name := range names {
		dirs = append(dirs, name+"="+c.Path(name))
	}
	args := []string{"--members", strings.Join(names, ","), "--data-dir", strings.Join(dirs, ",")}
	if setAside {
		args = append(args, "--set-aside")
	}
	if err := e.runSnapshot(ctx, e.out, "restore", file, output, args...); err != nil {
		return hinted(err, "repeat `keel snapshot restore` before you start the cluster")
	}
	if output == "" {
		e.say(notInSnapshot, c.Home, c.Path("pki"))
	}
	return nil
}

// notInSnapshot is printed with a snapshot, and lists what it does not contain.
const notInSnapshot = `start it with ` + "`keel up --home %s`" + `
A snapshot does not contain: %s (the cluster's CA, which nodes and kubeconfigs
trust, and the key of service accounts, without which the tokens that pods hold are
invalid), volumes, and images that were loaded. Back those up as well.`

// runSnapshot runs "apiserver snapshot". Its standard error becomes the error if it fails.
func (e *env) runSnapshot(ctx context.Context, out io.Writer, verb, file, output string, args ...string) error {
	bin, err := programs()
	if err != nil {
		return err
	}
	all := append([]string{"snapshot", verb, file}, args...)
	if output != "" {
		all = append(all, "-o", output)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "apiserver"), all...)
	cmd.Stdout, cmd.Stderr = out, &said
	e.share(cmd)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	text := strings.TrimSpace(said.String())
	if err == nil {
		if text != "" {
			fmt.Fprintln(e.err, text)
		}
		return nil
	}
	if text == "" {
		return fmt.Errorf("snapshot %s: %w", verb, err)
	}
	err = errors.New(strings.TrimPrefix(text, "apiserver "))
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 2 {
		return usageError{err}
	}
	return err
}
