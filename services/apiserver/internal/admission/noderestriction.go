package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/request"
)

// NodeRestriction bounds what a node may write: itself, its lease, its pods'
// statuses, and tokens for its pods (KEP-279).
type NodeRestriction struct {
	State State
	// NodeOf is the node that a user is; isNode may be true of one without a
	// name.
	NodeOf func(request.User) (name string, isNode bool)
}

// Validate implements Validator.
func (p *NodeRestriction) Validate(ctx context.Context, a *Attributes) error {
	node, isNode := p.NodeOf(a.User)
	if !isNode {
		return nil
	}
	if node == "" {
		return fmt.Errorf("could not determine node from user %q", a.User.Name)
	}
	group := a.Kind.GVK.Group
	switch {
	case group == "" && a.Kind.Resource == "pods":
		return p.pod(node, a)
	case group == "" && a.Kind.Resource == "nodes":
		return p.node(node, a)
	case group == "" && a.Kind.Resource == "persistentvolumeclaims":
		if a.Subresource != "status" || a.Operation != Update {
			return fmt.Errorf("unexpected operation %q", a.Operation)
		}
	case group == "" && a.Kind.Resource == "persistentvolumes":
		return p.volume(node, a)
	case group == "" && a.Kind.Resource == "serviceaccounts" && a.Subresource == "token":
		return p.token(ctx, node, a)
	case group == coordinationv1.GroupName && a.Kind.Resource == "leases":
		return p.lease(node, a)
	case group == "storage.k8s.io" && a.Kind.Resource == "csinodes":
		if a.Name != node {
			return fmt.Errorf("can only access CSINode with the same name as the requesting node")
		}
	}
	return nil
}

func (p *NodeRestriction) pod(node string, a *Attributes) error {
	switch a.Subresource {
	case "":
		switch a.Operation {
		case Create:
			pod, _ := a.Object.(*corev1.Pod)
			return p.mirrorPod(node, pod)
		case Delete:
			return ownPod(node, "delete", a.Old)
		}
		return fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node)
	case "status":
		old, _ := a.Old.(*corev1.Pod)
		pod, _ := a.Object.(*corev1.Pod)
		if a.Operation != Update || old == nil || pod == nil {
			return fmt.Errorf("unexpected operation %q", a.Operation)
		}
		if err := ownPod(node, "update status for", old); err != nil {
			return err
		}
		if !equality.Semantic.DeepEqual(old.Labels, pod.Labels) {
			return fmt.Errorf("node %q cannot update labels through pod status", node)
		}
		return nil
	case "eviction":
		obj, ok := p.State.Get("", "pods", a.Namespace, a.Name)
		if !ok {
			return nil // the eviction itself will say so
		}
		return ownPod(node, "evict", obj)
	}
	return fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource)
}

// volume lets a node release a local volume whose data it has deleted, and change
// nothing else of it.
func (p *NodeRestriction) volume(node string, a *Attributes) error {
	old, _ := a.Old.(*corev1.PersistentVolume)
	pv, _ := a.Object.(*corev1.PersistentVolume)
	if a.Subresource != "" || a.Operation != Update || old == nil || pv == nil {
		return fmt.Errorf("unexpected operation %q", a.Operation)
	}
	left := slices.DeleteFunc(slices.Clone(old.Finalizers), func(f string) bool { return f == localData })
	changed := pv.DeepCopy()
	changed.Finalizers, changed.ManagedFields = old.Finalizers, old.ManagedFields
	changed.Generation, changed.ResourceVersion = old.Generation, old.ResourceVersion
	if old.DeletionTimestamp == nil || !slices.Equal(pv.Finalizers, left) || !equality.Semantic.DeepEqual(old, changed) {
		return fmt.Errorf("node %q can only take the finalizer %s off a volume that is being deleted", node, localData)
	}
	return nil
}

// localData is the finalizer of volumes whose data a node keeps.
const localData = "keelson.dev/local-data"

func ownPod(node, verb string, obj any) error {
	if pod, ok := obj.(*corev1.Pod); !ok || pod.Spec.NodeName != node {
		return fmt.Errorf("node %q can only %s pods with spec.nodeName set to itself", node, verb)
	}
	return nil
}

// mirrorPod lets a node show its static pods, which reach for nothing of the
// cluster.
func (p *NodeRestriction) mirrorPod(node string, pod *corev1.Pod) error {
	switch {
	case pod == nil || !isMirror(pod):
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case pod.Spec.NodeName != node:
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	case len(pod.OwnerReferences) > 1:
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	case pod.Spec.ServiceAccountName != "":
		return fmt.Errorf("node %q can not create pods that reference a service account", node)
	}
	if len(pod.OwnerReferences) == 1 {
		if err := p.mirrorOwner(node, &pod.OwnerReferences[0]); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil || v.ConfigMap != nil || v.Projected != nil || v.PersistentVolumeClaim != nil {
			return fmt.Errorf("node %q can not create pods that reference secrets, configmaps or persistentvolumeclaims", node)
		}
	}
	if len(pod.Spec.ImagePullSecrets) > 0 || len(pod.Spec.ResourceClaims) > 0 {
		return fmt.Errorf("node %q can not create pods that reference secrets or resource claims", node)
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, e := range list[i].EnvFrom {
				if e.ConfigMapRef != nil || e.SecretRef != nil {
					return fmt.Errorf("node %q can not create pods that reference secrets or configmaps", node)
				}
			}
			for _, e := range list[i].Env {
				if e.ValueFrom != nil && (e.ValueFrom.ConfigMapKeyRef != nil || e.ValueFrom.SecretKeyRef != nil) {
					return fmt.Errorf("node %q can not create pods that reference secrets or configmaps", node)
				}
			}
		}
	}
	return nil
}

func (p *NodeRestriction) mirrorOwner(node string, owner *metav1.OwnerReference) error {
	if owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node {
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	}
	if owner.Controller == nil || !*owner.Controller {
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	}
	if owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion {
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	obj, ok := p.State.Get("", "nodes", "", node)
	if !ok || obj.GetUID() != owner.UID {
		return fmt.Errorf("node %q UID mismatch", node)
	}
	return nil
}

func (p *NodeRestriction) node(node string, a *Attributes) error {
	name := a.Name
	if obj, ok := a.Object.(*corev1.Node); ok && a.Operation == Create {
		name = obj.Name
	}
	if name != node {
		return fmt.Errorf("node %q is not allowed to modify node %q", node, name)
	}
	switch a.Operation {
	case Create:
		obj, ok := a.Object.(*corev1.Node)
		if !ok {
			return errors.New("unexpected type")
		}
		if obj.Spec.ConfigSource != nil {
			return fmt.Errorf("node %q is not allowed to create pods with a non-nil configSource", node)
		}
		if bad := forbiddenLabels(nil, obj.Labels); len(bad) > 0 {
			return fmt.Errorf("node %q is not allowed to set the following labels: %s", node, strings.Join(bad, ", "))
		}
		return nil
	case Update:
		return updatedNode(node, a)
	}
	return nil
}

func updatedNode(node string, a *Attributes) error {
	obj, ok1 := a.Object.(*corev1.Node)
	old, ok2 := a.Old.(*corev1.Node)
	if !ok1 || !ok2 {
		return errors.New("unexpected type")
	}
	if obj.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(obj.Spec.ConfigSource, old.Spec.ConfigSource) {
		return fmt.Errorf("node %q is not allowed to update configSource to a new non-nil configSource", node)
	}
	if !equality.Semantic.DeepEqual(obj.Spec.Taints, old.Spec.Taints) {
		return fmt.Errorf("node %q is not allowed to modify taints", node)
	}
	if bad := forbiddenLabels(old.Labels, obj.Labels); len(bad) > 0 {
		return fmt.Errorf("node %q is not allowed to modify labels: %s", node, strings.Join(bad, ", "))
	}
	if !equality.Semantic.DeepEqual(obj.OwnerReferences, old.OwnerReferences) {
		return fmt.Errorf("node %q is not allowed to modify ownerReferences", node)
	}
	return nil
}

// nodeLabels are the labels below kubernetes.io that a node may set itself.
var nodeLabels = map[string]bool{
	corev1.LabelHostname: true, corev1.LabelTopologyZone: true, corev1.LabelTopologyRegion: true,
	corev1.LabelFailureDomainBetaZone: true, corev1.LabelFailureDomainBetaRegion: true,
	corev1.LabelInstanceType: true, corev1.LabelInstanceTypeStable: true,
	corev1.LabelOSStable: true, corev1.LabelArchStable: true, corev1.LabelWindowsBuild: true,
	"beta.kubernetes.io/os": true, "beta.kubernetes.io/arch": true,
}

// forbiddenLabels are the changed labels below kubernetes.io and k8s.io that are
// not a node's own to set.
func forbiddenLabels(old, labels map[string]string) []string {
	var bad []string
	check := func(key string) {
		if forbiddenLabel(key) && !slices.Contains(bad, key) {
			bad = append(bad, key)
		}
	}
	for key, value := range labels {
		if was, ok := old[key]; !ok || was != value {
			check(key)
		}
	}
	for key := range old {
		if _, ok := labels[key]; !ok {
			check(key)
		}
	}
	sort.Strings(bad)
	return bad
}

func forbiddenLabel(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	if below(domain, "node-restriction.kubernetes.io") {
		return true
	}
	if !below(domain, "kubernetes.io") && !below(domain, "k8s.io") {
		return false
	}
	return !nodeLabels[key] && !below(domain, "kubelet.kubernetes.io") && !below(domain, "node.kubernetes.io")
}

func below(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// token lets a node ask for tokens that are bound to pods on it, and nothing
// else.
func (p *NodeRestriction) token(ctx context.Context, node string, a *Attributes) error {
	tr, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok {
		return errors.New("unexpected type")
	}
	ref := tr.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return fmt.Errorf("node requested token not bound to a pod")
	case ref.UID == "":
		return fmt.Errorf("node requested token with a pod binding without a uid")
	}
	obj, ok := p.State.Get("", "pods", a.Namespace, ref.Name)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "", "pods", a.Namespace, ref.Name); err != nil {
			return err
		}
	}
	pod, is := obj.(*corev1.Pod)
	switch {
	case !ok || !is:
		return fmt.Errorf("pod %q not found", ref.Name)
	case pod.UID != ref.UID:
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	case pod.Spec.NodeName != node:
		return fmt.Errorf("node requested token bound to a pod scheduled on a different node")
	case pod.Spec.ServiceAccountName != a.Name:
		return fmt.Errorf("node requested token for a service account that its pod does not use")
	}
	return nil
}

// lease lets a node renew its own heartbeat.
func (p *NodeRestriction) lease(node string, a *Attributes) error {
	if a.Namespace != corev1.NamespaceNodeLease {
		return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	name := a.Name
	if a.Operation == Create && a.Object != nil {
		name = a.Object.GetName()
	}
	if name != node {
		return fmt.Errorf("can only access node lease with the same name as the requesting node")
	}
	return nil
}
