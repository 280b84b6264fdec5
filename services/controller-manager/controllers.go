package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// catalogue holds the controllers, their options and which of them are to run.
type catalogue struct {
	entries []entry
	checks  []func() error
	// selected is the value of --controllers.
	selected []string
	// ca returns the cluster's CA in PEM as it is now. It is set before the first build.
	ca func() []byte
}

// optionsOf has the options of a controller checked with the catalogue.
func optionsOf[O interface{ Check() error }](c *catalogue, o O) O {
	c.checks = append(c.checks, o.Check)
	return o
}

// with returns a build function for a controller with options.
func with[O any](build func(*cluster.Cluster, O) controller.Controller, o *O) func(*cluster.Cluster) controller.Controller {
	return func(s *cluster.Cluster) controller.Controller { return build(s, *o) }
}

// names returns the names of all controllers, sorted.
func (c *catalogue) names() []string {
	var names []string
	for _, e := range c.entries {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (c *catalogue) usage() string {
	return "controllers to run: '*' is all of them, 'foo' the one of that name, '-foo' all that are named otherwise but that one; the controllers are " + strings.Join(c.names(), ", ")
}

// check returns an error that names the flag at fault.
func (c *catalogue) check() error {
	names := c.names()
	for _, s := range c.selected {
		if name := strings.TrimPrefix(s, "-"); s != "*" && !slices.Contains(names, name) {
			return fmt.Errorf("--controllers: there is no controller %q; the controllers are %s", name, strings.Join(names, ", "))
		}
	}
	if !slices.ContainsFunc(names, c.enabled) {
		return errors.New("--controllers: no controller is selected; use '*' for all")
	}
	for _, check := range c.checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// enabled reports whether --controllers selects a controller. As in Kubernetes, the first
// item with its name decides, and '*' if there is none.
func (c *catalogue) enabled(name string) bool {
	for _, s := range c.selected {
		switch s {
		case name:
			return true
		case "-" + name:
			return false
		}
	}
	return slices.Contains(c.selected, "*")
}

// build makes the selected controllers.
func (c *catalogue) build(s *cluster.Cluster) []controller.Controller {
	var out []controller.Controller
	for _, e := range c.entries {
		if !c.enabled(e.name) {
			continue
		}
		as := s
		if e.component != "" {
			as = s.As(e.component)
		}
		out = append(out, e.build(as))
	}
	return out
}
