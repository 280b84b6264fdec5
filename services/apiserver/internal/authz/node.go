package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
)

const (
	nodesGroup     = "system:nodes"
	nodeUserPrefix = "system:node:"
)

// NodeName returns the node that the user represents. isNode is true, with an empty name, for a
// member of system:nodes whose user name ends after "system:node:".
func NodeName(u request.User) (name string, isNode bool) {
	name, isNode = strings.CutPrefix(u.Name, nodeUserPrefix)
	if !isNode || !slices.Contains(u.Groups, nodesGroup) {
		return "", false
	}
	return name, true
}

// Node allows a node to access what belongs to it and to the pods that are bound to it, as
// Kubernetes' node authorizer does. What a node may change in these objects is decided by
// admission (NodeRestriction).
type Node struct {
	graph *graph
	rules *rules
	rows  map[schema.GroupResource]nodeRule
}

// nodeRule decides on one resource. The reason of a refusal may be empty.
type nodeRule func(node string, a *request.Attributes) (allowed bool, reason string)

// NewNode returns an authorizer without pods: nodes have access only to what is theirs by
// name.
func NewNode() *Node {
	n := &Node{graph: newGraph(), rules: newRules(NodeRules())}
	core := func(resource string) schema.GroupResource { return schema.GroupResource{Resource: resource} }
	storage := func(resource string) schema.GroupResource {
		return schema.GroupResource{Group: "storage.k8s.io", Resource: resource}
	}
	n.rows = map[schema.GroupResource]nodeRule{
		core("secrets"):                n.readOne(secretKind),
		core("configmaps"):             n.readOne(configMapKind),
		core("persistentvolumeclaims"): n.claim,
		core("persistentvolumes"):      n.volume,
		storage("volumeattachments"):   n.getOne(attachmentKind),
		core("serviceaccounts"):        n.serviceAccount,
		core("nodes"):                  n.node,
		core("pods"):                   n.pod,
		storage("csinodes"):            n.csiNode,
		{Group: "coordination.k8s.io", Resource: "leases"}: n.lease,
	}
	return n
}

// Authorize implements Authorizer.
func (n *Node) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	node, isNode := NodeName(a.User)
	if !isNode {
		return false, "", nil
	}
	if node == "" {
		return false, fmt.Sprintf("unknown node for user %q", a.User.Name), nil
	}
	if a.IsResource() {
		if rule := n.rows[a.Resource.GroupResource()]; rule != nil {
			allowed, reason := rule(node, a)
			return allowed, reason, nil
		}
	}
	q := newQuestion(a)
	return n.rules.allow(&q), "", nil
}

// related allows access to an object that a pod of the node needs.
func (n *Node) related(node string, kind objectKind, a *request.Attributes) (bool, string) {
	if a.Name == "" {
		return false, "No Object name found"
	}
	if !n.graph.reaches(node, object{kind, a.Namespace, a.Name}) {
		return false, fmt.Sprintf("no relationship found between node '%s' and this object", node)
	}
	return true, ""
}

// getOne allows getting an object that a pod of the node needs.
func (n *Node) getOne(kind objectKind) nodeRule {
	return func(node string, a *request.Attributes) (bool, string) {
		if a.Verb != "get" {
			return false, "can only get individual resources of this type"
		}
		if a.Subresource != "" {
			return false, "cannot get subresource"
		}
		return n.related(node, kind, a)
	}
}

// readOne allows reading and watching a single object that a pod of the node needs.
func (n *Node) readOne(kind objectKind) nodeRule {
	return func(node string, a *request.Attributes) (bool, string) {
		switch {
		case a.Verb != "get" && a.Verb != "list" && a.Verb != "watch":
			return false, "can only read resources of this type"
		case a.Subresource != "":
			return false, "cannot read subresource"
		case a.Namespace == "":
			return false, "can only read namespaced object of this type"
		}
		return n.related(node, kind, a)
	}
}

func (n *Node) claim(node string, a *request.Attributes) (bool, string) {
	if a.Subresource != "status" {
		return n.getOne(claimKind)(node, a)
	}
	if a.Verb != "update" && a.Verb != "patch" {
		return false, "can only get/update/patch this type"
	}
	return n.related(node, claimKind, a)
}

// volume allows a node to get the volumes of its pods' claims, and to watch and update those
// whose data it has. Admission limits the update to releasing the volume.
func (n *Node) volume(node string, a *request.Attributes) (bool, string) {
	switch a.Verb {
	case "list", "watch":
		selector, err := labels.Parse(a.LabelSelector)
		if err == nil {
			if holder, ok := selector.RequiresExactMatch(volumeNode); ok && holder == node {
				return true, ""
			}
		}
		return false, "can only list/watch persistentvolumes with " + volumeNode + " label selector"
	case "get", "update":
		if a.Subresource == "" && n.graph.holds(node, a.Name) {
			return true, ""
		}
	}
	return n.getOne(volumeKind)(node, a)
}

func (n *Node) serviceAccount(node string, a *request.Attributes) (bool, string) {
	switch {
	case a.Verb == "get" && a.Subresource == "":
		return n.readOne(serviceAccountKind)(node, a)
	case a.Verb != "create" || a.Name == "":
		return false, "can only create tokens for individual service accounts"
	case a.Subresource != "token":
		return false, "can only create token subresource of serviceaccount"
	}
	return n.related(node, serviceAccountKind, a)
}

func (n *Node) lease(node string, a *request.Attributes) (bool, string) {
	switch {
	case !slices.Contains([]string{"get", "create", "update", "patch", "delete"}, a.Verb):
		return false, "can only get, create, update, patch, or delete a node lease"
	case a.Namespace != corev1.NamespaceNodeLease:
		return false, fmt.Sprintf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	case a.Verb != "create" && a.Name != node: // admission checks the name of a create
		return false, "can only access node lease with the same name as the requesting node"
	}
	return true, ""
}

func (n *Node) csiNode(node string, a *request.Attributes) (bool, string) {
	switch {
	case a.Subresource != "":
		return false, "cannot authorize CSINode subresources"
	case !slices.Contains([]string{"get", "create", "update", "patch", "delete"}, a.Verb):
		return false, "can only get, create, update, patch, or delete a CSINode"
	case a.Verb != "create" && a.Name != node:
		return false, "can only access CSINode with the same name as the requesting node"
	}
	return true, ""
}

// node allows a node to read all Nodes and to write Nodes (admission limits which). Kubernetes
// lets a kubelet read only its own Node, and gives the pod network and the service proxy, which
// route to all nodes, identities of their own; Keelson's node contains both.
func (n *Node) node(_ string, a *request.Attributes) (bool, string) {
	switch a.Subresource + " " + a.Verb {
	case " create", " update", " patch", "status update", "status patch", " get", " list", " watch":
		return true, ""
	}
	return false, ""
}

// pod allows a node to read the pods bound to it, and to write mirror pods, statuses and
// evictions (admission limits of which pods). Of other pods it sees pods/network, the part that
// network policies depend on.
func (n *Node) pod(node string, a *request.Attributes) (bool, string) {
	switch a.Subresource + " " + a.Verb {
	case " create", " delete", "status update", "status patch", "eviction create", "network list", "network watch":
		return true, ""
	case " get":
		return n.related(node, podKind, a)
	case " list", " watch":
		if bound, ok := selected(a, "spec.nodeName"); ok && bound == node {
			return true, ""
		}
		if a.Name != "" {
			return n.related(node, podKind, a)
		}
		return false, "can only list/watch pods with spec.nodeName field selector"
	}
	return false, ""
}

// NodeRules returns the rules of every node. The resources that [Node] decides on individually
// are included, for the role system:node.
func NodeRules() []rbacv1.PolicyRule {
	rule := func(group, resources, verbs string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: strings.Fields(resources), Verbs: strings.Fields(verbs)}
	}
	const (
		read = "get list watch"
		own  = "get create update patch delete"
	)
	events := rule("", "events", "create update patch")
	events.APIGroups = []string{"", "events.k8s.io"}
	return []rbacv1.PolicyRule{
		rule("authentication.k8s.io", "tokenreviews", "create"),
		rule("authorization.k8s.io", "subjectaccessreviews localsubjectaccessreviews", "create"),
		rule("", "services", read),
		rule("", "nodes", "create get list watch update patch"),
		rule("", "nodes/status", "update patch"),
		events,
		rule("", "pods", "get list watch create delete"),
		rule("", "pods/status", "update patch"),
		rule("", "pods/eviction", "create"),
		rule("", "secrets configmaps", read),
		rule("", "persistentvolumeclaims persistentvolumes", "get"),
		rule("", "persistentvolumeclaims/status", "get update patch"),
		rule("", "endpoints", "get"),
		rule("certificates.k8s.io", "certificatesigningrequests", "create get list watch"),
		rule("coordination.k8s.io", "leases", own),
		rule("storage.k8s.io", "volumeattachments", "get"),
		rule("", "serviceaccounts/token", "create"),
		rule("", "serviceaccounts", "get"),
		rule("storage.k8s.io", "csidrivers", read),
		rule("storage.k8s.io", "csinodes", own),
		rule("node.k8s.io", "runtimeclasses", read),
		// Keelson's nodes contain the service proxy and the cluster DNS, which in Kubernetes are
		// pods with roles of their own (system:node-proxier, system:coredns).
		rule("discovery.k8s.io", "endpointslices", read),
		rule("", "namespaces", read),
		// Nodes enforce network policies.
		rule("networking.k8s.io", "networkpolicies", read),
		rule("", "pods/network", "list watch"),
	}
}
