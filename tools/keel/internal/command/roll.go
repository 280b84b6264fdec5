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

// rollTime is how long one process may take to be ready again before the next is
// touched.
const rollTime = time.Minute

// follow brings the supervisor to the specs, and starts it where none runs. What is
// new starts at once. What runs with other arguments or another program starts anew
// one after the other, each ready before the next is stopped: apiservers first, and
// nodes last, so that nobody is served by an apiserver that is older than itself.
func (e *env) follow(ctx context.Context, c *cluster.Cluster, want []supervise.Spec, step func(string, ...any)) error {
	have, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	if !dir(c).AnyAlive() {
		have = nil // nothing to disturb
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
	// What is gone ends after what is new has started: it may take its place.
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
		step("%s starts anew", name)
		if !well {
			continue // it was no help before either
		}
		ready, cancel := context.WithTimeout(ctx, rollTime)
		err = healthy(ready, c, name)
		cancel()
		if err != nil {
			return fmt.Errorf("%s is not ready again after its change; what comes after it was left as it was: %w", name, err)
		}
	}
	return nil
}

func isHealthy(ctx context.Context, c *cluster.Cluster, name string) (bool, error) {
	list, err := dir(c).Status(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(s supervise.Status) bool { return s.Name == name && s.Healthy }), nil
}

// supervised has the supervisor follow the specs.
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
