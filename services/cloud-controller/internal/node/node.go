// Package node writes to Nodes what their cloud reports of them: the provider id,
// addresses, zone, region and type of the machine. Then it removes the taint that kept
// pods off them until then.
//
// It must never touch a Node of another provider or a simulated one, and never
// change a provider id that is set.
package node

import (
	"context"
	"errors"
	"fmt"
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
	// refresh is how often a machine is read again.
	refresh = 5 * time.Minute
	// missing is how often a machine that does not exist yet is looked up for its Node.
	missing = 10 * time.Second
)

// Controller initializes Nodes.
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
		Name: "cloud-node", Workers: 4, Reconcile: c.reconcile,
		Sources: []controller.Source{controller.From(c.nodes, onNode)},
	}
}

// onNode ignores heartbeats. It enqueues a Node if a field that this controller writes
// changes, or if the node reports another address.
func onNode(ev client.Event[*corev1.Node]) []controller.Key {
	n, old := ev.Object, ev.Old
	if ev.Type == client.Deleted || simulated(n) {
		return nil
	}
	if old != nil && !waits(n) && n.Spec.ProviderID == old.Spec.ProviderID && slices.Equal(n.Status.Addresses, old.Status.Addresses) &&
		n.Annotations[providedIP] == old.Annotations[providedIP] {
		return nil
	}
	return []controller.Key{client.KeyOf(n)}
}

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	n, ok := c.nodes.Get("", key.Name)
	if !ok || n.DeletionTimestamp != nil || simulated(n) {
		return controller.Result{}, nil
	}
	i, err := c.provider.Instance(ctx, n.Name, n.Spec.ProviderID)
	switch {
	case errors.Is(err, provider.ErrForeign):
		return controller.Result{}, nil
	case errors.Is(err, provider.ErrNotFound):
		if waits(n) {
			c.events.Warning(ctx, n, "InstanceNotFound", "The cloud does not know a machine of this name; the node stays tainted until it does")
			return controller.Result{RequeueAfter: missing}, nil
		}
		return controller.Result{RequeueAfter: refresh}, nil
	case err != nil:
		return controller.Result{}, err
	}
	if err := c.write(ctx, n, i); err != nil && !apierrors.IsNotFound(err) {
		return controller.Result{}, err
	}
	return controller.Result{RequeueAfter: refresh}, nil
}

// write updates the Node to match its machine: addresses first, so that no traffic is
// sent to a node without one.
func (c *Controller) write(ctx context.Context, n *corev1.Node, i provider.Instance) error {
	nodes := client.For[*corev1.Node](c.client)
	if want := addresses(n, i); len(want) > 0 && !slices.Equal(want, n.Status.Addresses) {
		changed := n.DeepCopy()
		changed.Status.Addresses = want
		updated, err := nodes.UpdateStatus(ctx, changed)
		if err != nil {
			return fmt.Errorf("addresses of node %s: %w", n.Name, err)
		}
		n = updated
	}
	changed := initialized(n, i)
	if changed == nil {
		return nil
	}
	if _, err := nodes.Update(ctx, changed); err != nil {
		return fmt.Errorf("initialize node %s: %w", n.Name, err)
	}
	if waits(n) {
		c.events.Normal(ctx, n, "Synced", "Node synced successfully")
	}
	return nil
}
