package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// status shows what runs.
func (e *env) status() *cobra.Command {
	r := &remote{env: e}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's processes and whether they are healthy",
		Long: `Show the cluster's processes and whether they are healthy.

With --server or --kubeconfig, show the members of a control plane elsewhere: keel
knows the processes of clusters on this machine only.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("-o %s: want json", output)}
			}
			if r.elsewhere() {
				if output != "" {
					return usageError{errors.New("-o: for clusters on this machine only")}
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
			w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tPID\tHEALTHY\tRESTARTS\tGRPC\tHTTPS\tREASON")
			for _, s := range list {
				fmt.Fprintf(w, "%s\t%d\t%t\t%d\t%s\t%s\t%s\n", s.Name, s.PID, s.Healthy, s.Restarts, s.GRPC, s.HTTPS, firstLine(s.Reason))
			}
			return w.Flush()
		},
	}
	r.flags(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}
