// Package registration registers the node with the cluster: it maintains the Node object
// with its labels, capacity, addresses and conditions, and renews the node's Lease.
//
// It must never change what others write into the Node: taints and conditions of
// controllers, the pod CIDR, addresses set by the cloud controller.
package registration

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/ops"
)

// Config is what the node reports about itself.
type Config struct {
	Name    string
	Client  *client.Client
	Machine *Machine
	Health  *Health
	Labels  map[string]string
	Taints  []corev1.Taint
	Address string
	// External is true if a cloud controller sets the addresses. Until it has, the node has
	// the taint that keeps pods away.
	External bool
	// ShuttingDown reports whether the machine is being shut down; the node is not ready
	// then. The field may be nil.
	ShuttingDown func() bool
	// Pressure returns the pressure conditions that are true. The field may be nil.
	Pressure func() []corev1.NodeConditionType
	// Devices returns the capacity and the allocatable resources that device plug-ins offer.
	// The field may be nil.
	Devices func() (capacity, allocatable corev1.ResourceList)
	// Images returns the images on the node. The field may be nil.
	Images func() []corev1.ContainerImage
}

const (
	// statusPeriod is the interval at which the status is computed. It is written when it
	// has changed, and at least every reportPeriod.
	statusPeriod = time.Second
	reportPeriod = 5 * time.Minute
	// syncPatience bounds the calls of one attempt to report the status. stuck is how long
	// an attempt may take; it also reads the state of the node's other parts.
	syncPatience = 10 * time.Second
	stuck        = time.Minute
)

// Registration maintains the Node object.
type Registration struct {
	cfg      Config
	nodes    *client.Cache[*corev1.Node]
	reported time.Time
	node     atomic.Pointer[corev1.Node]
	progress ops.Progress
	poke     chan struct{}
}

// New returns a Registration. It does nothing until Run is called.
func New(cfg Config) *Registration {
	r := &Registration{cfg: cfg, poke: make(chan struct{}, 1), progress: ops.Progress{Patience: stuck}}
	r.nodes = client.NewCache(cfg.Client, client.CacheOptions[*corev1.Node]{
		FieldSelector: "metadata.name=" + cfg.Name,
		Transform:     func(n *corev1.Node) *corev1.Node { n.ManagedFields = nil; return n },
	})
	return r
}

// Node returns the Node object as last seen, or nil.
func (r *Registration) Node() *corev1.Node {
	n, ok := r.nodes.Get("", r.cfg.Name)
	if !ok {
		return r.node.Load()
	}
	return n
}

// HostIPs returns the node's internal addresses.
func (r *Registration) HostIPs() []string {
	if n := r.Node(); n != nil {
		var out []string
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				out = append(out, a.Address)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return []string{r.cfg.Address}
}

// Check returns an error if the loop that reports the status hangs.
func (r *Registration) Check(ctx context.Context) error { return r.progress.Check(ctx) }

// Poke makes the status be computed now.
func (r *Registration) Poke() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Run registers the node and keeps its object up to date until ctx ends.
func (r *Registration) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		_ = r.nodes.Run(ctx)
	}()
	defer func() { cancel(); <-watch }()
	r.nodes.Subscribe(func(client.Event[*corev1.Node]) { r.Poke() })
	ticker := time.NewTicker(statusPeriod)
	defer ticker.Stop()
	delay := time.Duration(0)
	for {
		r.progress.Begin()
		err := r.sync(ctx)
		r.progress.End()
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "node status was not reported", "node", r.cfg.Name, "error", err)
			delay = min(max(2*delay, 200*time.Millisecond), 10*time.Second)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(delay):
			}
			continue
		}
		delay = 0
		select {
		case <-ctx.Done():
			return nil
		case <-r.poke:
		case <-ticker.C:
		}
	}
}

// sync creates the Node, or updates what differs.
func (r *Registration) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	current, ok := r.nodes.Get("", r.cfg.Name)
	if last := r.node.Load(); last != nil && (!ok || newer(last, current)) && r.nodes.Revision() < revision(last) {
		current, ok = last, true
	}
	nodes := client.For[*corev1.Node](r.cfg.Client)
	if !ok {
		if r.nodes.Revision() == 0 {
			// The watch has not started, so an existing object may not have been seen.
			found, err := nodes.Get(ctx, "", r.cfg.Name)
			switch {
			case err == nil:
				current = found
			case !apierrors.IsNotFound(err):
				return err
			}
		}
		if current == nil {
			created, err := nodes.Create(ctx, r.fresh())
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			if err != nil {
				return err
			}
			slog.InfoContext(ctx, "node registered", "node", r.cfg.Name)
			current = created
		}
		r.node.Store(current)
	}
	if labelled := r.labelled(current); labelled != nil {
		updated, err := nodes.Update(ctx, labelled)
		if err != nil {
			return r.reread(ctx, err)
		}
		r.node.Store(updated)
		current = updated
	}
	want := r.status(current, time.Now())
	if sameStatus(&current.Status, want) && time.Since(r.reported) < reportPeriod {
		return nil
	}
	n := current.DeepCopy()
	n.Status = *want
	updated, err := nodes.UpdateStatus(ctx, n)
	if err != nil {
		return r.reread(ctx, err)
	}
	r.reported = time.Now()
	r.node.Store(updated)
	return nil
}

// reread reads the current object after a conflict, for the next attempt.
func (r *Registration) reread(ctx context.Context, cause error) error {
	if !apierrors.IsConflict(cause) {
		return cause
	}
	n, err := client.For[*corev1.Node](r.cfg.Client).Get(ctx, "", r.cfg.Name)
	if err != nil {
		return errors.Join(cause, err)
	}
	r.node.Store(n)
	return nil
}

// fresh returns the object to register.
func (r *Registration) fresh() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        r.cfg.Name,
		Labels:      r.labels(),
		Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
	}}
	n.Spec.Taints = append(n.Spec.Taints, r.cfg.Taints...)
	if r.cfg.External {
		n.Annotations[providedIP] = r.cfg.Address
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: corev1.TaintEffectNoSchedule})
	}
	n.Status = *r.status(n, time.Now())
	return n
}

func (r *Registration) labels() map[string]string {
	out := map[string]string{
		corev1.LabelHostname:      r.cfg.Name,
		corev1.LabelOSStable:      r.cfg.Machine.Info.OperatingSystem,
		corev1.LabelArchStable:    r.cfg.Machine.Info.Architecture,
		"beta.kubernetes.io/os":   r.cfg.Machine.Info.OperatingSystem,
		"beta.kubernetes.io/arch": r.cfg.Machine.Info.Architecture,
	}
	for k, v := range r.cfg.Labels {
		out[k] = v
	}
	return out
}

// providedIP is the annotation that gives the cloud controller the address that the node
// was configured with. It is kept up to date, so that the cloud controller notices when a
// machine has come back with another address.
const providedIP = "alpha.kubernetes.io/provided-node-ip"

// labelled returns the object with the labels and the annotation that it lacks, or nil if
// it lacks none.
func (r *Registration) labelled(n *corev1.Node) *corev1.Node {
	var out *corev1.Node
	for k, v := range r.labels() {
		if have, ok := n.Labels[k]; ok && have == v {
			continue
		}
		if out == nil {
			out = n.DeepCopy()
			if out.Labels == nil {
				out.Labels = map[string]string{}
			}
		}
		out.Labels[k] = v
	}
	if r.cfg.External && n.Annotations[providedIP] != r.cfg.Address {
		if out == nil {
			out = n.DeepCopy()
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[providedIP] = r.cfg.Address
	}
	return out
}

// sameStatus reports whether two statuses are equal except for heartbeat times.
func sameStatus(a, b *corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{x, y} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return apiequality.Semantic.DeepEqual(x, y)
}
