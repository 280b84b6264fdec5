package boot

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"keelson.dev/services/internal/leader"
)

// Elected holds the flags of a service of which one process works at a time while
// others stand by.
type Elected struct {
	*Service
	// LeaderElect is true, the default, if the process works only while it holds the
	// Lease. If it is false, the process works at once and its writes are not fenced:
	// nothing keeps a second process from working at the same time.
	LeaderElect bool

	lease string
}

// ElectedFlags adds the flags of Elected to fs. The service's Lease is kube-system/lease.
func ElectedFlags(fs *pflag.FlagSet, lease string) *Elected {
	e := &Elected{Service: ServiceFlags(fs), lease: lease}
	fs.BoolVar(&e.LeaderElect, "leader-elect", true, fmt.Sprintf("work only while this process holds the Lease kube-system/%s; without it, run one process only", lease))
	return e
}

// Candidate is a started service that may be elected.
type Candidate struct {
	*Running

	flags *Elected
}

// StartElected is StartService for an elected service.
func StartElected(ctx context.Context, g *Group, flags *Elected, p Program) (*Candidate, error) {
	s, err := StartService(ctx, g, flags.Service, p)
	if err != nil {
		return nil, err
	}
	return &Candidate{Running: s, flags: flags}, nil
}

// Lead runs work in g for as long as this process holds the service's Lease, and again
// whenever it takes it anew, or, with --leader-elect=false, from now on. The context of
// a term ends when the Lease is lost, and writes made with it fail once another process
// leads. The program ends when work returns before its context ends.
func (c *Candidate) Lead(g *Group, work func(context.Context) error) {
	c.lead(g, work, false)
}

// LeadSteps is Lead for work that calls [leader.Await] before each of its steps. Such
// work pauses instead of ending while the Lease cannot be renewed, and goes on in the
// same term if no other process has led meanwhile.
func (c *Candidate) LeadSteps(g *Group, work func(context.Context) error) {
	c.lead(g, work, true)
}

func (c *Candidate) lead(g *Group, work func(context.Context) error, pause bool) {
	if !c.flags.LeaderElect {
		g.Go("work", work)
		return
	}
	state := leader.NewState(0)
	c.Status.Note("leadership", state.String)
	c.Status.Health("leader election", state.Check)
	cfg := leader.Config{Name: c.flags.lease, Identity: c.Instance, Pause: pause, State: state}
	g.Go("leader", func(ctx context.Context) error { return leader.Run(ctx, c.Client, cfg, work) })
}
