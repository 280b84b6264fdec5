package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// status shows the processes of a cluster.
func (e *env) status() *cobra.Command {
	r := &remote{env: e}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's processes and whether they are healthy",
		Long: `Show the cluster's processes and whether they are healthy.

With --server or --kubeconfig, show the members of a control plane elsewhere, because
keel lists only the processes of clusters on this machine.`,
		Example: `  keel status
  keel status -o json
  keel status --server 10.0.0.1:6444 --kubeconfig admin.conf`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if r.elsewhere() {
				if output != "" {
					return usageError{errors.New("-o: only for clusters on this machine")}
				}
				conn, _, err := r.reach()
				if err != nil {
					return err
				}
				defer conn.Close()
				ctx, cancel := context.WithTimeout(cmd.Context(), remoteTimeout)
				defer cancel()
				return e.printMembers(ctx, conn)
			}
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			list, err := dir(c).Status(cmd.Context())
			if errors.Is(err, supervise.ErrDown) {
				err = fmt.Errorf("%w; start it with `keel up --home %s`", err, c.Home)
			}
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(e.out)
				enc.SetIndent("", "  ")
				return enc.Encode(map[string]any{"services": list})
			}
			rows := [][]string{{"NAME", "PID", "HEALTHY", "RESTARTS", "GRPC", "HTTPS", "REASON"}}
			for _, s := range list {
				rows = append(rows, []string{
					s.Name, strconv.Itoa(s.PID), strconv.FormatBool(s.Healthy), strconv.Itoa(s.Restarts), s.GRPC, s.HTTPS, firstLine(s.Reason),
				})
			}
			return table(e.out, rows)
		},
	}
	r.flags(cmd.Flags())
	outputFlag(cmd, &output)
	return cmd
}
