package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
)

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
