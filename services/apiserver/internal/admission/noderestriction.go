package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
)

// NodeRestriction limits what a node may write: its own Node and Lease, the status of its pods
// and of their claims, mirror pods, tokens for its pods, and requests for its own certificates
// (KEP-279). Fields that other nodes act on, such as the pod CIDR that they route, belong to
// controllers.
type NodeRestriction struct {
	State State
	// Authorizer decides whether a node may request a token for an audience that its pod does not
	// name (KEP-4412). If it is nil, such requests are refused.
	Authorizer Authorizer
	// NodeOf returns the name of the node that a user represents. isNode may be true with an
	// empty name.
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
		return p.claim(node, a)
	case group == "" && a.Kind.Resource == "persistentvolumes":
		return p.volume(node, a)
	case group == "" && a.Kind.Resource == "serviceaccounts" && a.Subresource == "token":
		return p.token(ctx, node, a)
	case group == coordinationv1.GroupName && a.Kind.Resource == "leases":
		return p.lease(node, a)
	case group == "storage.k8s.io" && a.Kind.Resource == "csinodes":
		if objectName(a) != node {
			return fmt.Errorf("can only access CSINode with the same name as the requesting node")
		}
	case group == certificatesv1.GroupName && a.Kind.Resource == "certificatesigningrequests":
		return p.certificate(node, a)
	}
	return nil
}

// objectName returns the name of the object that the request is about. For a create, only the
// object itself has it.
func objectName(a *Attributes) string {
	if a.Operation == Create && a.Object != nil {
		return a.Object.GetName()
	}
	return a.Name
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
		if !sameResourceClaims(&old.Status, &pod.Status) {
			return fmt.Errorf("node %q cannot update resource claim statuses", node)
		}
		return nil
	case "eviction":
		obj, ok := p.State.Get("", "pods", a.Namespace, a.Name)
		if !ok {
			return nil // the eviction itself reports that the pod is missing
		}
		return ownPod(node, "evict", obj)
	}
	return fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource)
}

// volume allows a node to remove its finalizer from a local volume whose data it has deleted, and
// no other change.
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
		return fmt.Errorf("node %q can only remove the finalizer %s from a volume that is being deleted", node, localData)
	}
	return nil
}

// localData is the finalizer of volumes whose data is on a node.
const localData = "keelson.dev/local-data"

func ownPod(node, verb string, obj any) error {
	if pod, ok := obj.(*corev1.Pod); !ok || pod.Spec.NodeName != node {
		return fmt.Errorf("node %q can only %s pods with spec.nodeName set to itself", node, verb)
	}
	return nil
}

func (p *NodeRestriction) node(node string, a *Attributes) error {
	if name := objectName(a); name != node {
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
		if f := assignedField(&corev1.NodeSpec{}, &obj.Spec); f != "" {
			return fmt.Errorf("node %q is not allowed to set %s", node, f)
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
	if f := assignedField(&old.Spec, &obj.Spec); f != "" {
		return fmt.Errorf("node %q is not allowed to modify %s", node, f)
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

// assignedField returns the path of a changed field that a controller assigns and other
// components act on, or "" if none changed. Every node routes podCIDRs to the node that has them,
// and the cloud controllers delete the Node and the load balancer targets of the machine that
// providerID names. Kubernetes lets a kubelet set both.
func assignedField(old, spec *corev1.NodeSpec) string {
	switch {
	case spec.PodCIDR != old.PodCIDR:
		return "spec.podCIDR"
	case !slices.Equal(spec.PodCIDRs, old.PodCIDRs):
		return "spec.podCIDRs"
	case spec.ProviderID != old.ProviderID:
		return "spec.providerID"
	}
	return ""
}

// nodeLabels are the labels under kubernetes.io that a node may set on itself.
var nodeLabels = map[string]bool{
	corev1.LabelHostname: true, corev1.LabelTopologyZone: true, corev1.LabelTopologyRegion: true,
	corev1.LabelFailureDomainBetaZone: true, corev1.LabelFailureDomainBetaRegion: true,
	corev1.LabelInstanceType: true, corev1.LabelInstanceTypeStable: true,
	corev1.LabelOSStable: true, corev1.LabelArchStable: true, corev1.LabelWindowsBuild: true,
	"beta.kubernetes.io/os": true, "beta.kubernetes.io/arch": true,
}

// forbiddenLabels returns the changed labels under kubernetes.io and k8s.io that a node may not
// set on itself, sorted.
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

// token allows a node to request tokens that are bound to pods on that node, for audiences that
// those pods name.
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
	return p.audience(ctx, a, pod, tr.Spec.Audiences)
}

// audience allows a token for an audience that a projected volume of the pod names (empty stands
// for the apiserver's own), or that the node is authorized to request (KEP-4412).
func (p *NodeRestriction) audience(ctx context.Context, a *Attributes, pod *corev1.Pod, audiences []string) error {
	audience := ""
	switch len(audiences) {
	case 0:
	case 1:
		audience = audiences[0]
	default:
		return errors.New("node may only request 0 or 1 audiences")
	}
	for i := range pod.Spec.Volumes {
		projected := pod.Spec.Volumes[i].Projected
		if projected == nil {
			continue
		}
		for _, source := range projected.Sources {
			if t := source.ServiceAccountToken; t != nil && t.Audience == audience {
				return nil
			}
		}
	}
	if p.Authorizer != nil {
		allowed, _, err := p.Authorizer.Authorize(ctx, &request.Attributes{
			User: a.User, Verb: "request-serviceaccounts-token-audience", Namespace: a.Namespace, Name: a.Name,
			Resource: schema.GroupVersionResource{Version: "v1", Resource: audience},
		})
		switch {
		case allowed:
			return nil
		case err != nil:
			return fmt.Errorf("authorize %s to request tokens for audience %q: %w", a.User.Name, audience, err)
		}
	}
	return fmt.Errorf("%s is not authorized to request tokens for audience %q: no projected volume of pod %q names it", a.User.Name, audience, pod.Name)
}

// claim allows a node to report the progress of a volume's expansion in the claim's status, and
// no other change.
func (p *NodeRestriction) claim(node string, a *Attributes) error {
	old, _ := a.Old.(*corev1.PersistentVolumeClaim)
	claim, _ := a.Object.(*corev1.PersistentVolumeClaim)
	if a.Subresource != "status" || a.Operation != Update || old == nil || claim == nil {
		return fmt.Errorf("unexpected operation %q, node %q may only update the status of claims", a.Operation, node)
	}
	rest := func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		c = c.DeepCopy()
		c.ResourceVersion, c.ManagedFields = "", nil
		c.Status.Capacity, c.Status.Conditions = nil, nil
		c.Status.AllocatedResources, c.Status.AllocatedResourceStatuses = nil, nil
		return c
	}
	if !equality.Semantic.DeepEqual(rest(old), rest(claim)) {
		return fmt.Errorf("node %q is not allowed to update fields of claim %q other than status.capacity, status.conditions, status.allocatedResources and status.allocatedResourceStatuses", node, a.Name)
	}
	return nil
}

// certificate allows a node to request certificates from the kubelet signers for itself only.
func (p *NodeRestriction) certificate(node string, a *Attributes) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if a.Operation != Create || !ok ||
		csr.Spec.SignerName != certificatesv1.KubeletServingSignerName && csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	req, err := parseRequest(csr)
	if err != nil {
		return err
	}
	if want := "system:node:" + node; req.Subject.CommonName != want {
		return fmt.Errorf("can only create a node CSR with CN=%s", want)
	}
	return nil
}

// lease allows a node to write its own heartbeat lease only.
func (p *NodeRestriction) lease(node string, a *Attributes) error {
	if a.Namespace != corev1.NamespaceNodeLease {
		return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if objectName(a) != node {
		return fmt.Errorf("can only access node lease with the same name as the requesting node")
	}
	return nil
}
