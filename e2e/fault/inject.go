package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// injection is a fault that has been injected.
type injection struct {
	what string
	// heal ends the fault; nil if it has ended already.
	heal func() error
}

// target returns the member that a fault is for.
func (c *Cluster) target(ctx context.Context, f Fault) *Member {
	if i, err := strconv.Atoi(f.Target); err == nil {
		return c.Members[i]
	}
	store := map[string]string{"leader of etcd": "lasting", "leader of raft": "transient"}[f.Target]
	if m := c.Leader(ctx, store); m != nil {
		return m
	}
	return c.Members[f.Choice%len(c.Members)] // no member leads
}

// Leader returns the member that leads a store ("lasting" or "transient"), or nil if none reports
// that it does.
func (c *Cluster) Leader(ctx context.Context, store string) *Member {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, m := range c.Members {
		if stores, err := m.Leads(ctx); err == nil && slices.Contains(stores, store) {
			return m
		}
	}
	return nil
}

// inject injects a fault.
func (c *Cluster) inject(ctx context.Context, f Fault, m *Member) (injection, error) {
	i := injection{what: fmt.Sprintf("%s (%s)", f, m.Name)}
	others := slices.DeleteFunc(slices.Clone(c.Members), func(o *Member) bool { return o == m })
	clients := c.Network.Clients()
	link := func(from, to int, l Link) { c.Network.Set(from, to, l) }
	heal := func() error { c.Network.Heal(); return nil }
	switch f.Kind {
	case Kill:
		m.Kill()
	case KillAll:
		var wg sync.WaitGroup
		for _, o := range c.Members {
			wg.Go(o.Kill)
		}
		wg.Wait()
	case Pause:
		m.signal(syscall.SIGSTOP)
		i.heal = func() error { m.signal(syscall.SIGCONT); return nil }
	case Partition, Isolate:
		for _, o := range others {
			link(m.Index, o.Index, Link{Cut: true})
			link(o.Index, m.Index, Link{Cut: true})
		}
		if f.Kind == Partition {
			link(m.Index, clients, Link{Cut: true})
			link(clients, m.Index, Link{Cut: true})
		}
		i.heal = heal
	case OneWay:
		for _, o := range others {
			if f.Choice%2 == 0 {
				link(m.Index, o.Index, Link{Cut: true})
			} else {
				link(o.Index, m.Index, Link{Cut: true})
			}
		}
		i.what += map[int]string{0: " what it sends", 1: " what it is sent"}[f.Choice%2]
		i.heal = heal
	case Bridge:
		o := others[f.Choice%2]
		link(m.Index, o.Index, Link{Cut: true})
		link(o.Index, m.Index, Link{Cut: true})
		i.what += " from " + o.Name
		i.heal = heal
	case SlowNetwork:
		l := Link{Loss: f.Chance, Delay: f.Amount, Jitter: f.Amount / 4}
		for _, o := range others {
			link(m.Index, o.Index, l)
			link(o.Index, m.Index, l)
		}
		link(m.Index, clients, l)
		link(clients, m.Index, l)
		i.heal = heal
	case DiskFull:
		i.heal = m.emptyDisk
		return i, m.fillDisk()
	case SlowSync:
		m.delay.Store(int64(f.Amount))
		i.heal = func() error { m.delay.Store(0); return nil }
	case FailedSync:
		m.fail.Store(int64(f.Choice))
		i.heal = func() error { m.fail.Store(0); return nil }
	case ClockJump:
		i.heal = func() error { _ = m.JumpClock(0); return nil } // if the process has ended, its offset is gone too
		// Another fault may have ended the process, and may end it again.
		return i, wait.Until(ctx, 30*time.Second, func(context.Context) error { return m.JumpClock(f.Amount) })
	case TornTail:
		m.Hold()
		defer m.Release()
		return i, m.tearTails()
	case BrokenTail:
		return i, c.breakTail(ctx, m, f.Choice%2 == 0)
	case EmptiedDisk:
		m.Hold()
		defer m.Release()
		return i, m.forgetAll()
	case Rolling:
		for _, o := range c.Members {
			if err := o.Terminate(); err != nil {
				return i, err
			}
			if err := c.Whole(ctx, wholeTime); err != nil {
				return i, err
			}
		}
	case Failpoints, DiskFailures:
		points := []string{"etcd.propose", "raft.propose"}
		if f.Kind == DiskFailures {
			points = []string{"raft.log", "raft.vote"}
		}
		i.heal = func() error { return os.WriteFile(m.points(), nil, 0o600) }
		text := ""
		for _, p := range points {
			for _, action := range []string{"refuse", "lose-request", "lose-answer"} {
				text += fmt.Sprintf("%s %s %.3f\n", p, action, f.Chance/3)
			}
		}
		return i, os.WriteFile(m.points(), []byte(text), 0o600)
	default:
		return i, fmt.Errorf("unknown kind of fault %q", f.Kind)
	}
	return i, nil
}

// breakTail damages data that a member has acknowledged. The member must then refuse to start and
// log why; it is started again with an empty disk.
func (c *Cluster) breakTail(ctx context.Context, m *Member, etcd bool) error {
	m.Hold()
	var err error
	if etcd {
		err = m.breakWAL()
	} else {
		err = m.breakLog()
	}
	if err != nil {
		m.Release()
		return err
	}
	before := m.size()
	m.mu.Lock()
	starts := m.starts
	m.mu.Unlock()
	m.Release()
	refused := wait.Until(ctx, 30*time.Second, func(ctx context.Context) error {
		m.mu.Lock()
		again := m.starts > starts+1
		m.mu.Unlock()
		if again {
			return nil
		}
		if m.Ready(ctx) == nil {
			return wait.Stop(errors.New("the member started"))
		}
		return fmt.Errorf("%s has not ended", m.Name)
	})
	m.Hold()
	defer m.Release()
	said := m.since(before)
	if err := m.forgetAll(); err != nil {
		return err
	}
	if refused != nil {
		return fmt.Errorf("a damaged log: %w; the log is:\n%s", refused, said)
	}
	if want := map[bool]string{true: "etcd", false: "log.db"}[etcd]; !saysWhy(said, want) {
		return fmt.Errorf("%s refused its damaged log without naming %s:\n%s", m.Name, want, said)
	}
	return nil
}
