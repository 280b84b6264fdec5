// Package garbage deletes objects whose owners are gone, and carries out the
// propagation policies of deletes: background, foreground and orphan.
//
// It must never delete on the evidence of a cache alone: each delete is conditional on
// the version of the object that was examined, and owners that are not in the graph are
// looked up on the server. An owner whose kind cannot be looked up keeps its
// dependents.
package garbage

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

// Collected reports whether objects of a kind take part in garbage collection, as
// owners and dependents: all stored kinds except events, which expire.
func Collected(k *client.Kind) bool { return k.Stored() && k.Resource != "events" }

type collector struct {
	c      *client.Client
	events *event.Recorder
	graph  *graph
	// complete is closed once every kind is in the graph. Before that, an owner that is
	// missing from the graph may still exist.
	complete chan struct{}
	// kinds lists the kinds in the graph.
	kinds []*client.Kind

	mu sync.Mutex
	// reported holds the references for which an event was recorded. If one is dropped,
	// the event is recorded again, which only increases its count.
	reported *absences
}

// New returns the garbage collector. Its keys are uids. It reads a cache of every kind:
// the one that another controller has, or one of metadata.
func New(s *cluster.Cluster) controller.Controller {
	g := &collector{
		c: s.Client, events: s.Events, graph: newGraph(), complete: make(chan struct{}),
		reported: newAbsences(maxAbsences),
	}
	var sources []controller.Source
	for _, k := range client.Kinds() {
		if !Collected(k) {
			continue
		}
		g.kinds = append(g.kinds, k)
		for _, c := range cluster.All(s, k) {
			sources = append(sources, c.Source(func(ev client.Event[client.Object]) []controller.Key { return g.keys(k, ev) }))
		}
	}
	return controller.Controller{
		Name: "garbage", Workers: 20, Reconcile: g.reconcile, Sources: sources,
		// At the start every owned object is queued at once.
		MaxQueue: 5_000_000,
		Started:  func() { close(g.complete) },
	}
}

// keys brings the graph up to date with an event and returns the objects that the event
// may affect.
func (g *collector) keys(k *client.Kind, ev client.Event[client.Object]) []controller.Key {
	var uids []types.UID
	if ev.Type == client.Deleted {
		uids = g.graph.remove(ev.Object.GetUID())
	} else {
		uids = g.graph.put(newNode(k, ev.Object))
	}
	keys := make([]controller.Key, len(uids))
	for i, uid := range uids {
		keys[i] = controller.Key{Name: string(uid)}
	}
	return keys
}

func (g *collector) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	select {
	case <-g.complete:
	case <-ctx.Done():
		return controller.Result{}, ctx.Err()
	}
	n := g.graph.get(types.UID(key.Name))
	if n == nil {
		return controller.Result{}, nil
	}
	switch {
	case n.deleting && n.orphaning:
		return controller.Result{}, g.orphan(ctx, n)
	case n.deleting && n.foreground:
		return controller.Result{}, g.foreground(ctx, n)
	case n.deleting || len(n.owners) == 0:
		return controller.Result{}, nil
	}
	return g.judge(ctx, n)
}

// standing is the state of an object's owners.
type standing struct {
	// solid owners keep the object. dangling owners are gone. waiting owners are being
	// deleted in the foreground and wait until the object is gone.
	solid, dangling, waiting []metav1.OwnerReference
	// unknown is true if an owner is on the server but not in the graph yet.
	unknown bool
}

// judge deletes an object that no owner keeps, and otherwise removes references to
// owners that are gone.
func (g *collector) judge(ctx context.Context, n *node) (controller.Result, error) {
	st, err := g.owners(ctx, n, n.owners)
	if err != nil {
		return controller.Result{}, err
	}
	if len(st.dangling)+len(st.waiting) == 0 {
		if st.unknown {
			return controller.Result{RequeueAfter: lookAgain}, nil
		}
		return controller.Result{}, nil
	}
	objects := client.Metadata(g.c, n.kind)
	if len(st.solid)+len(st.waiting) == 0 && !n.orphaning && !n.foreground {
		// The usual case: the object is unchanged since the graph saw it, and is
		// deleted.
		err := objects.Delete(ctx, n.namespace, n.name, client.UID(n.uid), client.ResourceVersion(n.resourceVersion), client.Propagation(metav1.DeletePropagationBackground))
		if err == nil || apierrors.IsNotFound(err) {
			return controller.Result{}, nil
		}
		if !apierrors.IsConflict(err) {
			return controller.Result{}, fmt.Errorf("delete %s %s/%s: %w", n.kind.Resource, n.namespace, n.name, err)
		}
	}
	// The object has changed, so the decision is made on its current version.
	live, err := objects.Get(ctx, n.namespace, n.name)
	if apierrors.IsNotFound(err) || err == nil && live.UID != n.uid {
		return controller.Result{}, nil
	}
	if err != nil {
		return controller.Result{}, err
	}
	if st, err = g.owners(ctx, n, live.OwnerReferences); err != nil {
		return controller.Result{}, err
	}
	switch {
	case len(live.OwnerReferences) == 0 || len(st.dangling)+len(st.waiting) == 0 || live.DeletionTimestamp != nil:
		return controller.Result{}, nil
	case len(st.solid) > 0:
		return controller.Result{}, g.unreference(ctx, n, live.ResourceVersion, slices.Concat(st.dangling, st.waiting))
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case len(st.waiting) > 0 && len(g.graph.dependentsOf(n.uid)) > 0:
		policy = metav1.DeletePropagationForeground
		if err := g.breakCycle(ctx, n); err != nil {
			return controller.Result{}, err
		}
	case slices.Contains(live.Finalizers, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(live.Finalizers, metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	slog.DebugContext(ctx, "collected", "resource", n.kind.Resource, "namespace", n.namespace, "name", n.name, "propagation", policy)
	err = objects.Delete(ctx, n.namespace, n.name, client.UID(n.uid), client.ResourceVersion(live.ResourceVersion), client.Propagation(policy))
	if err != nil && !apierrors.IsNotFound(err) {
		return controller.Result{}, fmt.Errorf("delete %s %s/%s: %w", n.kind.Resource, n.namespace, n.name, err)
	}
	return controller.Result{}, nil
}

// owners looks up each owner, in the graph and, if that is not conclusive, on the
// server.
func (g *collector) owners(ctx context.Context, n *node, refs []metav1.OwnerReference) (standing, error) {
	var st standing
	for _, ref := range refs {
		o := g.graph.get(ref.UID)
		switch {
		case o != nil && o.is(&ref, n.namespace):
			if o.deleting && o.foreground {
				st.waiting = append(st.waiting, ref)
			} else {
				st.solid = append(st.solid, ref)
			}
			continue
		case o == nil && g.graph.isAbsent(ref.UID):
			st.dangling = append(st.dangling, ref)
			continue
		}
		found, err := g.lookUp(ctx, n, &ref)
		if err != nil {
			return st, err
		}
		if found == gone {
			st.dangling = append(st.dangling, ref)
			continue
		}
		st.solid = append(st.solid, ref)
		st.unknown = st.unknown || found == present
	}
	return st, nil
}

// lookAgain is the time after which an owner that is on the server but not in the graph
// is looked up again. Normally the watch shows it, or its deletion, first.
const lookAgain = 30 * time.Second

// finding is the result of looking up an owner on the server.
type finding int

const (
	gone finding = iota
	present
	// unjudged means that owners of this kind cannot be looked up.
	unjudged
)

// lookUp reads an owner from the server, in the namespace of its dependent.
func (g *collector) lookUp(ctx context.Context, n *node, ref *metav1.OwnerReference) (finding, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return unjudged, nil //nolint:nilerr // validation keeps such references out.
	}
	k := client.KindFor(gv.WithKind(ref.Kind))
	if k == nil {
		return unjudged, nil
	}
	if k.Namespaced && n.namespace == "" {
		g.reportNamespace(ctx, n, ref)
		return unjudged, nil
	}
	namespace := ""
	if k.Namespaced {
		namespace = n.namespace
	}
	got, err := client.Metadata(g.c, k).Get(ctx, namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err) && unserved(err):
		return unjudged, nil
	case err != nil && !apierrors.IsNotFound(err):
		return gone, fmt.Errorf("owner %s %s: %w", ref.Kind, ref.Name, err)
	case err == nil && got.UID == ref.UID:
		return present, nil
	}
	// No object has this name, or one with another uid has. The owner's uid cannot come
	// back, unless the reference names the wrong object.
	if g.graph.get(ref.UID) == nil {
		g.graph.setAbsent(ref.UID)
	} else if k.Namespaced {
		g.reportNamespace(ctx, n, ref)
	}
	return gone, nil
}

// reportNamespace records that a reference names an owner in another namespace, where
// it is not looked up.
func (g *collector) reportNamespace(ctx context.Context, n *node, ref *metav1.OwnerReference) {
	owner := g.graph.get(ref.UID)
	if owner != nil && owner.namespace == n.namespace {
		return // it is of another name or kind
	}
	pair := n.uid + "/" + ref.UID
	g.mu.Lock()
	known := g.reported.has(pair)
	g.reported.add(pair)
	g.mu.Unlock()
	if known {
		return
	}
	about := corev1.ObjectReference{APIVersion: n.kind.APIVersion(), Kind: n.kind.GVK.Kind, Namespace: n.namespace, Name: n.name, UID: n.uid}
	g.events.About(ctx, about, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", fmt.Sprintf(
		"ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q",
		ref.APIVersion, ref.Kind, n.namespace, ref.Name, ref.UID, n.namespace))
}

// unserved reports whether a NotFound means that the kind is not served, not that the
// object does not exist.
func unserved(err error) bool {
	status, ok := err.(apierrors.APIStatus) //nolint:errorlint // statuses are returned as they are.
	if !ok || status.Status().Details == nil {
		return false
	}
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeUnexpectedServerResponse {
			return true
		}
	}
	return false
}

// breakCycle unblocks dependents that in turn wait for n: two objects that block each
// other would otherwise wait forever.
func (g *collector) breakCycle(ctx context.Context, n *node) error {
	for _, d := range g.graph.dependentsOf(n.uid) {
		if !d.deleting || !d.foreground || !d.blocks(n.uid) {
			continue
		}
		refs := slices.Clone(d.owners)
		no := false
		for i := range refs {
			if refs[i].UID == n.uid {
				refs[i].BlockOwnerDeletion = &no
			}
		}
		if err := g.patch(ctx, d, map[string]any{"uid": d.uid, "resourceVersion": d.resourceVersion, "ownerReferences": refs}, types.MergePatchType); err != nil {
			return err
		}
	}
	return nil
}

// foreground lets an object be deleted once nothing blocks it, first according to the
// graph, then according to the server, because the graph may not have seen a dependent
// yet.
func (g *collector) foreground(ctx context.Context, n *node) error {
	for _, d := range g.graph.dependentsOf(n.uid) {
		if d.blocks(n.uid) {
			return nil // its own key deletes it; its end comes back to this one.
		}
	}
	for d, err := range g.storedDependents(ctx, n) {
		switch {
		case err != nil:
			return err
		case d.blocks(n.uid):
			return fmt.Errorf("%w: %s %s/%s", controller.ErrStale, d.kind.Resource, d.namespace, d.name)
		}
	}
	return g.dropFinalizer(ctx, n, metav1.FinalizerDeleteDependents)
}

// orphan removes an object from the owners of its dependents, and then lets it be
// deleted. It lists the dependents on the server, because one that the graph does not
// know yet would be collected once its owner is gone.
func (g *collector) orphan(ctx context.Context, n *node) error {
	for d, err := range g.storedDependents(ctx, n) {
		if err != nil {
			return err
		}
		if err := g.unreference(ctx, d, "", []metav1.OwnerReference{{UID: n.uid}}); err != nil {
			return err
		}
	}
	return g.dropFinalizer(ctx, n, metav1.FinalizerOrphanDependents)
}

// storedDependents is the dependents of an object that are in the store. Those of
// a namespaced one are in its namespace.
func (g *collector) storedDependents(ctx context.Context, n *node) iter.Seq2[*node, error] {
	return func(yield func(*node, error) bool) {
		for _, k := range g.kinds {
			if n.namespace != "" && !k.Namespaced {
				continue
			}
			for obj, err := range client.Metadata(g.c, k).All(ctx, client.ListOptions{Namespace: n.namespace}) {
				if err != nil {
					yield(nil, fmt.Errorf("dependents of %s %s/%s: %w", n.kind.Resource, n.namespace, n.name, err))
					return
				}
				if !slices.ContainsFunc(obj.OwnerReferences, func(ref metav1.OwnerReference) bool { return ref.UID == n.uid }) {
					continue
				}
				if !yield(newNode(k, obj), nil) {
					return
				}
			}
		}
	}
}

// unreference removes owners from an object. If resourceVersion is given, it must be
// the current one.
func (g *collector) unreference(ctx context.Context, n *node, resourceVersion string, refs []metav1.OwnerReference) error {
	meta := map[string]any{"uid": n.uid}
	if resourceVersion != "" {
		meta["resourceVersion"] = resourceVersion
	}
	var gone []any
	for _, ref := range refs {
		gone = append(gone, map[string]any{"$patch": "delete", "uid": ref.UID})
	}
	meta["ownerReferences"] = gone
	return g.patch(ctx, n, meta, types.StrategicMergePatchType)
}

// dropFinalizer removes a finalizer from the current version of an object.
func (g *collector) dropFinalizer(ctx context.Context, n *node, finalizer string) error {
	live, err := client.Metadata(g.c, n.kind).Get(ctx, n.namespace, n.name)
	if apierrors.IsNotFound(err) || err == nil && (live.UID != n.uid || !slices.Contains(live.Finalizers, finalizer)) {
		return nil
	}
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(live.Finalizers, func(f string) bool { return f == finalizer })
	return g.patch(ctx, n, map[string]any{"resourceVersion": live.ResourceVersion, "finalizers": left}, types.MergePatchType)
}

func (g *collector) patch(ctx context.Context, n *node, meta map[string]any, kind types.PatchType) error {
	data, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return err
	}
	_, err = client.Metadata(g.c, n.kind).Patch(ctx, n.namespace, n.name, kind, data)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch %s %s/%s: %w", n.kind.Resource, n.namespace, n.name, err)
	}
	return nil
}
