// Package podtemplate makes pods of a workload's template, and creates and
// deletes them in batches that grow as long as they succeed.
//
// It must never go on with larger batches after a failure: a quota that refuses
// one pod would refuse hundreds.
package podtemplate

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
)

// maxGeneratedPrefix leaves room for the five characters that the server adds to
// a generated name, within the 63 of a label.
const maxGeneratedPrefix = 63 - 5

// Pod is a pod of a template, controlled by o and named after it.
func Pod(template *corev1.PodTemplateSpec, o client.Object) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       o.GetNamespace(),
			GenerateName:    Prefix(o.GetName()),
			Labels:          maps.Clone(template.Labels),
			Annotations:     maps.Clone(template.Annotations),
			Finalizers:      slices.Clone(template.Finalizers),
			OwnerReferences: []metav1.OwnerReference{owner.Reference(o)},
		},
	}
	template.Spec.DeepCopyInto(&p.Spec)
	return p
}

// Prefix is the generateName of an owner's pods.
func Prefix(name string) string {
	prefix := name + "-"
	if len(prefix) > maxGeneratedPrefix {
		prefix = prefix[:maxGeneratedPrefix]
	}
	return prefix
}

// Result is what a batch did.
type Result struct {
	// Done is how many writes succeeded; Names are the objects'.
	Done  int
	Names []string
	// ResourceVersions are those of the writes.
	ResourceVersions []string
}

// Create creates pods: one at first, then twice as many each time. The first
// failure ends it and is returned.
func Create(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod) (Result, error) {
	var r Result
	for size := 1; len(pods) > 0; size *= 2 {
		n := min(size, len(pods), client.MaxBatch)
		writes := make([]client.Write, n)
		for i, p := range pods[:n] {
			writes[i] = client.CreateWrite(p)
		}
		results, err := s.Client.Commit(ctx, writes...)
		for _, res := range results {
			if res.Err != nil {
				if err == nil {
					err = res.Err
				}
				continue
			}
			r.Done++
			r.ResourceVersions = append(r.ResourceVersions, res.ResourceVersion)
			if p, ok := res.Object.(*corev1.Pod); ok {
				r.Names = append(r.Names, p.Name)
				s.Events.Normal(ctx, o, "SuccessfulCreate", "Created pod: %s", p.Name)
			}
		}
		if err != nil {
			// A namespace that is ending takes no pods: that is not a failure.
			if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				s.Events.Warning(ctx, o, "FailedCreate", "Error creating: %v", err)
			}
			return r, fmt.Errorf("create pods: %w", err)
		}
		pods = pods[n:]
	}
	return r, nil
}

// Delete deletes pods, all at once. Those that are gone already count as done.
func Delete(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod) (Result, error) {
	var r Result
	writes := make([]client.Write, len(pods))
	for i, p := range pods {
		writes[i] = client.DeleteWrite[*corev1.Pod](p.Namespace, p.Name, client.UID(p.UID))
	}
	results, err := s.Client.CommitQuietly(ctx, writes...)
	for i, res := range results {
		switch {
		case res.Err == nil:
			s.Events.Normal(ctx, o, "SuccessfulDelete", "Deleted pod: %s", pods[i].Name)
			r.ResourceVersions = append(r.ResourceVersions, res.ResourceVersion)
			r.Done++
		case apierrors.IsNotFound(res.Err) || apierrors.IsConflict(res.Err):
			r.Done++
		default:
			s.Events.Warning(ctx, o, "FailedDelete", "Error deleting: %v", res.Err)
			if err == nil {
				err = res.Err
			}
		}
	}
	if err != nil {
		return r, fmt.Errorf("delete pods: %w", err)
	}
	return r, nil
}
