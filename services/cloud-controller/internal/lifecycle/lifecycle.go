// Package lifecycle removes Nodes whose machine no longer exists, and taints
// those whose machine is shut down.
//
// It must never delete a Node that is Ready, that has no provider id, that belongs to
// another provider, or whose machine could not be looked up.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

const (
	// shutdownTaint keeps pods from a machine that is shut down
	// (k8s.io/cloud-provider/api).
	shutdownTaint = "node.cloudprovider.kubernetes.io/shutdown"
	// lookEvery is how often the machine of a Node that is not Ready is looked up. The
	// value is Kubernetes' node monitor period.
	lookEvery      = 5 * time.Second
	simulatedLabel = "keelson.dev/simulated"
)

// Controller checks the machines of Nodes that are not Ready.
type Controller struct {
	client   *client.Client
	nodes    *client.Cache[*corev1.Node]
	provider provider.Provider
	events   *event.Recorder
}

// New returns the controller. The program runs the cache.
func New(c *client.Client, nodes *client.Cache[*corev1.Node], p provider.Provider, events *event.Recorder) *Controller {
	return &Controller{client: c, nodes: nodes, provider: p, events: events}
}

// Controller returns the control loop.
func (c *Controller) Controller() controller.Controller {
	return controller.Controller{
		Name: "cloud-node-lifecycle", Workers: 4, Reconcile: c.reconcile,
		Sources: []controller.Source{controller.From(c.nodes, onNode)},
	}
}

// onNode ignores heartbeats.
func onNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type == client.Deleted || ev.Object.Labels[simulatedLabel] == "true" {
		return nil
	}
	if ev.Old != nil && ready(ev.Old) == ready(ev.Object) && tainted(ev.Old) == tainted(ev.Object) && ev.Old.Spec.ProviderID == ev.Object.Spec.ProviderID {
		return nil
	}
	return []controller.Key{client.KeyOf(ev.Object)}
}

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	n, ok := c.nodes.Get("", key.Name)
	if !ok || n.DeletionTimestamp != nil || n.Labels[simulatedLabel] == "true" {
		return controller.Result{}, nil
	}
	if ready(n) {
		return controller.Result{}, c.taint(ctx, n, false)
	}
	if n.Spec.ProviderID == "" {
		return controller.Result{}, nil // not initialized: nothing is known of it
	}
	again := controller.Result{RequeueAfter: lookEvery}
	i, err := c.provider.Instance(ctx, n.Name, n.Spec.ProviderID)
	switch {
	case errors.Is(err, provider.ErrForeign):
		return controller.Result{}, nil
	case errors.Is(err, provider.ErrNotFound):
		return again, c.remove(ctx, n)
	case err != nil:
		return controller.Result{}, err
	}
	return again, c.taint(ctx, n, i.Shutdown)
}

// remove deletes a Node, unless another of the same name has replaced it.
func (c *Controller) remove(ctx context.Context, n *corev1.Node) error {
	slog.InfoContext(ctx, "node is deleted: its machine does not exist", "node", n.Name, "provider_id", n.Spec.ProviderID)
	c.events.Normal(ctx, n, "DeletingNode", "Deleting node %s because it does not exist in the cloud provider", n.Name)
	err := client.For[*corev1.Node](c.client).Delete(ctx, "", n.Name, client.UID(n.UID))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete node %s: %w", n.Name, err)
	}
	return nil
}

// taint adds or removes the taint of a machine that is shut down.
func (c *Controller) taint(ctx context.Context, n *corev1.Node, shutdown bool) error {
	if tainted(n) == shutdown {
		return nil
	}
	changed := n.DeepCopy()
	if shutdown {
		changed.Spec.Taints = append(changed.Spec.Taints, corev1.Taint{Key: shutdownTaint, Effect: corev1.TaintEffectNoSchedule})
	} else {
		changed.Spec.Taints = slices.DeleteFunc(changed.Spec.Taints, func(t corev1.Taint) bool { return t.Key == shutdownTaint })
	}
	if _, err := client.For[*corev1.Node](c.client).Update(ctx, changed); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("taint node %s: %w", n.Name, err)
	}
	return nil
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func tainted(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == shutdownTaint })
}
