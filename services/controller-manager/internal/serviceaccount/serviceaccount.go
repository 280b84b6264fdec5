// Package serviceaccount keeps a ServiceAccount "default" in each namespace,
// because pods need one. It must never change one that exists.
package serviceaccount

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

const name = "default"

// New returns the controller. Its keys are namespaces.
func New(s *cluster.Cluster) controller.Controller {
	accounts := client.For[*corev1.ServiceAccount](s.Client)
	namespaces, existing := cluster.Of[*corev1.Namespace](s), cluster.Of[*corev1.ServiceAccount](s)
	return controller.Controller{
		Name: "serviceaccount",
		Sources: []controller.Source{
			controller.Objects(namespaces),
			controller.From(existing, func(ev client.Event[*corev1.ServiceAccount]) []controller.Key {
				if ev.Object.Name != name || ev.Type != client.Deleted {
					return nil
				}
				return []controller.Key{{Name: ev.Object.Namespace}}
			}),
		},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			ns, ok := namespaces.Get("", key.Name)
			if !ok || ns.DeletionTimestamp != nil {
				return controller.Result{}, nil
			}
			if _, ok := existing.Get(ns.Name, name); ok {
				return controller.Result{}, nil
			}
			_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name}})
			if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return controller.Result{}, fmt.Errorf("service account of namespace %s: %w", ns.Name, err)
			}
			return controller.Result{}, nil
		},
	}
}
