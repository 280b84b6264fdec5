// Package garbage deletes objects whose owners are gone, and carries out the
// propagation policies of deletes: background, foreground and orphan.
//
// It must never delete on the word of a cache: a delete names the version of the
// object that was judged, and owners that are not in the graph are looked up in
// the store. An owner of a kind that cannot be looked up keeps its dependents.
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

// Metadata is a cache of the metadata of a kind that no controller needs whole.
type Metadata = client.Cache[*metav1.PartialObjectMetadata]

// Collected reports whether objects of a kind are owners and dependents: all that
// are stored but events, which expire by themselves.
func Collected(k *client.Kind) bool { return k.Stored() && k.Resource != "events" }

// NewMetadata makes the caches of the kinds that the cluster's own caches do not
// hold, or not all of.
func NewMetadata(s *cluster.Cluster) []*Metadata {
	held := map[*client.Kind]bool{}
	for _, w := range whole(s) {
		held[w.kind] = true
	}
	var out []*Metadata
	for _, k := range client.Kinds() {
		if !Collected(k) || held[k] {
			continue
		}
		o := client.CacheOptions[*metav1.PartialObjectMetadata]{Transform: slim}
		if k == s.NodeLeases.Kind() {
			// Those of nodes are in a cache already, and renewed all the time.
			o.FieldSelector = "metadata.namespace!=" + corev1.NamespaceNodeLease
		}
		out = append(out, client.NewCacheOf(client.Metadata(s.Client, k), o))
	}
	return out
}

// held is a cache of the cluster that holds all objects of its kind.
type held struct {
	kind   *client.Kind
	source func(g *collector) controller.Source
}

func of[T client.Object](cache *client.Cache[T]) held {
	return held{cache.Kind(), func(g *collector) controller.Source { return from(g, cache) }}
}

// whole are the caches of the cluster that hold all objects of their kinds.
func whole(s *cluster.Cluster) []held {
	return []held{
		of(s.Namespaces), of(s.Nodes), of(s.Volumes), of(s.StorageClasses), of(s.ClusterRoles), of(s.SigningRequests),
		of(s.ServiceAccounts), of(s.Claims), of(s.Services), of(s.Endpoints), of(s.EndpointSlices), of(s.Deployments),
		of(s.ReplicaSets), of(s.DaemonSets), of(s.StatefulSets), of(s.ControllerRevisions), of(s.ReplicationControllers), of(s.CronJobs), of(s.DisruptionBudgets), of(s.ResourceQuotas),
		of(s.Jobs), of(s.Pods),
	}
}

// slim keeps what the graph needs.
func slim(m *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		OwnerReferences: m.OwnerReferences, Finalizers: m.Finalizers, DeletionTimestamp: m.DeletionTimestamp,
	}}
}

type collector struct {
	c      *client.Client
	events *event.Recorder
	graph  *graph
	// complete is closed when every kind is in the graph; before, an owner that
	// is not there says nothing.
	complete chan struct{}
	// kinds are those in the graph.
	kinds []*client.Kind

	mu sync.Mutex
	// reported are the references that there was an event about; forgetting one costs
	// another event, which counts up the first.
	reported *absences
}

// New is the controller; its keys are uids.
func New(s *cluster.Cluster, metadata []*Metadata) controller.Controller {
	g := &collector{
		c: s.Client, events: s.Events, graph: newGraph(), complete: make(chan struct{}),
		reported: newAbsences(maxAbsences),
	}
	sources := []controller.Source{from(g, s.NodeLeases)}
	for _, w := range whole(s) {
		sources = append(sources, w.source(g))
	}
	for _, m := range metadata {
		sources = append(sources, from(g, m))
	}
	return controller.Controller{
		Name: "garbage", Workers: 20, Reconcile: g.reconcile, Sources: sources,
		// At the start every owned object comes by at once.
		MaxQueue: 5_000_000,
		Started:  func() { close(g.complete) },
	}
}

// from feeds the graph with a cache.
func from[T client.Object](g *collector, cache *client.Cache[T]) controller.Source {
	if !slices.Contains(g.kinds, cache.Kind()) { // there are two caches of Leases
		g.kinds = append(g.kinds, cache.Kind())
	}
	return controller.From(cache, func(ev client.Event[T]) []controller.Key {
		var uids []types.UID
		if ev.Type == client.Deleted {
			uids = g.graph.remove(ev.Object.GetUID())
		} else {
			uids = g.graph.put(newNode(cache.Kind(), ev.Object))
		}
		keys := make([]controller.Key, len(uids))
		for i, uid := range uids {
			keys[i] = controller.Key{Name: string(uid)}
		}
		return keys
	})
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

// standing is how an object's owners are.
type standing struct {
	// solid ones keep it; dangling ones are gone; waiting ones are being deleted
	// in the foreground and want it gone first.
	solid, dangling, waiting []metav1.OwnerReference
	// unknown is set where an owner is in the store but not in the graph yet.
	unknown bool
}

// judge deletes an object that no owner keeps, and takes off references to
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
		// The usual case: if the object is still as the graph knows it, it goes.
		err := objects.Delete(ctx, n.namespace, n.name, client.UID(n.uid), client.ResourceVersion(n.resourceVersion), client.Propagation(metav1.DeletePropagationBackground))
		if err == nil || apierrors.IsNotFound(err) {
			return controller.Result{}, nil
		}
		if !apierrors.IsConflict(err) {
			return controller.Result{}, fmt.Errorf("delete %s %s/%s: %w", n.kind.Resource, n.namespace, n.name, err)
		}
	}
	// What the store says now decides.
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

// owners looks at each owner, in the graph and, where that does not decide, in
// the store.
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

// lookAgain is when an owner is looked up again that is in the store but not in
// the graph: it should come, or go, by itself.
const lookAgain = 30 * time.Second

// finding is what the store says of an owner.
type finding int

const (
	gone finding = iota
	present
	// unjudged is an owner of a kind that cannot be looked up.
	unjudged
)

// lookUp asks the store for an owner, where its dependent says that it is.
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
	// No object has this name, or another one has: the uid does not come back, unless
	// the reference names the wrong object.
	if g.graph.get(ref.UID) == nil {
		g.graph.setAbsent(ref.UID)
	} else if k.Namespaced {
		g.reportNamespace(ctx, n, ref)
	}
	return gone, nil
}

// reportNamespace says that a reference names an owner where it cannot be: owners are
// looked for in their dependent's own namespace.
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

// breakCycle lets a dependent that waits for n itself go on: two that block each
// other would wait forever.
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

// foreground lets an object go when nothing blocks it any more: first by the
// graph, then by the store, because the graph may not know a dependent yet.
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

// orphan takes an object's dependents off it, then lets it go. It looks for them
// in the store: one that the graph does not know yet would be collected as soon
// as its owner has gone, and it was to live.
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

// unreference takes owners off an object. A resourceVersion, if given, must be
// the present one.
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

// dropFinalizer takes a finalizer off the object as it is in the store.
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
