// Package rootca publishes the cluster's CA as the ConfigMap kube-root-ca.crt of each
// namespace, from which pods' service account volumes are filled. It must never publish
// an empty one.
package rootca

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

const (
	// configMap holds the CA in each namespace.
	configMap          = "kube-root-ca.crt"
	dataKey            = "ca.crt"
	descriptionKey     = "kubernetes.io/description"
	descriptionMessage = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// New returns the controller. Its keys are namespaces. ca returns the current CA as
// PEM.
func New(s *cluster.Cluster, ca func() []byte) controller.Controller {
	maps, namespaces := client.For[*corev1.ConfigMap](s.Client), cluster.Of[*corev1.Namespace](s)
	published := cluster.Select(s, cluster.Selection[*corev1.ConfigMap]{FieldSelector: "metadata.name=" + configMap})
	return controller.Controller{
		Name: "rootca",
		Sources: []controller.Source{
			controller.Objects(namespaces),
			controller.From(published, func(ev client.Event[*corev1.ConfigMap]) []controller.Key {
				return []controller.Key{{Name: ev.Object.Namespace}}
			}),
		},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			ns, ok := namespaces.Get("", key.Name)
			if !ok || ns.DeletionTimestamp != nil {
				return controller.Result{}, nil
			}
			have, _ := published.Get(ns.Name, configMap)
			want := wanted(ns.Name, have, ca())
			var err error
			switch {
			case want == nil:
				return controller.Result{}, nil
			case have == nil:
				_, err = maps.Create(ctx, want)
			default:
				_, err = maps.Update(ctx, want)
			}
			if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return controller.Result{}, fmt.Errorf("root CA of namespace %s: %w", ns.Name, err)
			}
			return controller.Result{}, nil
		},
	}
}

// wanted returns the ConfigMap to write, or nil if have is right.
func wanted(namespace string, have *corev1.ConfigMap, ca []byte) *corev1.ConfigMap {
	if len(ca) == 0 {
		return nil
	}
	data := map[string]string{dataKey: string(ca)}
	if have == nil {
		return &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: configMap,
				Annotations: map[string]string{descriptionKey: descriptionMessage},
			},
			Data: data,
		}
	}
	if maps.Equal(have.Data, data) && have.Annotations[descriptionKey] != "" {
		return nil
	}
	next := have.DeepCopy()
	next.Data = data
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, descriptionKey, descriptionMessage)
	return next
}
