// Package nodettl tells nodes, in the annotation node.alpha.kubernetes.io/ttl, for how many
// seconds they may use a Secret or ConfigMap without asking for it again, as Kubernetes'
// ttl-controller does. The time grows with the number of nodes.
//
// It must never change anything but that annotation.
package nodettl

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// tiers are the sizes of clusters, as in Kubernetes. They overlap, so that a cluster whose
// size changes by a node does not change all annotations each time.
var tiers = []struct {
	least, most int // nodes
	seconds     int
}{
	{0, 100, 0},
	{90, 500, 15},
	{450, 1000, 30},
	{900, 2000, 60},
	{1800, 10_000, 300},
	{9000, int(^uint(0) >> 1), 600},
}

// Plan returns the tier of a cluster of this many nodes that was in tier.
func Plan(tier, nodes int) int {
	for tier < len(tiers)-1 && nodes > tiers[tier].most {
		tier++
	}
	for tier > 0 && nodes < tiers[tier].least {
		tier--
	}
	return tier
}

// New returns the controller; its keys are nodes.
func New(s *cluster.Cluster) controller.Controller {
	var (
		nodes  = client.For[*corev1.Node](s.Client)
		cached = cluster.Of[*corev1.Node](s)
		mu     sync.Mutex
		tier   int
	)
	return controller.Controller{
		Name: "node-ttl", Workers: 2,
		Sources: []controller.Source{controller.From(cached, func(ev client.Event[*corev1.Node]) []controller.Key {
			mu.Lock()
			defer mu.Unlock()
			before := tier
			if tier = Plan(tier, cached.Len()); tier == before {
				return []controller.Key{client.KeyOf(ev.Object)}
			}
			var keys []controller.Key
			for _, n := range cached.List() {
				keys = append(keys, client.KeyOf(n))
			}
			return keys
		})},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			n, ok := cached.Get("", key.Name)
			mu.Lock()
			want := strconv.Itoa(tiers[tier].seconds)
			mu.Unlock()
			if !ok || n.DeletionTimestamp != nil {
				return controller.Result{}, nil
			}
			if have, set := n.Annotations[corev1.ObjectTTLAnnotationKey]; set && have == want {
				return controller.Result{}, nil
			}
			patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
				"uid": n.UID, "annotations": map[string]string{corev1.ObjectTTLAnnotationKey: want},
			}})
			if err != nil {
				return controller.Result{}, err
			}
			if _, err := nodes.Patch(ctx, "", n.Name, types.MergePatchType, patch); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return controller.Result{}, fmt.Errorf("ttl of node %s: %w", n.Name, err)
			}
			return controller.Result{}, nil
		},
	}
}
