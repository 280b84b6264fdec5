package command

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// rollTime is how long one process may take to become ready again before follow gives up and
// leaves the rest as they are.
const rollTime = time.Minute

// follow makes the supervisor run the wanted specifications, and starts a supervisor if none is
// running. New processes start at once. Those whose arguments or program changed restart one
// after the other, each ready before the next is stopped. Apiservers are first and nodes last,
// so that no process is served by an apiserver that is older than itself.
func (e *env) follow(ctx context.Context, c *cluster.Cluster, want []supervise.Spec, step func(string, ...any)) error {
	have, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	if !dir(c).AnyAlive() {
		have = nil // no process runs, so there is nothing to restart one by one
	}
	specs := slices.Clone(want)
	var changed []int
	for i, s := range want {
		was := slices.IndexFunc(have, func(h supervise.Spec) bool { return h.Name == s.Name })
		if was >= 0 && !have[was].Equal(s) {
			specs[i] = have[was]
			changed = append(changed, i)
		}
	}
	// Processes that are no longer wanted stop after the new ones have started, because those
	// may replace them.
	both := slices.Clone(specs)
	for _, h := range have {
		if !slices.ContainsFunc(want, func(s supervise.Spec) bool { return s.Name == h.Name }) {
			both = append(both, h)
		}
	}
	if len(both) > len(specs) {
		if err := e.supervised(ctx, c, both); err != nil {
			return err
		}
	}
	if err := e.supervised(ctx, c, specs); err != nil {
		return err
	}
	slices.SortStableFunc(changed, func(a, b int) int { return want[b].StopOrder - want[a].StopOrder })
	for _, i := range changed {
		name := want[i].Name
		well, err := isHealthy(ctx, c, name)
		if err != nil {
			return err
		}
		specs[i] = want[i]
		if err := e.supervised(ctx, c, specs); err != nil {
			return err
		}
		step("%s is restarting", name)
		if !well {
			continue // it was not healthy before either
		}
		ready, cancel := context.WithTimeout(ctx, rollTime)
		err = healthy(ready, c, name)
		cancel()
		if err != nil {
			return fmt.Errorf("%s did not become ready after it was restarted; the processes after it were left unchanged: %w", name, err)
		}
	}
	return nil
}

// isHealthy reports whether the supervisor considers a process healthy.
func isHealthy(ctx context.Context, c *cluster.Cluster, name string) (bool, error) {
	list, err := dir(c).Status(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(s supervise.Status) bool { return s.Name == name && s.Healthy }), nil
}

// supervised makes the supervisor run specs.
func (e *env) supervised(ctx context.Context, c *cluster.Cluster, specs []supervise.Spec) error {
	if err := dir(c).WriteSpecs(specs); err != nil {
		return err
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	return dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home)
}
