package history

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/internal/controller"
)

// Reviser keeps the revision of the current template of workloads of type O.
type Reviser[O client.Object] struct {
	// Label is the label for the hash of new revisions.
	Label string
	// Revisions writes revisions and records the writes.
	Revisions *owner.Claimer[O, *appsv1.ControllerRevision]
	// Owners writes the collision count in the status of workloads, and Writes records
	// that.
	Owners client.Resource[O]
	Writes *controller.Writes
	// Parts returns a workload's template, and where its status.collisionCount is.
	Parts func(O) (template *corev1.PodTemplateSpec, collisions **int32)
}

// Revise returns the revision of the current template, and first writes it to the server if
// needed. While the workload is being deleted nothing is written. revisions are those that
// it controls. After a collision of names it counts that in the status and fails with
// controller.ErrStale, so that the next reconcile uses another name. It does so too if the
// caches are too old to begin a revision on.
func (r *Reviser[O]) Revise(ctx context.Context, o O, revisions []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	template, collisions := r.Parts(o)
	plan, err := Plan(o, template, revisions, r.Label, *collisions)
	if err != nil || o.GetDeletionTimestamp() != nil {
		return plan.Current, err
	}
	if plan.Create != nil || plan.Renumber != nil {
		if err := r.Revisions.Current(ctx, o); err != nil {
			return nil, err
		}
	}
	if plan.Create != nil {
		// It gets the number after the last one.
		if err := r.Revisions.Complete(ctx, o); err != nil {
			return nil, err
		}
	}
	got, collided, err := plan.Write(ctx, r.Revisions.Objects)
	switch {
	case err != nil:
		return nil, err
	case collided:
		next := o.DeepCopyObject().(O) //nolint:forcetypeassert // a copy has the same type.
		_, count := r.Parts(next)
		*count = Collided(*collisions)
		written, err := r.Owners.UpdateStatus(ctx, next)
		if err != nil {
			return nil, fmt.Errorf("update status.collisionCount: %w", err)
		}
		r.Writes.Wrote(client.KeyOf(o), written.GetResourceVersion())
		return nil, controller.ErrStale
	case got != nil:
		r.Revisions.Writes.Wrote(client.KeyOf(o), got.ResourceVersion)
		return got, nil
	}
	return plan.Current, nil
}
