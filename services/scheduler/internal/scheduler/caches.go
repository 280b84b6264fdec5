package scheduler

import (
	"context"
	"errors"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
	if a := p.Spec.Affinity; a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) {
		out.Spec.Affinity = &corev1.Affinity{PodAffinity: a.PodAffinity, PodAntiAffinity: a.PodAntiAffinity}
	}
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			out.Spec.Volumes = append(out.Spec.Volumes, *v)
		}
	}
	// The status holds the requests of a pod that is being resized.
	for _, from := range []struct {
		in  []corev1.ContainerStatus
		out *[]corev1.ContainerStatus
	}{{p.Status.ContainerStatuses, &out.Status.ContainerStatuses}, {p.Status.InitContainerStatuses, &out.Status.InitContainerStatuses}} {
		for i := range from.in {
			if s := &from.in[i]; s.Resources != nil && s.AllocatedResources != nil {
				*from.out = append(*from.out, corev1.ContainerStatus{Name: s.Name, Resources: s.Resources, AllocatedResources: s.AllocatedResources})
			}
		}
	}
	return out
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
