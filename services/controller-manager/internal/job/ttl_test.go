package job_test

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/job"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

// A finished job is deleted when its time is over, also one that another controller manages.
func TestFinishedJobsAreDeleted(t *testing.T) {
	w := Start(t)
	w.Run(job.NewTTL(w.Cluster))
	none, other := int32(0), "example.com/other"
	for name, spec := range map[string]batchv1.JobSpec{
		"ours": {TTLSecondsAfterFinished: &none}, "managed": {TTLSecondsAfterFinished: &none, ManagedBy: &other}, "kept": {},
	} {
		Create(w, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec})
		Update(w, "default", name, func(j *batchv1.Job) {
			j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
		}, client.Subresource("status"))
	}
	for _, name := range []string{"ours", "managed"} {
		w.Eventually("deletion of "+name, func() bool {
			return !Exists[*batchv1.Job](w, "default", name) || Get[*batchv1.Job](w, "default", name).DeletionTimestamp != nil
		})
	}
	w.Never("a job without a limit is deleted", func() bool { return Get[*batchv1.Job](w, "default", "kept").DeletionTimestamp != nil })
}
