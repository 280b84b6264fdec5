package job

import (
	"reflect"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// specFields says what each field of a JobSpec does, by a plan that follows from it. Fields that
// other parts of the system handle are in elsewhere.
var specFields = map[string]struct {
	does string
	job  *batchv1.Job
	pods []*corev1.Pod
	want func(Actions) bool
}{
	"Parallelism": {"at most so many pods run at once", newJob(2, 9), nil,
		func(p Actions) bool { return len(p.Create) == 2 }},
	"Completions": {"so many pods must succeed", newJob(5, 2), []*corev1.Pod{pod(succeededPod), pod(succeededPod)},
		func(p Actions) bool {
			return len(p.Create) == 0 && reason(&p.Status, batchv1.JobSuccessCriteriaMet) == batchv1.JobReasonCompletionsReached
		}},
	"ActiveDeadlineSeconds": {"the job fails so long after its start, and its pods are deleted", newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.ActiveDeadlineSeconds, j.Status.StartTime = ptr(int64(5)), ptr(metav1.NewTime(start.Add(-5*time.Second)))
	}), []*corev1.Pod{pod()},
		func(p Actions) bool {
			return len(p.Delete) == 1 && !p.Forget && reason(&p.Status, batchv1.JobFailureTarget) == batchv1.JobReasonDeadlineExceeded
		}},
	"PodFailurePolicy": {"the first rule that matches a failed pod decides; Ignore does not count it", newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.BackoffLimit = ptr(int32(0))
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action: batchv1.PodFailurePolicyActionIgnore,
			OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				ContainerName: ptr("c"), Operator: batchv1.PodFailurePolicyOnExitCodesOpNotIn, Values: []int32{2},
			},
		}}}
	}), []*corev1.Pod{pod(failedPod)},
		func(p Actions) bool {
			return reason(&p.Status, batchv1.JobFailureTarget) == "" && len(p.Status.UncountedTerminatedPods.Failed) == 0 && len(p.Release) == 1
		}},
	"SuccessPolicy": {"the job succeeds once a rule is met, and its other pods are deleted", newJob(3, 3, isIndexed, func(j *batchv1.Job) {
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0-1"), SucceededCount: ptr(int32(1))}}}
	}), []*corev1.Pod{pod(at(1), succeededPod), pod(at(0)), pod(at(2))},
		func(p Actions) bool {
			return len(p.Delete) == 2 && reason(&p.Status, batchv1.JobSuccessCriteriaMet) == batchv1.JobReasonSuccessPolicy
		}},
	"BackoffLimit": {"the job fails after more failures than that", newJob(1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr(int32(1)) }),
		[]*corev1.Pod{pod(failedPod), pod(failedPod)},
		func(p Actions) bool {
			return reason(&p.Status, batchv1.JobFailureTarget) == batchv1.JobReasonBackoffLimitExceeded
		}},
	"BackoffLimitPerIndex": {"an index fails after more failures than that, and the others go on", newJob(2, 2, isIndexed, func(j *batchv1.Job) {
		j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit = ptr(int32(1)), ptr(int32(1000))
	}), []*corev1.Pod{pod(at(0), failedPod, after(1)), pod(at(1))},
		func(p Actions) bool {
			return *p.Status.FailedIndexes == "0" && len(p.Delete) == 0 && len(p.Create) == 0 && reason(&p.Status, batchv1.JobFailureTarget) == ""
		}},
	"MaxFailedIndexes": {"the job fails once more indexes have failed than that", newJob(3, 3, isIndexed, func(j *batchv1.Job) {
		j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit, j.Spec.MaxFailedIndexes = ptr(int32(0)), ptr(int32(1000)), ptr(int32(1))
	}), []*corev1.Pod{pod(at(0), failedPod, after(0)), pod(at(1), failedPod, after(0)), pod(at(2))},
		func(p Actions) bool {
			return len(p.Delete) == 1 && reason(&p.Status, batchv1.JobFailureTarget) == batchv1.JobReasonMaxFailedIndexesExceeded
		}},
	"Template": {"each pod is made from it, and with restartPolicy OnFailure restarts count towards the limit", newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.Template.Spec.RestartPolicy, j.Spec.BackoffLimit = corev1.RestartPolicyOnFailure, ptr(int32(3))
	}), []*corev1.Pod{pod(func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}} })},
		func(p Actions) bool {
			return reason(&p.Status, batchv1.JobFailureTarget) == batchv1.JobReasonBackoffLimitExceeded
		}},
	"CompletionMode": {"Indexed: each index from 0 gets a pod of its own until one has succeeded", newJob(3, 3, isIndexed),
		[]*corev1.Pod{pod(at(1), succeededPod), pod(at(2))},
		func(p Actions) bool { return slices.Equal(p.Create, []int{0}) && p.Status.CompletedIndexes == "1" }},
	"Suspend": {"pods are deleted without being counted, and the clock of the deadline stops", newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.Suspend, j.Status.StartTime = ptr(true), ptr(metav1.NewTime(start))
	}), []*corev1.Pod{pod()},
		func(p Actions) bool { return len(p.Delete) == 1 && p.Forget && p.Status.StartTime == nil }},
	"PodReplacementPolicy": {"Failed: a pod that terminates is replaced only once it has ended", newJob(1, 1, func(j *batchv1.Job) {
		j.Spec.PodReplacementPolicy = ptr(batchv1.Failed)
	}), []*corev1.Pod{pod(deletedPod)},
		func(p Actions) bool { return len(p.Create) == 0 && *p.Status.Terminating == 1 && p.Status.Failed == 0 }},
}

// elsewhere says where the other fields of a JobSpec are handled, and tested.
var elsewhere = map[string]string{
	"Selector":                "selects the pods; set by the apiserver, unless manualSelector is true (kind/batch)",
	"ManualSelector":          "see Selector",
	"TTLSecondsAfterFinished": "the ttl-after-finished controller deletes the job (TestTimeToLive, ttl_test.go)",
	"ManagedBy":               "another controller runs the job (the scenario job-controller, ttl_test.go)",
	"Scheduling":              "dropped by the apiserver: behind a feature gate that is off in Kubernetes 1.37 as well",
}

// TestEveryFieldOfTheSpec fails if a new version of the API has a field that is neither honoured nor
// listed.
func TestEveryFieldOfTheSpec(t *testing.T) {
	spec := reflect.TypeFor[batchv1.JobSpec]()
	for i := range spec.NumField() {
		name := spec.Field(i).Name
		f, here := specFields[name]
		if _, other := elsewhere[name]; here == other {
			t.Errorf("%s must be either in specFields or in elsewhere", name)
		}
		if !here {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if p := Plan(f.job, f.pods, start); !f.want(p) {
				t.Errorf("%s does not hold: %+v", f.does, p)
			}
		})
	}
	if n := len(specFields) + len(elsewhere); n != spec.NumField() {
		t.Errorf("%d fields are listed, of %d", n, spec.NumField())
	}
}
