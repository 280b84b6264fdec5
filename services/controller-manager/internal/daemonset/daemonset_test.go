package daemonset_test

import (
	"context"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/daemonset"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

// kubelets binds pods to the nodes that they were created for, as the scheduler does,
// makes them ready, and removes those that are being deleted.
func kubelets(w *World) {
	pods := client.For[*corev1.Pod](w.Client)
	w.Go(func(ctx context.Context) error {
		for ev, err := range pods.Watch(ctx, client.WatchOptions{SendInitialEvents: true}) {
			if err != nil {
				return err
			}
			p := ev.Object
			switch {
			case ev.Type == client.Bookmark || ev.Type == client.Deleted:
			case p.DeletionTimestamp != nil:
				_ = pods.Delete(ctx, p.Namespace, p.Name, client.Grace(0), client.UID(p.UID))
			case p.Spec.NodeName == "":
				_ = client.Bind(ctx, w.Client, p, cluster.TargetNode(p))
			case p.Status.Phase == "":
				_, _ = pods.UpdateStatus(ctx, Ready(p))
			}
		}
		return nil
	})
}

func TestRunsOnEveryNodeAndRollsOut(t *testing.T) {
	w := Start(t)
	kubelets(w)
	for _, n := range nodes("a", "b", "c") {
		Create(w, n)
	}
	w.CatchUp()
	w.Run(daemonset.New(w.Cluster.As("daemonset-controller")))
	Create(w, set())
	status := func() appsv1.DaemonSetStatus { return Get[*appsv1.DaemonSet](w, "default", "agent").Status }
	w.Eventually("three pods are available", func() bool { s := status(); return s.NumberAvailable == 3 && s.DesiredNumberScheduled == 3 })
	on := map[string]int{}
	for _, p := range List[*corev1.Pod](w, "default") {
		on[p.Spec.NodeName]++
		if ref := metav1.GetControllerOf(p); ref == nil || ref.Kind != "DaemonSet" {
			t.Errorf("pod %s: controller reference %v, want the DaemonSet", p.Name, ref)
		}
	}
	if len(on) != 3 {
		t.Errorf("pods per node: %v, want one on each of three nodes", on)
	}

	Create(w, nodes("d")[0])
	w.Eventually("a pod on the new node is available", func() bool { return status().NumberAvailable == 4 })

	Update(w, "default", "agent", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "v2" })
	run := func(image string) bool {
		pods := List[*corev1.Pod](w, "default")
		for _, p := range pods {
			if p.Spec.Containers[0].Image != image {
				return false
			}
		}
		s := status()
		return len(pods) == 4 && s.UpdatedNumberScheduled == 4 && s.NumberAvailable == 4
	}
	w.Eventually("the rollout finishes", func() bool { return run("v2") })
	if got := List[*appsv1.ControllerRevision](w, "default"); len(got) != 2 {
		t.Errorf("got %d revisions, want 2", len(got))
	}

	// Back to the first template: its revision gets the highest number.
	Update(w, "default", "agent", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "v1" })
	w.Eventually("the rollback finishes", func() bool { return run("v1") })
	var numbers []int64
	for _, r := range List[*appsv1.ControllerRevision](w, "default") {
		numbers = append(numbers, r.Revision)
	}
	if len(numbers) != 2 || numbers[0]+numbers[1] != 5 {
		t.Errorf("revisions %v, want 2 and 3", numbers)
	}

	Delete[*corev1.Node](w, "", "d")
	w.Eventually("the pod of the deleted node is deleted", func() bool { return len(List[*corev1.Pod](w, "default")) == 3 })
}
