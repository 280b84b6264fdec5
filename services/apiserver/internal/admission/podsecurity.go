package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"keelson.dev/services/apiserver/internal/resource"
)

const (
	// maxPodsToCheck and podCheckTime bound the check of a namespace's existing pods when its
	// enforced level changes. Both values are Kubernetes'.
	maxPodsToCheck = 3000
	podCheckTime   = time.Second
)

// Exemptions lists what PodSecurity does not check.
type Exemptions struct {
	// Users are the names of users who create pods, RuntimeClasses those that pods use.
	Users, RuntimeClasses, Namespaces []string
}

// PodSecurity enforces the Pod Security Standards at the levels that the labels of a pod's
// namespace name: violations of the enforced level are refused, those of the warn level are
// returned as warnings, and those of the audit level are logged.
//
// Templates of workloads are never refused; they only cause warnings and log lines.
type PodSecurity struct {
	State  State
	Exempt Exemptions
	Log    *slog.Logger

	checks policy.Evaluator
}

// NewPodSecurity returns the plugin with the checks of all versions of the standards.
func NewPodSecurity(state State, exempt Exemptions, log *slog.Logger) *PodSecurity {
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(fmt.Sprintf("pod security: %v", err)) // the checks are the library's own
	}
	if log == nil {
		log = slog.Default()
	}
	return &PodSecurity{State: state, Exempt: exempt, Log: log, checks: checks}
}

// withoutLabels is the policy of a namespace without labels.
var withoutLabels = podsecurity.Policy{Enforce: privileged, Audit: privileged, Warn: privileged}

var privileged = podsecurity.LevelVersion{Level: podsecurity.LevelPrivileged, Version: podsecurity.LatestVersion()}

// Validate implements Validator.
func (p *PodSecurity) Validate(ctx context.Context, a *Attributes) error {
	if a.Operation != Create && a.Operation != Update {
		return nil
	}
	switch obj := a.Object.(type) {
	case *corev1.Namespace:
		if a.Subresource != "" {
			return nil
		}
		return p.namespace(ctx, a, obj)
	case *corev1.Pod:
		if a.Subresource == "status" {
			return nil
		}
		if old, ok := a.Old.(*corev1.Pod); ok && !matters(obj, old) {
			return nil
		}
		return p.pod(ctx, a, &obj.ObjectMeta, &obj.Spec, true)
	}
	if template := templateOf(a.Object); template != nil && a.Subresource == "" {
		return p.pod(ctx, a, &template.ObjectMeta, &template.Spec, false)
	}
	return nil
}

// templateOf returns the pod template of a workload, or nil for other kinds.
func templateOf(obj resource.Object) *corev1.PodTemplateSpec {
	switch w := obj.(type) {
	case *appsv1.Deployment:
		return &w.Spec.Template
	case *appsv1.ReplicaSet:
		return &w.Spec.Template
	case *appsv1.StatefulSet:
		return &w.Spec.Template
	case *appsv1.DaemonSet:
		return &w.Spec.Template
	case *batchv1.Job:
		return &w.Spec.Template
	case *batchv1.CronJob:
		return &w.Spec.JobTemplate.Spec.Template
	case *corev1.ReplicationController:
		return w.Spec.Template
	case *corev1.PodTemplate:
		return &w.Template
	}
	return nil
}

// pod checks a pod or a template. Violations are refused only if enforce is true.
func (p *PodSecurity) pod(ctx context.Context, a *Attributes, meta *metav1.ObjectMeta, spec *corev1.PodSpec, enforce bool) error {
	if slices.Contains(p.Exempt.Namespaces, a.Namespace) || slices.Contains(p.Exempt.Users, a.User.Name) || p.exemptClass(spec) {
		return nil
	}
	obj, ok := p.State.Get("", "namespaces", "", a.Namespace)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "", "namespaces", "", a.Namespace); err != nil {
			return err
		}
		if !ok && enforce {
			return apierrors.NewInternalError(fmt.Errorf("failed to lookup namespace %q", a.Namespace))
		}
	}
	var labels map[string]string
	if ok {
		labels = obj.GetLabels()
	}
	// Invalid labels, stored before they were validated, count as the strictest level.
	levels, errs := podsecurity.PolicyToEvaluate(labels, withoutLabels)
	if len(errs) == 0 && levels.FullyPrivileged() {
		return nil
	}
	if enforce {
		if r := p.check(levels.Enforce, meta, spec); !r.Allowed {
			return fmt.Errorf("violates PodSecurity %q: %s", levels.Enforce, r.ForbiddenDetail())
		}
	}
	if r := p.check(levels.Audit, meta, spec); !r.Allowed {
		p.Log.InfoContext(ctx, "pod violates the audited Pod Security level", "level", levels.Audit.String(),
			"violations", r.ForbiddenDetail(), "user", a.User.Name, "resource", a.GroupResource().String(),
			"namespace", a.Namespace, "name", a.Name)
	}
	if r := p.check(levels.Warn, meta, spec); !r.Allowed {
		a.Warn(fmt.Sprintf("would violate PodSecurity %q: %s", levels.Warn, r.ForbiddenDetail()))
	}
	return nil
}

func (p *PodSecurity) check(level podsecurity.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) policy.AggregateCheckResult {
	if level.Level == podsecurity.LevelPrivileged {
		return policy.AggregateCheckResult{Allowed: true}
	}
	return policy.AggregateCheckResults(p.checks.EvaluatePod(level, meta, spec))
}

func (p *PodSecurity) exemptClass(spec *corev1.PodSpec) bool {
	return spec.RuntimeClassName != nil && slices.Contains(p.Exempt.RuntimeClasses, *spec.RuntimeClassName)
}

// matters reports whether an update of a pod changes what the standards check. Of the fields that
// an update may change, only images do: another image may need other settings.
func matters(pod, old *corev1.Pod) bool {
	sameImage := func(a, b corev1.Container) bool { return a.Image == b.Image }
	if !slices.EqualFunc(pod.Spec.Containers, old.Spec.Containers, sameImage) || !slices.EqualFunc(pod.Spec.InitContainers, old.Spec.InitContainers, sameImage) {
		return true
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		if !slices.ContainsFunc(old.Spec.EphemeralContainers, func(o corev1.EphemeralContainer) bool { return o.Name == c.Name && o.Image == c.Image }) {
			return true
		}
	}
	return false
}

// namespace validates the labels, and warns about existing pods that violate a stricter level.
func (p *PodSecurity) namespace(ctx context.Context, a *Attributes, ns *corev1.Namespace) error {
	levels, errs := podsecurity.PolicyToEvaluate(ns.Labels, withoutLabels)
	was := podsecurity.Policy{}
	if old, ok := a.Old.(*corev1.Namespace); ok {
		oldLevels, oldErrs := podsecurity.PolicyToEvaluate(old.Labels, withoutLabels)
		if reflect.DeepEqual(errs, oldErrs) {
			errs = nil // the errors are old, and unrelated changes must stay possible
		}
		was = oldLevels
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(a.Kind.GVK.GroupKind(), a.Name, errs)
	}
	now := levels.Enforce
	if a.Operation == Update && (now == was.Enforce || now.Level == podsecurity.LevelPrivileged ||
		now.Version == was.Enforce.Version && podsecurity.CompareLevels(now.Level, was.Enforce.Level) < 1) {
		return nil
	}
	if slices.Contains(p.Exempt.Namespaces, ns.Name) {
		if set := setLevels(levels, ns.Labels); set != "" {
			a.Warn(fmt.Sprintf("namespace %q is exempt from Pod Security, and the policy (%s) will be ignored", ns.Name, set))
		}
		return nil
	}
	if a.Operation == Update {
		for _, w := range p.existing(ctx, ns.Name, now) {
			a.Warn(w)
		}
	}
	return nil
}

// setLevels lists the levels that labels set to something other than privileged.
func setLevels(levels podsecurity.Policy, labels map[string]string) string {
	var set []string
	for _, mode := range []struct {
		name           string
		level          podsecurity.LevelVersion
		label, version string
	}{
		{"enforce", levels.Enforce, podsecurity.EnforceLevelLabel, podsecurity.EnforceVersionLabel},
		{"audit", levels.Audit, podsecurity.AuditLevelLabel, podsecurity.AuditVersionLabel},
		{"warn", levels.Warn, podsecurity.WarnLevelLabel, podsecurity.WarnVersionLabel},
	} {
		_, a := labels[mode.label]
		_, b := labels[mode.version]
		if (a || b) && mode.level.Level != podsecurity.LevelPrivileged {
			set = append(set, mode.name+"="+mode.level.String())
		}
	}
	return strings.Join(set, ", ")
}

// existing returns warnings about the existing pods of a namespace. It checks one pod of each
// owner before the others, and stops at maxPodsToCheck and podCheckTime.
func (p *PodSecurity) existing(ctx context.Context, namespace string, level podsecurity.LevelVersion) (warnings []string) {
	ctx, cancel := context.WithTimeout(ctx, podCheckTime)
	defer cancel()
	var first, rest []*corev1.Pod
	owners := map[types.UID]bool{}
	p.State.Each("", "pods", namespace, func(obj resource.Object) bool {
		pod, ok := obj.(*corev1.Pod)
		if !ok || p.exemptClass(&pod.Spec) {
			return true
		}
		owner := metav1.GetControllerOfNoCopy(pod)
		if owner == nil || !owners[owner.UID] {
			first = append(first, pod)
		} else {
			rest = append(rest, pod)
		}
		if owner != nil {
			owners[owner.UID] = true
		}
		return true
	})
	pods := append(first, rest...)
	type found struct {
		name  string
		count int
	}
	byReason, checked := map[string]*found{}, 0
	for _, pod := range pods[:min(len(pods), maxPodsToCheck)] {
		if ctx.Err() != nil {
			break
		}
		checked++
		r := p.check(level, &pod.ObjectMeta, &pod.Spec)
		if r.Allowed {
			continue
		}
		f := byReason[r.ForbiddenReason()]
		if f == nil {
			f = &found{name: pod.Name}
			byReason[r.ForbiddenReason()] = f
		}
		f.name = min(f.name, pod.Name)
		f.count++
	}
	if checked < len(pods) {
		warnings = append(warnings, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", checked, len(pods)))
	}
	if len(byReason) == 0 {
		return warnings
	}
	warnings = append(warnings, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, level))
	var lines []string
	for reason, f := range byReason {
		others := ""
		switch {
		case f.count == 2:
			others = " (and 1 other pod)"
		case f.count > 2:
			others = fmt.Sprintf(" (and %d other pods)", f.count-1)
		}
		lines = append(lines, f.name+others+": "+reason)
	}
	slices.Sort(lines)
	return append(warnings, lines...)
}

// Check returns an error if an exemption is empty.
func (e Exemptions) Check() error {
	for _, list := range [][]string{e.Users, e.RuntimeClasses, e.Namespaces} {
		if slices.Contains(list, "") {
			return errors.New("an exemption must not be empty")
		}
	}
	return nil
}
