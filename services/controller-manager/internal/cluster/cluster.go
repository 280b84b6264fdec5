// Package cluster holds what the controllers know of the cluster: one cache for each
// kind, shared by all of them and kept warm while another process leads.
//
// Objects are cached without the fields that no controller reads (see each transform),
// to save memory. They must never be written back whole unless their transform allows
// it: pods and nodes are written by patch.
package cluster

import (
	"context"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/event"
)

// Indexes of the caches.
const (
	// ByController finds objects by the uid of their controller.
	ByController = "controller"
	// ByOrphanage finds objects without a controller by their namespace.
	ByOrphanage = "orphanage"
	// ByNamespace finds objects by their namespace.
	ByNamespace = "namespace"
	// ByNode finds pods by the node they are bound to; "" finds unbound pods.
	ByNode = "node"
	// ByClaim finds pods by the "namespace/name" of the claims that they mount.
	ByClaim = "claim"
	// ByJob finds pods that a job tracks by the "namespace/name" of the job.
	ByJob = "job"
	// ByService finds endpoint slices by the "namespace/name" of their service.
	ByService = "service"
	// ByVolume finds claims by the volume they are bound to.
	ByVolume = "volume"
	// ByAccount finds token secrets by the "namespace/name" of their account.
	ByAccount = "account"
)

// RootCAConfigMap holds the cluster's CA in each namespace.
const RootCAConfigMap = "kube-root-ca.crt"

// TokenExpiration is the key of a bootstrap token's Secret that holds its expiration
// time.
const TokenExpiration = "expiration"

// Cluster holds the caches and the client and recorder that write.
type Cluster struct {
	Client *client.Client
	Events *event.Recorder

	Namespaces     *client.Cache[*corev1.Namespace]
	Nodes          *client.Cache[*corev1.Node]
	Pods           *client.Cache[*corev1.Pod]
	Services       *client.Cache[*corev1.Service]
	Endpoints      *client.Cache[*corev1.Endpoints] //nolint:staticcheck // still served, still written.
	EndpointSlices *client.Cache[*discoveryv1.EndpointSlice]
	Deployments    *client.Cache[*appsv1.Deployment]
	ReplicaSets    *client.Cache[*appsv1.ReplicaSet]
	DaemonSets     *client.Cache[*appsv1.DaemonSet]
	StatefulSets   *client.Cache[*appsv1.StatefulSet]
	// ControllerRevisions are written by renumbering and deletion only.
	ControllerRevisions    *client.Cache[*appsv1.ControllerRevision]
	ReplicationControllers *client.Cache[*corev1.ReplicationController]
	Jobs                   *client.Cache[*batchv1.Job]
	CronJobs               *client.Cache[*batchv1.CronJob]
	ServiceAccounts        *client.Cache[*corev1.ServiceAccount]
	TokenSecrets           *client.Cache[*corev1.Secret]
	BootstrapTokens        *client.Cache[*corev1.Secret]
	RootCAs                *client.Cache[*corev1.ConfigMap]
	DisruptionBudgets      *client.Cache[*policyv1.PodDisruptionBudget]
	ResourceQuotas         *client.Cache[*corev1.ResourceQuota]
	Claims                 *client.Cache[*corev1.PersistentVolumeClaim]
	Volumes                *client.Cache[*corev1.PersistentVolume]
	StorageClasses         *client.Cache[*storagev1.StorageClass]
	NodeLeases             *client.Cache[*coordinationv1.Lease]
	SigningRequests        *client.Cache[*certificatesv1.CertificateSigningRequest]
	ClusterRoles           *client.Cache[*rbacv1.ClusterRole]

	// Caches lists all of the above.
	Caches []Cache
}

// Cache is any cache.
type Cache interface {
	Kind() *client.Kind
	Run(ctx context.Context) error
	Synced() <-chan struct{}
	CatchUp(ctx context.Context) error
	Err() error
}

// As returns the same cluster for a control loop that records its events under its own
// name.
func (s *Cluster) As(component string) *Cluster {
	out := *s
	out.Events = s.Events.As(component)
	return &out
}

// CatchUp waits until all caches show what the previous leader wrote last.
func (s *Cluster) CatchUp(ctx context.Context) error {
	errs := make(chan error, len(s.Caches))
	for _, c := range s.Caches {
		go func() { errs <- c.CatchUp(ctx) }()
	}
	var first error
	for range s.Caches {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// New returns a cluster. The caller runs each of Caches.
func New(c *client.Client, events *event.Recorder) *Cluster {
	s := &Cluster{Client: c, Events: events}
	s.Namespaces = add(s, client.CacheOptions[*corev1.Namespace]{Transform: slim[*corev1.Namespace]})
	s.Nodes = add(s, client.CacheOptions[*corev1.Node]{Transform: slimNode})
	s.Pods = add(s, client.CacheOptions[*corev1.Pod]{Transform: slimPod, Indexes: map[string]func(*corev1.Pod) []string{
		ByController: controllerOf[*corev1.Pod],
		ByOrphanage:  orphanage[*corev1.Pod],
		ByNamespace:  namespaceOf[*corev1.Pod],
		ByNode:       func(p *corev1.Pod) []string { return []string{p.Spec.NodeName} },
		ByClaim:      claimsOf,
		ByJob:        jobOf,
	}})
	s.Services = add(s, client.CacheOptions[*corev1.Service]{Transform: slim[*corev1.Service], Indexes: map[string]func(*corev1.Service) []string{
		ByNamespace: namespaceOf[*corev1.Service],
	}})
	s.Endpoints = add(s, client.CacheOptions[*corev1.Endpoints]{Transform: slim[*corev1.Endpoints]}) //nolint:staticcheck // as above.
	s.EndpointSlices = add(s, client.CacheOptions[*discoveryv1.EndpointSlice]{Transform: slim[*discoveryv1.EndpointSlice], Indexes: map[string]func(*discoveryv1.EndpointSlice) []string{
		ByService: func(e *discoveryv1.EndpointSlice) []string {
			return []string{e.Namespace + "/" + e.Labels[discoveryv1.LabelServiceName]}
		},
	}})
	s.Deployments = add(s, client.CacheOptions[*appsv1.Deployment]{Transform: slim[*appsv1.Deployment], Indexes: map[string]func(*appsv1.Deployment) []string{
		ByNamespace: namespaceOf[*appsv1.Deployment],
	}})
	s.ReplicaSets = add(s, client.CacheOptions[*appsv1.ReplicaSet]{Transform: slim[*appsv1.ReplicaSet], Indexes: map[string]func(*appsv1.ReplicaSet) []string{
		ByController: controllerOf[*appsv1.ReplicaSet],
		ByOrphanage:  orphanage[*appsv1.ReplicaSet],
		ByNamespace:  namespaceOf[*appsv1.ReplicaSet],
	}})
	s.DaemonSets = add(s, client.CacheOptions[*appsv1.DaemonSet]{Transform: slim[*appsv1.DaemonSet], Indexes: map[string]func(*appsv1.DaemonSet) []string{
		ByNamespace: namespaceOf[*appsv1.DaemonSet],
	}})
	s.StatefulSets = add(s, client.CacheOptions[*appsv1.StatefulSet]{Transform: slim[*appsv1.StatefulSet], Indexes: map[string]func(*appsv1.StatefulSet) []string{
		ByNamespace: namespaceOf[*appsv1.StatefulSet],
	}})
	s.ControllerRevisions = add(s, client.CacheOptions[*appsv1.ControllerRevision]{Transform: slim[*appsv1.ControllerRevision], Indexes: map[string]func(*appsv1.ControllerRevision) []string{
		ByController: controllerOf[*appsv1.ControllerRevision],
		ByOrphanage:  orphanage[*appsv1.ControllerRevision],
	}})
	s.ReplicationControllers = add(s, client.CacheOptions[*corev1.ReplicationController]{Transform: slim[*corev1.ReplicationController], Indexes: map[string]func(*corev1.ReplicationController) []string{
		ByNamespace: namespaceOf[*corev1.ReplicationController],
	}})
	s.CronJobs = add(s, client.CacheOptions[*batchv1.CronJob]{Transform: slim[*batchv1.CronJob]})
	s.Jobs = add(s, client.CacheOptions[*batchv1.Job]{Transform: slim[*batchv1.Job], Indexes: map[string]func(*batchv1.Job) []string{
		ByController: controllerOf[*batchv1.Job],
		ByNamespace:  namespaceOf[*batchv1.Job],
	}})
	s.ServiceAccounts = add(s, client.CacheOptions[*corev1.ServiceAccount]{Transform: slim[*corev1.ServiceAccount]})
	s.TokenSecrets = add(s, client.CacheOptions[*corev1.Secret]{
		FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken), Transform: slimSecret,
		Indexes: map[string]func(*corev1.Secret) []string{
			ByAccount: func(s *corev1.Secret) []string {
				return []string{s.Namespace + "/" + s.Annotations[corev1.ServiceAccountNameKey]}
			},
		},
	})
	s.BootstrapTokens = add(s, client.CacheOptions[*corev1.Secret]{
		Namespace: metav1.NamespaceSystem, FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken), Transform: slimBootstrapToken,
	})
	s.RootCAs = add(s, client.CacheOptions[*corev1.ConfigMap]{
		FieldSelector: "metadata.name=" + RootCAConfigMap, Transform: slim[*corev1.ConfigMap],
	})
	s.ResourceQuotas = add(s, client.CacheOptions[*corev1.ResourceQuota]{Transform: slim[*corev1.ResourceQuota], Indexes: map[string]func(*corev1.ResourceQuota) []string{
		ByNamespace: namespaceOf[*corev1.ResourceQuota],
	}})
	s.DisruptionBudgets = add(s, client.CacheOptions[*policyv1.PodDisruptionBudget]{Transform: slim[*policyv1.PodDisruptionBudget], Indexes: map[string]func(*policyv1.PodDisruptionBudget) []string{
		ByNamespace: namespaceOf[*policyv1.PodDisruptionBudget],
	}})
	s.Claims = add(s, client.CacheOptions[*corev1.PersistentVolumeClaim]{Transform: slim[*corev1.PersistentVolumeClaim], Indexes: map[string]func(*corev1.PersistentVolumeClaim) []string{
		ByVolume: func(c *corev1.PersistentVolumeClaim) []string { return []string{c.Spec.VolumeName} },
	}})
	s.Volumes = add(s, client.CacheOptions[*corev1.PersistentVolume]{Transform: slim[*corev1.PersistentVolume]})
	s.StorageClasses = add(s, client.CacheOptions[*storagev1.StorageClass]{Transform: slim[*storagev1.StorageClass]})
	s.NodeLeases = add(s, client.CacheOptions[*coordinationv1.Lease]{Namespace: corev1.NamespaceNodeLease, Transform: slim[*coordinationv1.Lease]})
	s.SigningRequests = add(s, client.CacheOptions[*certificatesv1.CertificateSigningRequest]{Transform: slim[*certificatesv1.CertificateSigningRequest]})
	s.ClusterRoles = add(s, client.CacheOptions[*rbacv1.ClusterRole]{Transform: slim[*rbacv1.ClusterRole]})
	return s
}

func add[T client.Object](s *Cluster, o client.CacheOptions[T]) *client.Cache[T] {
	c := client.NewCache(s.Client, o)
	s.Caches = append(s.Caches, c)
	return c
}

func controllerOf[T client.Object](obj T) []string {
	if ref := metav1.GetControllerOfNoCopy(obj); ref != nil {
		return []string{string(ref.UID)}
	}
	return nil
}

func orphanage[T client.Object](obj T) []string {
	if metav1.GetControllerOfNoCopy(obj) == nil {
		return []string{obj.GetNamespace()}
	}
	return nil
}

func namespaceOf[T client.Object](obj T) []string { return []string{obj.GetNamespace()} }

func jobOf(p *corev1.Pod) []string {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "Job" || !slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
		return nil
	}
	return []string{p.Namespace + "/" + ref.Name}
}

func claimsOf(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		if name := ClaimName(p, &p.Spec.Volumes[i]); name != "" {
			out = append(out, p.Namespace+"/"+name)
		}
	}
	return out
}

// ClaimName returns the claim of a pod's volume, or "" if there is none. The claim of a
// generic ephemeral volume is named after the pod and the volume.
func ClaimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}
