package job

import (
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/victim"
)

const (
	// burst bounds the pods created or deleted in one reconcile.
	burst = 500
	// maxUncounted bounds the uids in the status.
	maxUncounted = 500
)

// Actions lists the writes of one reconcile.
type Actions struct {
	// Delete lists the pods to delete. Create lists the indexes of the pods to create
	// (noIndex for jobs without indexes), each in place of the failed pod in Replaces.
	Delete []*corev1.Pod
	// Forget is true if the pods in Delete lose their finalizer first: the job no
	// longer needs them and does not count how they end.
	Forget   bool
	Create   []int
	Replaces map[int]*corev1.Pod
	// Status is written before the tracking finalizer is removed from the pods in
	// Release, so that none of them is lost.
	Status  batchv1.JobStatus
	Release []*corev1.Pod
	// Late lists the pods of a finished job that still run. Each is deleted only as it was
	// seen: it may have ended meanwhile, and is kept then.
	Late         []*corev1.Pod
	RequeueAfter time.Duration
	Events       []Event
}

// Event is an event to record on success.
type Event struct {
	Warning         bool
	Reason, Message string
}

// work is a plan being made.
type work struct {
	j    *batchv1.Job
	pods []*corev1.Pod
	now  time.Time
	plan Actions

	active      []*corev1.Pod
	terminating int
	// succeeded and failed are the totals, including pods that are not in the counters
	// yet.
	succeeded, failed int
	completed, lost   indexes // of an indexed job; lost have failed for good
	// delayed holds the failed pods that keep their finalizer until their index has a
	// new pod, because they record how often it failed.
	delayed map[int]*corev1.Pod
}

// Plan returns the next step for a job with these pods.
func Plan(j *batchv1.Job, pods []*corev1.Pod, now time.Time) Actions {
	w := &work{j: j, pods: pods, now: now}
	w.plan.Status = *j.Status.DeepCopy()
	if finishedCondition(&j.Status) != nil {
		w.finished()
		return w.plan
	}
	for _, p := range pods {
		switch {
		case podstate.Active(p):
			w.active = append(w.active, p)
		case podstate.Terminating(p):
			w.terminating++
		}
	}
	w.count()
	verdict := w.verdict()
	switch {
	case verdict != nil:
		w.plan.Delete = w.active[:min(len(w.active), burst)]
	case j.DeletionTimestamp == nil:
		w.manage()
		if verdict = w.completion(); verdict == nil {
			w.suspension()
		}
	}
	w.account(verdict)
	w.conclude(verdict)
	return w.plan
}

func indexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
}

func perIndex(j *batchv1.Job) bool { return indexed(j) && j.Spec.BackoffLimitPerIndex != nil }

func suspended(j *batchv1.Job) bool { return j.Spec.Suspend != nil && *j.Spec.Suspend }

func (w *work) completions() int {
	if w.j.Spec.Completions == nil {
		return 0
	}
	return int(*w.j.Spec.Completions)
}

func (w *work) parallelism() int {
	if w.j.Spec.Parallelism == nil {
		return 1
	}
	return int(*w.j.Spec.Parallelism)
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// validIndex reports whether a pod of an indexed job has a valid index.
func (w *work) validIndex(p *corev1.Pod) (int, bool) {
	i := indexOf(p)
	return i, i != noIndex && i < w.completions()
}

// finished plans for a job that has ended: late pods, which an earlier process may have
// created, are deleted and released.
func (w *work) finished() {
	for _, p := range w.pods {
		switch {
		case podstate.Active(p) && len(w.plan.Late) < burst:
			w.plan.Late = append(w.plan.Late, p)
		case tracked(p):
			w.plan.Release = append(w.plan.Release, p)
		}
	}
}

// count adds up what the status holds and what the pods add to it.
func (w *work) count() {
	s := &w.j.Status
	uncounted := uncountedOf(s)
	w.succeeded = int(s.Succeeded) + len(uncounted.Succeeded)
	w.failed = int(s.Failed) + len(uncounted.Failed)
	for _, p := range w.pods {
		if !tracked(p) || slices.Contains(uncounted.Succeeded, p.UID) || slices.Contains(uncounted.Failed, p.UID) {
			continue
		}
		if _, ok := w.validIndex(p); indexed(w.j) && !ok {
			continue
		}
		switch {
		case p.Status.Phase == corev1.PodSucceeded:
			w.succeeded++
		case failed(w.j, p) && judge(w.j.Spec.PodFailurePolicy, p).counts:
			w.failed++
		}
	}
	if indexed(w.j) {
		w.countIndexes()
	}
}

func (w *work) countIndexes() {
	w.completed = parseIndexes(w.j.Status.CompletedIndexes, w.completions())
	var done, lost []int
	for _, p := range w.pods {
		i, ok := w.validIndex(p)
		if !ok || !tracked(p) {
			continue
		}
		switch {
		case p.Status.Phase == corev1.PodSucceeded && !slices.Contains(uncountedOf(&w.j.Status).Failed, p.UID):
			done = append(done, i)
		case perIndex(w.j) && indexFailed(w.j, p):
			lost = append(lost, i)
		}
	}
	w.completed = w.completed.with(done...)
	w.succeeded = w.completed.count()
	if !perIndex(w.j) {
		return
	}
	if w.j.Status.FailedIndexes != nil {
		w.lost = parseIndexes(*w.j.Status.FailedIndexes, w.completions())
	}
	w.lost = w.lost.with(lost...)
	w.delay()
}

// delay finds, for each index without a pod, the failed one that the next must
// know of.
func (w *work) delay() {
	w.delayed = map[int]*corev1.Pod{}
	var busy []int
	for _, p := range w.active {
		if i := indexOf(p); i != noIndex {
			busy = append(busy, i)
		}
	}
	settled := indexes(nil).with(busy...).union(w.completed).union(w.lost)
	total := func(p *corev1.Pod) int { return annotated(p, failuresAnnotation) + annotated(p, ignoredAnnotation) }
	for _, p := range w.pods {
		i, ok := w.validIndex(p)
		if !ok || !tracked(p) || !failed(w.j, p) || settled.has(i) {
			continue
		}
		last := w.delayed[i]
		if last == nil || total(p) > total(last) || total(p) == total(last) && finishedAt(p).After(finishedAt(last)) {
			w.delayed[i] = p
		}
	}
}

func uncountedOf(s *batchv1.JobStatus) batchv1.UncountedTerminatedPods {
	if s.UncountedTerminatedPods == nil {
		return batchv1.UncountedTerminatedPods{}
	}
	return *s.UncountedTerminatedPods
}

// verdict returns why the job is to end: an existing interim condition, or a new one.
// Failures take precedence over successes found now.
func (w *work) verdict() *batchv1.JobCondition {
	for _, t := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget} {
		if c := condition(&w.j.Status, t); c != nil && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	for _, p := range w.pods {
		if failed(w.j, p) {
			if why := judge(w.j.Spec.PodFailurePolicy, p).failJob; why != "" {
				return w.failure(batchv1.JobReasonPodFailurePolicy, why)
			}
		}
	}
	switch {
	case w.failed > int(backoffLimit(w.j)) || restartsExceeded(w.j, w.pods):
		return w.failure(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case w.pastDeadline():
		return w.failure(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	}
	if !indexed(w.j) {
		return nil
	}
	switch {
	case w.j.Spec.MaxFailedIndexes != nil && w.lost.count() > int(*w.j.Spec.MaxFailedIndexes):
		return w.failure(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
	case w.lost.count() > 0 && w.lost.count()+w.completed.count() >= w.completions():
		return w.failure(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
	}
	return w.successPolicy()
}

func (w *work) newCondition(t batchv1.JobConditionType, reason, message string) *batchv1.JobCondition {
	at := metav1.NewTime(w.now)
	return &batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at}
}

func (w *work) failure(reason, message string) *batchv1.JobCondition {
	return w.newCondition(batchv1.JobFailureTarget, reason, message)
}

// pastDeadline reports whether the job is past its deadline, and otherwise schedules a
// requeue for it.
func (w *work) pastDeadline() bool {
	if w.j.Spec.ActiveDeadlineSeconds == nil || w.j.Status.StartTime == nil || suspended(w.j) {
		return false
	}
	left := w.j.Status.StartTime.Add(time.Duration(*w.j.Spec.ActiveDeadlineSeconds) * time.Second).Sub(w.now)
	w.again(left)
	return left <= 0
}

// again schedules a requeue, unless an earlier one is planned.
func (w *work) again(d time.Duration) {
	if d > 0 && (w.plan.RequeueAfter == 0 || d < w.plan.RequeueAfter) {
		w.plan.RequeueAfter = d
	}
}

func (w *work) successPolicy() *batchv1.JobCondition {
	if w.j.Spec.SuccessPolicy == nil || len(w.completed) == 0 {
		return nil
	}
	for i, rule := range w.j.Spec.SuccessPolicy.Rules {
		met := false
		switch {
		case rule.SucceededIndexes != nil:
			want := parseIndexes(*rule.SucceededIndexes, w.completions()).normal()
			have := w.completed.overlap(want)
			met = len(want) > 0 && (have == want.count() || rule.SucceededCount != nil && have >= int(*rule.SucceededCount))
		case rule.SucceededCount != nil:
			met = w.completed.count() >= int(*rule.SucceededCount)
		}
		if met {
			return w.newCondition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", i))
		}
	}
	return nil
}

// completion returns the verdict for a job that has all its successes and no running
// pods.
func (w *work) completion() *batchv1.JobCondition {
	enough := w.succeeded > 0
	if w.j.Spec.Completions != nil {
		enough = w.succeeded >= w.completions()
	}
	if !enough || len(w.active) > 0 || len(w.plan.Create) > 0 {
		return nil
	}
	return w.newCondition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
}

// manage plans which pods to create or delete. While pods are to be deleted, none is
// created.
func (w *work) manage() {
	if suspended(w.j) {
		w.plan.Delete, w.plan.Forget = w.active[:min(len(w.active), burst)], true
		return
	}
	want := w.parallelism()
	switch {
	case w.j.Spec.Completions != nil:
		want = max(min(want, w.completions()-w.succeeded), 0)
	case w.succeeded > 0:
		want = len(w.active) // one success decides; what runs may run on.
	}
	if w.plan.Delete = w.superfluous(len(w.active) - want); len(w.plan.Delete) > 0 {
		w.plan.Delete, w.plan.Forget = w.plan.Delete[:min(len(w.plan.Delete), burst)], true
		return
	}
	n := want - len(w.active)
	if onlyFailed(w.j) {
		n -= w.terminating
	}
	if n <= 0 {
		return
	}
	n = min(n, burst)
	if !perIndex(w.j) {
		if wait := backoff(w.j, w.pods, w.now); wait > 0 {
			w.again(wait)
			return
		}
	}
	if !indexed(w.j) {
		w.plan.Create = slices.Repeat([]int{noIndex}, n)
		return
	}
	w.createIndexes(n)
}

func (w *work) createIndexes(n int) {
	var busy []int
	for _, p := range w.pods {
		if i := indexOf(p); i != noIndex && (podstate.Active(p) || onlyFailed(w.j) && podstate.Terminating(p)) {
			busy = append(busy, i)
		}
	}
	pending := w.completed.with(busy...).union(w.lost).missing(n, w.completions())
	if !perIndex(w.j) {
		w.plan.Create = pending
		return
	}
	w.plan.Replaces = map[int]*corev1.Pod{}
	for _, i := range pending {
		if last := w.delayed[i]; last != nil {
			failures := annotated(last, failuresAnnotation) + annotated(last, ignoredAnnotation) + 1
			if wait := delayAfter(failures, finishedAt(last), w.now); wait > 0 {
				w.again(wait)
				continue
			}
			w.plan.Replaces[i] = last
		}
		w.plan.Create = append(w.plan.Create, i)
	}
}

// superfluous returns the active pods that are not needed, and at least as many as
// asked for: pods whose index is done or has several, then those that cost least to
// delete.
func (w *work) superfluous(atLeast int) []*corev1.Pod {
	order := victim.Order(w.active, w.active, w.now)
	var out, rest []*corev1.Pod
	if indexed(w.j) {
		seen := map[int]bool{}
		// From the most missed on: of an index, that one stays.
		for _, p := range slices.Backward(order) {
			i, ok := w.validIndex(p)
			if !ok || seen[i] || w.completed.has(i) || w.lost.has(i) {
				out = append(out, p)
				continue
			}
			seen[i] = true
			rest = append(rest, p)
		}
		slices.Reverse(rest)
	} else {
		rest = order
	}
	if more := atLeast - len(out); more > 0 {
		out = append(out, rest[:more]...)
	}
	return out
}

// account moves finished pods into the status: first their uids (or indexes), which
// must be written before the finalizers are removed; then, once the finalizers are
// gone, into the counters.
func (w *work) account(verdict *batchv1.JobCondition) {
	s := &w.plan.Status
	held := map[types.UID]bool{}
	for _, p := range w.pods {
		if tracked(p) {
			held[p.UID] = true
		}
	}
	uncounted := uncountedOf(s)
	uncounted.Succeeded = w.settle(uncounted.Succeeded, held, &s.Succeeded)
	uncounted.Failed = w.settle(uncounted.Failed, held, &s.Failed)
	var done []int
	for _, p := range sorted(w.pods) {
		if !tracked(p) || !w.releasable(p, verdict) {
			continue
		}
		if len(uncounted.Succeeded)+len(uncounted.Failed)+len(done) >= maxUncounted {
			w.again(time.Second)
			break
		}
		w.plan.Release = append(w.plan.Release, p)
		index, valid := w.validIndex(p)
		known := slices.Contains(uncounted.Succeeded, p.UID) || slices.Contains(uncounted.Failed, p.UID)
		switch {
		case known || indexed(w.j) && !valid:
		case p.Status.Phase == corev1.PodSucceeded && indexed(w.j):
			done = append(done, index)
		case p.Status.Phase == corev1.PodSucceeded:
			uncounted.Succeeded = append(uncounted.Succeeded, p.UID)
		case failed(w.j, p) || verdict != nil && verdict.Type == batchv1.JobFailureTarget:
			if judge(w.j.Spec.PodFailurePolicy, p).counts {
				uncounted.Failed = append(uncounted.Failed, p.UID)
			}
		}
	}
	s.UncountedTerminatedPods = &uncounted
	if indexed(w.j) {
		now := parseIndexes(s.CompletedIndexes, w.completions()).with(done...)
		s.CompletedIndexes, s.Succeeded = now.String(), int32(now.count()) //nolint:gosec // completions are int32.
	}
	if perIndex(w.j) {
		lost := w.lost.String()
		s.FailedIndexes = &lost
	}
}

// settle counts the uids whose pods have lost their finalizer, and returns the
// others.
func (w *work) settle(uids []types.UID, held map[types.UID]bool, counter *int32) []types.UID {
	var left []types.UID
	for _, uid := range uids {
		if held[uid] {
			left = append(left, uid)
		} else {
			*counter++
		}
	}
	return left
}

// sorted returns the pods ordered by index and end time, so that the order of counting
// does not depend on the cache.
func sorted(pods []*corev1.Pod) []*corev1.Pod {
	out := slices.Clone(pods)
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		if d := indexOf(a) - indexOf(b); d != 0 {
			return d
		}
		if d := finishedAt(a).Compare(finishedAt(b)); d != 0 {
			return d
		}
		return strings.Compare(string(a.UID), string(b.UID))
	})
	return out
}

// releasable reports whether a pod's end may be counted now.
func (w *work) releasable(p *corev1.Pod, verdict *batchv1.JobCondition) bool {
	switch {
	case w.j.DeletionTimestamp != nil || verdict != nil || p.Status.Phase == corev1.PodSucceeded:
		return true
	case !failed(w.j, p):
		return false
	}
	i := indexOf(p)
	return w.delayed[i] == nil || w.delayed[i].UID != p.UID
}
