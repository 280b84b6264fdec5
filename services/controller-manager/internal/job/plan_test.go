package job

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

func newJob(parallelism, completions int32, change ...func(*batchv1.Job)) *batchv1.Job {
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "work", UID: "job"},
		Spec: batchv1.JobSpec{
			Parallelism: &parallelism, Completions: &completions, BackoffLimit: ptr(int32(6)),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"job": "work"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"job": "work"}},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}},
			},
		},
	}
	if completions == 0 {
		j.Spec.Completions = nil
	}
	for _, f := range change {
		f(j)
	}
	return j
}

func isIndexed(j *batchv1.Job) { j.Spec.CompletionMode = ptr(batchv1.IndexedCompletion) }

var serial int

// pod is a tracked pod of a job that runs.
func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	serial++
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("p%d", serial), UID: types.UID(fmt.Sprintf("u%d", serial)), Finalizers: []string{batchv1.JobTrackingFinalizer},
			CreationTimestamp: metav1.NewTime(start),
		},
		Spec:   corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func ended(phase corev1.PodPhase, code int32, at time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.NewTime(at)},
		}}}
	}
}

func succeededPod(p *corev1.Pod) { ended(corev1.PodSucceeded, 0, start)(p) }
func failedPod(p *corev1.Pod)    { ended(corev1.PodFailed, 1, start)(p) }
func deletedPod(p *corev1.Pod)   { p.DeletionTimestamp = ptr(metav1.NewTime(start)) }
func counted(p *corev1.Pod)      { p.Finalizers = nil }
func at(i int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Annotations = map[string]string{batchv1.JobCompletionIndexAnnotation: strconv.Itoa(i)}
	}
}
func after(failures int) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[failuresAnnotation] = strconv.Itoa(failures) }
}

func reason(s *batchv1.JobStatus, t batchv1.JobConditionType) string {
	if c := condition(s, t); c != nil && c.Status == corev1.ConditionTrue {
		return c.Reason
	}
	return ""
}

func TestManage(t *testing.T) {
	long := start.Add(time.Hour)
	replaceFailed := func(j *batchv1.Job) { j.Spec.PodReplacementPolicy = ptr(batchv1.Failed) }
	tests := []struct {
		name    string
		job     *batchv1.Job
		pods    []*corev1.Pod
		create  []int
		deletes int
		wait    time.Duration
		now     time.Time
	}{
		{name: "starts as many as may run", job: newJob(3, 5), create: []int{-1, -1, -1}},
		{name: "no more than are needed", job: newJob(3, 2), create: []int{-1, -1}},
		{name: "the rest", job: newJob(3, 4), pods: []*corev1.Pod{pod(), pod(succeededPod), pod(succeededPod)}, create: []int{-1}},
		{name: "too many", job: newJob(1, 4), pods: []*corev1.Pod{pod(), pod()}, deletes: 1},
		{name: "a work queue", job: newJob(2, 0), create: []int{-1, -1}},
		{name: "a work queue that is done starts no more", job: newJob(3, 0), pods: []*corev1.Pod{pod(), pod(succeededPod)}},
		{name: "suspended", job: newJob(2, 2, func(j *batchv1.Job) { j.Spec.Suspend = ptr(true) }), pods: []*corev1.Pod{pod(), pod()}, deletes: 2},
		{name: "waits after a failure", job: newJob(1, 1), pods: []*corev1.Pod{pod(failedPod)}, now: start.Add(4 * time.Second), wait: 6 * time.Second},
		{name: "waits longer after three", job: newJob(1, 1), pods: []*corev1.Pod{pod(failedPod), pod(failedPod, counted), pod(failedPod, counted)}, wait: 40 * time.Second, now: start},
		{name: "goes on then", job: newJob(1, 1), pods: []*corev1.Pod{pod(failedPod)}, create: []int{-1}, now: long},
		{name: "a pod that is ending is replaced", job: newJob(1, 1), pods: []*corev1.Pod{pod(deletedPod)}, create: []int{-1}, now: long},
		{name: "or waited for", job: newJob(1, 1, replaceFailed), pods: []*corev1.Pod{pod(deletedPod)}, now: long},
		{name: "indexes", job: newJob(3, 5, isIndexed), pods: []*corev1.Pod{pod(at(1)), pod(at(0), succeededPod)}, create: []int{2, 3}},
		{name: "an index twice", job: newJob(3, 3, isIndexed), pods: []*corev1.Pod{pod(at(1)), pod(at(1)), pod(at(0))}, deletes: 1},
		{name: "an index beyond", job: newJob(3, 2, isIndexed), pods: []*corev1.Pod{pod(at(1)), pod(at(7)), pod()}, deletes: 2},
		{name: "an index that is done", job: newJob(3, 3, isIndexed), pods: []*corev1.Pod{pod(at(1)), pod(at(1), succeededPod)}, deletes: 1},
		{name: "no deadline, no parallelism", job: newJob(0, 3)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.now.IsZero() {
				tt.now = start
			}
			p := Plan(tt.job, tt.pods, tt.now)
			if !slices.Equal(p.Create, tt.create) || len(p.Delete) != tt.deletes || p.RequeueAfter != tt.wait {
				t.Errorf("creates %v, deletes %d, waits %v; want %v, %d, %v", p.Create, len(p.Delete), p.RequeueAfter, tt.create, tt.deletes, tt.wait)
			}
			if len(p.Delete) > 0 && !p.Forget {
				t.Error("the pods' ends would count")
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	limit := func(n int32) func(*batchv1.Job) { return func(j *batchv1.Job) { j.Spec.BackoffLimit = &n } }
	each := func(n int32) func(*batchv1.Job) {
		return func(j *batchv1.Job) {
			isIndexed(j)
			j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit = &n, ptr(int32(1000))
		}
	}
	policy := func(rules ...batchv1.PodFailurePolicyRule) func(*batchv1.Job) {
		return func(j *batchv1.Job) { j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: rules} }
	}
	onExit := func(action batchv1.PodFailurePolicyAction, codes ...int32) batchv1.PodFailurePolicyRule {
		return batchv1.PodFailurePolicyRule{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: codes}}
	}
	disrupted := batchv1.PodFailurePolicyRule{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
		{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue},
	}}
	disruption := func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
	}
	success := func(rules ...batchv1.SuccessPolicyRule) func(*batchv1.Job) {
		return func(j *batchv1.Job) { j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: rules} }
	}
	tests := []struct {
		name    string
		job     *batchv1.Job
		pods    []*corev1.Pod
		target  string // the reason of FailureTarget
		success string // the reason of SuccessCriteriaMet
		deletes int
	}{
		{name: "goes on", job: newJob(1, 1, limit(1)), pods: []*corev1.Pod{pod(failedPod)}},
		{name: "too many failures", job: newJob(2, 2, limit(1)), pods: []*corev1.Pod{pod(failedPod), pod(failedPod), pod()}, target: "BackoffLimitExceeded", deletes: 1},
		{name: "too many restarts", job: newJob(1, 1, limit(2), func(j *batchv1.Job) { j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure }),
			pods: []*corev1.Pod{pod(func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 2}} })}, target: "BackoffLimitExceeded", deletes: 1},
		{name: "deadline", job: newJob(1, 1, func(j *batchv1.Job) {
			j.Spec.ActiveDeadlineSeconds, j.Status.StartTime = ptr(int64(60)), ptr(metav1.NewTime(start.Add(-time.Minute)))
		}), pods: []*corev1.Pod{pod()}, target: "DeadlineExceeded", deletes: 1},
		{name: "policy fails the job", job: newJob(1, 1, policy(disrupted, onExit(batchv1.PodFailurePolicyActionFailJob, 1, 2))), pods: []*corev1.Pod{pod(failedPod), pod()}, target: "PodFailurePolicy", deletes: 1},
		{name: "policy ignores", job: newJob(1, 1, limit(0), policy(disrupted)), pods: []*corev1.Pod{pod(failedPod, disruption)}},
		{name: "the first rule that matches decides", job: newJob(1, 1, limit(0), policy(disrupted, onExit(batchv1.PodFailurePolicyActionFailJob, 1))), pods: []*corev1.Pod{pod(failedPod, disruption)}},
		{name: "a policy waits for a pod's end", job: newJob(1, 1, limit(0), policy(disrupted)), pods: []*corev1.Pod{pod(deletedPod, disruption)}},
		{name: "and so do its other rules", job: newJob(1, 1, limit(0), policy(onExit(batchv1.PodFailurePolicyActionFailJob, 1))), pods: []*corev1.Pod{pod(deletedPod)}},
		{name: "an index fails for good", job: newJob(2, 2, each(0)), pods: []*corev1.Pod{pod(at(0), failedPod, after(0)), pod(at(1))}},
		{name: "all indexes are decided", job: newJob(2, 2, each(1)), pods: []*corev1.Pod{pod(at(0), failedPod, after(1)), pod(at(1), succeededPod)}, target: "FailedIndexes"},
		{name: "too many failed indexes", job: newJob(3, 3, each(0), func(j *batchv1.Job) { j.Spec.MaxFailedIndexes = ptr(int32(0)) }),
			pods: []*corev1.Pod{pod(at(0), failedPod, after(0)), pod(at(1))}, target: "MaxFailedIndexesExceeded", deletes: 1},
		{name: "policy fails an index", job: newJob(1, 1, each(5), policy(onExit(batchv1.PodFailurePolicyActionFailIndex, 1))), pods: []*corev1.Pod{pod(at(0), failedPod, after(0))}, target: "FailedIndexes"},
		{name: "complete", job: newJob(2, 2), pods: []*corev1.Pod{pod(succeededPod), pod(succeededPod)}, success: "CompletionsReached"},
		{name: "not while one runs", job: newJob(2, 0), pods: []*corev1.Pod{pod(succeededPod), pod()}},
		{name: "nothing to do", job: newJob(2, 0, func(j *batchv1.Job) { j.Spec.Completions = ptr(int32(0)) }), success: "CompletionsReached"},
		{name: "success policy by count", job: newJob(3, 3, isIndexed, success(batchv1.SuccessPolicyRule{SucceededCount: ptr(int32(1))})),
			pods: []*corev1.Pod{pod(at(1), succeededPod), pod(at(0)), pod(at(2))}, success: "SuccessPolicy", deletes: 2},
		{name: "success policy by index", job: newJob(3, 3, isIndexed, success(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("0,2")})),
			pods: []*corev1.Pod{pod(at(2), succeededPod), pod(at(0), succeededPod), pod(at(1))}, success: "SuccessPolicy", deletes: 1},
		{name: "success policy not met", job: newJob(3, 3, isIndexed, success(batchv1.SuccessPolicyRule{SucceededIndexes: ptr("0-1")})),
			pods: []*corev1.Pod{pod(at(2), succeededPod), pod(at(0), succeededPod), pod(at(1))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Plan(tt.job, tt.pods, start)
			if got := reason(&p.Status, batchv1.JobFailureTarget); got != tt.target {
				t.Errorf("failure target %q, want %q", got, tt.target)
			}
			if got := reason(&p.Status, batchv1.JobSuccessCriteriaMet); got != tt.success {
				t.Errorf("success criteria %q, want %q", got, tt.success)
			}
			if len(p.Delete) != tt.deletes {
				t.Errorf("deletes %d, want %d", len(p.Delete), tt.deletes)
			}
			running := len(tt.pods) > 0
			if f := finishedCondition(&p.Status); f != nil && running {
				t.Errorf("finished at once: %+v", f)
			}
		})
	}
}

func TestPerIndexReplacementKnowsItsPast(t *testing.T) {
	j := newJob(2, 2, isIndexed, func(j *batchv1.Job) { j.Spec.BackoffLimitPerIndex = ptr(int32(3)) })
	old, last := pod(at(0), failedPod, after(0)), pod(at(0), ended(corev1.PodFailed, 1, start.Add(time.Minute)), after(1))
	p := Plan(j, []*corev1.Pod{old, last, pod(at(1))}, start.Add(time.Minute))
	if len(p.Create) != 0 || p.RequeueAfter != 20*time.Second {
		t.Fatalf("after two failures: creates %v, waits %v", p.Create, p.RequeueAfter)
	}
	if slices.Contains(p.Release, last) || !slices.Contains(p.Release, old) {
		t.Error("the last failed pod must stay, the others may go")
	}
	p = Plan(j, []*corev1.Pod{last, pod(at(1))}, start.Add(time.Hour))
	if !slices.Equal(p.Create, []int{0}) || p.Replaces[0] != last {
		t.Fatalf("creates %v", p.Create)
	}
	next := newPod(j, 0, p.Replaces[0])
	if next.Annotations[failuresAnnotation] != "2" || next.Spec.Hostname != "work-0" || next.GenerateName != "work-0-" ||
		next.Spec.Containers[0].Env[0].Name != indexEnv || next.Labels[batchv1.JobCompletionIndexAnnotation] != "0" {
		t.Errorf("pod %+v", next)
	}
	next.UID, next.Finalizers = "next", []string{batchv1.JobTrackingFinalizer}
	if p = Plan(j, []*corev1.Pod{last, next, pod(at(1))}, start.Add(time.Hour)); !slices.Contains(p.Release, last) {
		t.Error("with a new pod, the failed one may go")
	}
}

func TestSuspendAndResume(t *testing.T) {
	j := newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.Suspend, j.Spec.ActiveDeadlineSeconds, j.Status.StartTime = ptr(true), ptr(int64(60)), ptr(metav1.NewTime(start.Add(-time.Hour)))
	})
	p := Plan(j, nil, start)
	if reason(&p.Status, batchv1.JobSuspended) != "JobSuspended" || p.Status.StartTime != nil || len(p.Create) != 0 || p.RequeueAfter != 0 {
		t.Fatalf("suspended: %+v", p)
	}
	j.Status, j.Spec.Suspend = p.Status, ptr(false)
	p = Plan(j, nil, start)
	if c := condition(&p.Status, batchv1.JobSuspended); c.Status != corev1.ConditionFalse || p.Status.StartTime == nil || !p.Status.StartTime.Time.Equal(start) || len(p.Create) != 1 || p.RequeueAfter != time.Minute {
		t.Fatalf("resumed: %+v", p)
	}
}

func TestTimeToLive(t *testing.T) {
	j := newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.TTLSecondsAfterFinished = ptr(int32(60))
		j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(start)}}
	})
	late := pod(succeededPod)
	if p := Plan(j, []*corev1.Pod{late}, start.Add(20*time.Second)); !slices.Contains(p.Release, late) {
		t.Errorf("the finished pod is not released: %+v", p)
	}
	if left, limited := Left(j, start.Add(20*time.Second)); !limited || left != 40*time.Second {
		t.Errorf("%s left, limited %v, want 40s", left, limited)
	}
	if left, limited := Left(j, start.Add(time.Minute)); !limited || left > 0 {
		t.Errorf("%s left, limited %v, want the end of its time", left, limited)
	}
}

func TestIndexes(t *testing.T) {
	s := parseIndexes("1,3-5,x,9-20,30", 12)
	if s.String() != "1,3-5,9-11" || s.count() != 7 {
		t.Errorf("%s, %d", s, s.count())
	}
	if got := s.with(2, 7, 6).String(); got != "1-7,9-11" {
		t.Errorf("with: %s", got)
	}
	if got := s.with(0).String(); got != "0,1,3-5,9-11" {
		t.Errorf("two in a row: %s", got)
	}
	if got := s.missing(4, 12); !slices.Equal(got, []int{0, 2, 6, 7}) {
		t.Errorf("missing: %v", got)
	}
	if got := s.missing(9, 12); !slices.Equal(got, []int{0, 2, 6, 7, 8}) {
		t.Errorf("missing: %v", got)
	}
	if !s.has(4) || s.has(2) || !s.has(11) || s.has(12) {
		t.Error("has")
	}
	if got := s.overlap(parseIndexes("0-4", 12)); got != 3 {
		t.Errorf("overlap: %d", got)
	}
}

// Whatever stops between two writes, and however pods end, each pod's end counts
// once, and the job ends.
func TestCountsEachPodOnce(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 4))
	for round := range 150 {
		change := []func(*batchv1.Job){func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr(int32(1000)) }}
		mode := rng.IntN(3)
		if mode > 0 {
			change = append(change, isIndexed)
		}
		if mode == 2 {
			change = append(change, func(j *batchv1.Job) { j.Spec.BackoffLimitPerIndex = ptr(int32(2)) })
		}
		n := int32(1 + rng.IntN(20))
		simulate(t, rng, fmt.Sprintf("round %d, mode %d", round, mode), newJob(int32(1+rng.IntN(6)), n, change...))
	}
}

func simulate(t *testing.T, rng *rand.Rand, name string, j *batchv1.Job) {
	t.Helper()
	var pods []*corev1.Pod
	now, ok, bad := start, 0, 0
	for range 5000 {
		now = now.Add(time.Minute)
		plan := Plan(j, pods, now)
		if finishedCondition(&j.Status) != nil {
			break
		}
		crash := rng.IntN(8) // after so many writes
		write := func() bool { crash--; return crash != 0 }
		for _, p := range plan.Delete {
			if !write() {
				break
			}
			if plan.Forget {
				p.Finalizers = nil
			}
			p.DeletionTimestamp = ptr(metav1.NewTime(now))
		}
		for _, i := range plan.Create {
			if !write() {
				break
			}
			p := newPod(j, i, plan.Replaces[i])
			serial++
			p.Name, p.UID = fmt.Sprintf("p%d", serial), types.UID(fmt.Sprintf("u%d", serial))
			pods = append(pods, p)
		}
		if crash > 0 && write() {
			j = j.DeepCopy()
			j.Status = plan.Status
			for _, p := range plan.Release {
				if !write() {
					break
				}
				p.Finalizers = nil
			}
		}
		// Pods end; what has no finalizer and is deleted goes.
		for _, p := range pods {
			if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || rng.IntN(3) > 0 {
				continue
			}
			if tracked(p) && p.DeletionTimestamp == nil && rng.IntN(3) > 0 {
				ended(corev1.PodSucceeded, 0, now)(p)
				ok++
			} else {
				if tracked(p) {
					bad++
				}
				ended(corev1.PodFailed, 1, now)(p)
			}
		}
		pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool {
			return len(p.Finalizers) == 0 && (p.DeletionTimestamp != nil || rng.IntN(10) == 0)
		})
	}
	f := finishedCondition(&j.Status)
	if f == nil {
		t.Fatalf("%s: the job does not finish: %+v", name, j.Status)
	}
	if f.Type == batchv1.JobComplete && j.Status.Succeeded != *j.Spec.Completions {
		t.Errorf("%s: %d succeeded of %d", name, j.Status.Succeeded, *j.Spec.Completions)
	}
	if !indexed(j) && int(j.Status.Succeeded) != ok {
		t.Errorf("%s: counted %d successes, there were %d", name, j.Status.Succeeded, ok)
	}
	if int(j.Status.Failed) != bad {
		t.Errorf("%s: counted %d failures, there were %d", name, j.Status.Failed, bad)
	}
	if f.Type == batchv1.JobFailed && parseIndexes(*j.Status.FailedIndexes, int(*j.Spec.Completions)).count() == 0 {
		t.Errorf("%s: failed without a failed index", name)
	}
	for _, p := range pods {
		if tracked(p) {
			t.Errorf("%s: %s is still held", name, p.Name)
		}
	}
}

// A stale view may have created a pod for a job that had finished. It is deleted while it
// runs, and released once it has ended.
func TestLatePodsOfAFinishedJob(t *testing.T) {
	j := newJob(1, 1, func(j *batchv1.Job) {
		j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
	})
	running, done, ending := pod(), pod(succeededPod), pod(deletedPod)
	plan := Plan(j, []*corev1.Pod{running, done, ending}, start)
	if !slices.Equal(plan.Late, []*corev1.Pod{running}) || !slices.Equal(plan.Release, []*corev1.Pod{done, ending}) {
		t.Errorf("deletes %d pods and releases %d, want the running one deleted and the two others released", len(plan.Late), len(plan.Release))
	}
}
