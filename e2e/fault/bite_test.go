package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/wait"
)

// TestFaultsBite checks the effect of the faults that, if they had none, would go unnoticed by every
// other test.
func TestFaultsBite(t *testing.T) {
	c := start(t, withFailpoints(t))
	hc, err := newHTTP(c.pki)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	// create creates an object at the first member.
	create := func(obj metav1.Object, path string, into any) (time.Duration, error) {
		t.Helper()
		n++
		obj.SetName(fmt.Sprintf("o%d", n))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		err := request(ctx, hc, c.https()[0], http.MethodPost, path, jsonType, obj, into)
		return time.Since(began), err
	}
	configMap := func() (*corev1.ConfigMap, time.Duration) {
		t.Helper()
		var made corev1.ConfigMap
		took, err := create(&corev1.ConfigMap{}, "/api/v1/namespaces/default/configmaps", &made)
		if err != nil {
			t.Fatal(err)
		}
		return &made, took
	}
	lease := func() error {
		t.Helper()
		_, err := create(&coordinationv1.Lease{}, "/apis/coordination.k8s.io/v1/namespaces/default/leases", nil)
		return err
	}
	// quick returns the shortest duration of five writes.
	quick := func() time.Duration {
		t.Helper()
		least := time.Minute
		for range 5 {
			_, took := configMap()
			least = min(least, took)
		}
		return least
	}
	m := c.Members[0]

	for _, by := range []time.Duration{2 * time.Hour, -26 * time.Hour, 0} {
		if err := m.JumpClock(by); err != nil {
			t.Fatal(err)
		}
		made, _ := configMap()
		if off := time.Until(made.CreationTimestamp.Time) - by; off.Abs() > 30*time.Second {
			t.Errorf("a clock that was moved by %s differs from that by %s", by, off)
		}
	}

	const slow = 150 * time.Millisecond
	for _, o := range c.Members {
		o.delay.Store(int64(slow))
	}
	if took := quick(); took < slow {
		t.Errorf("with slow syncs a write took %s", took)
	}
	for _, o := range c.Members {
		o.delay.Store(0)
	}
	c.Network.Set(c.Network.Clients(), 0, Link{Delay: slow})
	c.Network.Set(0, c.Network.Clients(), Link{Delay: slow})
	if took := quick(); took < 2*slow {
		t.Errorf("over a slow network a write took %s", took)
	}
	c.Network.Heal()
	if took := quick(); took >= slow {
		t.Errorf("after all faults were healed, a write took %s", took)
	}

	c.Network.Set(0, c.Network.Clients(), Link{Cut: true})
	if err := lease(); err == nil {
		t.Error("an answer arrived through a cut link")
	}
	c.Network.Heal()

	if err := os.WriteFile(m.points(), []byte("raft.propose refuse 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wait.For(t, 30*time.Second, "a write is refused", func(context.Context) error {
		if err := lease(); !apierrors.IsTooManyRequests(err) {
			return fmt.Errorf("the write returned %w", err)
		}
		return nil
	})
	if err := os.WriteFile(m.points(), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	m.fail.Store(1)
	wait.For(t, 30*time.Second, "a sync fails", func(context.Context) error {
		_ = lease()
		if m.fail.Load() > 0 {
			return errors.New("none has")
		}
		return nil
	})

	if err := m.fillDisk(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.dir+"/more", []byte("x"), 0o600); err == nil {
		t.Error("a write to a full disk succeeded")
	}
	if err := m.emptyDisk(); err != nil {
		t.Fatal(err)
	}
	if err := c.Whole(t.Context(), wholeTime); err != nil {
		t.Error(err)
	}
}
