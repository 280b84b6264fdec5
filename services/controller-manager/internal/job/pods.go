package job

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/controller-manager/internal/podtemplate"
)

const (
	indexEnv = "JOB_COMPLETION_INDEX"
	// maxPrefix is the longest prefix of a generated pod name.
	maxPrefix = 58
)

// newPod returns a pod of a job; for an indexed job, with the given index and in place
// of the failed pod.
func newPod(j *batchv1.Job, index int, replaced *corev1.Pod) *corev1.Pod {
	p := podtemplate.Pod(&j.Spec.Template, j)
	if !slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
		p.Finalizers = append(p.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if index == noIndex {
		return p
	}
	number := strconv.Itoa(index)
	p.Annotations, p.Labels = put(p.Annotations, batchv1.JobCompletionIndexAnnotation, number), put(p.Labels, batchv1.JobCompletionIndexAnnotation, number)
	p.Spec.Hostname = fmt.Sprintf("%s-%d", j.Name, index)
	suffix := "-" + number + "-"
	p.GenerateName = j.Name[:min(len(j.Name), maxPrefix-len(suffix))] + suffix
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			addIndexEnv(&containers[i])
		}
	}
	if perIndex(j) {
		counted, ignored := failuresAfter(j, replaced)
		p.Annotations[failuresAnnotation] = strconv.Itoa(counted)
		if ignored > 0 {
			p.Annotations[ignoredAnnotation] = strconv.Itoa(ignored)
		}
	}
	return p
}

func put(m map[string]string, k, v string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

func addIndexEnv(c *corev1.Container) {
	if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexEnv }) {
		return
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: indexEnv, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
	}})
}
