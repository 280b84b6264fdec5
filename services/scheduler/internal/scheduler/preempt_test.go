package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/scheduler/internal/state"
)

func important(p *corev1.Pod, priority int32) *corev1.Pod {
	grace := int64(30)
	p.Spec.Priority, p.Spec.TerminationGracePeriodSeconds = &priority, &grace
	return p
}

// leave makes a terminating pod go.
func (f *fixture) leave(name string) {
	f.Helper()
	if err := client.For[*corev1.Pod](f.c).Delete(f.ctx, "default", name, client.Grace(0)); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) preempted(name string) {
	f.Helper()
	f.until("pod "+name+" terminates", func() bool { return f.pod(name).DeletionTimestamp != nil })
	for _, c := range f.pod(name).Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			if c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonPreemptionByScheduler ||
				c.Message != "default-scheduler: preempting to accommodate a higher priority pod" {
				f.Errorf("condition %+v", c)
			}
			return
		}
	}
	f.Errorf("pod %s terminates without the condition DisruptionTarget", name)
}

func TestAPodOfHigherPriorityGetsRoom(t *testing.T) {
	f := start(t)
	create(f, node("n", "1"))
	create(f, important(pending("low", "800m"), 1))
	f.bound("low")
	high := create(f, important(pending("high", "800m"), 10))
	f.preempted("low")
	f.until("the pod is nominated", func() bool { return f.pod("high").Status.NominatedNodeName == "n" })
	f.event("Preempted", fmt.Sprintf("Preempted by pod %s on node n", high.UID))
	f.event("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu. preemption: found a potential placement for pod on node n, preempting 1 victims")
	// It is not the turn of a pod of the same priority or a lower one when the room is
	// there.
	create(f, important(pending("peer", "800m"), 10))
	f.refused("peer", "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu.")
	f.leave("low")
	if got := f.bound("high"); got != "n" {
		t.Fatalf("on %s", got)
	}
	f.refused("peer", "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.env.Nominations() != 0 || len(f.s.evicting) != 0 {
		t.Fatalf("%d nominations, %v evicting", f.s.env.Nominations(), f.s.evicting)
	}
}

func TestABudgetDirectsPreemptionElsewhere(t *testing.T) {
	f := start(t)
	for _, name := range []string{"guarded", "free"} {
		create(f, node("node-"+name, "1"))
		p := important(pending(name, "800m"), 1)
		p.Labels = map[string]string{"app": name}
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node-" + name}
		create(f, p)
		f.bound(name)
	}
	create(f, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "guard"},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}},
	})
	create(f, important(pending("high", "800m"), 10))
	f.preempted("free")
	if p := f.pod("guarded"); p.DeletionTimestamp != nil {
		t.Fatal("the pod with a budget was preempted")
	}
	// A budget is no more than a preference.
	create(f, important(pending("second", "800m"), 10))
	f.preempted("guarded")
	f.leave("free")
	f.leave("guarded")
	f.bound("high")
	f.bound("second")
}

func TestManyPodsEvictNoMoreThanTheyNeed(t *testing.T) {
	f := start(t)
	const nodes = 20
	for i := range nodes {
		create(f, node(fmt.Sprintf("n%02d", i), "1"))
	}
	for i := range 2 * nodes {
		create(f, important(pending(fmt.Sprintf("low%02d", i), "500m"), 1))
	}
	for i := range 2 * nodes {
		f.bound(fmt.Sprintf("low%02d", i))
	}
	var writes []client.Write
	for i := range nodes {
		writes = append(writes, client.CreateWrite(important(pending(fmt.Sprintf("high%02d", i), "500m"), 10)))
	}
	if _, err := f.c.CommitQuietly(f.ctx, writes...); err != nil {
		t.Fatal(err)
	}
	f.until("all have a node to go to", func() bool {
		for i := range nodes {
			if f.pod(fmt.Sprintf("high%02d", i)).Status.NominatedNodeName == "" {
				return false
			}
		}
		return true
	})
	var victims []string
	f.until("their victims terminate", func() bool {
		victims = nil
		for i := range 2 * nodes {
			if name := fmt.Sprintf("low%02d", i); f.pod(name).DeletionTimestamp != nil {
				victims = append(victims, name)
			}
		}
		return len(victims) >= nodes
	})
	for _, name := range victims {
		f.leave(name)
	}
	for i := range nodes {
		f.bound(fmt.Sprintf("high%02d", i))
	}
	if len(victims) != nodes {
		t.Fatalf("%d pods were preempted for %d: %v", len(victims), nodes, victims)
	}
	for i := range 2 * nodes {
		p, err := client.For[*corev1.Pod](f.c).Get(f.ctx, "default", fmt.Sprintf("low%02d", i))
		if err == nil && p.DeletionTimestamp != nil {
			t.Fatalf("%s was preempted later", p.Name)
		}
	}
}

func TestAnEvictionThatFailsIsTriedAgain(t *testing.T) {
	f := start(t)
	var conditions, deletes atomic.Int32
	f.srv.Fail(func(method string, ref *resourcev1.Ref) error {
		switch {
		case ref.GetName() != "low":
		case ref.GetSubresource() == "status" && conditions.Add(1) <= 2:
			return status.Error(codes.Unavailable, "out of order")
		case strings.HasSuffix(method, "Delete") && deletes.Add(1) <= 2:
			return status.Error(codes.Unavailable, "out of order")
		}
		return nil
	})
	create(f, node("n", "1"))
	create(f, important(pending("low", "800m"), 1))
	f.bound("low")
	create(f, important(pending("high", "800m"), 10))
	f.preempted("low")
	f.leave("low")
	f.bound("high")
	if conditions.Load() < 3 || deletes.Load() < 3 {
		t.Fatalf("%d conditions, %d deletes", conditions.Load(), deletes.Load())
	}
}

// A pod that is deleted while it waits for its victims leaves the room to others.
func TestANominationEndsWithItsPod(t *testing.T) {
	f := start(t)
	create(f, node("n", "1"))
	create(f, important(pending("low", "800m"), 1))
	f.bound("low")
	create(f, important(pending("high", "800m"), 10))
	f.preempted("low")
	create(f, important(pending("other", "800m"), 5))
	f.refused("other", "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu.")
	f.leave("low")
	f.bound("high")
	f.leave("high")
	f.bound("other")
}

// A pod that outranks a nominated one takes its node, and the other's nomination ends.
func TestAHigherPriorityTakesTheRoomOfANominatedPod(t *testing.T) {
	f := start(t)
	create(f, node("n", "1"))
	create(f, important(pending("low", "800m"), 1))
	f.bound("low")
	create(f, important(pending("middle", "800m"), 5))
	f.preempted("low")
	f.until("the pod is nominated", func() bool { return f.pod("middle").Status.NominatedNodeName == "n" })
	create(f, important(pending("high", "800m"), 10))
	f.until("the more important pod is nominated instead", func() bool {
		return f.pod("high").Status.NominatedNodeName == "n" && f.pod("middle").Status.NominatedNodeName == ""
	})
	f.leave("low")
	f.bound("high")
	if p := f.pod("middle"); p.Spec.NodeName != "" {
		t.Fatalf("also on %s", p.Spec.NodeName)
	}
}

// What a scheduler nominated is respected by the next one.
func TestANominationIsReadFromThePod(t *testing.T) {
	f := start(t)
	p := important(pending("high", "800m"), 10)
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}} // so that it does not come itself
	p.Status.NominatedNodeName = "n"
	p = create(f, p)
	f.until("the nomination is known", func() bool {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		return f.s.env.Nominee(state.Key{Namespace: "default", Name: "high"}) != nil
	})
	create(f, node("n", "1"))
	create(f, important(pending("peer", "800m"), 10))
	f.refused("peer", "0/1 nodes are available: 1 Insufficient cpu.")
	p.Status.NominatedNodeName = ""
	if _, err := client.For[*corev1.Pod](f.c).UpdateStatus(f.ctx, p); err != nil {
		t.Fatal(err)
	}
	f.bound("peer")
}

func TestNoPreemptionWithoutNeedOrLeave(t *testing.T) {
	f := start(t)
	never := corev1.PreemptNever
	create(f, node("n", "1"))
	create(f, important(pending("low", "500m"), 1))
	f.bound("low")
	create(f, important(pending("fits", "500m"), 10))
	f.bound("fits")
	p := important(pending("polite", "500m"), 10)
	p.Spec.PreemptionPolicy = &never
	create(f, p)
	f.refused("polite", "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.")
	p = important(pending("elsewhere", "500m"), 10)
	p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	create(f, p)
	f.refused("elsewhere", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
	if p := f.pod("low"); p.DeletionTimestamp != nil {
		t.Fatal("a pod was preempted")
	}
}

// TestAClaimOfOnePodIsFreedByPreemption: the claim, not a resource, is what another pod
// has.
func TestAClaimOfOnePodIsFreedByPreemption(t *testing.T) {
	f := start(t)
	create(f, node("n", "4"))
	create(f, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}})
	create(f, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", Annotations: map[string]string{"pv.kubernetes.io/bind-completed": "yes"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			VolumeName: "v", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
		},
	})
	with := func(p *corev1.Pod) *corev1.Pod {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		return p
	}
	create(f, with(important(pending("low", "100m"), 1)))
	f.bound("low")
	create(f, with(important(pending("high", "100m"), 10)))
	f.preempted("low")
	f.leave("low")
	f.bound("high")
	if _, err := client.For[*corev1.Pod](f.c).Get(f.ctx, "default", "low"); !apierrors.IsNotFound(err) {
		t.Fatal(errors.New("the victim is still there"), err)
	}
}
