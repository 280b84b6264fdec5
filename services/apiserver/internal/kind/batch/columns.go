package batch

import (
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/resource"
)

func jobColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Status", "Status of the job."),
		column.Text("Completions", column.Doc(batchv1.JobStatus{}, "succeeded")),
		column.Text("Duration", "Time required to complete the job."),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(batchv1.JobSpec{}, "selector")),
	}
}

func jobCells(o resource.Object) []any {
	j := o.(*batchv1.Job)
	names, images := column.Containers(j.Spec.Template.Spec.Containers)
	return []any{
		jobState(j), completions(j), took(&j.Status), column.Age(j.CreationTimestamp),
		names, images, column.Selector(j.Spec.Selector),
	}
}

func holds(j *batchv1.Job, t batchv1.JobConditionType) bool {
	for i := range j.Status.Conditions {
		if c := &j.Status.Conditions[i]; c.Type == t && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func jobState(j *batchv1.Job) string {
	switch {
	case holds(j, batchv1.JobComplete):
		return "Complete"
	case holds(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case holds(j, batchv1.JobSuspended):
		return "Suspended"
	case holds(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case holds(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func completions(j *batchv1.Job) string {
	if c := j.Spec.Completions; c != nil {
		return fmt.Sprintf("%d/%d", j.Status.Succeeded, *c)
	}
	if p := j.Spec.Parallelism; p != nil && *p > 1 {
		return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *p)
	}
	return fmt.Sprintf("%d/1", j.Status.Succeeded)
}

func took(s *batchv1.JobStatus) string {
	switch {
	case s.StartTime == nil:
		return ""
	case s.CompletionTime == nil:
		return duration.HumanDuration(time.Since(s.StartTime.Time))
	}
	return duration.HumanDuration(s.CompletionTime.Sub(s.StartTime.Time))
}
