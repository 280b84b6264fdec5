package scheduler

import (
	"context"
	"errors"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"keelson.dev/proto/client"
)

// Caches holds the objects that the scheduler follows, without the fields that it never
// reads.
type Caches struct {
	Pods           *client.Cache[*corev1.Pod]
	Nodes          *client.Cache[*corev1.Node]
	Namespaces     *client.Cache[*corev1.Namespace]
	Services       *client.Cache[*corev1.Service]
	ReplicaSets    *client.Cache[*appsv1.ReplicaSet]
	Claims         *client.Cache[*corev1.PersistentVolumeClaim]
	Volumes        *client.Cache[*corev1.PersistentVolume]
	StorageClasses *client.Cache[*storagev1.StorageClass]
}

// NewCaches returns the caches. Each must be Run.
func NewCaches(c *client.Client) *Caches {
	return &Caches{
		Pods: client.NewCache(c, client.CacheOptions[*corev1.Pod]{
			FieldSelector: "status.phase!=Succeeded,status.phase!=Failed",
			Transform:     slimPod,
		}),
		Nodes:      client.NewCache(c, client.CacheOptions[*corev1.Node]{Transform: slimNode}),
		Namespaces: client.NewCache(c, client.CacheOptions[*corev1.Namespace]{Transform: bare[*corev1.Namespace]}),
		Services: client.NewCache(c, client.CacheOptions[*corev1.Service]{
			Indexes: map[string]func(*corev1.Service) []string{
				byNamespace: func(s *corev1.Service) []string { return []string{s.Namespace} },
			},
			Transform: func(s *corev1.Service) *corev1.Service {
				return &corev1.Service{ObjectMeta: slimMeta(&s.ObjectMeta), Spec: corev1.ServiceSpec{Selector: s.Spec.Selector}}
			},
		}),
		ReplicaSets: client.NewCache(c, client.CacheOptions[*appsv1.ReplicaSet]{
			Transform: func(r *appsv1.ReplicaSet) *appsv1.ReplicaSet {
				return &appsv1.ReplicaSet{ObjectMeta: slimMeta(&r.ObjectMeta), Spec: appsv1.ReplicaSetSpec{Selector: r.Spec.Selector}}
			},
		}),
		Claims: client.NewCache(c, client.CacheOptions[*corev1.PersistentVolumeClaim]{Transform: bare[*corev1.PersistentVolumeClaim]}),
		Volumes: client.NewCache(c, client.CacheOptions[*corev1.PersistentVolume]{
			Indexes: map[string]func(*corev1.PersistentVolume) []string{
				byClass: func(v *corev1.PersistentVolume) []string { return []string{v.Spec.StorageClassName} },
			},
			Transform: bare[*corev1.PersistentVolume],
		}),
		StorageClasses: client.NewCache(c, client.CacheOptions[*storagev1.StorageClass]{Transform: bare[*storagev1.StorageClass]}),
	}
}

// Cache is a cache of any kind.
type Cache interface {
	Kind() *client.Kind
	Run(ctx context.Context) error
	Synced() <-chan struct{}
	CatchUp(ctx context.Context) error
}

// All returns all caches.
func (c *Caches) All() []Cache {
	return []Cache{c.Nodes, c.Namespaces, c.Services, c.ReplicaSets, c.Claims, c.Volumes, c.StorageClasses, c.Pods}
}

// Synced waits until all caches have synced.
func (c *Caches) Synced(ctx context.Context) error {
	for _, cache := range c.All() {
		select {
		case <-cache.Synced():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// CatchUp waits until all caches show every write that was acknowledged before.
func (c *Caches) CatchUp(ctx context.Context) error {
	errs := make(chan error)
	for _, cache := range c.All() {
		go func() { errs <- cache.CatchUp(ctx) }()
	}
	var err error
	for range c.All() {
		err = errors.Join(err, <-errs)
	}
	return err
}

// The indexes.
const (
	byNamespace = "namespace"
	byClass     = "class"
)

// bare drops managed fields.
func bare[T client.Object](obj T) T {
	obj.SetManagedFields(nil)
	return obj
}

func slimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		Labels: m.Labels, OwnerReferences: m.OwnerReferences, DeletionTimestamp: m.DeletionTimestamp,
	}
}

// slimNode keeps what plugins read.
func slimNode(n *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: slimMeta(&n.ObjectMeta),
		Spec:       corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable, Taints: n.Spec.Taints},
		Status:     corev1.NodeStatus{Allocatable: n.Status.Allocatable, Images: n.Status.Images},
	}
}

// slimPod keeps, of a pod on a node, what matters for other pods; of a pending pod,
// nearly everything.
func slimPod(p *corev1.Pod) *corev1.Pod {
	if p.Spec.NodeName == "" {
		p.ManagedFields, p.Annotations = nil, nil
		return p
	}
	meta := slimMeta(&p.ObjectMeta)
	meta.OwnerReferences = nil
	out := &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, SchedulerName: p.Spec.SchedulerName, Priority: p.Spec.Priority,
			Overhead: p.Spec.Overhead, Resources: p.Spec.Resources,
			Containers: slimContainers(p.Spec.Containers), InitContainers: slimContainers(p.Spec.InitContainers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, StartTime: p.Status.StartTime},
	}
	infeasible := resourcehelper.IsPodResizeInfeasible(p)
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.DisruptionTarget || infeasible && c.Type == corev1.PodResizePending {
			out.Status.Conditions = append(out.Status.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason})
		}
	}
	if a := p.Spec.Affinity; a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) {
		out.Spec.Affinity = &corev1.Affinity{PodAffinity: a.PodAffinity, PodAntiAffinity: a.PodAntiAffinity}
	}
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			out.Spec.Volumes = append(out.Spec.Volumes, *v)
		}
	}
	slimResources(p, out, infeasible)
	return out
}

// slimResources keeps what the node has allocated to a pod and its containers, unless that
// is what they request: then nothing is being resized.
func slimResources(p, out *corev1.Pod, infeasible bool) {
	differs := func(requests, allocated corev1.ResourceList, actual *corev1.ResourceRequirements) bool {
		return allocated != nil && (infeasible || !sameResources(requests, allocated)) ||
			actual != nil && actual.Requests != nil && (infeasible || !sameResources(requests, actual.Requests))
	}
	actual := func(r *corev1.ResourceRequirements) *corev1.ResourceRequirements {
		if r == nil {
			return nil
		}
		return &corev1.ResourceRequirements{Requests: r.Requests}
	}
	keep := func(specs []corev1.Container, from []corev1.ContainerStatus) (to []corev1.ContainerStatus) {
		for i := range from {
			s := &from[i]
			at := slices.IndexFunc(specs, func(c corev1.Container) bool { return c.Name == s.Name })
			if at >= 0 && differs(specs[at].Resources.Requests, s.AllocatedResources, s.Resources) {
				to = append(to, corev1.ContainerStatus{Name: s.Name, Resources: actual(s.Resources), AllocatedResources: s.AllocatedResources})
			}
		}
		return to
	}
	out.Status.ContainerStatuses = keep(p.Spec.Containers, p.Status.ContainerStatuses)
	out.Status.InitContainerStatuses = keep(p.Spec.InitContainers, p.Status.InitContainerStatuses)
	if r := p.Spec.Resources; r != nil && differs(r.Requests, p.Status.AllocatedResources, p.Status.Resources) {
		out.Status.AllocatedResources, out.Status.Resources = p.Status.AllocatedResources, actual(p.Status.Resources)
	}
}

func sameResources(a, b corev1.ResourceList) bool {
	return maps.EqualFunc(a, b, func(x, y resource.Quantity) bool { return x.Cmp(y) == 0 })
}

func slimContainers(in []corev1.Container) []corev1.Container {
	if len(in) == 0 {
		return nil
	}
	out := make([]corev1.Container, len(in))
	for i := range in {
		out[i] = corev1.Container{Name: in[i].Name, RestartPolicy: in[i].RestartPolicy}
		out[i].Resources.Requests = in[i].Resources.Requests
		for _, port := range in[i].Ports {
			if port.HostPort > 0 {
				out[i].Ports = append(out[i].Ports, port)
			}
		}
	}
	return out
}
