package why

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pod explains a pod. It checks the states of a pod's life: ended, not scheduled, node not ready,
// containers not running, not ready. The first one that applies explains the rest.
func (w *World) pod(p *corev1.Pod) *Answer {
	ref := refOf("Pod", p)
	if p.DeletionTimestamp != nil {
		return w.terminating(p, ref)
	}
	switch p.Status.Phase {
	case corev1.PodSucceeded:
		a := healthy("its containers have ended successfully")
		a.Code = PodSucceeded
		return a
	case corev1.PodFailed:
		return w.failed(p, ref)
	}
	if p.Spec.NodeName == "" {
		return w.unbound(p, ref)
	}
	if a := w.nodeOf(p, ref); a != nil {
		return a
	}
	if p.Status.Reason == "Evicted" { // its containers are being stopped
		return w.evicted(p, ref)
	}
	if a := w.containers(p, ref); a != nil {
		return a
	}
	if ready := condition(p, corev1.PodReady); ready != nil && ready.Status == corev1.ConditionTrue {
		return w.ready(p, ref)
	}
	return w.notReady(p, ref)
}

func condition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// ready explains a pod that is ready, with its restarts as evidence.
func (w *World) ready(p *corev1.Pod, ref Ref) *Answer {
	a := healthy("it runs and is ready")
	for i := range p.Status.ContainerStatuses {
		s := &p.Status.ContainerStatuses[i]
		if s.RestartCount == 0 {
			continue
		}
		text := fmt.Sprintf("container %s was restarted %s", s.Name, plural(int(s.RestartCount), "time", "times"))
		if t := s.LastTerminationState.Terminated; t != nil {
			text += fmt.Sprintf(", last %s ago: %s", w.ago(t.FinishedAt), ended(t))
		}
		a.status(ref, "%s", text)
	}
	return a
}

// ended describes how a container ended.
func ended(t *corev1.ContainerStateTerminated) string {
	out := fmt.Sprintf("exit code %d", t.ExitCode)
	switch {
	case t.Reason == "OOMKilled":
		out = "killed for exceeding its memory limit"
	case t.Signal != 0:
		out = fmt.Sprintf("signal %d", t.Signal)
	case t.ExitCode > 128 && t.ExitCode < 160:
		out += fmt.Sprintf(" (signal %d)", t.ExitCode-128)
	case t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed":
		out += " (" + t.Reason + ")"
	}
	if m := strings.TrimSpace(t.Message); m != "" {
		out += ": " + m
	}
	return out
}

func (w *World) terminating(p *corev1.Pod, ref Ref) *Answer {
	at := p.DeletionTimestamp
	since := w.ago(*at)
	if at.After(w.Now) {
		left := at.Sub(w.Now).Round(time.Second)
		a := problem(TerminatingGrace, "it is being deleted, and its containers have %s left to stop", left)
		if preempted(p) {
			a = problem(PodPreempted, "it makes room for a pod of higher priority, and its containers have %s left to stop", left)
			a.status(ref, "DisruptionTarget: %s", condition(p, corev1.DisruptionTarget).Message)
			w.seen(a, ref, p.UID, "Preempted")
			a.next("if it is as important, give it a priorityClassName of the same value, or add nodes")
		}
		w.seen(a, ref, p.UID, "Killing", "FailedPreStopHook")
		return a
	}
	if n := find(w.Nodes, Ref{Name: p.Spec.NodeName}); p.Spec.NodeName != "" && (n == nil && !w.Hidden["Node"] || n != nil && !nodeReady(n)) {
		a := problem(TerminatingLost, "it is being deleted, and its node %s does not confirm that its containers have ended", p.Spec.NodeName)
		a.status(ref, "deletion was due %s ago", since)
		if n != nil {
			b := w.node(n)
			b.Object = refOf("Node", n)
			a.Because = b
		}
		a.next("bring the node back, or, if it will not return and runs nothing, delete the Node: kubectl delete node %s", p.Spec.NodeName)
		return a
	}
	if len(p.Finalizers) > 0 {
		a := problem(TerminatingFinalizer, "it is being deleted, and finalizers keep it: %s", strings.Join(p.Finalizers, ", "))
		a.status(ref, "deletion was due %s ago", since)
		a.next("find out whether what owns these finalizers still runs; it removes them when it has cleaned up")
		return a
	}
	a := problem(TerminatingGrace, "it is being deleted, and its containers have not ended yet")
	a.status(ref, "deletion was due %s ago", since)
	w.seen(a, ref, p.UID, "Killing", "FailedKillPod", "FailedPreStopHook")
	return a
}

func (w *World) failed(p *corev1.Pod, ref Ref) *Answer {
	switch p.Status.Reason {
	case "Evicted":
		return w.evicted(p, ref)
	case "Preempting", "Preempted":
		a := problem(PodEvicted, "it was evicted from node %s: %s", p.Spec.NodeName, p.Status.Message)
		a.next("give it a higher priority, or add nodes")
		return a
	case "":
	default:
		a := problem(PodRefused, "node %s refused it: %s: %s", p.Spec.NodeName, p.Status.Reason, p.Status.Message)
		if p.Status.StartTime != nil && len(p.Status.ContainerStatuses) > 0 {
			a.Code, a.Cause = PodFailed, fmt.Sprintf("it failed: %s: %s", p.Status.Reason, p.Status.Message)
		}
		return a
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		t := s.State.Terminated
		if t == nil || t.ExitCode == 0 {
			continue
		}
		a := problem(PodFailed, "container %s ended, and restartPolicy %s does not restart it: %s", s.Name, p.Spec.RestartPolicy, ended(t))
		if t.Reason == "OOMKilled" {
			a.Code = OutOfMemory
		}
		w.log(a, p, ref, s.Name)
		a.next("kubectl logs%s %s -c %s", namespaced(p.Namespace), p.Name, s.Name)
		return a
	}
	return problem(PodFailed, "it failed: %s", p.Status.Message)
}

// log adds the last lines of a container's log to the evidence.
func (w *World) log(a *Answer, p *corev1.Pod, ref Ref, container string) {
	text := strings.TrimRight(w.Logs[p.Name+"/"+container], "\n")
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		a.Evidence = append(a.Evidence, Evidence{Source: "log", Object: ref, Text: container + ": " + line})
	}
}

// unbound explains a pod that has no node.
func (w *World) unbound(p *corev1.Pod, ref Ref) *Answer {
	if len(p.Spec.SchedulingGates) > 0 {
		var gates []string
		for _, g := range p.Spec.SchedulingGates {
			gates = append(gates, g.Name)
		}
		a := problem(PodGated, "scheduling gates hold it back: %s", strings.Join(gates, ", "))
		a.next("find out why the component that set the gates has not removed them")
		return a
	}
	for i := range p.Spec.Volumes {
		if a := w.claimOf(p, &p.Spec.Volumes[i]); a != nil {
			return a
		}
	}
	scheduled := condition(p, corev1.PodScheduled)
	if scheduled == nil || scheduled.Reason != corev1.PodReasonUnschedulable {
		if age := w.Now.Sub(p.CreationTimestamp.Time); age < 5*time.Second {
			return problem(PodNotScheduled, "the scheduler has not placed it yet")
		}
		a := problem(NoScheduler, "no scheduler named %q has processed it", p.Spec.SchedulerName)
		a.spec(ref, "schedulerName: %s", p.Spec.SchedulerName)
		a.next("check that a scheduler of that name runs: keel status")
		return a
	}
	if p.Status.NominatedNodeName != "" {
		return w.preempts(p, ref)
	}
	refusal, preemption, _ := strings.Cut(scheduled.Message, " preemption: ")
	a := problem(PodUnschedulable, "no node can run it: %s", refusal)
	a.status(ref, "PodScheduled is False: %s", refusal)
	if preemption != "" {
		a.status(ref, "no room can be made by evicting pods of lower priority: %s", preemption)
	}
	w.seen(a, ref, p.UID, "FailedScheduling")
	for _, h := range hints {
		if strings.Contains(refusal, h.part) {
			a.next("%s", h.next)
		}
	}
	switch {
	case strings.Contains(preemption, "preemptionPolicy=Never"):
		a.next("its priority class does not let it preempt pods: choose one whose preemptionPolicy is PreemptLowerPriority if it may")
	case strings.Contains(preemption, "No preemption victims found"):
		a.next("no pod that takes the room has a lower priority than %d: give the pod a priorityClassName of higher value if it is more important", priority(p))
	}
	return a
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// preempts explains a pod that waits for pods of lower priority to leave its node.
func (w *World) preempts(p *corev1.Pod, ref Ref) *Answer {
	node := p.Status.NominatedNodeName
	a := problem(PodPreempts, "it preempts pods of lower priority on node %s, and starts there once they have ended", node)
	a.status(ref, "nominatedNodeName: %s", node)
	for _, q := range w.Pods {
		if q.Spec.NodeName == node && q.DeletionTimestamp != nil && preempted(q) && priority(q) < priority(p) {
			a.status(refOf("Pod", q), "pod %s terminates; its grace period ends at %s", q.Name, q.DeletionTimestamp.UTC().Format(time.TimeOnly))
		}
	}
	w.seen(a, ref, p.UID, "FailedScheduling")
	if n := find(w.Nodes, Ref{Name: node}); n != nil && !nodeReady(n) {
		a.next("node %s is not ready, so nothing ends there: keel why node/%s", node, node)
	}
	return a
}

// preempted reports whether the scheduler has evicted a pod in favour of another.
func preempted(p *corev1.Pod) bool {
	c := condition(p, corev1.DisruptionTarget)
	return c != nil && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
}

// hints maps parts of the scheduler's message to what to do about them.
var hints = []struct{ part, next string }{
	{"Insufficient cpu", "lower the pod's CPU requests, or add nodes"},
	{"Insufficient memory", "lower the pod's memory requests, or add nodes"},
	{"Insufficient ephemeral-storage", "lower the pod's ephemeral-storage requests, or add nodes"},
	{"Too many pods", "add nodes; the existing ones have reached their pod limit"},
	{"untolerated taint", "add a toleration to the pod, or remove the taint: kubectl taint nodes NODE KEY-"},
	{"node(s) were unschedulable", "uncordon a node: kubectl uncordon NODE"},
	{"didn't match Pod's node affinity/selector", "label a node to match the pod's nodeSelector and node affinity, or change these"},
	{"didn't match pod anti-affinity rules", "add nodes, or relax the pod's anti-affinity"},
	{"didn't match pod affinity rules", "start a pod that the affinity selects, or relax it"},
	{"didn't match pod topology spread constraints", "relax topologySpreadConstraints (whenUnsatisfiable: ScheduleAnyway), or add nodes to the emptiest domain"},
	{"didn't have free ports", "use fewer replicas than nodes, or no hostPort"},
	{"volume node affinity conflict", "the pod's volume is on another node; see kubectl describe pv"},
}

// claimOf explains a pod whose volume v needs a claim that is missing or not bound, and returns nil
// otherwise.
func (w *World) claimOf(p *corev1.Pod, v *corev1.Volume) *Answer {
	var name string
	switch {
	case v.PersistentVolumeClaim != nil:
		name = v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		name = p.Name + "-" + v.Name
	default:
		return nil
	}
	ref := Ref{Kind: "PersistentVolumeClaim", Namespace: p.Namespace, Name: name}
	c := find(w.Claims, ref)
	if c == nil && w.Hidden["PersistentVolumeClaim"] {
		return nil
	}
	if c == nil {
		a := problem(ClaimMissing, "its volume %s needs the claim %s, which does not exist", v.Name, name)
		a.next("create the PersistentVolumeClaim %s", name)
		return a
	}
	if c.Status.Phase == corev1.ClaimBound {
		return nil
	}
	b := w.claim(c)
	b.Object = ref
	if b.Code == WaitsForConsumer {
		return nil // the claim waits until this pod is scheduled
	}
	a := problem(ClaimNotBound, "its volume %s needs the claim %s, which has no volume", v.Name, name)
	a.Because = b
	return a
}

// nodeOf explains a pod whose node is gone or not ready. It returns nil if the node is ready.
func (w *World) nodeOf(p *corev1.Pod, ref Ref) *Answer {
	n := find(w.Nodes, Ref{Name: p.Spec.NodeName})
	if n == nil && w.Hidden["Node"] {
		return nil
	}
	if n == nil {
		a := problem(NodeGone, "its node %s no longer exists", p.Spec.NodeName)
		a.next("the cluster deletes the pod; if no controller replaces it, create it again")
		return a
	}
	if nodeReady(n) {
		return nil
	}
	a := problem(NodeNotReady, "its node %s is not ready", n.Name)
	if c := condition(p, corev1.PodReady); c != nil {
		a.status(ref, "Ready is %s", c.Status)
	}
	a.Because = w.node(n)
	a.Because.Object = refOf("Node", n)
	return a
}

// containers explains the first container that does not run, and returns nil if all run.
func (w *World) containers(p *corev1.Pod, ref Ref) *Answer {
	for i := range p.Status.InitContainerStatuses {
		s := &p.Status.InitContainerStatuses[i]
		if s.State.Terminated != nil && s.State.Terminated.ExitCode == 0 || s.Started != nil && *s.Started {
			continue
		}
		if a := w.container(p, ref, s, "init container"); a != nil {
			return a
		}
		if s.State.Running != nil {
			a := problem(InitRuns, "its init container %s has not ended yet", s.Name)
			a.status(ref, "init container %s has been running for %s", s.Name, w.ago(s.State.Running.StartedAt))
			a.next("kubectl logs%s %s -c %s", namespaced(p.Namespace), p.Name, s.Name)
			return a
		}
		break // the following init containers wait for this one
	}
	for i := range p.Status.ContainerStatuses {
		if a := w.container(p, ref, &p.Status.ContainerStatuses[i], "container"); a != nil {
			return a
		}
	}
	if len(p.Status.ContainerStatuses) == 0 || p.Status.Phase == corev1.PodPending {
		return w.setUp(p, ref)
	}
	return nil
}

// container explains a container that has failed or waits because of an error, and returns nil
// otherwise.
func (w *World) container(p *corev1.Pod, ref Ref, s *corev1.ContainerStatus, what string) *Answer {
	if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
		return w.exits(p, ref, s, t, what)
	}
	wait := s.State.Waiting
	if wait == nil {
		return nil
	}
	said := func(a *Answer) *Answer {
		a.status(ref, "%s %s is waiting: %s", what, s.Name, strings.TrimSuffix(wait.Reason+": "+wait.Message, ": "))
		return a
	}
	switch wait.Reason {
	case "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable":
		a := said(problem(ImageUnavailable, "the image of its %s %s cannot be pulled: %s", what, s.Name, imageOf(p, s.Name)))
		w.seen(a, ref, p.UID, "Failed", "InspectFailed", "ErrImageNeverPull")
		a.next("check the image's name and tag, and that the node can reach the registry")
		a.next("without a registry: keel image load FILE.tar")
		return a
	case "CreateContainerConfigError":
		a := said(problem(ConfigMissing, "its %s %s refers to an object or key that does not exist: %s", what, s.Name, wait.Message))
		a.next("create the ConfigMap or Secret, or the key in it, that the container refers to")
		return a
	case "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError", "StartError":
		a := said(problem(ContainerNotCreated, "its %s %s cannot be started: %s", what, s.Name, wait.Message))
		w.seen(a, ref, p.UID, "Failed", "FailedPostStartHook")
		return a
	case "CrashLoopBackOff":
		if t := s.LastTerminationState.Terminated; t != nil {
			return said(w.exits(p, ref, s, t, what))
		}
		return said(problem(ContainerExits, "its %s %s exits repeatedly", what, s.Name))
	}
	return nil
}

func imageOf(p *corev1.Pod, container string) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == container {
			return c.Image
		}
	}
	return ""
}

// exits explains a container that ended.
func (w *World) exits(p *corev1.Pod, ref Ref, s *corev1.ContainerStatus, t *corev1.ContainerStateTerminated, what string) *Answer {
	var a *Answer
	switch {
	case t.Reason == "OOMKilled":
		limit, ok := limitOf(p, s.Name)
		if !ok {
			a = problem(OutOfMemory, "its %s %s, which has no memory limit, was killed because its pod or node ran out of memory", what, s.Name)
			a.next("find out what uses the memory, and set a request that matches it")
			break
		}
		a = problem(OutOfMemory, "its %s %s was killed for exceeding its memory limit", what, s.Name)
		a.spec(ref, "%s %s: resources.limits.memory: %s", what, s.Name, limit)
		a.next("raise the container's memory limit, or find out what uses the memory")
	case t.ExitCode == 137 && len(w.events(p.UID, "Unhealthy", "Killing")) > 0 || len(w.livenessFailures(p)) > 0:
		a = problem(ProbeKills, "its %s %s is restarted because its liveness probe fails", what, s.Name)
		for _, e := range w.livenessFailures(p) {
			a.Evidence = append(a.Evidence, Evidence{Source: "event", Object: ref, Text: e.Reason + ": " + e.Message, Time: metav1.NewTime(lastSeen(e)), Count: e.Count})
		}
		a.next("give the container time (startupProbe, timeoutSeconds, failureThreshold), or fix what the probe checks")
	case t.ExitCode != 0 && w.outOfProcesses(p, s.Name):
		a = problem(OutOfProcesses, "its %s %s exits because it cannot start more processes or threads: %s", what, s.Name, ended(t))
		a.next("find out what starts so many, or raise the limit of each pod: node --pod-max-pids")
	default:
		a = problem(ContainerExits, "its %s %s exits: %s", what, s.Name, ended(t))
	}
	a.status(ref, "%s %s ended %s ago, after %s, %s; restarted %s", what, s.Name, w.ago(t.FinishedAt),
		t.FinishedAt.Sub(t.StartedAt.Time).Round(time.Second), ended(t), plural(int(s.RestartCount), "time", "times"))
	w.log(a, p, ref, s.Name)
	previous := ""
	if s.State.Terminated == nil {
		previous = " --previous"
	}
	a.next("kubectl logs%s %s -c %s%s", namespaced(p.Namespace), p.Name, s.Name, previous)
	return a
}

func (w *World) livenessFailures(p *corev1.Pod) []*corev1.Event {
	return slices.DeleteFunc(w.events(p.UID, "Unhealthy"), func(e *corev1.Event) bool {
		return !strings.HasPrefix(e.Message, "Liveness probe") && !strings.HasPrefix(e.Message, "Startup probe")
	})
}

func limitOf(p *corev1.Pod, container string) (string, bool) {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if q, ok := c.Resources.Limits[corev1.ResourceMemory]; c.Name == container && ok {
			return q.String(), true
		}
	}
	return "", false
}

// setUp explains a pod whose containers have not been created.
func (w *World) setUp(p *corev1.Pod, ref Ref) *Answer {
	for i := range p.Spec.Volumes {
		if a := w.claimOf(p, &p.Spec.Volumes[i]); a != nil {
			return a
		}
	}
	if len(w.events(p.UID, "FailedMount", "FailedAttachVolume")) > 0 {
		a := problem(VolumeNotMounted, "one of its volumes cannot be set up")
		w.seen(a, ref, p.UID, "FailedMount", "FailedAttachVolume")
		a.next("create what the volume refers to, or fix what the message names")
		return a
	}
	if len(w.events(p.UID, "FailedCreatePodSandBox", "NetworkNotReady")) > 0 {
		a := problem(NetworkNotReady, "node %s cannot set up its network", p.Spec.NodeName)
		w.seen(a, ref, p.UID, "FailedCreatePodSandBox", "NetworkNotReady")
		a.next("read the node's log; keel status shows its path")
		return a
	}
	a := problem(Progressing, "node %s is starting it", p.Spec.NodeName)
	w.seen(a, ref, p.UID, "Pulling", "Pulled", "Scheduled")
	return a
}

// notReady explains a pod that is not ready although its containers run.
func (w *World) notReady(p *corev1.Pod, ref Ref) *Answer {
	for _, gate := range p.Spec.ReadinessGates {
		if c := condition(p, gate.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
			a := problem(ReadinessGate, "its readiness gate %s is not True", gate.ConditionType)
			if c != nil {
				a.status(ref, "%s is %s: %s", c.Type, c.Status, c.Message)
			}
			a.next("find out why the component that sets this condition has not set it to True")
			return a
		}
	}
	for i := range p.Status.ContainerStatuses {
		s := &p.Status.ContainerStatuses[i]
		if s.Ready || s.State.Running == nil {
			continue
		}
		if s.Started != nil && !*s.Started {
			a := problem(NotStarted, "the startup probe of its container %s has not succeeded yet", s.Name)
			a.status(ref, "container %s has been running for %s", s.Name, w.ago(s.State.Running.StartedAt))
			w.seen(a, ref, p.UID, "Unhealthy")
			return a
		}
		a := problem(NotReady, "the readiness probe of its container %s fails", s.Name)
		a.status(ref, "container %s has been running for %s and is not ready", s.Name, w.ago(s.State.Running.StartedAt))
		if !w.seen(a, ref, p.UID, "Unhealthy") {
			a.Code, a.Cause = Progressing, fmt.Sprintf("the readiness probe of its container %s has not succeeded yet", s.Name)
		}
		w.log(a, p, ref, s.Name)
		a.next("kubectl logs%s %s -c %s", namespaced(p.Namespace), p.Name, s.Name)
		return a
	}
	return w.setUp(p, ref)
}
