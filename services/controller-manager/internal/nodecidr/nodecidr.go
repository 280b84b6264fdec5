// Package nodecidr gives each node a range of pod addresses, spec.podCIDR.
//
// It must never give one range to two nodes: there is one worker, and before it
// gives out the first range it reads all nodes from the store, not from the
// cache, so that nothing which its predecessor gave out is missed.
package nodecidr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// Config is the ranges.
type Config struct {
	// Prefixes are the cluster's pod ranges, at most one of each family.
	Prefixes []netip.Prefix
	// Bits4 and Bits6 are the size of a node's range; 0 means 24 and 64.
	Bits4, Bits6 int
}

type reconciler struct {
	*cluster.Cluster

	nodes  client.Resource[*corev1.Node]
	pools  []*pool
	seeded bool
	given  map[string][]string // what a node was given and the cache may not show yet
}

// New is the controller.
func New(s *cluster.Cluster, cfg Config) (controller.Controller, error) {
	r := &reconciler{Cluster: s, nodes: client.For[*corev1.Node](s.Client), given: map[string][]string{}}
	for _, prefix := range cfg.Prefixes {
		bits := orElse(cfg.Bits4, 24)
		if prefix.Addr().Is6() {
			bits = orElse(cfg.Bits6, 64)
		}
		p, err := newPool(prefix, bits)
		if err != nil {
			return controller.Controller{}, err
		}
		r.pools = append(r.pools, p)
	}
	return controller.Controller{
		Name: "nodecidr", Workers: 1, Reconcile: r.reconcile,
		Sources: []controller.Source{controller.Objects(s.Nodes)},
	}, nil
}

func orElse(v, other int) int {
	if v == 0 {
		return other
	}
	return v
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	if err := r.seed(ctx); err != nil {
		return controller.Result{}, err
	}
	node, ok := r.Nodes.Get("", key.Name)
	if !ok {
		for _, p := range r.pools {
			p.release(key.Name)
		}
		delete(r.given, key.Name)
		return controller.Result{}, nil
	}
	if node.Spec.PodCIDR != "" {
		r.occupy(node)
		delete(r.given, node.Name)
		return controller.Result{}, nil
	}
	if node.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	return controller.Result{}, r.give(ctx, node)
}

// seed marks what all nodes have, once.
func (r *reconciler) seed(ctx context.Context) error {
	if r.seeded {
		return nil
	}
	for node, err := range r.nodes.All(ctx, client.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("read the nodes' ranges: %w", err)
		}
		r.occupy(node)
	}
	r.seeded = true
	return nil
}

func (r *reconciler) occupy(node *corev1.Node) {
	for _, cidr := range ranges(node) {
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			for _, p := range r.pools {
				p.take(node.Name, prefix)
			}
		}
	}
}

func ranges(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) > 0 {
		return node.Spec.PodCIDRs
	}
	if node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return nil
}

// give writes a node's ranges. What it was given in a write whose outcome is
// unknown is given again.
func (r *reconciler) give(ctx context.Context, node *corev1.Node) error {
	cidrs := r.given[node.Name]
	if cidrs == nil {
		for _, p := range r.pools {
			prefix, err := p.allocate(node.Name)
			if err != nil {
				r.Events.Warning(ctx, node, "CIDRNotAvailable", "Node %s status is now: CIDRNotAvailable", node.Name)
				return fmt.Errorf("%s: %w", p.prefix, err)
			}
			cidrs = append(cidrs, prefix.String())
		}
		r.given[node.Name] = cidrs
	}
	if len(cidrs) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID},
		"spec":     map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs},
	})
	if err != nil {
		return err
	}
	_, err = r.nodes.Patch(ctx, "", node.Name, types.MergePatchType, patch)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsInvalid(err) || apierrors.IsForbidden(err):
		// Somebody else gave it a range: the cache will show which.
		return errors.Join(controller.ErrStale, err)
	case err != nil:
		return fmt.Errorf("node %s: %w", node.Name, err)
	}
	return nil
}
