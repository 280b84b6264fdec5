// Package endpoints writes the Endpoints of services with a selector, the older
// form of EndpointSlices that some clients still read.
//
// It must never touch the Endpoints of a service without a selector.
package endpoints

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/backend"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

const (
	managedByLabel = "endpoints.kubernetes.io/managed-by"
	managedBy      = "endpoint-controller"
	// maxAddresses is the largest number of addresses in an object. The annotation
	// marks objects that were truncated.
	maxAddresses      = 1000
	truncated         = "truncated"
	triggerAnnotation = "endpoints.kubernetes.io/last-change-trigger-time"
)

type reconciler struct {
	*cluster.Cluster

	Services  *client.Cache[*corev1.Service]
	Pods      *client.Cache[*corev1.Pod]
	Endpoints *client.Cache[*corev1.Endpoints] //nolint:staticcheck // as below.

	endpoints client.Resource[*corev1.Endpoints] //nolint:staticcheck // this is what the package is for.
}

// New returns the controller. Its keys are services.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, Services: cluster.Of[*corev1.Service](s, cluster.ByNamespace), Pods: cluster.Of[*corev1.Pod](s, cluster.ByNamespace),
		Endpoints: cluster.Of[*corev1.Endpoints](s),        //nolint:staticcheck // as above.
		endpoints: client.For[*corev1.Endpoints](s.Client), //nolint:staticcheck // as above.
	}
	return controller.Controller{
		Name: "endpoints", Workers: 5, Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.Objects(r.Services),
			controller.From(r.Pods, backend.ServicesOf(r.Services)),
			controller.Objects(r.Endpoints),
		},
	}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	have, exists := r.Endpoints.Get(key.Namespace, key.Name)
	svc, ok := r.Services.Get(key.Namespace, key.Name)
	if !ok || svc.DeletionTimestamp != nil {
		// The cache may not show a new service yet, but then its endpoints cannot have
		// been written by this controller. So only endpoints that were written here are
		// deleted.
		if !ok && exists && have.Labels[managedByLabel] == managedBy {
			if err := r.endpoints.Delete(ctx, key.Namespace, key.Name, client.UID(have.UID)); err != nil && !apierrors.IsNotFound(err) {
				return controller.Result{}, fmt.Errorf("delete endpoints: %w", err)
			}
		}
		return controller.Result{}, nil
	}
	if !backend.Selects(svc) {
		return controller.Result{}, nil
	}
	want := wanted(svc, backend.Selected(r.Pods, svc), have)
	if want == nil {
		return controller.Result{}, nil
	}
	var err error
	if exists {
		_, err = r.endpoints.Update(ctx, want)
	} else {
		_, err = r.endpoints.Create(ctx, want)
	}
	if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return controller.Result{}, fmt.Errorf("write endpoints: %w", err)
	}
	return controller.Result{}, nil
}

// wanted returns the object to write, or nil if have is right.
func wanted(svc *corev1.Service, pods []*corev1.Pod, have *corev1.Endpoints) *corev1.Endpoints { //nolint:staticcheck // as above.
	next := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name}} //nolint:staticcheck // as above.
	if have != nil {
		next = have.DeepCopy()
	}
	next.Labels = maps.Clone(svc.Labels)
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	next.Labels[managedByLabel] = managedBy
	delete(next.Labels, corev1.IsHeadlessService)
	if backend.Headless(svc) {
		next.Labels[corev1.IsHeadlessService] = ""
	}
	var over bool
	next.Subsets, over = subsets(svc, pods)
	delete(next.Annotations, corev1.EndpointsOverCapacity)
	delete(next.Annotations, triggerAnnotation)
	if over {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, corev1.EndpointsOverCapacity, truncated)
	}
	if have != nil && apiequality.Semantic.DeepEqual(have.Subsets, next.Subsets) &&
		apiequality.Semantic.DeepEqual(have.Labels, next.Labels) && apiequality.Semantic.DeepEqual(have.Annotations, next.Annotations) {
		return nil
	}
	return next
}

// subsets groups addresses by their ports. Pods that are being deleted are left out,
// unless the service publishes addresses that are not ready.
func subsets(svc *corev1.Service, pods []*corev1.Pod) (out []corev1.EndpointSubset, over bool) { //nolint:staticcheck // as above.
	backends := backend.Pods(svc, pods, backend.Families(svc)[0])
	backends = slices.DeleteFunc(backends, func(p backend.Pod) bool {
		return p.Terminating && !svc.Spec.PublishNotReadyAddresses
	})
	if len(backends) > maxAddresses {
		over = true
		// Ready ones stay first.
		slices.SortStableFunc(backends, func(a, b backend.Pod) int {
			switch {
			case a.Ready == b.Ready:
				return 0
			case a.Ready:
				return -1
			}
			return 1
		})
		backends = backends[:maxAddresses]
	}
	byPorts := map[string]int{}
	var keys []string
	for _, p := range backends {
		ports := backend.Ports(svc, p.Pod)
		if len(ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue // it has none of the service's ports.
		}
		key := fmt.Sprint(ports)
		i, ok := byPorts[key]
		if !ok {
			i = len(out)
			byPorts[key] = i
			keys = append(keys, key)
			out = append(out, corev1.EndpointSubset{Ports: endpointPorts(ports)}) //nolint:staticcheck // as above.
		}
		a := corev1.EndpointAddress{ //nolint:staticcheck // as above.
			IP: p.Address, Hostname: p.Hostname,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		}
		if p.Spec.NodeName != "" {
			name := p.Spec.NodeName
			a.NodeName = &name
		}
		if p.Ready {
			out[i].Addresses = append(out[i].Addresses, a)
		} else {
			out[i].NotReadyAddresses = append(out[i].NotReadyAddresses, a)
		}
	}
	slices.Sort(keys)
	sorted := make([]corev1.EndpointSubset, 0, len(out)) //nolint:staticcheck // as above.
	for _, key := range keys {
		sorted = append(sorted, out[byPorts[key]])
	}
	return sorted, over
}

func endpointPorts(ports []backend.Port) []corev1.EndpointPort { //nolint:staticcheck // as above.
	var out []corev1.EndpointPort //nolint:staticcheck // as above.
	for _, p := range ports {
		ep := corev1.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port} //nolint:staticcheck // as above.
		if p.AppProtocol != "" {
			ep.AppProtocol = &p.AppProtocol
		}
		out = append(out, ep)
	}
	return out
}
