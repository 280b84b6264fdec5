package leader_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/leader"
	"keelson.dev/services/internal/pacetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// duration is the duration of leases whose expiry a test waits for. A lease that must not expire
// during a test has a long duration, so that a stall of the machine for seconds does not matter: a
// leader stops by itself when half the duration passes after a renewal was due.
const (
	duration = 400 * time.Millisecond
	long     = 8 * time.Second
)

// candidate runs an election until stopped; leading is true while it leads.
type candidate struct {
	leading atomic.Bool
	terms   atomic.Int32
	ends    atomic.Int32 // of terms
	stop    func()
	done    chan error
}

// group counts how many candidates lead at once.
type group struct {
	t    *testing.T
	c    *client.Client
	now  atomic.Int32
	most atomic.Int32
}

func (g *group) start(identity string, duration time.Duration) *candidate {
	ctx, cancel := context.WithCancel(context.Background())
	cd := &candidate{stop: cancel, done: make(chan error, 1)}
	go func() {
		cd.done <- leader.Run(ctx, g.c, leader.Config{Name: "test", Identity: identity, Duration: duration}, func(ctx context.Context) error {
			g.most.Store(max(g.most.Load(), g.now.Add(1)))
			cd.terms.Add(1)
			cd.leading.Store(true)
			<-ctx.Done()
			cd.leading.Store(false)
			g.now.Add(-1)
			cd.ends.Add(1)
			return nil
		})
	}()
	g.t.Cleanup(func() {
		cancel()
		select {
		case err := <-cd.done:
			if err != nil {
				g.t.Errorf("%s: %v", identity, err)
			}
		case <-time.After(time.Minute):
			g.t.Errorf("%s did not stop", identity)
		}
	})
	return cd
}

// eventually waits for cond and returns how long that took, without the time in which the process
// was not running.
func eventually(t *testing.T, what string, cond func() bool) time.Duration {
	t.Helper()
	pace := pacetest.Start(t)
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		<-tick.C
		if time.Since(start) > time.Minute {
			t.Fatalf("timed out waiting for: %s", what)
		}
	}
	return pace.Since(start)
}

func TestOneLeadsAndHandsOver(t *testing.T) {
	g := &group{t: t, c: clienttest.Start(t)}
	a := g.start("a", long)
	eventually(t, "a leads", a.leading.Load)
	b := g.start("b", long)
	leases := client.For[*coordinationv1.Lease](g.c)
	lease, err := leases.Get(t.Context(), "kube-system", "test")
	if err != nil || *lease.Spec.HolderIdentity != "a" {
		t.Fatalf("%v %v", lease, err)
	}
	eventually(t, "a renewal", func() bool {
		l, err := leases.Get(t.Context(), "kube-system", "test")
		return err == nil && l.Spec.RenewTime.After(lease.Spec.RenewTime.Time)
	})
	if b.leading.Load() {
		t.Fatal("both lead")
	}
	a.stop()
	if took := eventually(t, "b leads", b.leading.Load); took > long/2 {
		t.Errorf("a released lease was taken over after %v", took)
	}
	lease, err = leases.Get(t.Context(), "kube-system", "test")
	if err != nil || *lease.Spec.LeaseTransitions != 1 {
		t.Errorf("transitions: %v, error %v", lease.Spec.LeaseTransitions, err)
	}
	if g.most.Load() != 1 {
		t.Error("two led at once")
	}
}

// A leader that is cut off stops before its lease is taken over.
func TestTakeOverFromTheSilent(t *testing.T) {
	// The leader stops a quarter of it before another candidate may start.
	const duration = 4 * time.Second
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clienttest.NewServer().Serve(l))
	dial := func(opts ...grpc.DialOption) *client.Client {
		c, err := client.Dial(client.Config{Endpoints: []string{l.Addr().String()}, DialOptions: opts})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var cut atomic.Bool
	var lastAnswer atomic.Int64
	g := &group{t: t, c: dial(grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if cut.Load() {
				return status.Error(codes.Unavailable, "cut")
			}
			defer func() { lastAnswer.Store(time.Now().UnixNano()) }()
			return invoke(ctx, method, req, reply, cc, opts...)
		}))}
	pace := pacetest.Start(t)
	a := g.start("a", duration)
	eventually(t, "a leads", a.leading.Load)
	g.c = dial()
	b := g.start("b", duration)
	cut.Store(true)
	eventually(t, "a stops", func() bool { return !a.leading.Load() })
	eventually(t, "b leads", b.leading.Load)
	if took := pace.Since(time.Unix(0, lastAnswer.Load())); took > 2*duration {
		t.Errorf("the takeover took %v", took)
	}
	cut.Store(false)
	if g.most.Load() != 1 {
		t.Error("b led before a had stopped")
	}
}

// A leader with Pause pauses when it is cut off, and continues in the same term if no other candidate
// has led in the meantime.
func TestPausesAndGoesOn(t *testing.T) {
	s, c := clienttest.StartServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	var terms, steps, pauses, refused atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- leader.Run(ctx, c, leader.Config{Name: "test", Identity: "a", Duration: duration, Pause: true}, func(ctx context.Context) error {
			terms.Add(1)
			for {
				step, err := leader.Await(ctx)
				if err != nil {
					return nil
				}
				steps.Add(1)
				<-step.Done() // work that runs until leadership is no longer confirmed
				pauses.Add(1)
			}
		})
	}()
	eventually(t, "the first step", func() bool { return steps.Load() >= 1 })
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Update" {
			refused.Add(1)
			return status.Error(codes.Unavailable, "cut")
		}
		return nil
	})
	// A renewal may have been in flight. After four more, a whole duration has passed since the
	// last successful one.
	eventually(t, "it pauses", func() bool { return refused.Load() >= 4 && pauses.Load() == steps.Load() })
	before := steps.Load()
	eventually(t, "more renewals fail", func() bool { return refused.Load() >= 10 })
	if steps.Load() != before {
		t.Error("it went on without a confirmation")
	}
	s.Fail(nil)
	eventually(t, "another step", func() bool { return steps.Load() > before })
	if terms.Load() != 1 {
		t.Errorf("%d terms", terms.Load())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A paused leader loses if another candidate has led in the meantime.
func TestPausedLosesToAnother(t *testing.T) {
	s, c := clienttest.StartServer(t)
	var terms atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- leader.Run(ctx, c, leader.Config{Name: "test", Identity: "a", Duration: duration, Pause: true}, func(ctx context.Context) error {
			terms.Add(1)
			<-ctx.Done()
			return nil
		})
	}()
	eventually(t, "the first term", func() bool { return terms.Load() == 1 })
	var cut atomic.Bool
	cut.Store(true)
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Update" && cut.Load() {
			return status.Error(codes.Unavailable, "cut")
		}
		return nil
	})
	<-time.After(duration)
	cut.Store(false)
	leases := client.For[*coordinationv1.Lease](c)
	eventually(t, "another leads and ends", func() bool {
		l, err := leases.Get(t.Context(), "kube-system", "test")
		if err != nil {
			t.Fatal(err)
		}
		another, n := "b", *l.Spec.LeaseTransitions+1
		l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &another, &n
		_, err = leases.Update(t.Context(), l)
		return err == nil
	})
	eventually(t, "the second term", func() bool { return terms.Load() == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A conflict does not end the term as long as this candidate still holds the lease.
func TestConflictIsNoLoss(t *testing.T) {
	g := &group{t: t, c: clienttest.Start(t)}
	a := g.start("a", long)
	eventually(t, "a leads", a.leading.Load)
	leases := client.For[*coordinationv1.Lease](g.c)
	for i := range 5 {
		eventually(t, "an annotation", func() bool {
			l, err := leases.Get(t.Context(), "kube-system", "test")
			if err != nil {
				t.Fatal(err)
			}
			l.Annotations = map[string]string{"touched": string(rune('a' + i))}
			_, err = leases.Update(t.Context(), l)
			return err == nil
		})
	}
	l, err := leases.Get(t.Context(), "kube-system", "test")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a renewal after the conflicts", func() bool {
		next, err := leases.Get(t.Context(), "kube-system", "test")
		return err == nil && next.Spec.RenewTime.After(l.Spec.RenewTime.Time)
	})
	if a.terms.Load() != 1 {
		t.Errorf("%d terms", a.terms.Load())
	}
}

func TestLosesToAnotherHolder(t *testing.T) {
	g := &group{t: t, c: clienttest.Start(t)}
	a := g.start("a", duration)
	eventually(t, "a leads", a.leading.Load)
	leases := client.For[*coordinationv1.Lease](g.c)
	before := a.terms.Load()
	eventually(t, "the theft", func() bool {
		l, err := leases.Get(t.Context(), "kube-system", "test")
		if err != nil {
			t.Fatal(err)
		}
		thief := "thief"
		l.Spec.HolderIdentity = &thief
		_, err = leases.Update(t.Context(), l)
		return err == nil
	})
	eventually(t, "a stops", func() bool { return a.ends.Load() >= before })
	eventually(t, "a leads again when the thief is silent", func() bool { return a.terms.Load() > before })
}

func TestWorksEndIsRunsEnd(t *testing.T) {
	c := clienttest.Start(t)
	want := errors.New("broken")
	err := leader.Run(t.Context(), c, leader.Config{Name: "test", Identity: "a", Duration: long}, func(context.Context) error { return want })
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	l, err := client.For[*coordinationv1.Lease](c).Get(t.Context(), "kube-system", "test")
	if err != nil || *l.Spec.HolderIdentity != "" {
		t.Errorf("the lease was not released: %v %v", l, err)
	}
}

// An election whose lost term does not end is stuck, and goes on when it ends.
func TestStuckWorkIsNoticed(t *testing.T) {
	c := clienttest.Start(t)
	state := leader.NewState(20 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	release, working, done := make(chan struct{}), make(chan struct{}, 10), make(chan error, 1)
	go func() {
		done <- leader.Run(ctx, c, leader.Config{Name: "test", Identity: "a", Duration: duration, State: state}, func(ctx context.Context) error {
			working <- struct{}{}
			<-ctx.Done()
			<-release
			return nil
		})
	}()
	<-working
	eventually(t, "it is healthy while it leads", func() bool { return state.Check(ctx) == nil })
	leases, other := client.For[*coordinationv1.Lease](c), "b"
	eventually(t, "another process takes the lease", func() bool {
		l, err := leases.Get(ctx, "kube-system", "test")
		if err != nil {
			return false
		}
		l.Spec.HolderIdentity = &other
		_, err = leases.Update(ctx, l)
		return err == nil
	})
	eventually(t, "it is stuck", func() bool { return state.Check(ctx) != nil })
	close(release)
	eventually(t, "it is healthy again", func() bool { return state.Check(ctx) == nil })
	<-working // it takes the lease when that has expired
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := state.Check(t.Context()); err != nil {
		t.Errorf("after its end: %v", err)
	}
}
