package main

import (
	"flag"
	"log/slog"
	"slices"
	"testing"

	"github.com/spf13/pflag"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/perturb"
	"keelson.dev/services/internal/controller"
)

var (
	seeds = flag.Uint64("perturb.seeds", 0, "how many random perturbations of each controller to run")
	first = flag.Uint64("perturb.first", 1, "the first seed")
)

// Every controller ends in the same state if it is killed between any two of its writes,
// if it then sees an old state, and if it misses intermediate states. A new controller
// joins by its row in the catalogue: without a scenario, this test fails.
func TestEveryControllerUnderPerturbation(t *testing.T) {
	// Each killed process logs that its writes fail.
	logger := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(logger) })
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	c := newCatalogue(fs)
	if err := fs.Parse([]string{"--service-account-key", signingKey(t), "--cluster-ca", authority(t)}); err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	c.ca = func() []byte { return []byte("pem") }
	build := func(s *cluster.Cluster, names []string) []controller.Controller {
		only := *c
		only.selected = names
		return only.build(s)
	}
	for _, name := range c.names() {
		s := scenarios[name]
		if s == nil {
			t.Errorf("there is no scenario for %s in scenarios_test.go", name)
			continue
		}
		if !slices.Contains(s.Controllers, name) {
			s.Controllers = append(s.Controllers, name)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			perturb.Test(t, s, build, *first, *seeds)
		})
	}
}
