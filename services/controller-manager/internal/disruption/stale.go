package disruption

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

// staleAfter is how long a pod that is not being deleted keeps the condition
// DisruptionTarget. The value is Kubernetes'.
const staleAfter = 2 * time.Minute

// NewStale returns the controller that sets the condition DisruptionTarget to False on
// pods that were not deleted within staleAfter of getting it.
func NewStale(s *cluster.Cluster) controller.Controller {
	pods, cached, now := client.For[*corev1.Pod](s.Client), cluster.Of[*corev1.Pod](s), time.Now
	return controller.Controller{
		Name: "stale-disruption", Workers: 1,
		Sources: []controller.Source{controller.From(cached, func(ev client.Event[*corev1.Pod]) []controller.Key {
			if ev.Type == client.Deleted || target(ev.Object) == nil {
				return nil
			}
			return []controller.Key{client.KeyOf(ev.Object)}
		})},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			p, ok := cached.Get(key.Namespace, key.Name)
			if !ok {
				return controller.Result{}, nil
			}
			c := target(p)
			if c == nil {
				return controller.Result{}, nil
			}
			if left := c.LastTransitionTime.Add(staleAfter).Sub(now()); left > 0 {
				return controller.Result{RequeueAfter: left}, nil
			}
			patch, err := json.Marshal(map[string]any{
				"metadata": map[string]any{"uid": p.UID},
				"status": map[string]any{"conditions": []corev1.PodCondition{{
					Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(now()),
				}}},
			})
			if err != nil {
				return controller.Result{}, err
			}
			_, err = pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, patch, client.Subresource("status"))
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return controller.Result{}, fmt.Errorf("pod %s: reset condition %s: %w", p.Name, corev1.DisruptionTarget, err)
			}
			return controller.Result{}, nil
		},
	}
}

// target returns a pod's condition DisruptionTarget if it is True and the pod is neither
// finished nor being deleted, and nil otherwise.
func target(p *corev1.Pod) *corev1.PodCondition {
	if p.DeletionTimestamp != nil || podstate.Finished(p) {
		return nil
	}
	c := podstate.Condition(p, corev1.DisruptionTarget)
	if c == nil || c.Status != corev1.ConditionTrue {
		return nil
	}
	return c
}
