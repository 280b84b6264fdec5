// Package volume binds claims to volumes, makes local volumes for claims of the
// class keelson.dev/local, protects what is in use, and reclaims what is
// released.
//
// A binding is two writes, in this order: the volume's claimRef (with the claim's uid),
// then the claim's volumeName. A crash between them leaves a volume that refers to the
// claim, and the next reconcile completes the binding. No volume is ever bound to two
// claims, because claimRef is written conditionally on the volume's resourceVersion.
//
// A local volume is a directory on one node: `spec.local.path` under
// --local-volume-dir, which the node's agent creates when a pod first mounts it. Its
// object carries the finalizer keelson.dev/local-data, which the agent removes once it
// has deleted the directory. So the data of a released volume with policy Delete is
// gone once the object is.
//
// It must never delete a volume that a claim may still be bound to: it checks with the
// server first.
package volume

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingcorev1 "k8s.io/component-helpers/scheduling/corev1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

const claimProtection = "kubernetes.io/pvc-protection"

type claims struct {
	*cluster.Cluster

	Claims         *client.Cache[*corev1.PersistentVolumeClaim]
	Volumes        *client.Cache[*corev1.PersistentVolume]
	StorageClasses *client.Cache[*storagev1.StorageClass]
	Pods           *client.Cache[*corev1.Pod]
	Nodes          *client.Cache[*corev1.Node]

	claims  client.Resource[*corev1.PersistentVolumeClaim]
	volumes client.Resource[*corev1.PersistentVolume]
	classes client.Resource[*storagev1.StorageClass]
	nodes   client.Resource[*corev1.Node]
	pods    client.Resource[*corev1.Pod]
	dir     string
}

const (
	// byVolume finds claims by the volume they are bound to; "" finds unbound claims.
	byVolume = "volume"
	// byClaim finds pods by the "namespace/name" of the claims that they mount.
	byClaim = "claim"
)

func claimsOf(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		if name := cluster.ClaimName(p, &p.Spec.Volumes[i]); name != "" {
			out = append(out, p.Namespace+"/"+name)
		}
	}
	return out
}

// NewClaims returns the controller of claims.
func NewClaims(s *cluster.Cluster, o Options) controller.Controller {
	r := &claims{
		Cluster: s, dir: o.Dir,
		Claims: cluster.Of[*corev1.PersistentVolumeClaim](s), Volumes: cluster.Of[*corev1.PersistentVolume](s), StorageClasses: cluster.Of[*storagev1.StorageClass](s),
		Pods: cluster.Of[*corev1.Pod](s), Nodes: cluster.Of[*corev1.Node](s),
		claims:  client.For[*corev1.PersistentVolumeClaim](s.Client),
		volumes: client.For[*corev1.PersistentVolume](s.Client),
		classes: client.For[*storagev1.StorageClass](s.Client),
		nodes:   client.For[*corev1.Node](s.Client),
		pods:    client.For[*corev1.Pod](s.Client),
	}
	r.Claims.AddIndex(byVolume, func(c *corev1.PersistentVolumeClaim) []string { return []string{c.Spec.VolumeName} })
	r.Pods.AddIndex(byClaim, claimsOf)
	return controller.Controller{
		Name: "persistentvolumeclaim", Workers: 4, Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.Objects(r.Claims),
			controller.From(r.Volumes, r.ofVolume),
			controller.From(r.StorageClasses, r.ofClass),
			controller.From(r.Pods, r.ofPod),
			controller.From(r.Nodes, r.ofNode),
		},
	}
}

// ofVolume maps a volume event to the claim that the volume refers to, or, for a free
// volume, to the pending claims of its class.
func (r *claims) ofVolume(ev client.Event[*corev1.PersistentVolume]) []controller.Key {
	if ref := ev.Object.Spec.ClaimRef; ref != nil {
		return []controller.Key{{Namespace: ref.Namespace, Name: ref.Name}}
	}
	if ev.Type == client.Deleted {
		return nil
	}
	return r.pending(ev.Object.Spec.StorageClassName)
}

func (r *claims) ofClass(ev client.Event[*storagev1.StorageClass]) []controller.Key {
	if ev.Type == client.Deleted {
		return nil
	}
	return append(r.pending(ev.Object.Name), r.pending("")...)
}

func (r *claims) pending(className string) []controller.Key {
	var keys []controller.Key
	for _, c := range r.Claims.ByIndex(byVolume, "") {
		if class(c) == className {
			keys = append(keys, client.KeyOf(c))
		}
	}
	return keys
}

// ofNode maps a node that has no taints any more, or is new without any, to the claims
// without a volume: those of a class that binds immediately may have found no node
// before.
func (r *claims) ofNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type == client.Deleted || len(ev.Object.Spec.Taints) > 0 || ev.Old != nil && len(ev.Old.Spec.Taints) == 0 {
		return nil
	}
	var keys []controller.Key
	for _, c := range r.Claims.ByIndex(byVolume, "") {
		keys = append(keys, client.KeyOf(c))
	}
	return keys
}

// ofPod maps a pod event to the claims that the pod used and may no longer use.
func (r *claims) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	if ev.Type != client.Deleted && !podstate.Finished(ev.Object) {
		return nil
	}
	var keys []controller.Key
	for i := range ev.Object.Spec.Volumes {
		if name := cluster.ClaimName(ev.Object, &ev.Object.Spec.Volumes[i]); name != "" {
			if c, ok := r.Claims.Get(ev.Object.Namespace, name); ok && c.DeletionTimestamp != nil {
				keys = append(keys, client.KeyOf(c))
			}
		}
	}
	return keys
}

func (r *claims) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	c, ok := r.Claims.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	if c.DeletionTimestamp != nil {
		return controller.Result{}, r.unprotect(ctx, c)
	}
	if c.Spec.VolumeName != "" {
		return controller.Result{}, r.bound(ctx, c)
	}
	return controller.Result{}, r.bindOrProvision(ctx, c)
}

// unprotect lets a deleted claim go once no pod uses it.
func (r *claims) unprotect(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	i := slices.Index(c.Finalizers, claimProtection)
	if i < 0 {
		return nil
	}
	for _, p := range r.Pods.ByIndex(byClaim, c.Namespace+"/"+c.Name) {
		if !podstate.Finished(p) {
			return nil
		}
	}
	// The cache may not show a new pod yet, so the server decides.
	for p, err := range r.pods.All(ctx, client.ListOptions{Namespace: c.Namespace}) {
		if err != nil {
			return err
		}
		for j := range p.Spec.Volumes {
			if cluster.ClaimName(p, &p.Spec.Volumes[j]) == c.Name && !podstate.Finished(p) {
				return nil
			}
		}
	}
	next := c.DeepCopy()
	next.Finalizers = slices.Delete(next.Finalizers, i, i+1)
	return ignorable("finalizer of claim "+c.Name, second(r.claims.Update(ctx, next)))
}

// bound completes the binding of a claim that names its volume.
func (r *claims) bound(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	v, err := r.volumes.Get(ctx, "", c.Spec.VolumeName)
	switch {
	case apierrors.IsNotFound(err):
		if c.Annotations[bindCompleted] == "" {
			return nil // named beforehand: it may come yet
		}
		r.Events.Warning(ctx, c, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
		return r.setPhase(ctx, c, corev1.ClaimLost, nil)
	case err != nil:
		return err
	case v.Spec.ClaimRef != nil && !refersTo(v, c):
		if c.Annotations[bindCompleted] != "" {
			r.Events.Warning(ctx, c, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
			return r.setPhase(ctx, c, corev1.ClaimLost, nil)
		}
		r.Events.Warning(ctx, c, "FailedBinding", "volume %q already bound to a different claim.", v.Name)
		return r.setPhase(ctx, c, corev1.ClaimPending, nil)
	case v.Spec.ClaimRef == nil && !Fits(v, c):
		r.Events.Warning(ctx, c, "VolumeMismatch", "Cannot bind to requested volume %q: it does not fit the claim", v.Name)
		return r.setPhase(ctx, c, corev1.ClaimPending, nil)
	}
	if v, err = r.take(ctx, c, v); err != nil {
		return err
	}
	if c.Annotations[bindCompleted] == "" {
		if c, err = r.annotate(ctx, c, v); err != nil {
			return err
		}
	}
	return r.setPhase(ctx, c, corev1.ClaimBound, v)
}

// take writes the claim into the volume's claimRef.
func (r *claims) take(ctx context.Context, c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID == c.UID {
		return v, nil
	}
	next := v.DeepCopy()
	if next.Spec.ClaimRef == nil {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, boundByUs, "yes")
	}
	next.Spec.ClaimRef = &corev1.ObjectReference{
		APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion,
	}
	got, err := r.volumes.Update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("bind volume %s: %w", v.Name, err)
	}
	return got, nil
}

// annotate writes the volume's name into the claim.
func (r *claims) annotate(ctx context.Context, c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	next := c.DeepCopy()
	if next.Spec.VolumeName == "" {
		next.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, boundByUs, "yes")
	}
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, bindCompleted, "yes")
	got, err := r.claims.Update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("bind claim %s: %w", c.Name, err)
	}
	return got, nil
}

func (r *claims) setPhase(ctx context.Context, c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) error {
	next := c.DeepCopy()
	next.Status.Phase = phase
	next.Status.AccessModes, next.Status.Capacity = nil, nil
	if v != nil {
		next.Status.AccessModes = v.Spec.AccessModes
		next.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: v.Spec.Capacity[corev1.ResourceStorage]}
	}
	have, want := c.Status.Capacity[corev1.ResourceStorage], next.Status.Capacity[corev1.ResourceStorage]
	if c.Status.Phase == phase && have.Cmp(want) == 0 && slices.Equal(c.Status.AccessModes, next.Status.AccessModes) {
		return nil
	}
	return ignorable("status of claim "+c.Name, second(r.claims.UpdateStatus(ctx, next)))
}

// bindOrProvision finds a volume for a claim, or has one provisioned.
func (r *claims) bindOrProvision(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	if c.Spec.StorageClassName == nil && class(c) == "" {
		if def := Default(r.StorageClasses.List()); def != nil {
			// The class was created after the claim.
			next := c.DeepCopy()
			next.Spec.StorageClassName = &def.Name
			return ignorable("storage class of claim "+c.Name, second(r.claims.Update(ctx, next)))
		}
	}
	var sc *storagev1.StorageClass
	if name := class(c); name != "" {
		sc, _ = r.StorageClasses.Get("", name)
	}
	v := Best(c, r.Volumes.List())
	if v != nil && Waits(c, sc) && !refersTo(v, c) {
		v = nil // which volume is for the scheduler to say
	}
	if v != nil && !r.reaches(v, c) {
		v = nil
	}
	if v != nil {
		v, err := r.take(ctx, c, v)
		if err != nil {
			return err
		}
		if c, err = r.annotate(ctx, c, v); err != nil {
			return err
		}
		return r.setPhase(ctx, c, corev1.ClaimBound, v)
	}
	switch {
	case sc == nil && class(c) != "":
		r.Events.Warning(ctx, c, "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", class(c))
	case sc == nil:
		r.Events.Normal(ctx, c, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	case Waits(c, sc):
		r.Events.Normal(ctx, c, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case sc.Provisioner == Provisioner:
		return r.provision(ctx, c, sc)
	default:
		r.Events.Normal(ctx, c, "ExternalProvisioning", "Waiting for a volume to be created by the external provisioner '%s'.", sc.Provisioner)
	}
	return r.setPhase(ctx, c, corev1.ClaimPending, nil)
}

// reaches reports whether the node chosen for a claim can use a volume.
func (r *claims) reaches(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	name := c.Annotations[selectedNode]
	if name == "" || v.Spec.NodeAffinity == nil {
		return true
	}
	n, ok := r.Nodes.Get("", name)
	if !ok || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return ok
	}
	matches, err := schedulingcorev1.MatchNodeSelectorTerms(n, v.Spec.NodeAffinity.Required)
	return err == nil && matches
}

// provision creates a local volume on the node that the scheduler chose, or, for a
// class that binds immediately, on any ready node.
func (r *claims) provision(ctx context.Context, c *corev1.PersistentVolumeClaim, sc *storagev1.StorageClass) error {
	node, err := r.nodeFor(ctx, c)
	if err != nil || node == nil {
		return err
	}
	v, err := Local(c, sc, node, r.dir)
	if err != nil {
		r.Events.Warning(ctx, c, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", sc.Name, err)
		return r.setPhase(ctx, c, corev1.ClaimPending, nil)
	}
	made, err := r.volumes.Create(ctx, v)
	if apierrors.IsAlreadyExists(err) {
		made, err = r.volumes.Get(ctx, "", v.Name)
	}
	if err != nil {
		return fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	r.Events.Normal(ctx, c, "ProvisioningSucceeded", "Successfully provisioned volume %s", v.Name)
	if c, err = r.annotate(ctx, c, made); err != nil {
		return err
	}
	return r.setPhase(ctx, c, corev1.ClaimBound, made)
}

func (r *claims) nodeFor(ctx context.Context, c *corev1.PersistentVolumeClaim) (*corev1.Node, error) {
	if name := c.Annotations[selectedNode]; name != "" {
		n, err := r.nodes.Get(ctx, "", name)
		if !apierrors.IsNotFound(err) {
			return n, err
		}
		// The node is gone: the scheduler chooses again.
		next := c.DeepCopy()
		delete(next.Annotations, selectedNode)
		return nil, ignorable("selected node of claim "+c.Name, second(r.claims.Update(ctx, next)))
	}
	var best *corev1.Node
	for _, n := range r.Nodes.List() {
		if len(n.Spec.Taints) == 0 && (best == nil || n.Name < best.Name) {
			best = n
		}
	}
	if best == nil {
		r.Events.Warning(ctx, c, "ProvisioningFailed", "no node is ready to hold the volume")
		return nil, r.setPhase(ctx, c, corev1.ClaimPending, nil)
	}
	return best, nil
}

func second[T any](_ T, err error) error { return err }

// ignorable returns nil for errors about an object that is gone. A conflict is retried
// with what the cache shows then.
func ignorable(what string, err error) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
