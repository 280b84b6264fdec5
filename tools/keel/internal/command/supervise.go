package command

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/balance"
	"keelson.dev/tools/keel/internal/cgroup"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
	"keelson.dev/tools/keel/internal/sweep"
)

// logText formats the log of a long-running verb like that of the services.
func (e *env) logText() { slog.SetDefault(slog.New(slog.NewTextHandler(e.err, nil))) }

// balance runs the process that makes several apiservers reachable at one address.
func (e *env) balance() *cobra.Command {
	var listen string
	var to []string
	var check bool
	var ca, share string
	var with []string
	cmd := &cobra.Command{
		Use:    "balance",
		Short:  "Forward connections to several apiservers (started by `keel up`)",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return balance.Check(cmd.Context(), listen)
			}
			e.logText()
			if len(to) == 0 {
				return usageError{errors.New("--to is required")}
			}
			var probe balance.Probe
			if ca != "" {
				data, err := os.ReadFile(ca)
				if err != nil {
					return usageError{fmt.Errorf("--ca: %w", err)}
				}
				roots := x509.NewCertPool()
				if !roots.AppendCertsFromPEM(data) {
					return usageError{fmt.Errorf("--ca: no certificate in %s", ca)}
				}
				var done func()
				probe, done = balance.Ready(roots)
				defer done()
			}
			l, err := balance.Listen(cmd.Context(), listen, with...)
			if err != nil {
				return err
			}
			if share != "" {
				wait, err := balance.Share(cmd.Context(), l, share)
				if err != nil {
					return errors.Join(err, l.Close())
				}
				defer wait()
			}
			return balance.RunProbed(cmd.Context(), l, to, probe)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "`host:port` to accept on")
	cmd.Flags().StringVar(&ca, "ca", "", "`file` with the CA of the apiservers, for probing whether they are ready; empty: do not probe")
	cmd.Flags().StringVar(&share, "share", "", "`path` of a unix socket at which other balancers of the address get the listener; empty: do not share it")
	cmd.Flags().StringSliceVar(&with, "with", nil, "`paths` that the other balancers use for --share")
	cmd.Flags().StringSliceVar(&to, "to", nil, "`host:port` of the apiservers")
	cmd.Flags().BoolVar(&check, "check", false, "check whether an apiserver answers through the running balancer, and exit")
	if err := cmd.MarkFlagRequired("listen"); err != nil {
		panic(err)
	}
	return cmd
}

// supervisor is the name of the supervisor's own cgroup.
const supervisor = "supervisor"

// supervise runs the daemon that `keel up` leaves behind.
func (e *env) supervise() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Short:  "Keep the cluster's processes running (started by `keel up`)",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			if err := cgroup.Host.Enter(c.ProcessCgroup(supervisor)); err != nil {
				fmt.Fprintf(e.err, "the supervisor is running outside its cgroup: %v\n", err)
			}
			// A supervisor that was killed may have left processes that the specifications no
			// longer name. Nothing else would stop them.
			specs, err := dir(c).ReadSpecs()
			if err != nil {
				return err
			}
			wanted := func(name string) bool {
				return name == supervisor || slices.ContainsFunc(specs, func(s supervise.Spec) bool { return s.Name == name })
			}
			if err := sweep.KillOthers(cmd.Context(), filepath.Dir(c.ProcessCgroup(supervisor)), wanted); err != nil {
				fmt.Fprintf(e.err, "cannot stop the processes of an earlier supervisor: %v\n", err)
			}
			err = supervise.NewServer(dir(c), runtime.StopSandboxes).Run(cmd.Context())
			if err != nil {
				return fmt.Errorf("supervisor of %s: %w", c.Home, err)
			}
			return nil
		},
	}
}
