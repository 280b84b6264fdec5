package command

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/balance"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
)

// balance is the process that makes several apiservers one address.
func (e *env) balance() *cobra.Command {
	var listen string
	var to []string
	var check bool
	cmd := &cobra.Command{
		Use:    "balance",
		Short:  "Pass connections on to several apiservers (started by `keel up`)",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return balance.Check(cmd.Context(), listen)
			}
			if len(to) == 0 {
				return usageError{errors.New("--to is required")}
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			return balance.Run(cmd.Context(), l, to)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "host:port to accept on")
	cmd.Flags().StringSliceVar(&to, "to", nil, "host:port of the apiservers")
	cmd.Flags().BoolVar(&check, "check", false, "ask the one that runs whether an apiserver answers through it, and exit")
	if err := cmd.MarkFlagRequired("listen"); err != nil {
		panic(err)
	}
	return cmd
}

// supervise is the daemon that `keel up` leaves behind.
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
			err = supervise.NewServer(dir(c), runtime.StopSandboxes).Run(cmd.Context())
			if err != nil {
				return fmt.Errorf("supervisor of %s: %w", c.Home, err)
			}
			return nil
		},
	}
}
