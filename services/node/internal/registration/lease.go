package registration

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/fence"
)

// Heartbeat renews a node's Lease.
type Heartbeat struct {
	client   *client.Client
	node     func() *corev1.Node
	name     string
	interval atomic.Int64
	lease    *coordinationv1.Lease
	fence    Fence
}

// Fence makes the Lease a promise to stop pods when it expires; see package fence of
// services/internal.
type Fence interface {
	// Send is called before each renewal is sent.
	Send(interval time.Duration) (fence.Renewal, error)
	// Renewed is called with a renewal that was stored.
	Renewed(fence.Renewal)
}

// SetFence sets what the renewals promise. It must be called before Run.
func (h *Heartbeat) SetFence(f Fence) { h.fence = f }

// NewHeartbeat returns a Heartbeat that renews every interval, until an apiserver asks for
// a different one.
func NewHeartbeat(c *client.Client, name string, node func() *corev1.Node, interval time.Duration) *Heartbeat {
	h := &Heartbeat{client: c, node: node, name: name}
	h.interval.Store(int64(interval))
	return h
}

// SetInterval changes how often the Lease is renewed. Values outside 1 to 30 s are ignored.
func (h *Heartbeat) SetInterval(d time.Duration) {
	if d >= time.Second && d <= 30*time.Second {
		h.interval.Store(int64(d))
	}
}

// Run renews the Lease until ctx ends.
func (h *Heartbeat) Run(ctx context.Context) error {
	var since time.Time
	for {
		interval := time.Duration(h.interval.Load())
		wait := interval
		if err := h.renew(ctx, interval); err != nil && ctx.Err() == nil {
			if time.Since(since) > 10*time.Second {
				slog.WarnContext(ctx, "node lease was not renewed", "node", h.name, "error", err)
				since = time.Now()
			}
			wait = min(interval, time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (h *Heartbeat) renew(ctx context.Context, interval time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(interval, 5*time.Second))
	defer cancel()
	leases := client.For[*coordinationv1.Lease](h.client)
	if h.lease == nil {
		found, err := leases.Get(ctx, corev1.NamespaceNodeLease, h.name)
		if apierrors.IsNotFound(err) {
			attempt, err := h.send(interval)
			if err != nil {
				return err
			}
			h.lease, err = leases.Create(ctx, h.fresh(interval, attempt))
			return h.renewed(attempt, err)
		}
		if err != nil {
			return err
		}
		h.lease = found
	}
	attempt, err := h.send(interval)
	if err != nil {
		return err
	}
	next := h.lease.DeepCopy()
	next.Annotations = attempt.Promise.Put(next.Annotations)
	now := metav1.NewMicroTime(time.Now())
	duration := leaseSeconds(interval)
	next.Spec.RenewTime, next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = &now, &h.name, &duration
	h.own(next)
	updated, err := leases.Update(ctx, next)
	if err != nil {
		h.lease = nil // read it again next time
		return err
	}
	h.lease = updated
	return h.renewed(attempt, nil)
}

// send begins a renewal.
func (h *Heartbeat) send(interval time.Duration) (fence.Renewal, error) {
	if h.fence == nil {
		return fence.Renewal{}, nil
	}
	return h.fence.Send(interval)
}

// renewed ends a renewal, whose error is err.
func (h *Heartbeat) renewed(attempt fence.Renewal, err error) error {
	if err == nil && h.fence != nil {
		h.fence.Renewed(attempt)
	}
	return err
}

func (h *Heartbeat) fresh(interval time.Duration, attempt fence.Renewal) *coordinationv1.Lease {
	now := metav1.NewMicroTime(time.Now())
	duration := leaseSeconds(interval)
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: h.name, Namespace: corev1.NamespaceNodeLease}}
	l.Annotations = attempt.Promise.Put(nil)
	l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &h.name, LeaseDurationSeconds: &duration, RenewTime: &now}
	h.own(l)
	return l
}

// leaseSeconds returns the lease duration: four intervals, as the kubelet's, so that the
// node lifecycle controller's patience grows with the heartbeat interval.
func leaseSeconds(interval time.Duration) int32 { return max(1, int32(4*interval/time.Second)) }

// own makes the Node the owner of the Lease.
func (h *Heartbeat) own(l *coordinationv1.Lease) {
	if n := h.node(); n != nil && n.UID != "" && len(l.OwnerReferences) == 0 {
		l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
}
