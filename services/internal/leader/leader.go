// Package leader elects one of several processes by a Lease of Kubernetes' form.
//
// A leader renews the Lease, and stops its work before the Lease can be taken over. A
// candidate takes the Lease when it has not changed for its whole duration by the
// candidate's own clock (clocks are not compared), or at once when it was released. This is
// the algorithm of client-go's leaderelection, with a watch instead of polling and two
// seconds instead of fifteen.
//
// Two processes never work at once, unless one of them, or its packets, are delayed without
// its knowledge. For that case each term takes a fence before its work begins
// (keelson.coordination.v1), and every write made with the context of the work depends on it
// (client.WithFence). Renewals of the Lease do not: they are conditional on the Lease itself.
//
// Package leader must never let work begin without a fence, and never let it continue once a
// write was refused because another process has begun a term.
package leader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/ops"
)

// Config configures an election.
type Config struct {
	// Name of the Lease; its namespace is kube-system unless Namespace is set.
	Name, Namespace string
	// Identity is unique among the candidates.
	Identity string
	// Duration is how long candidates respect a Lease that is not renewed; 0 means 2 s.
	// The leader renews it every quarter of that time, and stops when its last successful
	// renewal began three quarters of it ago.
	Duration time.Duration
	// Pause is true if the work calls Await before each of its steps. A leader that cannot
	// renew the Lease in time then pauses instead of stopping. If it can renew it later, no
	// other process has led in between, as the write is conditional, and it continues where
	// it was. On an overloaded machine, stopping and starting anew would add to the load.
	Pause bool
	// State, if set, is kept up to date with whether this process leads; see NewState.
	State *State
}

// patience is how long a step of an election may take. The longest is the wait for the work
// of a term to end.
const patience = 30 * time.Second

// State reports whether a process leads, for status pages, and whether its election makes
// progress.
type State struct {
	leading  atomic.Bool
	progress ops.Progress
}

// NewState returns the state of a process that stands by. Its election counts as stuck when a
// step takes longer than patience, as when the work of a lost term does not end; 0 means 30 s.
func NewState(limit time.Duration) *State {
	return &State{progress: ops.Progress{Patience: cmp.Or(limit, patience)}}
}

// Check returns an error if the election is stuck: then this process will never lead again,
// and a restart is the remedy.
func (s *State) Check(ctx context.Context) error { return s.progress.Check(ctx) }

// busy records whether the election works or waits.
func (s *State) busy(busy bool) {
	switch {
	case s == nil:
	case busy:
		s.progress.Begin()
	default:
		s.progress.End()
	}
}

// String returns "leading" or "standby".
func (s *State) String() string {
	if s.leading.Load() {
		return "leading"
	}
	return "standby"
}

func (s *State) set(leading bool) {
	if s != nil {
		s.leading.Store(leading)
	}
}

func (c *Config) defaults() error {
	if c.Name == "" || c.Identity == "" {
		return errors.New("leader election needs a name and an identity")
	}
	if c.Namespace == "" {
		c.Namespace = metav1.NamespaceSystem
	}
	if c.Duration == 0 {
		c.Duration = 2 * time.Second
	}
	return nil
}

func (c *Config) renewEvery() time.Duration    { return c.Duration / 4 }
func (c *Config) renewDeadline() time.Duration { return c.Duration * 3 / 4 }

// Run waits for leadership and calls lead with a context that carries the fence and ends
// when leadership is lost; then it waits again. It returns nil when ctx has ended, after
// releasing the Lease, and lead's error if lead returns while it leads.
func Run(ctx context.Context, c *client.Client, cfg Config, lead func(ctx context.Context) error) error {
	if err := cfg.defaults(); err != nil {
		return err
	}
	e := &election{Config: cfg, client: c, leases: client.For[*coordinationv1.Lease](c)}
	defer e.State.busy(false)
	for {
		lease, began := e.campaign(ctx)
		if lease == nil {
			return nil
		}
		err, ended := e.term(ctx, lease, began, lead)
		if ended || ctx.Err() != nil {
			return err
		}
		slog.WarnContext(ctx, "leadership lost", "lease", cfg.Name, "identity", cfg.Identity)
	}
}

type election struct {
	Config

	client *client.Client
	leases client.Resource[*coordinationv1.Lease]
}

// campaign waits until this process holds the lease, and returns nil if ctx ends first.
// began is when the winning write was sent.
func (e *election) campaign(ctx context.Context) (lease *coordinationv1.Lease, began time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	news := make(chan *coordinationv1.Lease, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.observe(ctx, news)
	}()
	defer func() { cancel(); <-done }()

	// The last state and since when it has been unchanged, by our clock.
	var (
		last   *coordinationv1.Lease
		expiry = time.NewTimer(e.Duration)
		// failed counts attempts in a row that met no answer.
		failed int
	)
	defer expiry.Stop()
	for {
		e.State.busy(false)
		select {
		case <-ctx.Done():
			e.State.busy(true)
			return nil, began
		case last = <-news:
			e.State.busy(true)
			if last != nil && holder(last) != "" && holder(last) != e.Identity {
				expiry.Reset(e.Duration)
				continue
			}
		case <-expiry.C:
			e.State.busy(true)
		}
		began = time.Now()
		lease, err := e.acquire(ctx, last)
		if err == nil {
			return lease, began
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			failed = 0
		} else if failed++; ctx.Err() == nil && (failed == warnAt || failed%warnEvery == 0) {
			slog.WarnContext(ctx, "lease was not taken", "lease", e.Name, "attempts", failed, "error", err)
		}
		expiry.Reset(e.renewEvery() + rand.N(e.renewEvery())) //nolint:gosec // jitter needs no secrecy.
	}
}

// warnAt is the number of failed attempts in a row before the first warning: when a cluster
// starts, the apiservers do not answer yet. After that every warnEvery-th is logged.
const (
	warnAt    = 3
	warnEvery = 30
)

// observe sends each state of the lease, nil when it does not exist; only the
// newest is kept. It ends with ctx.
func (e *election) observe(ctx context.Context, news chan *coordinationv1.Lease) {
	send := func(l *coordinationv1.Lease) {
		select {
		case <-news:
		default:
		}
		news <- l
	}
	for ctx.Err() == nil {
		exists := false
		for ev, err := range e.leases.Watch(ctx, client.WatchOptions{Namespace: e.Namespace, Name: e.Name, SendInitialEvents: true, AllowBookmarks: true}) {
			if err != nil {
				break
			}
			switch {
			case ev.Type == client.Deleted:
				send(nil)
			case ev.Type != client.Bookmark:
				exists = true
				send(ev.Object)
			case ev.InitialEnd && !exists:
				send(nil)
			}
		}
		pause(ctx, min(e.renewEvery(), 100*time.Millisecond))
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func holder(l *coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// acquire writes this process's identity into the lease as it was last seen. If another
// candidate was faster, that is a conflict.
func (e *election) acquire(ctx context.Context, last *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, e.renewDeadline())
	defer cancel()
	now := metav1.NewMicroTime(time.Now())
	if last == nil {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}}
		e.fill(l, now)
		transitions := int32(0)
		l.Spec.AcquireTime, l.Spec.LeaseTransitions = &now, &transitions
		return e.leases.Create(ctx, l)
	}
	l := last.DeepCopy()
	if holder(last) != e.Identity {
		transitions := int32(1)
		if l.Spec.LeaseTransitions != nil {
			transitions += *l.Spec.LeaseTransitions
		}
		l.Spec.AcquireTime, l.Spec.LeaseTransitions = &now, &transitions
	}
	e.fill(l, now)
	return e.leases.Update(ctx, l)
}

func (e *election) fill(l *coordinationv1.Lease, now metav1.MicroTime) {
	seconds := int32((e.Duration + time.Second - 1) / time.Second)
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &e.Identity, &seconds, &now
}

// term leads until leadership is lost, ctx ends or lead returns. ended is false if the
// election goes on, because leadership was lost.
func (e *election) term(ctx context.Context, lease *coordinationv1.Lease, began time.Time, lead func(context.Context) error) (err error, ended bool) { //nolint:revive // the error is lead's, not term's.
	whole, stop := context.WithCancel(ctx)
	defer stop()
	refused := make(chan struct{})
	var once sync.Once
	fence := &client.Fence{Lost: func() { once.Do(func() { close(refused) }) }}
	work := client.WithFence(whole, fence)
	var g *gate
	if e.Pause {
		work, g = withGate(work)
		defer g.shut()
	}
	done := make(chan error, 1)
	go func(acquired *coordinationv1.Lease) {
		if err := e.take(whole, acquired, fence); err != nil {
			done <- err
			return
		}
		slog.InfoContext(ctx, "leading", "lease", e.Name, "identity", e.Identity)
		e.State.set(true)
		err := lead(work)
		e.State.set(false)
		done <- err
	}(lease)
	tick := time.NewTicker(e.renewEvery())
	defer tick.Stop()
	deadline := time.NewTimer(time.Until(began.Add(e.renewDeadline())))
	defer deadline.Stop()
	renewals := make(chan renewal, 1)
	renewing := false
	// down ends the work and what else runs.
	down := func() error {
		e.State.busy(true)
		stop()
		err := <-done
		if renewing {
			lease = newer(lease, <-renewals)
		}
		return err
	}
	for {
		e.State.busy(false)
		select {
		case err = <-done:
			done <- err
			_ = down()
			e.release(ctx, lease)
			if errors.Is(err, errNoFence) {
				slog.WarnContext(ctx, "no fence could be taken: the lease is given up", "lease", e.Name, "error", err)
				pause(ctx, e.renewEvery()+rand.N(e.renewEvery())) //nolint:gosec // jitter needs no secrecy.
				return nil, false
			}
			return err, true
		case <-ctx.Done():
			err = down()
			e.release(ctx, lease)
			if errors.Is(err, errNoFence) {
				err = nil
			}
			return err, true
		case <-refused:
			slog.WarnContext(ctx, "a write was refused: another leader has begun", "lease", e.Name)
			return down(), false
		case <-deadline.C:
			if g != nil {
				slog.WarnContext(ctx, "the lease was not renewed in time: paused", "lease", e.Name)
				g.shut()
				continue
			}
			slog.WarnContext(ctx, "the lease was not renewed in time", "lease", e.Name)
			return down(), false
		case <-tick.C:
			if !renewing {
				renewing = true
				go func() { renewals <- e.renew(whole, lease) }()
			}
		case r := <-renewals:
			renewing = false
			switch {
			case r.err == nil:
				lease = r.lease
				if g != nil && time.Now().Before(r.began.Add(e.renewDeadline())) {
					g.open()
				}
				deadline.Reset(time.Until(r.began.Add(e.renewDeadline())))
			case r.lost:
				return down(), false
			case whole.Err() == nil:
				slog.WarnContext(ctx, "the lease was not renewed", "lease", e.Name, "error", r.err)
			}
		}
	}
}

// errNoFence means that a term ended before its work, because no fence could be taken.
var errNoFence = errors.New("no fence")

// take takes the fence of an acquisition. It retries for the duration of a lease, after
// which another candidate may try. The error is errNoFence.
func (e *election) take(ctx context.Context, acquired *coordinationv1.Lease, fence *client.Fence) (err error) {
	ctx, cancel := context.WithTimeout(ctx, e.Duration)
	defer cancel()
	for {
		if fence.Token, err = client.TakeFence(ctx, e.client, acquired); err == nil {
			return nil
		}
		if ctx.Err() != nil || client.IsFenced(err) {
			return fmt.Errorf("%w: %w", errNoFence, err)
		}
		slog.DebugContext(ctx, "the fence was not taken", "lease", e.Name, "error", err)
		pause(ctx, min(e.renewEvery(), 50*time.Millisecond))
	}
}

type renewal struct {
	lease *coordinationv1.Lease
	began time.Time
	err   error
	// lost is true if another process holds the lease, or it is gone.
	lost bool
}

func newer(lease *coordinationv1.Lease, r renewal) *coordinationv1.Lease {
	if r.err == nil {
		return r.lease
	}
	return lease
}

// renew writes the lease anew. A conflict may be due to an own write whose response was
// lost, or to an annotation by another client: whether the lease is lost is read from it.
func (e *election) renew(ctx context.Context, lease *coordinationv1.Lease) renewal {
	ctx, cancel := context.WithTimeout(ctx, e.renewDeadline())
	defer cancel()
	for {
		r := renewal{began: time.Now()}
		l := lease.DeepCopy()
		e.fill(l, metav1.NewMicroTime(r.began))
		if r.lease, r.err = e.leases.Update(ctx, l); !apierrors.IsConflict(r.err) && !apierrors.IsNotFound(r.err) {
			return r
		}
		current, err := e.leases.Get(ctx, e.Namespace, e.Name)
		switch {
		case apierrors.IsNotFound(err):
			r.err, r.lost = fmt.Errorf("the lease is gone: %w", err), true
			return r
		case err != nil:
			r.err = err
			return r
		case holder(current) != e.Identity || transitions(current) != transitions(lease):
			r.err, r.lost = fmt.Errorf("the lease is held by %q", holder(current)), true
			return r
		}
		lease = current
	}
}

func transitions(l *coordinationv1.Lease) int32 {
	if l.Spec.LeaseTransitions == nil {
		return 0
	}
	return *l.Spec.LeaseTransitions
}

// release removes the holder from the lease, so that the next leader takes over at once.
func (e *election) release(ctx context.Context, lease *coordinationv1.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.Duration)
	defer cancel()
	for range 3 {
		l := lease.DeepCopy()
		none, second, now := "", int32(1), metav1.NewMicroTime(time.Now())
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &none, &second, &now
		_, err := e.leases.Update(ctx, l)
		if err == nil {
			slog.InfoContext(ctx, "lease released", "lease", e.Name)
			return
		}
		if !apierrors.IsConflict(err) {
			slog.WarnContext(ctx, "the lease was not released", "lease", e.Name, "error", err)
			return
		}
		if lease, err = e.leases.Get(ctx, e.Namespace, e.Name); err != nil || holder(lease) != e.Identity {
			return
		}
	}
}
