package batch

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
)

// Kubernetes' limits on indexed jobs.
const (
	maxIndexedParallelism  = 100_000
	manyCompletions        = 100_000
	maxParallelismOfMany   = 10_000
	maxFailedIndexesOfMany = 10_000
	maxPolicyRules         = 20
	maxPolicyExitCodes     = 255
	maxPolicyConditions    = 20
	maxManagedBy           = 63
)

func validateNewJob(j *batchv1.Job) field.ErrorList { return validateJob(j, true) }

func validateJob(j *batchv1.Job, created bool) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	validateJobSpec(&e, &j.Spec, p)
	validateJobSelector(&e, j, p)
	if created && (j.Spec.ManualSelector == nil || !*j.Spec.ManualSelector) {
		validateGenerated(&e, j, p)
	}
	if n := value(j.Spec.Completions); n > 0 && indexed(&j.Spec) {
		name := fmt.Sprintf("%s-%d", j.Name, n-1)
		if check.Label(name) != nil {
			e.Invalid(field.NewPath("metadata", "name"), j.Name, "will not able to create pod with invalid DNS label: "+name)
		}
	}
	return e.List
}

// validateJobSpec validates what jobs and job templates have in common.
func validateJobSpec(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	validateNumbers(e, s, p)
	validateJobTemplate(e, s, p.Child("template"))
	validateIndexed(e, s, p)
	if s.PodFailurePolicy != nil {
		validateFailurePolicy(e, s, p.Child("podFailurePolicy"))
	}
	if s.SuccessPolicy != nil && indexed(s) {
		validateSuccessPolicy(e, s, p.Child("successPolicy"))
	}
	if s.ManagedBy != nil && *s.ManagedBy != batchv1.JobControllerName {
		validateManagedBy(e, *s.ManagedBy, p)
	}
}

func validateNumbers(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	atLeastZero := func(child string, n *int32) {
		if n != nil {
			e.AtLeastZero(p, child, int64(*n))
		}
	}
	atLeastZero("parallelism", s.Parallelism)
	atLeastZero("completions", s.Completions)
	atLeastZero("backoffLimit", s.BackoffLimit)
	atLeastZero("ttlSecondsAfterFinished", s.TTLSecondsAfterFinished)
	atLeastZero("backoffLimitPerIndex", s.BackoffLimitPerIndex)
	atLeastZero("maxFailedIndexes", s.MaxFailedIndexes)
	if s.ActiveDeadlineSeconds != nil {
		e.AtLeastZero(p, "activeDeadlineSeconds", *s.ActiveDeadlineSeconds)
	}
	if s.PodReplacementPolicy != nil {
		if s.PodFailurePolicy != nil {
			check.Supported(e, p, "podReplacementPolicy", *s.PodReplacementPolicy, batchv1.Failed)
		} else {
			check.Supported(e, p, "podReplacementPolicy", *s.PodReplacementPolicy, batchv1.Failed, batchv1.TerminatingOrFailed)
		}
	}
}

func validateJobSelector(e *check.Errors, j *batchv1.Job, p *field.Path) {
	s := j.Spec.Selector
	if s == nil {
		e.Required(p.Child("selector"), "")
	} else {
		e.Selector(p, "selector", s)
	}
	// A nil selector matches nothing.
	if selector, err := metav1.LabelSelectorAsSelector(s); err == nil && !selector.Matches(labels.Set(j.Spec.Template.Labels)) {
		e.Invalid(p.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`")
	}
}

// validateGenerated checks the selector and the labels that selectOwnPods sets.
func validateGenerated(e *check.Errors, j *batchv1.Job, p *field.Path) {
	if j.UID == "" {
		return
	}
	at := p.Child("template", "metadata", "labels")
	for _, l := range [][2]string{
		{legacyControllerUID, string(j.UID)}, {legacyJobName, j.Name},
		{batchv1.ControllerUidLabel, string(j.UID)}, {batchv1.JobNameLabel, j.Name},
	} {
		switch got, set := j.Spec.Template.Labels[l[0]]; {
		case !set:
			e.Required(at.Key(l[0]), "must be '"+l[1]+"'")
		case got != l[1]:
			e.Invalid(at.Key(l[0]), j.Spec.Template.Labels, "must be '"+l[1]+"'")
		}
	}
	if _, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err != nil {
		return
	}
	want := metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(j.UID)}}
	legacy := metav1.LabelSelector{MatchLabels: map[string]string{legacyControllerUID: string(j.UID)}}
	if s := *j.Spec.Selector; !equality.Semantic.DeepEqual(s, want) && !equality.Semantic.DeepEqual(s, legacy) {
		e.Invalid(p.Child("selector"), j.Spec.Selector, "`selector` not auto-generated")
	}
}

func validateJobTemplate(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	e.Append(podspec.ValidateTemplate(&s.Template, p))
	policy := s.Template.Spec.RestartPolicy
	switch {
	case policy == corev1.RestartPolicyAlways:
		e.Required(p.Child("spec", "restartPolicy"), "valid values: \"OnFailure\", \"Never\"")
	case policy != corev1.RestartPolicyOnFailure && policy != corev1.RestartPolicyNever:
		check.Supported(e, p.Child("spec"), "restartPolicy", policy, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	case s.PodFailurePolicy != nil && policy != corev1.RestartPolicyNever:
		e.Invalid(p.Child("spec", "restartPolicy"), policy, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))
	}
}

func indexed(s *batchv1.JobSpec) bool {
	return s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
}

// validateIndexed checks the fields that only indexed jobs may have.
func validateIndexed(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		e.Required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
	}
	if !indexed(s) {
		if s.CompletionMode != nil {
			check.Supported(e, p, "completionMode", *s.CompletionMode, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)
		}
		const detail = "requires indexed completion mode"
		if s.BackoffLimitPerIndex != nil {
			e.Invalid(p.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, detail)
		}
		if s.MaxFailedIndexes != nil {
			e.Invalid(p.Child("maxFailedIndexes"), *s.MaxFailedIndexes, detail)
		}
		if s.SuccessPolicy != nil {
			e.Invalid(p.Child("successPolicy"), s.SuccessPolicy, detail)
		}
		return
	}
	if s.Completions == nil {
		e.Required(p.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion))
	}
	if s.Parallelism != nil && *s.Parallelism > maxIndexedParallelism {
		e.Invalid(p.Child("parallelism"), *s.Parallelism,
			fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion))
	}
	if s.Completions != nil {
		validateMany(e, s, p)
	}
}

// validateMany bounds the status of jobs that count failures by index.
func validateMany(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	failed := s.MaxFailedIndexes
	if failed != nil && *failed > *s.Completions {
		e.Invalid(p.Child("maxFailedIndexes"), *failed, "must be less than or equal to completions")
	}
	if s.BackoffLimitPerIndex == nil || *s.Completions <= manyCompletions {
		return
	}
	switch {
	case failed == nil:
		e.Required(p.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions))
	case *failed > maxFailedIndexesOfMany:
		e.Invalid(p.Child("maxFailedIndexes"), *failed,
			fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxFailedIndexesOfMany, manyCompletions))
	}
	if s.Parallelism != nil && *s.Parallelism > maxParallelismOfMany {
		e.Invalid(p.Child("parallelism"), *s.Parallelism,
			fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxParallelismOfMany, manyCompletions))
	}
}

func validateManagedBy(e *check.Errors, name string, p *field.Path) {
	e.Append(validationutil.IsDomainPrefixedPath(p.Child("managedBy"), name))
	if len(name) > maxManagedBy {
		e.List = append(e.List, field.TooLong(p.Child("managedBy"), name, maxManagedBy))
	}
}

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	e := check.Errors{List: validateJob(j, false)}
	p := field.NewPath("spec")
	s, was := &j.Spec, &old.Spec
	immutable := func(child string, now, before any) {
		if !equality.Semantic.DeepEqual(now, before) {
			e.Invalid(p.Child(child), now, check.Immutable)
		}
	}
	validateCompletionsUpdate(&e, s, was, p)
	immutable("selector", s.Selector, was.Selector)
	immutable("completionMode", s.CompletionMode, was.CompletionMode)
	immutable("podFailurePolicy", s.PodFailurePolicy, was.PodFailurePolicy)
	immutable("backoffLimitPerIndex", s.BackoffLimitPerIndex, was.BackoffLimitPerIndex)
	immutable("managedBy", s.ManagedBy, was.ManagedBy)
	immutable("successPolicy", s.SuccessPolicy, was.SuccessPolicy)
	template := s.Template
	at := p.Child("template")
	if suspended(was) && old.Status.StartTime == nil {
		at = at.Child("spec")
		// Before the job starts, a queue may decide where its pods run.
		template = *s.Template.DeepCopy()
		template.Labels, template.Annotations = was.Template.Labels, was.Template.Annotations
		template.Spec.NodeSelector = was.Template.Spec.NodeSelector
		template.Spec.Tolerations = was.Template.Spec.Tolerations
		template.Spec.SchedulingGates = was.Template.Spec.SchedulingGates
		template.Spec.Affinity = was.Template.Spec.Affinity
		maskResources(template.Spec.Containers, was.Template.Spec.Containers)
		maskResources(template.Spec.InitContainers, was.Template.Spec.InitContainers)
	}
	if !check.Same(&template, &was.Template) {
		e.Invalid(at, s.Template, check.Immutable)
	}
	return e.List
}

func maskResources(list, old []corev1.Container) {
	if len(list) != len(old) {
		return
	}
	for i := range list {
		list[i].Resources = old[i].Resources
	}
}

func suspended(s *batchv1.JobSpec) bool { return s.Suspend != nil && *s.Suspend }

// validateCompletionsUpdate allows an indexed job to change its completions if its parallelism
// becomes the same number, whatever both were before.
func validateCompletionsUpdate(e *check.Errors, s, old *batchv1.JobSpec, p *field.Path) {
	if equality.Semantic.DeepEqual(s.Completions, old.Completions) {
		return
	}
	switch {
	case !indexed(s):
		e.Invalid(p.Child("completions"), s.Completions, check.Immutable)
	case s.Completions == nil: // refused elsewhere
	case s.Parallelism == nil || *s.Completions != *s.Parallelism:
		e.Invalid(p.Child("completions"), s.Completions, fmt.Sprintf("can only be modified in tandem with %s", p.Child("parallelism").String()))
	}
}
