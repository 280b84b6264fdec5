// Package accounting ends the periods in which the apiservers charge quotas and budgets; see
// package quota of services/internal. A controller ends the period before the count or the
// read on which it takes charges back.
//
// The end of a period costs each write that is in flight between its charge and its commit
// another charge. Calls of [Periods.End] therefore share an end, and ends keep a distance.
// The package must never report an end that began before the call.
package accounting

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/quota"
)

// distance is the least time between two ends.
const distance = 200 * time.Millisecond

// Periods ends accounting periods. It is safe for concurrent use.
type Periods struct {
	client *client.Client
	turn   chan struct{} // has room for the caller that ends the period

	mu      sync.Mutex
	started uint64 // number of ends that have begun
	ended   uint64 // the last of them that succeeded

	// The caller whose turn it is owns these.
	lease *coordinationv1.Lease
	last  time.Time
}

// New returns Periods that end by c.
func New(c *client.Client) *Periods {
	return &Periods{client: c, turn: make(chan struct{}, 1)}
}

// End ends the present accounting period: each write that was charged before the call either
// is stored when End returns or is charged again.
func (p *Periods) End(ctx context.Context) error {
	p.mu.Lock()
	want := p.started + 1
	p.mu.Unlock()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	shared := p.ended >= want
	p.mu.Unlock()
	if shared {
		return nil
	}
	if wait := distance - time.Since(p.last); !p.last.IsZero() && wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	p.started++
	number := p.started
	p.mu.Unlock()
	if err := p.take(ctx); err != nil {
		return err
	}
	p.last = time.Now()
	p.mu.Lock()
	p.ended = number
	p.mu.Unlock()
	return nil
}

// take takes the fence of the Lease, which it creates if it does not exist.
func (p *Periods) take(ctx context.Context) error {
	// Taking is right at any time and by any process, so it does not depend on a leader's epoch.
	ctx = client.WithFence(ctx, nil)
	for retry := true; ; retry = false {
		if p.lease == nil {
			l, err := p.find(ctx)
			if err != nil {
				return err
			}
			p.lease = l
		}
		_, err := client.TakeFence(ctx, p.client, p.lease)
		if !client.IsFenced(err) || !retry {
			return err
		}
		p.lease = nil // it was deleted or replaced
	}
}

func (p *Periods) find(ctx context.Context) (*coordinationv1.Lease, error) {
	leases := client.For[*coordinationv1.Lease](p.client)
	l, err := leases.Get(ctx, quota.PeriodNamespace, quota.PeriodLease)
	if !apierrors.IsNotFound(err) {
		return l, err
	}
	holder := quota.PeriodHolder
	l, err = leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: quota.PeriodNamespace, Name: quota.PeriodLease},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder},
	})
	if apierrors.IsAlreadyExists(err) {
		return leases.Get(ctx, quota.PeriodNamespace, quota.PeriodLease)
	}
	if err != nil {
		return nil, fmt.Errorf("create lease %s/%s: %w", quota.PeriodNamespace, quota.PeriodLease, err)
	}
	return l, nil
}
