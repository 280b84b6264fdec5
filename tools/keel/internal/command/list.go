package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// listed is a cluster of this machine in the output of `keel list`.
type listed struct {
	ID   string `json:"id"`
	Home string `json:"home"`
	// State is one of the constants below.
	State string `json:"state"`
	// Reason explains a state that needs attention.
	Reason         string `json:"reason,omitempty"`
	APIServers     int    `json:"apiservers"`
	Nodes          int    `json:"nodes"`
	SimulatedNodes int    `json:"simulatedNodes"`
	// Address is the REST address, or the apiservers' gRPC addresses for a joined node.
	Address string `json:"address,omitempty"`
}

const (
	running = "running"
	// unsupervised means that processes are running, but nothing restarts them.
	unsupervised = "unsupervised"
	stopped      = "down"
	// leftOver means that the home is gone, or describes another cluster now.
	leftOver = "left over"
	unknown  = "unknown"
)

// list shows the clusters of this machine.
func (e *env) list() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clusters of this machine, wherever their directories are",
		Long: `List the clusters of this machine, wherever their directories are. The states are:

  running       its supervisor is running; see keel status for its processes
  unsupervised  processes are running without a supervisor; keel up starts one
  down          stopped; keel up starts it
  left over     its directory is gone; keel delete --id removes what remains
  unknown       its directory cannot be read; see REASON`,
		Example: `  keel list
  keel list -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			entries, err := cluster.Registered()
			if err != nil {
				return err
			}
			return e.showClusters(cmd.Context(), entries, output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// showClusters prints registered clusters.
func (e *env) showClusters(ctx context.Context, entries []cluster.Entry, output string) error {
	all := make([]listed, len(entries))
	var wg sync.WaitGroup
	for i, x := range entries {
		wg.Go(func() { all[i] = look(ctx, x) })
	}
	wg.Wait()
	if output == "json" {
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"clusters": all})
	}
	if len(all) == 0 {
		fmt.Fprintln(e.err, "there are no clusters on this machine; start one with `keel up`")
		return nil
	}
	rows := [][]string{{"ID", "HOME", "STATE", "APISERVERS", "NODES", "ADDRESS", "REASON"}}
	for _, x := range all {
		nodes := strconv.Itoa(x.Nodes)
		if x.SimulatedNodes > 0 {
			nodes += fmt.Sprintf("+%d simulated", x.SimulatedNodes)
		}
		rows = append(rows, []string{x.ID, x.Home, x.State, strconv.Itoa(x.APIServers), nodes, x.Address, x.Reason})
	}
	return table(e.out, rows)
}

// lookTime bounds how long a supervisor may take to answer.
const lookTime = 5 * time.Second

// look returns the state of a registered cluster.
func look(ctx context.Context, entry cluster.Entry) listed {
	x := listed{ID: entry.ID, Home: entry.Home}
	gone := func(why string) listed {
		x.State = leftOver
		x.Reason = fmt.Sprintf("%s; `keel delete --id %s` removes what remains", why, x.ID)
		return x
	}
	c, err := cluster.Load(x.Home)
	if _, statErr := os.Lstat(x.Home); errors.Is(statErr, fs.ErrNotExist) {
		return gone("its directory is gone")
	}
	switch {
	case errors.Is(err, cluster.ErrNone):
		return gone("its directory contains no cluster any more")
	case err != nil:
		x.State, x.Reason = unknown, err.Error()
		return x
	case c.ID != x.ID:
		return gone("its directory contains another cluster, " + c.ID)
	}
	x.Nodes, x.SimulatedNodes = len(c.Nodes), c.Simulated
	if c.Joined != nil {
		x.Address = c.Joined.GRPC
	} else {
		x.APIServers, x.Address = max(len(c.Members), 1), c.HTTPS()
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	switch _, err := dir(c).Status(ctx); {
	case err == nil:
		x.State = running
	case !errors.Is(err, supervise.ErrDown):
		x.State, x.Reason = unknown, fmt.Sprintf("its supervisor does not answer: %v", err)
	case dir(c).AnyAlive():
		x.State, x.Reason = unsupervised, fmt.Sprintf("its supervisor has ended; start one with `keel up --home %s`", c.Home)
	default:
		x.State = stopped
	}
	return x
}
