package accounting_test

import (
	"sync"
	"testing"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/accounting"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/quota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEnd ends periods at once, and again after their Lease was deleted.
func TestEnd(t *testing.T) {
	w := Start(t)
	p := accounting.New(w.Client)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.End(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	leases := client.For[*coordinationv1.Lease](w.Client)
	before, err := leases.Get(t.Context(), quota.PeriodNamespace, quota.PeriodLease)
	if err != nil {
		t.Fatal(err)
	}
	if err := leases.Delete(t.Context(), quota.PeriodNamespace, quota.PeriodLease); err != nil {
		t.Fatal(err)
	}
	// The fence of a leader must not be given up because of this Lease.
	ctx := client.WithFence(t.Context(), &client.Fence{Token: "x", Lost: func() { t.Error("the leader's epoch was ended") }})
	if err := p.End(ctx); err != nil {
		t.Fatal(err)
	}
	if after, err := leases.Get(t.Context(), quota.PeriodNamespace, quota.PeriodLease); err != nil || after.UID == before.UID {
		t.Errorf("the Lease was not created again: %v", err)
	}
}
