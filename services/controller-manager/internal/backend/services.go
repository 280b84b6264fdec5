package backend

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

// Selects reports whether a service selects pods at all.
func Selects(svc *corev1.Service) bool {
	return len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName
}

// ServicesOf maps a pod event to the services that it concerns. Most changes of a pod's
// status concern none. services has the index cluster.ByNamespace.
func ServicesOf(services *client.Cache[*corev1.Service]) func(client.Event[*corev1.Pod]) []controller.Key {
	return func(ev client.Event[*corev1.Pod]) []controller.Key {
		if ev.Old != nil && ev.Type == client.Modified && !concerns(ev.Old, ev.Object) {
			return nil
		}
		var keys []controller.Key
		for _, svc := range services.ByIndex(cluster.ByNamespace, ev.Object.Namespace) {
			if !Selects(svc) {
				continue
			}
			selector := labels.SelectorFromSet(svc.Spec.Selector)
			if selector.Matches(labels.Set(ev.Object.Labels)) || ev.Old != nil && selector.Matches(labels.Set(ev.Old.Labels)) {
				keys = append(keys, client.KeyOf(svc))
			}
		}
		return keys
	}
}

// concerns reports whether a change of a pod affects endpoints.
func concerns(a, b *corev1.Pod) bool {
	return podstate.Ready(a) != podstate.Ready(b) ||
		podstate.Finished(a) != podstate.Finished(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		a.Spec.NodeName != b.Spec.NodeName ||
		a.Status.PodIP != b.Status.PodIP || !slices.Equal(a.Status.PodIPs, b.Status.PodIPs) ||
		!apiequality.Semantic.DeepEqual(a.Labels, b.Labels)
}

// Selected returns the pods of a service. pods has the index cluster.ByNamespace.
func Selected(pods *client.Cache[*corev1.Pod], svc *corev1.Service) []*corev1.Pod {
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	return slices.DeleteFunc(pods.ByIndex(cluster.ByNamespace, svc.Namespace), func(p *corev1.Pod) bool {
		return !selector.Matches(labels.Set(p.Labels))
	})
}
