package pipeline

import (
	"errors"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/internal/quota"
)

// FencePrefix begins the keys of fences, in both stores. NAMESPACE/NAME of a Lease follow.
const FencePrefix = "/keelson/fence/"

// periodKey is the key whose revision is the accounting period; see package quota.
const periodKey = FencePrefix + quota.PeriodNamespace + "/" + quota.PeriodLease

// enterPeriod makes the change depend on the present accounting period of its store. It must be
// called before the change is charged for.
func (p *Pipeline) enterPeriod(c *change) error {
	if c.period != nil {
		return nil
	}
	entry, _, err := p.place(c.kind).Store.Get(c.ctx, periodKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	c.period = &store.Fence{Key: periodKey, ModRevision: entry.ModRevision}
	return nil
}

// owes reports whether the change was charged for and depends on the period of the charge.
func (c *change) owes() bool { return len(c.charged) > 0 || c.budgeted }

// leavePeriod forgets the charges of a change whose accounting period has ended: what it was
// charged may have been taken back.
func (c *change) leavePeriod() {
	c.period, c.charged, c.budgeted, c.lost = nil, nil, false, true
}
