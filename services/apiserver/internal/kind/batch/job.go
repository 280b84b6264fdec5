package batch

import (
	"fmt"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Job returns the row of jobs.
func Job() *resource.Kind {
	k := row.Namespaced[batchv1.Job, batchv1.JobList](batchv1.SchemeGroupVersion, "jobs", "jobs")
	k.Categories = []string{"all"}
	k.Columns, k.Cells = jobColumns(), jobCells
	// Clients that send no propagation policy leave a job's pods behind.
	k.DefaultPropagation = metav1.DeletePropagationOrphan
	k.NoPropagationWarning = "child pods are preserved by default when jobs are deleted; " +
		"set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
	k.Fields = map[string]func(resource.Object) string{
		"status.successful": func(o resource.Object) string {
			return strconv.Itoa(int(o.(*batchv1.Job).Status.Succeeded))
		},
	}
	k.Rules = resource.Typed[*batchv1.Job]{
		Default: defaultJob,
		PrepareCreate: func(j *batchv1.Job) {
			j.Status = batchv1.JobStatus{}
			selectOwnPods(j)
			j.Spec.Scheduling = nil // behind a feature gate that is off in Kubernetes as well
			podspec.Drop(&j.Spec.Template.Spec)
		},
		PrepareUpdate: func(j, old *batchv1.Job) {
			j.Status = old.Status
			j.Spec.Scheduling = nil
			podspec.Drop(&j.Spec.Template.Spec)
		},
		Warnings:       jobWarnings,
		Validate:       validateNewJob,
		ValidateUpdate: validateJobUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*batchv1.Job]{
			Default:        defaultJob,
			PrepareUpdate:  func(j, old *batchv1.Job) { j.Spec = old.Spec },
			ValidateUpdate: validateJobStatus,
		}.Rules()),
	}
	return k
}

// selectOwnPods gives a job without a selector of its own one that no other job can share, and
// its pods the matching labels.
func selectOwnPods(j *batchv1.Job) {
	if j.Spec.ManualSelector != nil && *j.Spec.ManualSelector {
		return
	}
	labels := j.Spec.Template.Labels
	if labels == nil {
		labels = map[string]string{}
		j.Spec.Template.Labels = labels
	}
	if len(j.Labels) == 0 {
		j.Labels = labels
	}
	for _, l := range [][2]string{
		{legacyJobName, j.Name}, {batchv1.JobNameLabel, j.Name},
		{legacyControllerUID, string(j.UID)}, {batchv1.ControllerUidLabel, string(j.UID)},
	} {
		if _, set := labels[l[0]]; !set {
			labels[l[0]] = l[1]
		}
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{}}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, set := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !set {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func jobWarnings(j, old *batchv1.Job) []string {
	var list []string
	if old == nil {
		if m := check.Label(j.Name); m != nil {
			list = append(list, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, "+
				"which can result in surprising behavior; a DNS label is recommended: %v", m))
		}
	}
	list = append(list, manyWarnings(&j.Spec, "spec")...)
	return append(list, podspec.Warnings(&j.Spec.Template.Spec, j.Spec.Template.Annotations, field.NewPath("spec", "template"))...)
}

// manyWarnings are those of jobs that fail at more indexes than their status can hold.
func manyWarnings(s *batchv1.JobSpec, path string) []string {
	if !indexed(s) || value(s.Completions) <= manyCompletions || value(s.Parallelism) <= maxParallelismOfMany {
		return nil
	}
	return []string{path + ": In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, " +
		"Kubernetes might not be able to track completedIndexes when a big number of indexes fail"}
}

// The old names of the labels, which are still set.
const (
	legacyJobName       = "job-name"
	legacyControllerUID = "controller-uid"
)

const defaultBackoffLimit = 6

func defaultJob(j *batchv1.Job) {
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		set(&s.Completions, 1)
	}
	set(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		set(&s.BackoffLimit, maxInt32)
	} else {
		set(&s.BackoffLimit, defaultBackoffLimit)
	}
	set(&s.CompletionMode, batchv1.NonIndexedCompletion)
	set(&s.Suspend, false)
	set(&s.ManualSelector, false)
	if s.PodReplacementPolicy == nil {
		policy := batchv1.TerminatingOrFailed
		if s.PodFailurePolicy != nil {
			policy = batchv1.Failed
		}
		s.PodReplacementPolicy = &policy
	}
	defaultFailurePolicy(s.PodFailurePolicy)
	if len(j.Labels) == 0 {
		// A job without labels shares those of its template. It is the same map, so that
		// selectOwnPods adds labels to both.
		j.Labels = s.Template.Labels
	}
	podspec.DefaultTemplate(&s.Template)
}

func defaultFailurePolicy(p *batchv1.PodFailurePolicy) {
	if p == nil {
		return
	}
	for i := range p.Rules {
		for j := range p.Rules[i].OnPodConditions {
			if c := &p.Rules[i].OnPodConditions[j]; c.Status == "" {
				c.Status = corev1.ConditionTrue
			}
		}
	}
}

const maxInt32 = int32(1<<31 - 1)

func set[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
