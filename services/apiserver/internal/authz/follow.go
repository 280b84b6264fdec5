package authz

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// sink receives the objects of one kind.
type sink struct {
	resource schema.GroupVersionResource
	set      func(resource.Object)
	remove   func(namespace, name string)
}

func (z *Authorizers) sinks() []sink {
	rbac := func(plural string) schema.GroupVersionResource { return rbacv1.SchemeGroupVersion.WithResource(plural) }
	core := func(plural string) schema.GroupVersionResource { return corev1.SchemeGroupVersion.WithResource(plural) }
	r, g := z.RBAC, z.Node.graph
	return []sink{
		{rbac("clusterroles"), func(o resource.Object) { r.SetRole("", o.GetName(), o.(*rbacv1.ClusterRole).Rules) }, r.RemoveRole},
		{rbac("roles"), func(o resource.Object) { r.SetRole(o.GetNamespace(), o.GetName(), o.(*rbacv1.Role).Rules) }, r.RemoveRole},
		{rbac("clusterrolebindings"), func(o resource.Object) {
			b := o.(*rbacv1.ClusterRoleBinding)
			r.SetBinding("", b.Name, b.RoleRef, b.Subjects)
		}, r.RemoveBinding},
		{rbac("rolebindings"), func(o resource.Object) {
			b := o.(*rbacv1.RoleBinding)
			r.SetBinding(b.Namespace, b.Name, b.RoleRef, b.Subjects)
		}, r.RemoveBinding},
		{core("pods"), func(o resource.Object) { g.setPod(o.(*corev1.Pod)) },
			func(namespace, name string) { g.remove(object{podKind, namespace, name}) }},
		{core("persistentvolumes"), func(o resource.Object) { g.setVolume(o.(*corev1.PersistentVolume)) },
			func(_, name string) { g.removeVolume(name) }},
		{storagev1.SchemeGroupVersion.WithResource("volumeattachments"), func(o resource.Object) { g.setAttachment(o.(*storagev1.VolumeAttachment)) },
			func(_, name string) { g.remove(object{kind: attachmentKind, name: name}) }},
	}
}

// Follow updates the indexes from the cache until ctx ends. synced is called once, when they
// reflect the state at the start.
func (z *Authorizers) Follow(ctx context.Context, table *resource.Table, cache *watchcache.Cache, synced func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running, loading sync.WaitGroup
	for _, s := range z.sinks() {
		kind := table.ByResource(s.resource)
		if kind == nil {
			continue // a kind that this apiserver does not serve grants nothing
		}
		kc := cache.Kind(kind)
		loading.Add(1)
		running.Go(func() {
			once := sync.OnceFunc(loading.Done)
			defer once()
			if err := s.follow(ctx, kc, once); err != nil {
				cancel(fmt.Errorf("authorization: follow %s: %w", s.resource.Resource, err))
			}
		})
	}
	loading.Wait()
	if ctx.Err() == nil {
		synced()
	}
	running.Wait()
	return context.Cause(ctx)
}

// follow watches one kind. It starts over when it has fallen behind, or when the cache has been
// reloaded.
func (s *sink) follow(ctx context.Context, kc *watchcache.KindCache, synced func()) error {
	known := make(map[objectKey]struct{})
	for {
		err := s.watch(ctx, kc, known, synced)
		if !errors.Is(err, watchcache.ErrSlow) && !errors.Is(err, watchcache.ErrReloaded) {
			return err
		}
	}
}

func (s *sink) watch(ctx context.Context, kc *watchcache.KindCache, known map[objectKey]struct{}, synced func()) error {
	w, err := kc.Watch(watchcache.WatchOptions{Initial: true, InitialEnd: true})
	if err != nil {
		return err
	}
	defer w.Close()
	stale := make(map[objectKey]struct{}, len(known))
	for k := range known {
		stale[k] = struct{}{}
	}
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Type == watchcache.Bookmark {
				if e.InitialEnd {
					for k := range stale {
						s.remove(k.namespace, k.name)
						delete(known, k)
					}
					stale = nil
					synced()
				}
				continue
			}
			o := e.Item.Object()
			key := objectKey{o.GetNamespace(), o.GetName()}
			delete(stale, key)
			if e.Type == watchcache.Deleted {
				s.remove(key.namespace, key.name)
				delete(known, key)
				continue
			}
			s.set(o)
			known[key] = struct{}{}
		}
	}
}
