// Package nodeipam assigns each node a range of pod addresses within the cluster's.
//
// Invariant: no two nodes ever hold overlapping ranges. One worker allocates;
// before its first allocation it reads all nodes from the server, not from a
// cache that may lag behind a predecessor's last write; a range is free again
// only when its node has gone.
//
// It must never change a range that a node has.
package nodeipam

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

// Config holds the range to allocate from.
type Config struct {
	// ClusterCIDR is the IPv4 range of all pods.
	ClusterCIDR netip.Prefix
	// NodeMaskSize is the prefix length of a node's range.
	NodeMaskSize int
}

// Check returns an error if the sizes do not fit the range.
func (c Config) Check() error {
	if !c.ClusterCIDR.IsValid() || !c.ClusterCIDR.Addr().Is4() {
		return fmt.Errorf("--cluster-cidr %s: want an IPv4 range", c.ClusterCIDR)
	}
	if c.NodeMaskSize < c.ClusterCIDR.Bits() || c.NodeMaskSize > 30 || c.NodeMaskSize-c.ClusterCIDR.Bits() > 16 {
		return fmt.Errorf("--node-cidr-mask-size %d: want %d to %d", c.NodeMaskSize, c.ClusterCIDR.Bits(), min(30, c.ClusterCIDR.Bits()+16))
	}
	return nil
}

// simulated is the label of simulated nodes.
const simulated = "keelson.dev/simulated"

type reconciler struct {
	*cluster.Cluster

	Nodes *client.Cache[*corev1.Node]

	nodes  client.Resource[*corev1.Node]
	ranges *Ranges
	primed bool
}

// New returns the controller.
func New(s *cluster.Cluster, c Config) controller.Controller {
	r := &reconciler{Cluster: s, Nodes: cluster.Of[*corev1.Node](s), nodes: client.For[*corev1.Node](s.Client), ranges: NewRanges(c)}
	return controller.Controller{
		Name: "node-ipam", Workers: 1, Reconcile: r.reconcile,
		Sources: []controller.Source{controller.Objects(r.Nodes)},
	}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	if !r.primed {
		for node, err := range r.nodes.All(ctx, client.ListOptions{}) {
			if err != nil {
				return controller.Result{}, fmt.Errorf("read all nodes: %w", err)
			}
			r.ranges.Occupy(node.Name, node.Spec.PodCIDR)
		}
		r.primed = true
	}
	node, ok := r.Nodes.Get("", key.Name)
	if !ok {
		// The cache may show a deletion before a new node of the same name.
		if _, err := r.nodes.Get(ctx, "", key.Name); apierrors.IsNotFound(err) {
			r.ranges.Release(key.Name)
		} else if err != nil {
			return controller.Result{}, err
		}
		return controller.Result{}, nil
	}
	if node.Spec.PodCIDR != "" {
		r.ranges.Occupy(node.Name, node.Spec.PodCIDR)
		return controller.Result{}, nil
	}
	// A simulated node has no network; a thousand of them would leave real ones
	// without ranges.
	if node.DeletionTimestamp != nil || node.Labels[simulated] == "true" {
		return controller.Result{}, nil
	}
	cidr, err := r.ranges.Allocate(node.Name)
	if err != nil {
		r.Events.Warning(ctx, node, "CIDRNotAvailable", "Node %s status is now: CIDRNotAvailable", node.Name)
		return controller.Result{}, fmt.Errorf("node %s: %w", node.Name, err)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"podCIDR": cidr, "podCIDRs": []string{cidr}},
	})
	if err != nil {
		return controller.Result{}, err
	}
	// The range stays the node's own, whatever becomes of this write: a retry
	// offers the same one.
	if _, err := r.nodes.Patch(ctx, "", node.Name, types.MergePatchType, patch); err != nil && !apierrors.IsNotFound(err) {
		return controller.Result{}, fmt.Errorf("podCIDR of node %s: %w", node.Name, err)
	}
	return controller.Result{}, nil
}

// Ranges records which node holds which part of the cluster's range, in parts of a
// node's size.
type Ranges struct {
	config Config
	// holders counts the nodes that hold a part: one that a client wrote into a
	// Node may be another's too, and is free when both have gone.
	holders map[int]int
	held    map[string]span
	next    int
}

// span is the range of parts from first to last.
type span struct{ first, last int }

// NewRanges returns an empty record.
func NewRanges(c Config) *Ranges {
	return &Ranges{config: c, holders: map[int]int{}, held: map[string]span{}}
}

func (r *Ranges) size() int { return 1 << (r.config.NodeMaskSize - r.config.ClusterCIDR.Bits()) }

// Occupy records the range that a node has, of any size; one that does not overlap
// the cluster's is ignored.
func (r *Ranges) Occupy(node, cidr string) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !r.config.ClusterCIDR.Overlaps(p) {
		return
	}
	s := span{0, r.size() - 1}
	if p.Bits() > r.config.ClusterCIDR.Bits() {
		s.first = int((value(p.Masked().Addr()) - value(r.config.ClusterCIDR.Masked().Addr())) >> (32 - r.config.NodeMaskSize))
		s.last = s.first
		if more := r.config.NodeMaskSize - p.Bits(); more > 0 {
			s.last += 1<<more - 1
		}
	}
	r.Release(node)
	r.hold(node, s)
}

func (r *Ranges) hold(node string, s span) {
	r.held[node] = s
	for i := s.first; i <= s.last; i++ {
		r.holders[i]++
	}
}

// Release frees a node's range.
func (r *Ranges) Release(node string) {
	s, ok := r.held[node]
	if !ok {
		return
	}
	delete(r.held, node)
	for i := s.first; i <= s.last; i++ {
		if r.holders[i]--; r.holders[i] == 0 {
			delete(r.holders, i)
		}
	}
}

// ErrFull means that the cluster's range is used up.
var ErrFull = errors.New("no pod address range is left in --cluster-cidr")

// Allocate gives a node a range, the same each time until it is released. Ranges
// just freed are the last to be used again.
func (r *Ranges) Allocate(node string) (string, error) {
	s, ok := r.held[node]
	if !ok {
		n := r.size()
		i := r.next
		for k := range n {
			if i = (r.next + k) % n; r.holders[i] == 0 {
				ok = true
				break
			}
		}
		if !ok {
			return "", ErrFull
		}
		r.next = i + 1
		s = span{i, i}
		r.hold(node, s)
	}
	base := value(r.config.ClusterCIDR.Masked().Addr()) + uint32(s.first)<<(32-r.config.NodeMaskSize)
	addr := netip.AddrFrom4([4]byte{byte(base >> 24), byte(base >> 16), byte(base >> 8), byte(base)})
	return netip.PrefixFrom(addr, r.config.NodeMaskSize).String(), nil
}

func value(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
