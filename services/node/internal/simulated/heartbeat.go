package simulated

import (
	"context"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// leaseSeconds is what a Lease says it is good for.
const leaseSeconds = int32(40)

// slices is how many times within one heartbeat interval a part of the Leases is
// renewed, so that they do not all come at once.
const slices = 10

// heartbeats renews all Leases until ctx ends.
func (s *Simulation) heartbeats(ctx context.Context) error {
	versions := make([]string, s.cfg.Nodes)
	ticker := time.NewTicker(max(s.cfg.Heartbeat/slices, 10*time.Millisecond))
	defer ticker.Stop()
	// The first round is at once: a node without a Lease is soon taken for dead.
	for i := range slices {
		s.renew(ctx, versions, i)
	}
	for part := 0; ; part = (part + 1) % slices {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.renew(ctx, versions, part)
		}
	}
}

// renew renews the Leases of one part of the nodes. versions are the Leases'
// resourceVersions; an empty one is not known.
func (s *Simulation) renew(ctx context.Context, versions []string, part int) {
	var nodes []int
	var writes []client.Write
	now := metav1.NewMicroTime(time.Now())
	for i := part; i < s.cfg.Nodes; i += slices {
		name := s.name(i)
		seconds := leaseSeconds
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, ResourceVersion: versions[i]}}
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now}
		nodes = append(nodes, i)
		if versions[i] == "" {
			writes = append(writes, client.CreateWrite(l))
		} else {
			writes = append(writes, client.UpdateWrite(l))
		}
	}
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	results, err := s.cfg.Client.CommitQuietly(call, writes...)
	if err != nil && ctx.Err() == nil {
		slog.Warn("simulated leases were not renewed", "error", err)
	}
	for k, r := range results {
		i := nodes[k]
		switch {
		case r.Err == nil:
			versions[i] = r.ResourceVersion
		case apierrors.IsAlreadyExists(r.Err), apierrors.IsConflict(r.Err):
			versions[i] = ""
			if l, err := client.For[*coordinationv1.Lease](s.cfg.Client).Get(call, corev1.NamespaceNodeLease, s.name(i)); err == nil {
				versions[i] = l.ResourceVersion
			}
		case apierrors.IsNotFound(r.Err):
			versions[i] = ""
		}
	}
}
