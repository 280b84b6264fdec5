package leader_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/leader"
)

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

// lead runs an election until the test ends.
func lead(t *testing.T, c *client.Client, cfg leader.Config, work func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg.Name, cfg.Identity = "test", "a"
	go func() { done <- leader.Run(ctx, c, cfg, work) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWorkIsFencedAndRenewalsAreNot(t *testing.T) {
	for name, pause := range map[string]bool{"": false, "may pause": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // both wait for renewals
			s, c := clienttest.StartServer(t)
			var mu sync.Mutex
			tokens := map[string]map[string]int{} // by method
			s.Wrote(func(w clienttest.Written) {
				mu.Lock()
				defer mu.Unlock()
				if tokens[w.Method] == nil {
					tokens[w.Method] = map[string]int{}
				}
				tokens[w.Method][w.Fence]++
			})
			lead(t, c, leader.Config{Duration: long, Pause: pause}, func(ctx context.Context) error {
				step, err := leader.Await(ctx)
				if err != nil {
					return nil
				}
				if _, err := c.Commit(step, client.CreateWrite(configMap("a"))); err != nil {
					t.Error(err)
				}
				<-ctx.Done()
				return nil
			})
			eventually(t, "renewals", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return tokens["Update"][""] >= 2 && len(tokens["Commit"]) > 0
			})
			mu.Lock()
			defer mu.Unlock()
			if len(tokens["Commit"]) != 1 || tokens["Commit"][""] != 0 {
				t.Errorf("the work's writes carried %v", tokens["Commit"])
			}
			if len(tokens["Update"]) != 1 {
				t.Errorf("renewals carried %v", tokens["Update"])
			}
		})
	}
}

// A term ends with the first write that the fence refuses, long before the lease expires.
func TestRefusedWriteEndsTheTerm(t *testing.T) {
	c := clienttest.Start(t)
	leases := client.For[*coordinationv1.Lease](c)
	began := make(chan context.Context, 10)
	lead(t, c, leader.Config{Duration: time.Minute}, func(ctx context.Context) error {
		began <- ctx
		<-ctx.Done()
		return nil
	})
	term := <-began
	l, err := leases.Get(t.Context(), "kube-system", "test")
	if err != nil {
		t.Fatal(err)
	}
	another, transitions := "b", *l.Spec.LeaseTransitions+1
	l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &another, &transitions
	if l, err = leases.Update(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if _, err := client.TakeFence(t.Context(), c, l); err != nil {
		t.Fatal(err)
	}
	if term.Err() != nil {
		t.Fatal("the term ended before a write was refused")
	}
	if _, err := client.For[*corev1.ConfigMap](c).Create(term, configMap("late")); !client.IsFenced(err) {
		t.Errorf("a write after the fence was taken: %v", err)
	}
	select {
	case <-term.Done():
	case <-time.After(10 * time.Second):
		t.Error("the term goes on after a write was refused")
	}
}

// A candidate that cannot take a fence does not lead; the lease goes to one that can.
func TestNoFenceNoWork(t *testing.T) {
	s, c := clienttest.StartServer(t)
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Take" {
			return status.Error(codes.Unimplemented, "an apiserver of before")
		}
		return nil
	})
	var terms atomic.Int32
	lead(t, c, leader.Config{Duration: duration}, func(ctx context.Context) error {
		terms.Add(1)
		<-ctx.Done()
		return nil
	})
	leases := client.For[*coordinationv1.Lease](c)
	eventually(t, "the lease is given up", func() bool {
		l, err := leases.Get(t.Context(), "kube-system", "test")
		return err == nil && *l.Spec.HolderIdentity == "" && terms.Load() == 0
	})
	s.Fail(nil)
	eventually(t, "it leads", func() bool { return terms.Load() >= 1 })
}
