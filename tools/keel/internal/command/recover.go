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

// recover makes a control plane of one from one member's disk.
func (m *members) recover() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "recover --from NAME",
		Short: "When a majority of the members is lost for good: go on from the disk of one",
		Long: `When a majority of the members is lost for good, nothing can be written any more.
This makes a control plane of one from the disk of one that survived:

  - What the lost members had acknowledged and the survivor had not heard of is lost.
    Of several survivors take the one that had heard most (keel member list showed
    the smallest lag; a leader has everything it acknowledged).
  - All revisions jump ahead and all watches start anew, so that no client takes what
    it remembers for what is there now.
  - All apiservers are stopped first. The data of the others is moved aside, to
    NAME.lost-TIME in the cluster's directory: nothing is deleted.
  - A lost member that comes back with its disk ends as soon as it reaches the
    recovered one, and does not start with that disk again. Until then it could serve
    old data, so do not start it: empty its directory, and let it join anew.

Afterwards: keel member add, twice.`,
		Example: `  keel member recover --from apiserver-1`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if m.elsewhere() {
				return usageError{errors.New("--server: run `apiserver --recover` with the survivor's flags on its machine")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), m.wait)
			defer cancel()
			return m.recoverFrom(ctx, from)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`name` of the member whose disk is gone on from")
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
		return usageError{fmt.Errorf("%s is no member: it has no data", name)}
	}
	began := time.Now()
	step := func(format string, args ...any) {
		m.say("%6.1fs  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	// Until it has ended the disks disagree, and must not be served.
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
		return fmt.Errorf("recover from %s: %w\n%s\nNothing else was changed; repeat `keel member recover --from %s --home %s`", name, err, out, name, c.Home)
	}
	step("the stores go on from %s", name)
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
	c.Refound() // whom it asked to join may be lost
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
		return fmt.Errorf("%s %w; its log is %s", name, err, c.Path("log", name+".log"))
	}
	step("%s serves; `keel member add --home %s` adds others", name, c.Home)
	return nil
}

// stopApiservers ends all apiservers, also where no supervisor runs any more.
func (m *members) stopApiservers(ctx context.Context, c *cluster.Cluster, bin string) error {
	specs, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(specs), func(s supervise.Spec) bool { return strings.HasPrefix(s.Name, "apiserver-") })
	// A supervisor adopts what a dead one left, of what the file names: then it ends it.
	if err := dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home); err != nil {
		return err
	}
	if err := dir(c).WriteSpecs(rest); err != nil {
		return err
	}
	return dir(c).Reload(ctx)
}

// specOf is how one process is started now.
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
	return supervise.Spec{}, fmt.Errorf("there is no process %s", name)
}
