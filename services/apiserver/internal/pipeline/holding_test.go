package pipeline_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// rechecked returns a fixture with rights that can be changed, and that are rechecked
// periodically.
func rechecked(t *testing.T, every time.Duration) (*fixture, *authz.RBAC) {
	rights := authz.New()
	f := newFixture(t, func(c *pipeline.Config) {
		c.Authorizer, c.RulesChanged, c.RecheckEvery = rights, rights.RBAC.Changed, every
	})
	rights.RBAC.SetRole("", "reader", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps", "pods/exec"}, Verbs: []string{"*"}}})
	ctx, cancel := context.WithCancel(f.ctx)
	done := make(chan error, 1)
	go func() { done <- f.Recheck(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f, rights.RBAC
}

func bind(r *authz.RBAC, user string) {
	r.SetBinding("ns", user, rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"}, []rbacv1.Subject{{Kind: "User", Name: user}})
}

// credential is valid until withdrawn is closed.
type credential struct{ withdrawn chan struct{} }

func (c credential) Valid(context.Context) bool {
	select {
	case <-c.withdrawn:
		return false
	default:
		return true
	}
}

func (f *fixture) watchAs(u request.User) pipeline.Watch {
	f.Helper()
	w, err := f.Watch(request.WithUser(f.ctx, u), pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.WatchOptions{SendInitialEvents: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(w.Close)
	if ev, err := w.Next(f.ctx); err != nil || !ev[len(ev)-1].InitialEnd {
		f.Fatal(ev, err)
	}
	return w
}

func wantOver(t *testing.T, w pipeline.Watch, ctx context.Context) {
	t.Helper()
	if ev, err := w.Next(ctx); !pipeline.IsWatchOver(err) {
		t.Fatalf("got %d events and error %v; want the end of the watch", len(ev), err)
	}
}

func TestWatchEndsWhenRightsAreLost(t *testing.T) {
	f, rbac := rechecked(t, time.Hour)
	for _, user := range []string{"ann", "bob"} {
		bind(rbac, user)
	}
	ann, bob := f.watchAs(request.User{Name: "ann"}), f.watchAs(request.User{Name: "bob"})
	rbac.RemoveBinding("ns", "ann")
	wantOver(t, ann, f.ctx)
	// Events that are queued when the right is lost are not returned.
	f.mustCreate(configMap("late"))
	wantOver(t, ann, f.ctx)
	if ev, err := bob.Next(f.ctx); err != nil || ev[0].Type != watchcache.Added || ev[0].Item.Object().GetName() != "late" {
		t.Fatalf("a watch with the right ended: %v %v", ev, err)
	}
	if _, err := f.Watch(request.WithUser(f.ctx, request.User{Name: "ann"}), pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.WatchOptions{}); !apierrors.IsForbidden(err) {
		t.Fatal(err)
	}
	// A right to a single name requires the field selector to be authorized again.
	rbac.SetRole("", "reader", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"watch"}, ResourceNames: []string{"one"}}})
	wantOver(t, bob, f.ctx)
	one, err := f.Watch(request.WithUser(f.ctx, request.User{Name: "bob"}), pipeline.Target{Resource: configMapGVR, Namespace: "ns"},
		pipeline.WatchOptions{FieldSelector: "metadata.name=one", SendInitialEvents: true})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, err := one.Next(f.ctx); err != nil {
		t.Fatal(err)
	}
	rbac.RemoveRole("", "reader")
	wantOver(t, one, f.ctx)
}

func TestWatchEndsWhenCredentialsExpire(t *testing.T) {
	f, rbac := rechecked(t, 5*time.Millisecond)
	bind(rbac, "ann")
	// This watch may end before its first events are read.
	w, err := f.Watch(request.WithUser(f.ctx, request.User{Name: "ann", Expires: f.now.Add(20 * time.Millisecond)}),
		pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.WatchOptions{SendInitialEvents: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for err == nil {
		_, err = w.Next(f.ctx)
	}
	if !pipeline.IsWatchOver(err) {
		t.Fatalf("got %v; want the end of the watch", err)
	}
	c := credential{make(chan struct{})}
	w = f.watchAs(request.User{Name: "ann", Credential: c, Expires: f.now.Add(time.Hour)})
	close(c.withdrawn)
	wantOver(t, w, f.ctx)
}

// stalling is a credential whose first check takes a while, as if the process had been
// stopped.
type stalling struct {
	credential
	checks *atomic.Int64
	took   time.Duration
}

func (c stalling) Valid(ctx context.Context) bool {
	if c.checks.Add(1) == 1 {
		<-time.After(c.took)
	}
	return c.credential.Valid(ctx)
}

// TestStallDoesNotDelayRechecks checks that a stall in one round does not delay the next round by
// recheckShare times as much.
func TestStallDoesNotDelayRechecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *pipeline.Config) { c.RecheckEvery = time.Second })
		ctx, cancel := context.WithCancel(f.ctx)
		done := make(chan error, 1)
		c := stalling{credential{make(chan struct{})}, new(atomic.Int64), 3 * time.Second}
		held, release := f.Hold(request.WithUser(f.ctx, request.User{Name: "ann", Groups: admin.Groups, Credential: c}),
			pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "exec"}, "create")
		defer release()
		go func() { done <- f.Recheck(ctx) }()
		<-time.After(c.took)
		synctest.Wait()
		began := time.Now()
		close(c.withdrawn)
		select {
		case <-held.Done():
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("the stream ended %s after its credential was withdrawn", took)
			}
		case <-f.ctx.Done():
			t.Error("the stream did not end")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWatchEndsWhenImpersonationIsRevoked(t *testing.T) {
	f, rbac := rechecked(t, time.Hour)
	rbac.SetRole("", "actor", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"users"}, Verbs: []string{"impersonate"}, ResourceNames: []string{"ann"}}})
	rbac.SetBinding("", "actor", rbacv1.RoleRef{Kind: "ClusterRole", Name: "actor"}, []rbacv1.Subject{{Kind: "User", Name: "boss"}})
	bind(rbac, "ann")
	ann, err := authn.Impersonate(f.ctx, rbac, request.User{Name: "boss"}, map[string][]string{"Impersonate-User": {"ann"}}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	hold := func(u request.User) context.Context {
		ctx, release := f.Hold(request.WithUser(f.ctx, u), pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "exec"}, "create")
		t.Cleanup(release)
		return ctx
	}
	acted, own := f.watchAs(ann), f.watchAs(request.User{Name: "ann"})
	// The right to impersonate is checked even after the credential has expired.
	expired := ann
	expired.Credential, expired.Expires = credential{make(chan struct{})}, f.now.Add(-time.Second)
	stream := hold(expired)
	if stream.Err() != nil {
		t.Fatal("the stream ended although the user has the right")
	}
	rbac.RemoveBinding("", "actor")
	wantOver(t, acted, f.ctx)
	select {
	case <-stream.Done():
	case <-f.ctx.Done():
		t.Fatal("the stream did not end")
	}
	if late := hold(ann); late.Err() == nil {
		t.Fatal("the stream was held although the right had been lost")
	}
	f.mustCreate(configMap("late"))
	if _, err := own.Next(f.ctx); err != nil {
		t.Fatalf("the impersonator's own watch ended: %v", err)
	}
}

func TestStreamEndsWhenRightsAreLost(t *testing.T) {
	f, rbac := rechecked(t, 5*time.Millisecond)
	target := pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "exec"}
	hold := func(u request.User) context.Context {
		ctx, release := f.Hold(request.WithUser(f.ctx, u), target, "get", "create")
		t.Cleanup(release)
		return ctx
	}
	wantEnd := func(ctx context.Context) {
		t.Helper()
		select {
		case <-ctx.Done():
		case <-f.ctx.Done():
			t.Fatal("the stream did not end")
		}
	}
	for _, user := range []string{"ann", "bob"} {
		bind(rbac, user)
	}
	c := credential{make(chan struct{})}
	ann, bob := hold(request.User{Name: "ann"}), hold(request.User{Name: "bob", Credential: c})
	// A stream continues after its credential has expired, as in Kubernetes.
	old := hold(request.User{Name: "bob", Credential: c, Expires: f.now.Add(-time.Second)})
	rbac.RemoveBinding("ns", "ann")
	wantEnd(ann)
	close(c.withdrawn)
	wantEnd(bob)
	if old.Err() != nil {
		t.Fatal("a stream ended when its credential expired")
	}
	rbac.RemoveBinding("ns", "bob")
	wantEnd(old)
	// The right was lost between the authorization and the hold.
	wantEnd(hold(request.User{Name: "ann"}))
}

func BenchmarkRecheck(b *testing.B) {
	rights := authz.New()
	f := newFixture(b, func(c *pipeline.Config) { c.Authorizer, c.RulesChanged = rights, rights.RBAC.Changed })
	rights.RBAC.SetRole("", "reader", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"*"}}})
	bind(rights.RBAC, "ann")
	for range 1000 {
		f.watchAs(request.User{Name: "ann"})
	}
	for b.Loop() {
		pipeline.RecheckOnce(f.ctx, f.Pipeline)
	}
}
