package job

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// Failed pods are replaced after 10 s, 20 s and so on, up to 10 minutes.
const (
	firstDelay = 10 * time.Second
	maxDelay   = 10 * time.Minute
)

// onlyFailed reports whether a job replaces pods only once they have ended, as
// podReplacementPolicy Failed asks and a pod failure policy requires, because it needs
// to know how a pod ended.
func onlyFailed(j *batchv1.Job) bool {
	return j.Spec.PodFailurePolicy != nil || j.Spec.PodReplacementPolicy != nil && *j.Spec.PodReplacementPolicy == batchv1.Failed
}

// failed reports whether a pod counts as failed: one that is being deleted does,
// unless the job waits for its end.
func failed(j *batchv1.Job, p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !onlyFailed(j) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// judgement is the pod failure policy's decision on a failed pod.
type judgement struct {
	// counts towards the back-off limit; failIndex and failJob end more than the
	// pod.
	counts, failIndex bool
	failJob           string
}

func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) judgement {
	if policy == nil {
		return judgement{counts: true}
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		why := matches(rule, p)
		if why == "" {
			continue
		}
		switch rule.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return judgement{}
		case batchv1.PodFailurePolicyActionFailIndex:
			return judgement{counts: true, failIndex: true}
		case batchv1.PodFailurePolicyActionFailJob:
			return judgement{counts: true, failJob: fmt.Sprintf("%s matching %v rule at index %d", why, rule.Action, i)}
		case batchv1.PodFailurePolicyActionCount:
			return judgement{counts: true}
		}
		// A rule with an unknown action is ignored.
	}
	return judgement{counts: true}
}

// matches returns how a rule matches a pod; empty if it does not.
func matches(rule *batchv1.PodFailurePolicyRule, p *corev1.Pod) string {
	if rule.OnExitCodes != nil {
		for _, statuses := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
			for i := range statuses {
				if exitMatches(rule.OnExitCodes, &statuses[i]) {
					return fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d", statuses[i].Name, p.Namespace, p.Name, statuses[i].State.Terminated.ExitCode)
				}
			}
		}
		return ""
	}
	for i := range p.Status.Conditions {
		for _, pattern := range rule.OnPodConditions {
			if c := &p.Status.Conditions[i]; c.Type == pattern.Type && c.Status == pattern.Status {
				return fmt.Sprintf("Pod %s/%s has condition %v", p.Namespace, p.Name, c.Type)
			}
		}
	}
	return ""
}

func exitMatches(r *batchv1.PodFailurePolicyOnExitCodesRequirement, s *corev1.ContainerStatus) bool {
	t := s.State.Terminated
	if t == nil || t.ExitCode == 0 || r.ContainerName != nil && *r.ContainerName != s.Name {
		return false
	}
	switch r.Operator {
	case batchv1.PodFailurePolicyOnExitCodesOpIn:
		return slices.Contains(r.Values, t.ExitCode)
	case batchv1.PodFailurePolicyOnExitCodesOpNotIn:
		return !slices.Contains(r.Values, t.ExitCode)
	}
	return false
}

// finishedAt returns when a pod ended: the end of its containers, or else when it
// stopped being ready, when its deletion began, or when it was created.
func finishedAt(p *corev1.Pod) time.Time {
	var last time.Time
	running := len(p.Status.ContainerStatuses) == 0
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			running = true
			break
		}
		last = later(last, s.State.Terminated.FinishedAt.Time)
	}
	if !running {
		return last
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime.Time
		}
	}
	if p.DeletionTimestamp != nil {
		grace := int64(0)
		if p.DeletionGracePeriodSeconds != nil {
			grace = *p.DeletionGracePeriodSeconds
		}
		return p.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return p.CreationTimestamp.Time
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// delayAfter returns how much of the backoff delay is left after the given number of
// consecutive failures, the last of them at the given time.
func delayAfter(failures int, last, now time.Time) time.Duration {
	if failures == 0 {
		return 0
	}
	d := maxDelay
	if failures <= 6 {
		d = min(d, firstDelay<<(failures-1))
	}
	return max(last.Add(d).Sub(now), 0)
}

// backoff returns how long a job waits before it creates pods again, according to how
// often its pods have failed since one last succeeded.
func backoff(j *batchv1.Job, pods []*corev1.Pod, now time.Time) time.Duration {
	var success, failure time.Time
	for _, p := range pods {
		if p.Status.Phase == corev1.PodSucceeded {
			success = later(success, finishedAt(p))
		}
	}
	failures := 0
	for _, p := range pods {
		// One that the job itself had no more use for has lost its finalizer.
		counts := p.Status.Phase == corev1.PodFailed || failed(j, p) && tracked(p)
		if at := finishedAt(p); counts && at.After(success) {
			failures++
			failure = later(failure, at)
		}
	}
	return delayAfter(failures, failure, now)
}

// The annotations with which a pod of an index records how often its predecessors
// failed.
const (
	failuresAnnotation = batchv1.JobIndexFailureCountAnnotation
	ignoredAnnotation  = "batch.kubernetes.io/job-index-ignored-failure-count"
)

func annotated(p *corev1.Pod, annotation string) int {
	n, err := strconv.ParseInt(p.Annotations[annotation], 10, 32)
	if err != nil {
		return 0
	}
	return int(n)
}

// failuresAfter returns the failures that the pod which replaces last records, counted
// towards the back-off limit and ignored. They are 0 if last is nil, for the first pod
// of an index.
func failuresAfter(j *batchv1.Job, last *corev1.Pod) (counted, ignored int) {
	if last == nil {
		return 0, 0
	}
	counted, ignored = annotated(last, failuresAnnotation), annotated(last, ignoredAnnotation)
	if judge(j.Spec.PodFailurePolicy, last).counts {
		counted++
	} else {
		ignored++
	}
	return counted, ignored
}

// indexFailed reports whether a failed pod makes its index fail.
func indexFailed(j *batchv1.Job, p *corev1.Pod) bool {
	if !failed(j, p) {
		return false
	}
	v := judge(j.Spec.PodFailurePolicy, p)
	return v.failIndex || v.counts && annotated(p, failuresAnnotation) >= int(*j.Spec.BackoffLimitPerIndex)
}

// restartsExceeded reports whether the containers of a job's pods, which restart in
// place, have done so more often than the back-off limit.
func restartsExceeded(j *batchv1.Job, pods []*corev1.Pod) bool {
	if j.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	var restarts int32
	for _, p := range pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, statuses := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for i := range statuses {
				restarts += statuses[i].RestartCount
			}
		}
	}
	limit := backoffLimit(j)
	return limit == 0 && restarts > 0 || limit > 0 && restarts >= limit
}

// backoffLimit returns the job's limit, or Kubernetes' default of 6 if it is unset.
func backoffLimit(j *batchv1.Job) int32 {
	if j.Spec.BackoffLimit == nil {
		return 6
	}
	return *j.Spec.BackoffLimit
}
