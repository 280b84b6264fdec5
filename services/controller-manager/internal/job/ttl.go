package job

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// Left returns how long a finished job is to be kept, 0 or less once it is to be deleted. It
// returns false if nothing limits that time.
func Left(j *batchv1.Job, now time.Time) (left time.Duration, limited bool) {
	c := finishedCondition(&j.Status)
	if c == nil || j.Spec.TTLSecondsAfterFinished == nil || j.DeletionTimestamp != nil {
		return 0, false
	}
	return c.LastTransitionTime.Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second).Sub(now), true
}

// NewTTL returns the controller that deletes finished jobs whose time to live is over,
// whichever controller manages them. It must never delete one before it has read the
// current version: the time may have been extended.
func NewTTL(s *cluster.Cluster) controller.Controller {
	jobs, cached, now := client.For[*batchv1.Job](s.Client), cluster.Of[*batchv1.Job](s), time.Now
	return controller.Controller{
		Name: "job-ttl", Workers: 5,
		Sources: []controller.Source{controller.From(cached, func(ev client.Event[*batchv1.Job]) []controller.Key {
			if _, limited := Left(ev.Object, now()); !limited || ev.Type == client.Deleted {
				return nil
			}
			return []controller.Key{client.KeyOf(ev.Object)}
		})},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			j, ok := cached.Get(key.Namespace, key.Name)
			if !ok {
				return controller.Result{}, nil
			}
			if left, limited := Left(j, now()); !limited || left > 0 {
				return controller.Result{RequeueAfter: max(left, 0)}, nil
			}
			live, err := jobs.Get(ctx, j.Namespace, j.Name)
			if apierrors.IsNotFound(err) {
				return controller.Result{}, nil
			}
			if err != nil {
				return controller.Result{}, err
			}
			if left, limited := Left(live, now()); live.UID != j.UID || !limited || left > 0 {
				return controller.Result{RequeueAfter: max(left, 0)}, nil
			}
			err = jobs.Delete(ctx, j.Namespace, j.Name, client.UID(j.UID), client.ResourceVersion(live.ResourceVersion), client.Propagation(metav1.DeletePropagationForeground))
			if err != nil && !apierrors.IsNotFound(err) {
				return controller.Result{}, fmt.Errorf("delete finished job %s: %w", key, err)
			}
			return controller.Result{}, nil
		},
	}
}
