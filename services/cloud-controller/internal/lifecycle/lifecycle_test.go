package lifecycle

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
	"keelson.dev/services/internal/controller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testNode(ready corev1.ConditionStatus, edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0"}}
	n.Spec.ProviderID = "local://c/node-0"
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	for _, edit := range edits {
		edit(n)
	}
	return n
}

// TestReconcile runs one reconcile of a Node in each situation.
func TestReconcile(t *testing.T) {
	t.Parallel()
	here := provider.Instance{ProviderID: "local://c/node-0"}
	shut := provider.Instance{ProviderID: "local://c/node-0", Shutdown: true}
	withTaint := func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: shutdownTaint}, {Key: "other"}} }
	for _, row := range []struct {
		name    string
		node    *corev1.Node
		machine *provider.Instance
		failure error
		deleted bool
		tainted bool
		fails   bool
	}{
		{name: "not Ready, its machine is gone", node: testNode(corev1.ConditionFalse), deleted: true},
		{name: "unknown, its machine is gone", node: testNode(corev1.ConditionUnknown), deleted: true},
		{name: "never reported, its machine is gone", node: testNode("", func(n *corev1.Node) { n.Status.Conditions = nil }), deleted: true},
		{name: "Ready, its machine is gone", node: testNode(corev1.ConditionTrue)},
		{name: "not Ready, not initialized", node: testNode(corev1.ConditionFalse, func(n *corev1.Node) { n.Spec.ProviderID = "" })},
		{name: "not Ready, of another cloud", node: testNode(corev1.ConditionFalse, func(n *corev1.Node) { n.Spec.ProviderID = "aws://i-1" })},
		{name: "not Ready, simulated", node: testNode(corev1.ConditionFalse, func(n *corev1.Node) { n.Labels = map[string]string{simulatedLabel: "true"} })},
		{name: "not Ready, the cloud is down", node: testNode(corev1.ConditionFalse), failure: errors.New("down"), fails: true},
		{name: "not Ready, its machine runs", node: testNode(corev1.ConditionFalse), machine: &here},
		{name: "not Ready, its machine is shut down", node: testNode(corev1.ConditionFalse), machine: &shut, tainted: true},
		{name: "not Ready, its machine runs again", node: testNode(corev1.ConditionFalse, withTaint), machine: &here},
		{name: "Ready again", node: testNode(corev1.ConditionTrue, withTaint), machine: &here},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, cloud := clienttest.Start(t), providertest.NewFake()
			if row.machine != nil {
				cloud.Machine("node-0", *row.machine)
			}
			cloud.Fail(row.failure)
			nodes := client.For[*corev1.Node](c)
			if _, err := nodes.Create(ctx, row.node); err != nil {
				t.Fatal(err)
			}
			cache := client.NewCache(c, client.CacheOptions[*corev1.Node]{})
			run, stop := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- cache.Run(run) }()
			<-cache.Synced()
			_, err := New(c, cache, cloud, nil).reconcile(ctx, controller.Key{Name: "node-0"})
			stop()
			<-done
			if (err != nil) != row.fails {
				t.Errorf("error %v", err)
			}
			n, err := nodes.Get(ctx, "", "node-0")
			if row.deleted {
				if !apierrors.IsNotFound(err) {
					t.Errorf("the node is still there: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tainted(n) != row.tainted {
				t.Errorf("taints: %+v", n.Spec.Taints)
			}
			if len(row.node.Spec.Taints) == 2 && (len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != "other") {
				t.Errorf("another's taint: %+v", n.Spec.Taints)
			}
		})
	}
}

func TestHeartbeatsAreLeftOut(t *testing.T) {
	t.Parallel()
	old, beat := testNode(corev1.ConditionTrue), testNode(corev1.ConditionTrue)
	beat.Status.Conditions[0].Message = "still here"
	if keys := onNode(client.Event[*corev1.Node]{Type: client.Modified, Old: old, Object: beat}); len(keys) != 0 {
		t.Errorf("a heartbeat: %v", keys)
	}
	if keys := onNode(client.Event[*corev1.Node]{Type: client.Modified, Old: old, Object: testNode(corev1.ConditionUnknown)}); len(keys) != 1 {
		t.Errorf("a node that is lost: %v", keys)
	}
}
