package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/supervise"
)

// down stops a cluster and keeps its data.
func (e *env) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster, keeping its data for the next `keel up`",
		Args:  noArgs,
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
		// Its children may have outlived a supervisor that was killed: a new one
		// adopts and ends them.
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
	e.say("stopped; data is kept in %s", c.Home)
	return nil
}

// delete ends a cluster and leaves nothing behind.
func (e *env) delete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete",
		Short: "Stop the cluster and remove it: links, rules, mounts, cgroups, files",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Load(e.home)
			if errors.Is(err, cluster.ErrNone) {
				e.say("nothing to delete in %s", e.home)
				return nil
			}
			if err != nil {
				return err
			}
			if err := e.stop(cmd.Context(), c); err != nil {
				return err
			}
			errs := []error{hostnet.Remove(c), cleanMachine(cmd.Context(), c), unmount(c.Home), removeCgroups(c), unmergeKubeconfig(c)}
			if err := errors.Join(errs...); err != nil {
				return fmt.Errorf("%w; nothing was removed from %s: mend it and delete again", err, c.Home)
			}
			if err := os.RemoveAll(c.Home); err != nil {
				return err
			}
			e.say("deleted %s", c.Home)
			return nil
		},
	}
}

// cleanMachine removes what a joined node left in this machine's own network; the
// networks of a cluster's own nodes went as a whole.
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

// unmount takes away every mount below a directory, the innermost first.
func unmount(home string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], home+"/") {
			points = append(points, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	var errs []error
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes the cluster's cgroups of every hierarchy, and waits for
// the last processes to leave them.
func removeCgroups(c *cluster.Cluster) error {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/keelson-" + c.ID)
	if _, err := os.Stat("/sys/fs/cgroup/keelson-" + c.ID); err == nil {
		roots = append(roots, "/sys/fs/cgroup/keelson-"+c.ID)
	}
	var errs []error
	for _, root := range roots {
		deadline := time.Now().Add(10 * time.Second)
		for {
			err := removeCgroup(root)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, err)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cgroup %s: %w", d, err)
		}
	}
	return nil
}
