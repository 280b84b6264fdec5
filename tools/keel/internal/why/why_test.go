package why_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/tools/keel/internal/why"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

type option func(*corev1.Pod)

// pod runs and is ready on node n1, if no option says otherwise.
func pod(name string, opts ...option) *corev1.Pod {
	yes := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: before(time.Hour), Labels: map[string]string{"app": "shop"}},
		Spec: corev1.PodSpec{
			NodeName: "n1", SchedulerName: "default-scheduler", RestartPolicy: corev1.RestartPolicyAlways,
			Containers: []corev1.Container{{Name: "web", Image: "shop:1"}},
		},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "web", Ready: true, Started: &yes, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: before(time.Hour)}},
			}},
		},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func evicted(message string) option {
	return func(p *corev1.Pod) {
		p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", message
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "TerminationByKubelet"})
	}
}

func unready(p *corev1.Pod) {
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	p.Status.ContainerStatuses[0].Ready = false
}

func waiting(reason, message string) option {
	return func(p *corev1.Pod) {
		unready(p)
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
}

func crashed(reason string, code int32) option {
	return func(p *corev1.Pod) {
		waiting("CrashLoopBackOff", "back-off 40s restarting failed container")(p)
		s := &p.Status.ContainerStatuses[0]
		s.RestartCount = 4
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			Reason: reason, ExitCode: code, StartedAt: before(30 * time.Second), FinishedAt: before(20 * time.Second),
		}
	}
}

func unbound(reason, message string) option {
	return func(p *corev1.Pod) {
		p.Spec.NodeName, p.Status.Phase, p.Status.ContainerStatuses = "", corev1.PodPending, nil
		p.Status.Conditions = nil
		if reason != "" {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message}}
		}
	}
}

func owned(kind, name string) option {
	return func(p *corev1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: name, UID: types.UID(name), Controller: &yes}}
	}
}

func node(name string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: ready, Message: "Kubelet stopped posting node status.",
			LastHeartbeatTime: before(2 * time.Minute), LastTransitionTime: before(time.Minute),
		}}},
	}
}

func event(uid, reason, message string) *corev1.Event {
	return &corev1.Event{
		InvolvedObject: corev1.ObjectReference{UID: types.UID(uid)}, Reason: reason, Message: message,
		LastTimestamp: before(12 * time.Second), Count: 4,
	}
}

func volume(claim string) option {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}}}
	}
}

func world(pods ...*corev1.Pod) *why.World {
	return &why.World{Now: now, Pods: pods, Nodes: []*corev1.Node{node("n1", corev1.ConditionTrue)}, Logs: map[string]string{}}
}

func explain(t *testing.T, w *why.World, kind, name string) *why.Answer {
	t.Helper()
	ref := why.Ref{Kind: kind, Namespace: "default", Name: name}
	if kind == "Node" {
		ref.Namespace = ""
	}
	a, err := w.Explain(ref)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestPod(t *testing.T) {
	gone := before(-20 * time.Second)
	long := before(time.Minute)
	for name, c := range map[string]struct {
		pod     *corev1.Pod
		world   func(*why.World)
		code    why.Code
		healthy bool
		says    string // in the cause, the evidence or what to do
	}{
		"healthy":   {pod: pod("a"), code: why.Healthy, healthy: true},
		"succeeded": {pod: pod("a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), code: why.PodSucceeded, healthy: true},
		"image": {
			pod: pod("a", waiting("ImagePullBackOff", "Back-off pulling image")),
			world: func(w *why.World) {
				w.Events = append(w.Events, event("a", "Failed", `Failed to pull image "shop:1": not found`))
			},
			code: why.ImageUnavailable, says: "not found",
		},
		"config": {pod: pod("a", waiting("CreateContainerConfigError", `configmap "c" not found`)), code: why.ConfigMissing, says: `configmap "c"`},
		"create": {pod: pod("a", waiting("RunContainerError", "exec: no such file")), code: why.ContainerNotCreated, says: "no such file"},
		"crash": {
			pod: pod("a", crashed("Error", 3)), world: func(w *why.World) { w.Logs["a/web"] = "panic: no database\n" },
			code: why.ContainerExits, says: "panic: no database",
		},
		"memory": {
			pod: pod("a", crashed("OOMKilled", 137), func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			}),
			code: why.OutOfMemory, says: "64Mi",
		},
		"liveness": {
			pod: pod("a", crashed("Error", 137)),
			world: func(w *why.World) {
				w.Events = append(w.Events, event("a", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500"))
			},
			code: why.ProbeKills, says: "statuscode: 500",
		},
		"readiness": {
			pod: pod("a", unready),
			world: func(w *why.World) {
				w.Events = append(w.Events, event("a", "Unhealthy", "Readiness probe failed: connection refused"))
			},
			code: why.NotReady, says: "connection refused",
		},
		"startup": {
			pod: pod("a", unready, func(p *corev1.Pod) { no := false; p.Status.ContainerStatuses[0].Started = &no }), code: why.NotStarted,
		},
		"gate": {
			pod:  pod("a", unready, func(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x.io/lb"}} }),
			code: why.ReadinessGate, says: "x.io/lb",
		},
		"init": {
			pod: pod("a", waiting("PodInitializing", ""), func(p *corev1.Pod) {
				p.Status.Phase = corev1.PodPending
				p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
					Name: "migrate", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: before(time.Minute)}},
				}}
			}),
			code: why.InitRuns, says: "migrate",
		},
		"unschedulable": {
			pod:  pod("a", unbound("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")),
			code: why.PodUnschedulable, says: "lower the pod's CPU requests",
		},
		"no victims": {
			pod:  pod("a", unbound("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.")),
			code: why.PodUnschedulable, says: "has a lower priority than 0: give the pod a priorityClassName",
		},
		"may not preempt": {
			pod:  pod("a", unbound("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.")),
			code: why.PodUnschedulable, says: "its priority class does not let it preempt pods",
		},
		"preempts": {
			pod: pod("a", unbound("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the nominated node."), func(p *corev1.Pod) {
				high := int32(10)
				p.Spec.Priority, p.Status.NominatedNodeName = &high, "n"
			}),
			world: func(w *why.World) { w.Pods = append(w.Pods, pod("victim", preempted)) },
			code:  why.PodPreempts, says: "victim",
		},
		"is preempted": {
			pod:  pod("a", preempted),
			code: why.PodPreempted, says: "preempting to accommodate a higher priority pod",
		},
		"scheduling gate": {
			pod:  pod("a", unbound("", ""), func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "x.io/quota"}} }),
			code: why.PodGated, says: "x.io/quota",
		},
		"just created": {pod: pod("a", unbound("", ""), func(p *corev1.Pod) { p.CreationTimestamp = before(time.Second) }), code: why.PodNotScheduled},
		"no scheduler": {pod: pod("a", unbound("", ""), func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }), code: why.NoScheduler, says: `"mine"`},
		"no claim":     {pod: pod("a", unbound("", ""), volume("data")), code: why.ClaimMissing, says: "data"},
		"claim without class": {
			pod: pod("a", unbound("", ""), volume("data")),
			world: func(w *why.World) {
				w.Claims = []*corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"}}}
			},
			code: why.ClaimNotBound,
		},
		"claims that may not be read": {
			pod: pod("a", unbound("Unschedulable", "0/1"), volume("data")), world: func(w *why.World) { w.Hidden = map[string]bool{"PersistentVolumeClaim": true} },
			code: why.PodUnschedulable,
		},
		"mount": {
			pod: pod("a", waiting("ContainerCreating", ""), func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
			world: func(w *why.World) {
				w.Events = append(w.Events, event("a", "FailedMount", `MountVolume.SetUp failed for volume "s": secret "s" not found`))
			},
			code: why.VolumeNotMounted, says: `secret "s" not found`,
		},
		"node silent": {pod: pod("a"), world: func(w *why.World) { w.Nodes[0] = node("n1", corev1.ConditionUnknown) }, code: why.NodeNotReady},
		"node gone":   {pod: pod("a"), world: func(w *why.World) { w.Nodes = nil }, code: why.NodeGone},
		"nodes that may not be read": {
			pod: pod("a"), world: func(w *why.World) { w.Nodes, w.Hidden = nil, map[string]bool{"Node": true} }, code: why.Healthy, healthy: true,
		},
		"evicted": {
			pod: pod("a", evicted("The node was low on resource: memory. Threshold quantity: 100Mi, available: 88Mi. ")),
			world: func(w *why.World) {
				w.Events = append(w.Events, event("a", "Evicted", "The node was low on resource: memory. "))
				w.Nodes[0].Status.Conditions = append(w.Nodes[0].Status.Conditions, corev1.NodeCondition{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue, Message: "kubelet has insufficient memory available"})
			},
			code: why.PodEvicted, says: "node n1: MemoryPressure is True",
		},
		"evicted for processes": {pod: pod("a", evicted("The node was low on resource: pids. ")), code: why.PodEvicted, says: "--pod-max-pids"},
		"being evicted": {
			pod:  pod("a", evicted("The node was low on resource: memory. "), func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }),
			code: why.PodEvicted, says: "TerminationByKubelet",
		},
		"refused under pressure": {pod: pod("a", evicted("Pod was rejected: The node had condition: [MemoryPressure]. ")), code: why.PodRefused, says: "memory request"},
		"volume over its limit":  {pod: pod("a", evicted(`Usage of EmptyDir volume "v" exceeds the limit "10Mi". `)), code: why.StorageLimit, says: "sizeLimit"},
		"container over its limit": {
			pod: pod("a", evicted(`Container web exceeded its local ephemeral storage limit "10Mi". `)), code: why.StorageLimit, says: "limits.ephemeral-storage",
		},
		"pod over its limit": {
			pod: pod("a", evicted("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ")), code: why.StorageLimit, says: "limits.ephemeral-storage",
		},
		"fork bomb": {
			pod: pod("a", crashed("Error", 2)), world: func(w *why.World) { w.Logs["a/web"] = "sh: can't fork: Resource temporarily unavailable\n" },
			code: why.OutOfProcesses, says: "--pod-max-pids",
		},
		"killed without a limit": {pod: pod("a", crashed("OOMKilled", 137)), code: why.OutOfMemory, says: "has no memory limit"},
		"refused": {
			pod: pod("a", func(p *corev1.Pod) {
				p.Status.Phase, p.Status.Reason, p.Status.ContainerStatuses = corev1.PodFailed, "OutOfcpu", nil
			}),
			code: why.PodRefused,
		},
		"failed": {
			pod: pod("a", func(p *corev1.Pod) {
				p.Status.Phase, p.Spec.RestartPolicy = corev1.PodFailed, corev1.RestartPolicyNever
				p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2}}
			}),
			code: why.PodFailed, says: "exit code 2",
		},
		"ends in time": {pod: pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &gone }), code: why.TerminatingGrace, says: "20s left"},
		"finalizers": {
			pod: pod("a", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &long, []string{"x.io/f"} }), code: why.TerminatingFinalizer, says: "x.io/f",
		},
		"ends on a lost node": {
			pod:   pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &long }),
			world: func(w *why.World) { w.Nodes[0] = node("n1", corev1.ConditionUnknown) }, code: why.TerminatingLost,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(c.pod)
			if c.world != nil {
				c.world(w)
			}
			a := explain(t, w, "Pod", "a")
			if a.Code != c.code || a.Healthy != c.healthy {
				t.Errorf("got %s (%s), healthy %v", a.Code, a.Cause, a.Healthy)
			}
			if text := draw(t, a); !strings.Contains(text, c.says) {
				t.Errorf("%q is missing in:\n%s", c.says, text)
			}
		})
	}
}

func draw(t *testing.T, a *why.Answer) string {
	t.Helper()
	var b strings.Builder
	if err := why.Draw(&b, a, now, func(s string) string { return s }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWorkloads(t *testing.T) {
	two, zero := int32(2), int32(0)
	yes := true
	meta := metav1.ObjectMeta{Namespace: "default", Name: "shop", UID: "shop", Generation: 2}
	deployment := func(s appsv1.DeploymentStatus) *appsv1.Deployment {
		s.ObservedGeneration = 2
		return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: s}
	}
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "shop-1", UID: "shop-1", OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", UID: "shop", Controller: &yes}},
	}}
	for name, c := range map[string]struct {
		kind    string
		world   *why.World
		code    why.Code
		because why.Code
		says    string
	}{
		"deployment": {
			kind:  "Deployment",
			world: &why.World{Deployments: []*appsv1.Deployment{deployment(appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2})}},
			code:  why.Healthy,
		},
		"deployment with a pod that crashes": {
			kind: "Deployment",
			world: &why.World{
				Deployments: []*appsv1.Deployment{deployment(appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1})},
				ReplicaSets: []*appsv1.ReplicaSet{set},
				Pods:        []*corev1.Pod{pod("a", owned("ReplicaSet", "shop-1")), pod("b", owned("ReplicaSet", "shop-1"), crashed("Error", 1))},
			},
			code: why.PodsHoldUp, because: why.ContainerExits,
		},
		"deployment beyond its deadline": {
			kind: "Deployment",
			world: &why.World{
				Deployments: []*appsv1.Deployment{deployment(appsv1.DeploymentStatus{
					Replicas: 2, UpdatedReplicas: 1, AvailableReplicas: 1, Conditions: []appsv1.DeploymentCondition{
						{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Reason: "ProgressDeadlineExceeded"},
					},
				})},
				ReplicaSets: []*appsv1.ReplicaSet{set},
				Pods:        []*corev1.Pod{pod("b", owned("ReplicaSet", "shop-1"), waiting("ErrImagePull", "not found"))},
			},
			code: why.RolloutStalled, because: why.ImageUnavailable, says: "rollout undo",
		},
		"deployment without quota": {
			kind: "Deployment",
			world: &why.World{Deployments: []*appsv1.Deployment{deployment(appsv1.DeploymentStatus{Conditions: []appsv1.DeploymentCondition{
				{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: "exceeded quota: q"},
			}})}},
			code: why.CreateRefused, says: "ResourceQuota",
		},
		"deployment that no controller looks at": {
			kind: "Deployment", world: &why.World{Deployments: []*appsv1.Deployment{{ObjectMeta: meta}}}, code: why.ControllerBehind,
		},
		"deployment that is paused": {
			kind: "Deployment",
			world: &why.World{Deployments: []*appsv1.Deployment{{
				ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &two, Paused: true},
				Status: appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, AvailableReplicas: 2},
			}}},
			code: why.Paused, says: "rollout resume",
		},
		"statefulset whose first pod waits": {
			kind: "StatefulSet",
			world: &why.World{
				StatefulSets: []*appsv1.StatefulSet{{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &two}, Status: appsv1.StatefulSetStatus{ObservedGeneration: 2, Replicas: 1}}},
				Pods:         []*corev1.Pod{pod("shop-0", owned("StatefulSet", "shop"), unbound("Unschedulable", "0/3 nodes"))},
			},
			code: why.PodsHoldUp, because: why.PodUnschedulable, says: "OrderedReady",
		},
		"daemonset that fits no node": {
			kind:  "DaemonSet",
			world: &why.World{DaemonSets: []*appsv1.DaemonSet{{ObjectMeta: meta, Status: appsv1.DaemonSetStatus{ObservedGeneration: 2}}}},
			code:  why.NoNodeFits,
		},
		"job beyond its limit": {
			kind: "Job",
			world: &why.World{
				Jobs: []*batchv1.Job{{ObjectMeta: meta, Status: batchv1.JobStatus{Failed: 7, Conditions: []batchv1.JobCondition{
					{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: "BackoffLimitExceeded", Message: "Job has reached the specified backoff limit"},
				}}}},
				Pods: []*corev1.Pod{pod("a", owned("Job", "shop"), func(p *corev1.Pod) {
					p.Status.Phase = corev1.PodFailed
					p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}
				})},
			},
			code: why.JobBackoffLimit, because: why.PodFailed,
		},
		"cronjob that is suspended": {
			kind: "CronJob", world: &why.World{CronJobs: []*batchv1.CronJob{{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Suspend: &yes}}}},
			code: why.Suspended,
		},
		"cronjob whose job failed": {
			kind: "CronJob",
			world: &why.World{
				CronJobs: []*batchv1.CronJob{{ObjectMeta: meta}},
				Jobs: []*batchv1.Job{{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop-1", OwnerReferences: []metav1.OwnerReference{{Kind: "CronJob", UID: "shop", Controller: &yes}}},
					Status:     batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: "DeadlineExceeded"}}},
				}},
			},
			code: why.JobDeadline, because: why.JobDeadline,
		},
		"claim of a class that is missing": {
			kind: "PersistentVolumeClaim",
			world: &why.World{Classes: []string{"local"}, Claims: []*corev1.PersistentVolumeClaim{{
				ObjectMeta: meta, Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: new("fast")},
			}}},
			code: why.ClassMissing, says: "there are: local",
		},
		"service that selects nothing": {
			kind: "Service",
			world: &why.World{
				Services: []*corev1.Service{{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "shpo"}}}},
				Pods:     []*corev1.Pod{pod("a")},
			},
			code: why.SelectsNothing, says: "labels: app=shop",
		},
		"policy that selects nothing": {
			kind: "NetworkPolicy",
			world: &why.World{
				Policies: []*networkingv1.NetworkPolicy{{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "shpo"}}, PolicyTypes: []networkingv1.PolicyType{"Ingress"},
				}}},
				Pods: []*corev1.Pod{pod("a")},
			},
			code: why.SelectsNothing, says: "podSelector: app=shpo",
		},
		"policy with a peer that matches nothing": {
			kind: "NetworkPolicy",
			world: &why.World{
				Policies: []*networkingv1.NetworkPolicy{{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
					PolicyTypes: []networkingv1.PolicyType{"Ingress"},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
						{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}}},
				}}},
				Pods: []*corev1.Pod{pod("a")},
			},
			code: why.PeerMatchesNothing, says: "pods app=web",
		},
		"policy that works": {
			kind: "NetworkPolicy",
			world: &why.World{
				Policies: []*networkingv1.NetworkPolicy{{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
					PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
						{NamespaceSelector: &metav1.LabelSelector{}}, {IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}}}}},
				}}},
				Pods: []*corev1.Pod{pod("a")}, Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}},
			},
			code: why.Healthy, says: "from pods any of namespaces any or 192.0.2.0/24, any port",
		},
		"service whose port has another name": {
			kind: "Service",
			world: &why.World{
				Services: []*corev1.Service{{ObjectMeta: meta, Spec: corev1.ServiceSpec{
					Selector: map[string]string{"app": "shop"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}},
				}}},
				Pods: []*corev1.Pod{pod("a")},
			},
			code: why.PortMismatch, says: `"http"`,
		},
		"service that serves": {
			kind: "Service",
			world: &why.World{
				Services: []*corev1.Service{{ObjectMeta: meta}},
				Slices: []*discoveryv1.EndpointSlice{{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "shop"}},
					Endpoints:  []discoveryv1.Endpoint{{}},
				}},
			},
			code: why.Healthy,
		},
		"node that is silent": {kind: "Node", world: &why.World{Nodes: []*corev1.Node{node("shop", corev1.ConditionUnknown)}}, code: why.NodeSilent, says: "2m0s"},
		"scaled to zero": {
			kind: "Deployment", code: why.ScaledToZero,
			world: &why.World{Deployments: []*appsv1.Deployment{{
				ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &zero}, Status: appsv1.DeploymentStatus{ObservedGeneration: 2},
			}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.world.Now = now
			if c.kind != "Node" {
				c.world.Nodes = []*corev1.Node{node("n1", corev1.ConditionTrue)}
			}
			a := explain(t, c.world, c.kind, "shop")
			if a.Code != c.code {
				t.Errorf("got %s: %s", a.Code, a.Cause)
			}
			got := why.Code("")
			if a.Because != nil {
				got = a.Because.Code
			}
			if got != c.because {
				t.Errorf("because: %q, want %q", got, c.because)
			}
			if text := draw(t, a); !strings.Contains(text, c.says) {
				t.Errorf("%q is missing in:\n%s", c.says, text)
			}
		})
	}
}

func TestNotThere(t *testing.T) {
	if _, err := world().Explain(why.Ref{Kind: "Pod", Namespace: "default", Name: "a"}); err == nil {
		t.Error("a pod that does not exist is explained")
	}
}

func TestContainersOfWhichLogsHelp(t *testing.T) {
	w := world(pod("a", crashed("Error", 1)), pod("b", unready), pod("c"))
	for name, want := range map[string]map[string]bool{"a": {"web": true}, "b": {"web": false}, "c": {}} {
		got := w.Containers(why.Ref{Kind: "Pod", Namespace: "default", Name: name})
		if len(got) != len(want) || got["web"] != want["web"] {
			t.Errorf("of %s: %v, want %v", name, got, want)
		}
	}
}

// TestDraw compares the output with testdata/answer.txt. With -rewrite it writes that file.
func TestDraw(t *testing.T) {
	w := world(pod("shop-0", owned("StatefulSet", "shop"), crashed("Error", 3)))
	w.Logs["shop-0/web"] = "connecting to db:5432\npanic: no database\x1b[31m\n"
	two := int32(2)
	w.StatefulSets = []*appsv1.StatefulSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", UID: "shop"}, Spec: appsv1.StatefulSetSpec{Replicas: &two}}}
	var b strings.Builder
	clean := func(s string) string { return strings.ReplaceAll(s, "\x1b", `\x1b`) }
	if err := why.Draw(&b, explain(t, w, "StatefulSet", "shop"), now, clean); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "answer.txt")
	if *rewrite {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestNames: every kind has a name that users type, in the singular.
func TestNames(t *testing.T) {
	var kinds []string
	for name, kind := range why.Kinds {
		if strings.EqualFold(name, kind) {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	if len(kinds) != 12 {
		t.Errorf("kinds %v", kinds)
	}
}

// preempted makes a pod terminate on node n in favour of another.
func preempted(p *corev1.Pod) {
	at := metav1.NewTime(now.Add(20 * time.Second))
	p.Spec.NodeName, p.DeletionTimestamp = "n", &at
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
		Message: "default-scheduler: preempting to accommodate a higher priority pod",
	})
}
