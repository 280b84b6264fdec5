package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/process"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
)

// recover creates a control plane of one member from one member's disk.
func (m *members) recover() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "recover --from NAME",
		Short: "Continue from one member's disk after the majority was lost permanently",
		Long: `When a majority of the members is lost permanently, the control plane accepts no
more writes. This command creates a control plane of one member from the disk of one
that survived:

  - Writes that the lost members acknowledged and that had not reached the survivor
    are lost. If there are several survivors, choose the one that had received most
    (the smallest lag in keel member list; a leader has everything it acknowledged).
  - All revisions jump ahead and all watches start again, so that no client mistakes
    what it has cached for the current state.
  - All apiservers are stopped first. The data of the others is moved to
    NAME.lost-TIME in the cluster's directory; nothing is deleted.
  - A lost member that comes back with its disk exits as soon as it reaches the
    recovered one, and does not start with that disk again. Until then it could serve
    old data, so do not start it: empty its directory and let it join as a new member.

Afterwards, run keel member add twice.`,
		Example: `  keel member recover --from apiserver-1`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if m.elsewhere() {
				return usageError{errors.New("--server: this works only on the survivor's machine; run `apiserver --recover` there with its flags")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), m.wait)
			defer cancel()
			return m.recoverFrom(ctx, from)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`name` of the member whose disk to continue from")
	offer(cmd, "from", m.memberNames)
	if err := cmd.MarkFlagRequired("from"); err != nil {
		panic(err)
	}
	return cmd
}

func (m *members) recoverFrom(ctx context.Context, name string) error {
	if _, err := cluster.Load(m.home); err != nil {
		return err
	}
	unlock, err := m.alone(ctx, m.home)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := cluster.Load(m.home)
	if err != nil {
		return err
	}
	if err := known(c, name); err != nil {
		return err
	}
	survivor, _ := c.Member(name)
	if survivor.Client {
		return usageError{fmt.Errorf("%s is not a member and has no data", name)}
	}
	began := time.Now()
	step := func(format string, args ...any) {
		m.say("%6.1fs  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	// Until the recovery is complete, the disks disagree and must not be served.
	c.Recovering = name
	if err := c.Save(); err != nil {
		return err
	}
	if err := m.stopApiservers(ctx, c, bin); err != nil {
		return hinted(err, "repeat `keel member recover --from %s --home %s`", name, c.Home)
	}
	step("all apiservers are stopped")
	spec, err := specOf(c, name)
	if err != nil {
		return err
	}
	recovery := exec.CommandContext(ctx, spec.Args[0], append(slices.Clone(spec.Args[1:]), "--recover")...)
	m.share(recovery)
	out, err := recovery.CombinedOutput()
	if err != nil {
		return fmt.Errorf("recover from %s: %w\n%s\nnothing else was changed; repeat `keel member recover --from %s --home %s`", name, err, out, name, c.Home)
	}
	step("the stores continue from %s", name)
	now := time.Now().Unix()
	for _, lost := range c.Members {
		if lost.Name == name {
			continue
		}
		err := os.Rename(c.Path(lost.Name), fmt.Sprintf("%s.lost-%d", c.Path(lost.Name), now))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	c.Members = []cluster.Member{survivor}
	c.Refound() // the member that it asked to join through may be lost
	if err := c.Save(); err != nil {
		return err
	}
	specs, err := desired(c)
	if err == nil {
		err = dir(c).WriteSpecs(specs)
	}
	if err == nil {
		err = dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home)
	}
	if err != nil {
		return err
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := joined(ctx, conn, name); err != nil {
		return fmt.Errorf("%s %w; see its log %s", name, err, c.Path("log", name+".log"))
	}
	step("%s is serving; run `keel member add --home %s` to add others", name, c.Home)
	return nil
}

// stopApiservers stops all apiservers, even if no supervisor is running.
func (m *members) stopApiservers(ctx context.Context, c *cluster.Cluster, bin string) error {
	specs, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(specs), func(s supervise.Spec) bool { return strings.HasPrefix(s.Name, "apiserver-") })
	// A supervisor adopts the processes of a dead one that its file lists. Only then can it
	// stop them.
	if err := dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home); err != nil {
		return err
	}
	if err := dir(c).WriteSpecs(rest); err != nil {
		return err
	}
	return dir(c).Reload(ctx)
}

// specOf returns the specification with which one process is started now.
func specOf(c *cluster.Cluster, name string) (supervise.Spec, error) {
	bin, err := programs()
	if err != nil {
		return supervise.Spec{}, err
	}
	specs, err := process.Specs(&cluster.Cluster{
		Home: c.Home, ID: c.ID, Subnet: c.Subnet, HTTPSPort: c.HTTPSPort, GRPCPort: c.GRPCPort,
		Members: c.Members, Founders: c.Founders, ServiceCIDR: c.ServiceCIDR, Domain: c.Domain,
	}, bin, runtime.Programs{})
	if err != nil {
		return supervise.Spec{}, err
	}
	for _, s := range specs {
		if s.Name == name {
			return s, nil
		}
	}
	return supervise.Spec{}, fmt.Errorf("there is no process named %s", name)
}
