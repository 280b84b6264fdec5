package simulated

import (
	"context"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// leaseSeconds is the lease duration.
const leaseSeconds = int32(40)

// renewers is the number of concurrent renewals.
const renewers = 32

// heartbeats renews all Leases until ctx ends. Each renewal is a call of its own, as it
// would be with real nodes, and the renewals are spread evenly over the interval.
func (s *Simulation) heartbeats(ctx context.Context) error {
	versions := make([]string, s.cfg.Nodes)
	// The first round is sent at once: a node without a Lease is soon considered dead.
	s.createLeases(ctx, versions)

	due := make(chan int)
	busy := make([]sync.Mutex, s.cfg.Nodes)
	complaint := &complaint{}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(due)
	for range min(renewers, s.cfg.Nodes) {
		workers.Go(func() {
			for i := range due {
				if busy[i].TryLock() { // otherwise the previous renewal is still running
					s.renew(ctx, i, &versions[i], complaint)
					busy[i].Unlock()
				}
			}
		})
	}
	ticker := time.NewTicker(beat(s.cfg.Heartbeat, s.cfg.Nodes))
	defer ticker.Stop()
	began, sent := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for want := int(time.Since(began) * time.Duration(s.cfg.Nodes) / s.cfg.Heartbeat); sent < want; sent++ {
			select {
			case <-ctx.Done():
				return nil
			case due <- sent % s.cfg.Nodes:
			}
		}
	}
}

// beat returns how often renewals are sent: one at a time, or, of many nodes, several each 10 ms.
func beat(heartbeat time.Duration, nodes int) time.Duration {
	return max(10*time.Millisecond, heartbeat/time.Duration(max(1, nodes)))
}

func (s *Simulation) lease(i int, version string) *coordinationv1.Lease {
	name, seconds, now := s.name(i), leaseSeconds, metav1.NewMicroTime(time.Now())
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, ResourceVersion: version},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
}

// createLeases creates the missing Leases. It sets versions to their resourceVersions, or
// leaves them empty if unknown.
func (s *Simulation) createLeases(ctx context.Context, versions []string) {
	for from := 0; from < s.cfg.Nodes; from += batch {
		var writes []client.Write
		for i := from; i < min(from+batch, s.cfg.Nodes); i++ {
			writes = append(writes, client.CreateWrite(s.lease(i, "")))
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		results, err := s.cfg.Client.CommitQuietly(call, writes...)
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "simulated leases were not created", "error", err)
		}
		for k, r := range results {
			if r.Err == nil {
				versions[from+k] = r.ResourceVersion
			}
		}
	}
}

// renew renews one Lease, whatever has happened to it meanwhile.
func (s *Simulation) renew(ctx context.Context, i int, version *string, complaint *complaint) {
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	leases := client.For[*coordinationv1.Lease](s.cfg.Client)
	if *version == "" {
		found, err := leases.Get(call, corev1.NamespaceNodeLease, s.name(i))
		switch {
		case err == nil:
			*version = found.ResourceVersion
		case !apierrors.IsNotFound(err):
			complaint.about(ctx, err)
			return
		}
	}
	write := leases.Update
	if *version == "" {
		write = leases.Create
	}
	written, err := write(call, s.lease(i, *version))
	if err != nil {
		*version = ""
		complaint.about(ctx, err)
		return
	}
	*version = written.ResourceVersion
}

// complaint logs at most one error per 10 s.
type complaint struct {
	mu   sync.Mutex
	last time.Time
}

func (c *complaint) about(ctx context.Context, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil && time.Since(c.last) > 10*time.Second {
		c.last = time.Now()
		slog.WarnContext(ctx, "simulated leases are not being renewed", "error", err)
	}
}
