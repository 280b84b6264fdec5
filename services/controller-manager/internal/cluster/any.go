package cluster

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/controller"
)

// Any is a cache of any kind, read for the metadata of its objects.
type Any struct {
	Cache

	source func(keys func(client.Event[client.Object]) []controller.Key) controller.Source
}

// Source returns the source of the cache's events; see [controller.From]. Of an object
// only the metadata may be read. Old is nil but for Modified.
func (a Any) Source(keys func(client.Event[client.Object]) []controller.Key) controller.Source {
	return a.source(keys)
}

func anyOf[T client.Object](cache *client.Cache[T]) Any {
	return Any{Cache: cache, source: func(keys func(client.Event[client.Object]) []controller.Key) controller.Source {
		return controller.From(cache, func(ev client.Event[T]) []controller.Key {
			out := client.Event[client.Object]{
				Type: ev.Type, Object: ev.Object, ResourceVersion: ev.ResourceVersion, InitialEnd: ev.InitialEnd, Traceparent: ev.Traceparent,
			}
			if ev.Type == client.Modified {
				out.Old = ev.Old
			}
			return keys(out)
		})
	}}
}

// nodeLeases is the part of the Leases that has a cache of its own.
var nodeLeases = Selection[*coordinationv1.Lease]{Namespace: corev1.NamespaceNodeLease}

// NodeLeases returns the cache of the nodes' Leases, by which they report that they live.
func NodeLeases(s *Cluster) *client.Cache[*coordinationv1.Lease] { return Select(s, nodeLeases) }

// All returns caches that together hold each object of a kind once: that of the whole
// kind if there is one, and otherwise one of metadata, which it makes if needed, with
// that of a namespace's objects.
func All(s *Cluster, kind *client.Kind) []Any {
	s.caches.mu.Lock()
	if e := s.caches.lookUp(kind, "", "", false); e != nil {
		s.caches.mu.Unlock()
		return []Any{e.Any}
	}
	var out []Any
	fields := ""
	for _, e := range s.caches.entries {
		// Node leases are renewed all the time: no second cache watches them.
		if e.kind == kind && e.namespace != "" && e.fields == "" && fields == "" {
			out, fields = append(out, e.Any), "metadata.namespace!="+e.namespace
		}
	}
	s.caches.mu.Unlock()
	cache, isNew := find(s.caches, kind, "", fields, true, func() *client.Cache[*metav1.PartialObjectMetadata] {
		return client.NewCacheOf(client.Metadata(s.Client, kind), client.CacheOptions[*metav1.PartialObjectMetadata]{FieldSelector: fields, Transform: slimMetadata})
	})
	if isNew && s.caches.made != nil {
		s.caches.made(cache)
	}
	return append(out, anyOf(cache))
}
