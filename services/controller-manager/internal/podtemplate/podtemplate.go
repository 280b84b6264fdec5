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

// Message is the text of the event of a pod's creation or deletion. verb is "create" or
// "delete"; err is nil if it succeeded.
type Message func(verb string, p *corev1.Pod, err error) string

// plain is the Message of all kinds of owners but StatefulSets.
func plain(verb string, p *corev1.Pod, err error) string {
	switch {
	case verb == "create" && err == nil:
		return "Created pod: " + p.Name
	case verb == "create":
		return fmt.Sprintf("Error creating: %v", err)
	case err == nil:
		return "Deleted pod: " + p.Name
	}
	return fmt.Sprintf("Error deleting: %v", err)
}

// Create creates pods: one at first, then twice as many each time. The first
// failure ends it and is returned.
func Create(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod) (Result, error) {
	return CreateWith(ctx, s, o, pods, plain)
}

// CreateWith is Create with other texts of events.
func CreateWith(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod, message Message) (Result, error) {
	var r Result
	for size := 1; len(pods) > 0; size *= 2 {
		n := min(size, len(pods), client.MaxBatch)
		writes := make([]client.Write, n)
		for i, p := range pods[:n] {
			writes[i] = client.CreateWrite(p)
		}
		results, err := s.Client.Commit(ctx, writes...)
		refused := pods[0]
		for i, res := range results {
			if res.Err != nil {
				if err == nil {
					err, refused = res.Err, pods[i]
				}
				continue
			}
			r.Done++
			r.ResourceVersions = append(r.ResourceVersions, res.ResourceVersion)
			if p, ok := res.Object.(*corev1.Pod); ok {
				r.Names = append(r.Names, p.Name)
				s.Events.Normal(ctx, o, "SuccessfulCreate", "%s", message("create", p, nil))
			}
		}
		if err != nil {
			// A namespace that is ending takes no pods: that is not a failure.
			if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				s.Events.Warning(ctx, o, "FailedCreate", "%s", message("create", refused, err))
			}
			return r, fmt.Errorf("create pods: %w", err)
		}
		pods = pods[n:]
	}
	return r, nil
}

// Delete deletes pods, all at once. Those that are gone already count as done.
func Delete(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod) (Result, error) {
	return DeleteWith(ctx, s, o, pods, plain)
}

// DeleteWith is Delete with other texts of events.
func DeleteWith(ctx context.Context, s *cluster.Cluster, o client.Object, pods []*corev1.Pod, message Message) (Result, error) {
	var r Result
	writes := make([]client.Write, len(pods))
	for i, p := range pods {
		writes[i] = client.DeleteWrite[*corev1.Pod](p.Namespace, p.Name, client.UID(p.UID))
	}
	results, err := s.Client.CommitQuietly(ctx, writes...)
	for i, res := range results {
		switch {
		case res.Err == nil:
			s.Events.Normal(ctx, o, "SuccessfulDelete", "%s", message("delete", pods[i], nil))
			r.ResourceVersions = append(r.ResourceVersions, res.ResourceVersion)
			r.Done++
		case apierrors.IsNotFound(res.Err) || apierrors.IsConflict(res.Err):
			r.Done++
		default:
			s.Events.Warning(ctx, o, "FailedDelete", "%s", message("delete", pods[i], res.Err))
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
