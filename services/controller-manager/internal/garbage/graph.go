package garbage

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

// node is an object of the graph. It is not changed once it is in the
// graph, but for dependents, which the graph's lock guards.
type node struct {
	kind            *client.Kind
	namespace, name string
	uid             types.UID
	resourceVersion string
	owners          []metav1.OwnerReference
	deleting        bool
	// orphaning and foreground are true if the object has the finalizer of that
	// deletion propagation policy.
	orphaning, foreground bool
}

// graph holds which objects own which.
type graph struct {
	mu    sync.Mutex
	nodes map[types.UID]*node
	// dependents holds, by owner uid, the uids of the objects that name the owner,
	// whether or not it exists.
	dependents map[types.UID]map[types.UID]struct{}
	absent     *absences
}

func newGraph() *graph {
	return &graph{
		nodes: map[types.UID]*node{}, dependents: map[types.UID]map[types.UID]struct{}{}, absent: newAbsences(maxAbsences),
	}
}

func newNode(k *client.Kind, obj metav1.Object) *node {
	n := &node{
		kind: k, namespace: obj.GetNamespace(), name: obj.GetName(), uid: obj.GetUID(), resourceVersion: obj.GetResourceVersion(),
		owners: obj.GetOwnerReferences(), deleting: obj.GetDeletionTimestamp() != nil,
	}
	for _, f := range obj.GetFinalizers() {
		switch f {
		case metav1.FinalizerOrphanDependents:
			n.orphaning = true
		case metav1.FinalizerDeleteDependents:
			n.foreground = true
		}
	}
	return n
}

// put stores an object and returns the uids of the objects that the change may affect.
func (g *graph) put(n *node) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.nodes[n.uid]
	g.nodes[n.uid] = n
	if old != nil {
		g.unlink(old)
	}
	for _, ref := range n.owners {
		if g.dependents[ref.UID] == nil {
			g.dependents[ref.UID] = map[types.UID]struct{}{}
		}
		g.dependents[ref.UID][n.uid] = struct{}{}
	}
	var out []types.UID
	if len(n.owners) > 0 || n.deleting && (n.orphaning || n.foreground) {
		out = append(out, n.uid)
	}
	if n.deleting && n.foreground && (old == nil || !old.deleting || !old.foreground) {
		out = g.appendDependents(out, n.uid)
	}
	// An owner that is being deleted in the foreground waits for the dependents that
	// block it, and this one may have ceased to.
	if old != nil {
		for _, ref := range old.owners {
			out = append(out, ref.UID)
		}
	}
	return out
}

// remove drops an object and returns the uids of its dependents, and of its owners that
// are being deleted.
func (g *graph) remove(uid types.UID) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.absent.add(uid)
	n := g.nodes[uid]
	if n == nil {
		return nil
	}
	delete(g.nodes, uid)
	g.unlink(n)
	out := g.appendDependents(nil, uid)
	for _, ref := range n.owners {
		if o := g.nodes[ref.UID]; o != nil && o.deleting {
			out = append(out, ref.UID)
		}
	}
	return out
}

func (g *graph) unlink(n *node) {
	for _, ref := range n.owners {
		if set := g.dependents[ref.UID]; set != nil {
			delete(set, n.uid)
			if len(set) == 0 {
				delete(g.dependents, ref.UID)
			}
		}
	}
}

func (g *graph) appendDependents(out []types.UID, uid types.UID) []types.UID {
	for d := range g.dependents[uid] {
		out = append(out, d)
	}
	return out
}

func (g *graph) get(uid types.UID) *node {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nodes[uid]
}

// dependentsOf returns the objects that name an owner.
func (g *graph) dependentsOf(uid types.UID) []*node {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*node, 0, len(g.dependents[uid]))
	for d := range g.dependents[uid] {
		if n := g.nodes[d]; n != nil {
			out = append(out, n)
		}
	}
	return out
}

// isAbsent reports whether an owner is known to be deleted.
func (g *graph) isAbsent(uid types.UID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.absent.has(uid)
}

func (g *graph) setAbsent(uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.absent.add(uid)
}

// is reports whether a node is what a reference of one of its dependents names.
func (n *node) is(ref *metav1.OwnerReference, dependentNamespace string) bool {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	return err == nil && n.kind.GVK.Group == gv.Group && n.kind.GVK.Kind == ref.Kind && n.name == ref.Name &&
		(n.namespace == "" || n.namespace == dependentNamespace)
}

// blocks reports whether a dependent keeps an owner from being deleted in the
// foreground.
func (n *node) blocks(owner types.UID) bool {
	i := slices.IndexFunc(n.owners, func(ref metav1.OwnerReference) bool { return ref.UID == owner })
	return i >= 0 && n.owners[i].BlockOwnerDeletion != nil && *n.owners[i].BlockOwnerDeletion
}

// maxAbsences bounds the memory used for deleted uids.
const maxAbsences = 10_000

// absences is a set of uids that are gone for good. The oldest are dropped first; that
// costs another lookup on the server, no more.
type absences struct {
	has1, has2 map[types.UID]struct{}
	limit      int
}

func newAbsences(limit int) *absences {
	return &absences{has1: map[types.UID]struct{}{}, has2: map[types.UID]struct{}{}, limit: limit / 2}
}

func (a *absences) add(uid types.UID) {
	a.has1[uid] = struct{}{}
	if len(a.has1) > a.limit {
		a.has1, a.has2 = map[types.UID]struct{}{}, a.has1
	}
}

func (a *absences) has(uid types.UID) bool {
	_, young := a.has1[uid]
	_, old := a.has2[uid]
	return young || old
}
