package batch

import (
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Job is the row of jobs.
func Job() *resource.Kind {
	k := row.Namespaced[batchv1.Job, batchv1.JobList](batchv1.SchemeGroupVersion, "jobs", "jobs")
	k.Categories = []string{"all"}
	// Old clients that know nothing of propagation leave a job's pods behind.
	k.DefaultPropagation = metav1.DeletePropagationOrphan
	k.Fields = map[string]func(resource.Object) string{
		"status.successful": func(o resource.Object) string {
			return strconv.Itoa(int(o.(*batchv1.Job).Status.Succeeded))
		},
	}
	k.Rules = resource.Typed[*batchv1.Job]{
		PrepareCreate: func(j *batchv1.Job) { j.Status = batchv1.JobStatus{} },
		PrepareUpdate: func(j, old *batchv1.Job) { j.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*batchv1.Job]{
			PrepareUpdate: func(j, old *batchv1.Job) { j.Spec = old.Spec },
		}.Rules()),
	}
	return k
}
