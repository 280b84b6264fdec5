package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/supervise"
	"keelson.dev/tools/keel/internal/sweep"
)

// down stops a cluster and keeps its data.
func (e *env) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster, keeping its data for the next `keel up`",
		Example: `  keel down
  keel down --home /var/lib/ha`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			return e.stop(cmd.Context(), c)
		},
	}
}

func (e *env) stop(ctx context.Context, c *cluster.Cluster) error {
	if err := needRoot(); err != nil {
		return err
	}
	err := dir(c).Stop(ctx)
	if errors.Is(err, supervise.ErrDown) {
		// A supervisor that was killed may have left its children running: a new one adopts and
		// stops them.
		bin, findErr := programs()
		if findErr != nil {
			return findErr
		}
		if specs, _ := dir(c).ReadSpecs(); len(specs) == 0 || !dir(c).AnyAlive() {
			e.say("the cluster is not running")
			return nil
		}
		if err := dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home); err != nil {
			return err
		}
		err = dir(c).Stop(ctx)
	}
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	e.say("stopped; the data is kept in %s", c.Home)
	return nil
}

// removal deletes one cluster.
type removal struct {
	*env
	id   string
	home string // empty if another cluster uses it now
	// c is nil if the home is gone.
	c *cluster.Cluster
}

// delete stops a cluster and removes everything that belongs to it.
func (e *env) delete() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "delete",
		Short: "Stop the cluster and remove it: processes, links, rules, mounts, cgroups, files",
		Long: `Stop the cluster and remove everything that keel created for it: processes, containers,
links, firewall rules, mounts, cgroups, and its files. If its directory contains other
files, they are kept. The command may be repeated, and with --id it needs no directory.`,
		Example: `  keel delete
  keel delete --home /var/lib/ha
  keel delete --id 4fd1c3      # if its directory is gone; keel list shows the ids`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			r, err := e.removal(id, cmd.Flags().Changed("home"))
			if err != nil || r == nil {
				return err
			}
			return r.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "`id` of the cluster, as shown by keel list; replaces --home")
	offer(cmd, "id", clusterIDs)
	return cmd
}

// removal finds the cluster to delete. It returns nil if there is none.
func (e *env) removal(id string, homeGiven bool) (*removal, error) {
	if id != "" {
		if err := cluster.ValidID(id); err != nil {
			return nil, usageError{fmt.Errorf("--id: %w", err)}
		}
		if homeGiven {
			return nil, usageError{errors.New("use either --id or --home, not both")}
		}
		entries, err := cluster.Registered()
		if err != nil {
			return nil, err
		}
		r := &removal{env: e, id: id}
		if i := slices.IndexFunc(entries, func(x cluster.Entry) bool { return x.ID == id }); i >= 0 {
			r.at(entries[i].Home)
		}
		return r, nil
	}
	c, err := cluster.Load(e.home)
	if err == nil {
		return &removal{env: e, id: c.ID, home: c.Home, c: c}, nil
	}
	home, absErr := filepath.Abs(e.home)
	entries, listErr := cluster.Registered()
	if listErr != nil || absErr != nil {
		return nil, errors.Join(err, listErr, absErr)
	}
	if i := slices.IndexFunc(entries, func(x cluster.Entry) bool { return x.Home == home }); i >= 0 {
		return &removal{env: e, id: entries[i].ID, home: home}, nil
	}
	if errors.Is(err, cluster.ErrNone) {
		e.say("there is nothing to delete in %s", e.home)
		return nil, nil
	}
	return nil, err
}

// at sets the home with which the cluster was registered. If another cluster is there now,
// nothing in that home is touched, including its mounts.
func (r *removal) at(home string) {
	c, err := cluster.Load(home)
	switch {
	case err != nil:
		r.home = home
	case c.ID == r.id:
		r.home, r.c = home, c
	}
}

// stopTime bounds the orderly stop. What is still running then is killed.
const stopTime = 90 * time.Second

// run performs all steps, even if some fail. A repeated delete removes what they left.
func (r *removal) run(ctx context.Context) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if r.c != nil {
		unlock, err := r.alone(ctx, r.c.Home)
		if err != nil {
			return err
		}
		defer unlock()
		stop, cancel := context.WithTimeout(ctx, stopTime)
		// What did not stop is killed below, so this is not an error.
		if err := r.stop(stop, r.c); err != nil {
			fmt.Fprintf(r.err, "keel: %v; killing what is still running\n", err)
		}
		cancel()
		note("network", cleanMachine(ctx, r.c))
	}
	var sockets []string
	if r.c != nil {
		sockets = sweep.ShimSockets(r.c.Path("nodes"))
	}
	// Without the home, only the shims themselves know their sockets.
	running, err := sweep.ListeningShims(r.id)
	note("sockets", err)
	sockets = append(sockets, running...)
	killed := sweep.Kill(ctx, r.id)
	note("processes", killed)
	note("sockets", sweep.RemoveSockets(sockets))
	var unmounted error
	if r.home != "" {
		unmounted = sweep.Unmount(r.home)
		note("mounts", unmounted)
	}
	note("network", hostnet.Remove(r.id))
	note("cgroups", sweep.Cgroups(ctx, r.id))
	logs := []string{cluster.Records(r.id, "*")}
	if r.c != nil {
		logs = append(logs, r.c.Path("nodes", "*", "agent"))
	}
	note("logs", cleanLogs(ctx, logs...))
	note("kubeconfig", unmergeKubeconfig(r.id))
	left, err := r.left(ctx)
	note("check", err)
	if len(left) > 0 || len(errs) > 0 {
		text := ""
		for _, l := range left {
			text += "\n  " + l
		}
		if text != "" {
			text = "; still existing:" + text
		}
		return fmt.Errorf("cluster %s was not deleted completely, and its files are kept: %w%s\nRepeat `keel delete --id %s` to continue; if the same remains, stop what uses it by hand", r.id, cmp.Or(errors.Join(errs...), errLeft), text, r.id)
	}
	return r.files()
}

var errLeft = errors.New("something of it still exists")

// left returns what still exists of the cluster after up to 5 s.
func (r *removal) left(ctx context.Context) (left []string, err error) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		left, err = sweep.Left(r.id, r.home)
		if err == nil && len(left) == 0 || time.Now().After(deadline) {
			return left, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return left, errors.Join(err, ctx.Err())
		}
	}
}

// files removes the cluster's files, after nothing is running or mounted below them.
func (r *removal) files() error {
	if r.c == nil {
		if err := cluster.Unregister(r.id); err != nil {
			return err
		}
		r.say("deleted cluster %s", r.id)
		if r.home != "" {
			if _, err := os.Lstat(r.home); err == nil {
				r.say("%s was not changed: it does not describe this cluster", r.home)
			}
		}
		return nil
	}
	kept, err := r.c.Erase()
	if err != nil {
		return fmt.Errorf("remove the files of %s: %w; repeat `keel delete --home %s` to continue", r.c.Home, err, r.c.Home)
	}
	if err := cluster.Unregister(r.id); err != nil {
		return err
	}
	if len(kept) > 0 {
		r.say("deleted the cluster in %s; the directory is kept, with files that are not keel's: %s", r.c.Home, strings.Join(kept, ", "))
		return nil
	}
	r.say("deleted %s", r.c.Home)
	return nil
}

// cleanMachine removes what a joined node left in this machine's own network. The networks of a
// cluster's own nodes are removed as a whole.
func cleanMachine(ctx context.Context, c *cluster.Cluster) error {
	if c.Joined == nil {
		return nil
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "node"), "--cleanup", "--cluster-cidr", c.ClusterCIDR).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove the node's network: %w\n%s", err, out)
	}
	return nil
}
