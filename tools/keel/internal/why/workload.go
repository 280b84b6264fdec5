package why

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// behind explains an object whose current spec its controller has not processed yet, and returns nil
// for others.
func behind(ref Ref, generation, observed int64, controller string) *Answer {
	if observed >= generation {
		return nil
	}
	a := problem(ControllerBehind, "the %s controller has not processed its current spec yet", controller)
	a.status(ref, "observedGeneration is %d, generation is %d", observed, generation)
	a.next("check that a controller-manager leads: keel status")
	return a
}

// refused explains a workload whose pods the apiserver refuses to create.
func (w *World) refused(ref Ref, o metav1.Object, message string) *Answer {
	a := problem(CreateRefused, "its pods are refused: %s", message)
	w.seen(a, ref, o.GetUID(), "FailedCreate")
	switch {
	case strings.Contains(message, "exceeded quota"):
		a.next("raise the namespace's ResourceQuota, or lower the requests: kubectl describe quota%s", namespaced(ref.Namespace))
	case strings.Contains(message, "PodSecurity"):
		a.next("fix what the message names, or change the namespace's pod-security.kubernetes.io labels")
	case strings.Contains(message, "serviceaccount"):
		a.next("create the service account that the pods use")
	default:
		a.next("fix the pod template as the message says")
	}
	return a
}

// heldUp explains a workload by its worst pod; see worst.
func (w *World) heldUp(ref Ref, pods []*corev1.Pod, have, want int32) *Answer {
	b := w.worst(pods)
	if b == nil {
		return nil
	}
	if b.Code == Progressing || b.Code == PodNotScheduled {
		a := problem(Progressing, "%d of %d pods are available, and the others are starting", have, want)
		a.Because = b
		return a
	}
	a := problem(PodsHoldUp, "%d of %d pods are available", have, want)
	a.status(ref, "%d of %d pods are available", have, want)
	a.Because = b
	return a
}

func (w *World) deployment(d *appsv1.Deployment) *Answer {
	ref := refOf("Deployment", d)
	if a := behind(ref, d.Generation, d.Status.ObservedGeneration, "deployment"); a != nil {
		return a
	}
	want, s := orOne(d.Spec.Replicas), d.Status
	var newest *appsv1.ReplicaSet
	var pods []*corev1.Pod
	for _, rs := range w.ReplicaSets {
		if c := metav1.GetControllerOfNoCopy(rs); c == nil || c.UID != d.UID {
			continue
		}
		if newest == nil || revision(rs) > revision(newest) {
			newest = rs
		}
	}
	for _, rs := range w.ReplicaSets {
		if c := metav1.GetControllerOfNoCopy(rs); c != nil && c.UID == d.UID && (rs == newest || orOne(rs.Spec.Replicas) > 0) {
			pods = append(pods, w.controlled(rs.UID)...)
		}
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			a := w.refused(ref, d, c.Message)
			if newest != nil {
				w.seen(a, refOf("ReplicaSet", newest), newest.UID, "FailedCreate")
			}
			return a
		}
	}
	complete := s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want
	switch {
	case complete && want == 0:
		a := healthy("it is scaled to zero")
		a.Code = ScaledToZero
		return a
	case complete:
		return healthy("all %s run its current template and are available", plural(int(want), "pod", "pods"))
	case d.Spec.Paused && s.UpdatedReplicas < want:
		a := problem(Paused, "its rollout is paused")
		a.spec(ref, "paused: true; %d of %d pods are of the present template", s.UpdatedReplicas, want)
		a.next("kubectl rollout resume%s deployment/%s", namespaced(d.Namespace), d.Name)
		return a
	}
	a := w.heldUp(ref, pods, s.AvailableReplicas, want)
	if a == nil {
		a = problem(Progressing, "%d of %d pods have its current template, %d are available", s.UpdatedReplicas, want, s.AvailableReplicas)
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse {
			a.Code, a.Cause = RolloutStalled, fmt.Sprintf("its rollout makes no progress: %d of %d pods are available", s.AvailableReplicas, want)
			a.status(ref, "%s: %s", c.Reason, c.Message)
			a.next("roll back: kubectl rollout undo%s deployment/%s", namespaced(d.Namespace), d.Name)
		}
	}
	return a
}

func revision(rs *appsv1.ReplicaSet) int {
	n := 0
	for _, c := range rs.Annotations["deployment.kubernetes.io/revision"] {
		n = n*10 + int(c-'0')
	}
	return n
}

func (w *World) replicaSet(rs *appsv1.ReplicaSet) *Answer {
	ref := refOf("ReplicaSet", rs)
	if a := behind(ref, rs.Generation, rs.Status.ObservedGeneration, "replicaset"); a != nil {
		return a
	}
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			return w.refused(ref, rs, c.Message)
		}
	}
	want := orOne(rs.Spec.Replicas)
	if rs.Status.AvailableReplicas == want && rs.Status.Replicas == want {
		return healthy("all %s are available", plural(int(want), "pod", "pods"))
	}
	if a := w.heldUp(ref, w.controlled(rs.UID), rs.Status.AvailableReplicas, want); a != nil {
		return a
	}
	return problem(Progressing, "%d of %d pods are available", rs.Status.AvailableReplicas, want)
}

func (w *World) statefulSet(s *appsv1.StatefulSet) *Answer {
	ref := refOf("StatefulSet", s)
	if a := behind(ref, s.Generation, s.Status.ObservedGeneration, "statefulset"); a != nil {
		return a
	}
	want, st := orOne(s.Spec.Replicas), s.Status
	if st.AvailableReplicas < want || st.Replicas > want {
		if a := w.heldUp(ref, w.controlled(s.UID), st.AvailableReplicas, want); a != nil {
			if s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement && !a.Healthy {
				a.spec(ref, "podManagementPolicy: OrderedReady: the pods after %s wait for it", a.Because.Object.Name)
			}
			return a
		}
		if found := w.events(s.UID, "FailedCreate"); len(found) > 0 && st.Replicas < want {
			return w.refused(ref, s, found[0].Message)
		}
		return problem(Progressing, "%d of %d pods are available", st.AvailableReplicas, want)
	}
	if st.UpdateRevision == st.CurrentRevision || st.UpdatedReplicas == want {
		if want == 0 {
			a := healthy("it is scaled to zero")
			a.Code = ScaledToZero
			return a
		}
		return healthy("all %s run its current template and are available", plural(int(want), "pod", "pods"))
	}
	u := s.Spec.UpdateStrategy
	switch {
	case u.Type == appsv1.OnDeleteStatefulSetStrategyType:
		a := healthy("%d of %d pods have its current template; it updates a pod only when the pod is deleted", st.UpdatedReplicas, want)
		a.Code = UpdateOnDelete
		a.spec(ref, "updateStrategy: OnDelete")
		a.next("delete the old pods, one after the other")
		return a
	case u.RollingUpdate != nil && u.RollingUpdate.Partition != nil && *u.RollingUpdate.Partition > 0:
		a := healthy("%d of %d pods have its current template; the partition excludes the first %d from updates",
			st.UpdatedReplicas, want, *u.RollingUpdate.Partition)
		a.Code = PartitionHolds
		a.spec(ref, "updateStrategy.rollingUpdate.partition: %d", *u.RollingUpdate.Partition)
		return a
	}
	return problem(Progressing, "%d of %d pods have its current template", st.UpdatedReplicas, want)
}

func (w *World) daemonSet(d *appsv1.DaemonSet) *Answer {
	ref := refOf("DaemonSet", d)
	if a := behind(ref, d.Generation, d.Status.ObservedGeneration, "daemonset"); a != nil {
		return a
	}
	s := d.Status
	if s.DesiredNumberScheduled == 0 {
		a := problem(NoNodeFits, "no node matches its node selector, affinity and tolerations")
		a.spec(ref, "nodeSelector: %s", metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: d.Spec.Template.Spec.NodeSelector}))
		a.next("label a node to match the set, or add tolerations: kubectl describe nodes")
		return a
	}
	if s.NumberAvailable == s.DesiredNumberScheduled && s.UpdatedNumberScheduled == s.DesiredNumberScheduled {
		return healthy("it runs on all %s that it selects", plural(int(s.DesiredNumberScheduled), "node", "nodes"))
	}
	if a := w.heldUp(ref, w.controlled(d.UID), s.NumberAvailable, s.DesiredNumberScheduled); a != nil {
		return a
	}
	if found := w.events(d.UID, "FailedCreate"); len(found) > 0 && s.CurrentNumberScheduled < s.DesiredNumberScheduled {
		return w.refused(ref, d, found[0].Message)
	}
	if d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType && s.NumberAvailable == s.DesiredNumberScheduled {
		a := healthy("%d of %d pods have its current template; it updates a pod only when the pod is deleted", s.UpdatedNumberScheduled, s.DesiredNumberScheduled)
		a.Code = UpdateOnDelete
		a.spec(ref, "updateStrategy: OnDelete")
		return a
	}
	return problem(Progressing, "%d of %d pods have its current template, %d are available", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberAvailable)
}

func (w *World) job(j *batchv1.Job) *Answer {
	ref := refOf("Job", j)
	pods := w.controlled(j.UID)
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			return healthy("it is complete: %s", plural(int(j.Status.Succeeded), "pod has succeeded", "pods have succeeded"))
		case batchv1.JobFailed:
			code := map[string]Code{"BackoffLimitExceeded": JobBackoffLimit, "DeadlineExceeded": JobDeadline}[c.Reason]
			if code == "" {
				code = JobFailed
			}
			a := problem(code, "it failed: %s", c.Message)
			a.status(ref, "%s: %s; %s", c.Reason, c.Message, plural(int(j.Status.Failed), "pod failed", "pods failed"))
			a.Because = w.worst(pods)
			a.next("fix the cause and create the job again: a failed job does not restart")
			return a
		case batchv1.JobSuspended:
			a := problem(Suspended, "it is suspended")
			a.spec(ref, "suspend: true")
			a.next("kubectl patch%s job/%s -p '{\"spec\":{\"suspend\":false}}'", namespaced(j.Namespace), j.Name)
			return a
		}
	}
	if b := w.worst(pods); b != nil && b.Code != Progressing && b.Code != PodNotScheduled {
		a := problem(PodsHoldUp, "%s, and it has not completed", plural(int(j.Status.Failed), "pod has failed", "pods have failed"))
		if j.Spec.BackoffLimit != nil {
			a.status(ref, "%d failures of at most %d (backoffLimit)", j.Status.Failed, *j.Spec.BackoffLimit)
		}
		a.Because = b
		return a
	}
	if found := w.events(j.UID, "FailedCreate"); len(found) > 0 && len(pods) == 0 {
		return w.refused(ref, j, found[0].Message)
	}
	a := problem(Progressing, "%s", plural(int(j.Status.Active), "pod is running", "pods are running"))
	if n := j.Spec.Completions; n != nil {
		a.status(ref, "%d of %d completions", j.Status.Succeeded, *n)
	}
	return a
}

func (w *World) cronJob(c *batchv1.CronJob) *Answer {
	ref := refOf("CronJob", c)
	if c.Spec.Suspend != nil && *c.Spec.Suspend {
		a := problem(Suspended, "it is suspended")
		a.spec(ref, "suspend: true")
		a.next("kubectl patch%s cronjob/%s -p '{\"spec\":{\"suspend\":false}}'", namespaced(c.Namespace), c.Name)
		return a
	}
	if len(w.events(c.UID, "UnknownTimeZone", "UnparseableSchedule")) > 0 {
		a := problem(BadSchedule, "its schedule is invalid")
		w.seen(a, ref, c.UID, "UnknownTimeZone", "UnparseableSchedule")
		a.spec(ref, "schedule: %s", c.Spec.Schedule)
		a.next("fix spec.schedule or spec.timeZone")
		return a
	}
	var jobs []*batchv1.Job
	for _, j := range w.Jobs {
		if o := metav1.GetControllerOfNoCopy(j); o != nil && o.UID == c.UID {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b *batchv1.Job) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	if c.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(c.Status.Active) > 0 && len(w.events(c.UID, "JobAlreadyActive")) > 0 {
		a := problem(StillRuns, "its previous job still runs, and concurrencyPolicy Forbid prevents the next one from starting")
		w.seen(a, ref, c.UID, "JobAlreadyActive")
		a.Because = w.latest(jobs)
		return a
	}
	if len(jobs) > 0 {
		if b := w.latest(jobs); !b.Healthy && b.Code != Progressing {
			a := problem(b.Code, "its last job has a problem")
			a.Because = b
			return a
		}
	}
	if len(w.events(c.UID, "FailedCreate")) > 0 && len(jobs) == 0 {
		return w.refused(ref, c, w.events(c.UID, "FailedCreate")[0].Message)
	}
	if c.Status.LastScheduleTime == nil {
		a := healthy("its schedule has not been due since it was created")
		a.Code = NotDue
		a.spec(ref, "schedule: %s", c.Spec.Schedule)
		return a
	}
	a := healthy("it started its last job %s ago", w.ago(*c.Status.LastScheduleTime))
	if t := c.Status.LastSuccessfulTime; t != nil {
		a.status(ref, "last success %s ago", w.ago(*t))
	}
	w.seen(a, ref, c.UID, "MissSchedule", "TooManyMissedTimes")
	return a
}

// latest explains the most recent of the jobs, which are sorted with the latest first.
func (w *World) latest(jobs []*batchv1.Job) *Answer {
	if len(jobs) == 0 {
		return nil
	}
	a := w.job(jobs[0])
	a.Object = refOf("Job", jobs[0])
	return a
}
