// Package history keeps the revisions of a workload's pod template as
// ControllerRevisions, in the form that `kubectl rollout history` and `undo` read.
//
// A revision's data is the patch that restores the template:
//
//	{"spec":{"template":{…,"$patch":"replace"}}}
//
// Revisions are numbered, and the one with the highest number is the current one. If a
// workload returns to an earlier template, that template's revision gets a new number.
// The data of a revision must never change.
package history

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/owner"
)

const (
	// HashLabel is the label with the hash of the data on revisions of StatefulSets.
	// Those of DaemonSets have it in controller-revision-hash, as their pods do.
	HashLabel = "controller.kubernetes.io/hash"
	// maxBase limits the part of a revision's name that is taken from its owner, so that
	// the name with its hash stays within 253 characters.
	maxBase = 223
)

// Actions holds the revision of the current template and what to write so that the server
// has it.
type Actions struct {
	// Current is the revision of the current template. If it is also Create or Renumber,
	// the server does not have it yet.
	Current *appsv1.ControllerRevision
	// Create is Current if the template is new, and nil otherwise.
	Create *appsv1.ControllerRevision
	// Renumber is Current if the workload has returned to an earlier template, and nil
	// otherwise.
	Renumber *appsv1.ControllerRevision
}

// Plan finds or plans the revision of a workload's template. revisions are those that
// the workload controls. label is the label for the hash of a new revision. collisions
// is the workload's status.collisionCount, which is part of the hash, so that a new
// revision gets another name after a collision.
func Plan(o client.Object, template *corev1.PodTemplateSpec, revisions []*appsv1.ControllerRevision, label string, collisions *int32) (Actions, error) {
	data, err := Data(template)
	if err != nil {
		return Actions{}, err
	}
	revisions = Sorted(revisions)
	var last int64
	if n := len(revisions); n > 0 {
		last = revisions[n-1].Revision
	}
	// If several have the same data, as adoptions can cause, the newest is used.
	for i := len(revisions) - 1; i >= 0; i-- {
		r := revisions[i]
		if !sameData(r.Data.Raw, data) {
			continue
		}
		if i == len(revisions)-1 {
			return Actions{Current: r}, nil
		}
		next := r.DeepCopy()
		next.Revision = last + 1
		return Actions{Current: next, Renumber: next}, nil
	}
	next := newRevision(o, template.Labels, data, last+1, label, collisions)
	return Actions{Current: next, Create: next}, nil
}

// Write creates or renumbers the current revision if that is planned, and returns it as
// stored, or nil if nothing is planned. collided is true if an object of the new
// revision's name exists with other data or another owner.
func (p Actions) Write(ctx context.Context, revisions client.Resource[*appsv1.ControllerRevision]) (got *appsv1.ControllerRevision, collided bool, err error) {
	switch {
	case p.Renumber != nil:
		if got, err = revisions.Update(ctx, p.Renumber); err != nil {
			return nil, false, fmt.Errorf("renumber revision %s: %w", p.Renumber.Name, err)
		}
		return got, false, nil
	case p.Create == nil:
		return nil, false, nil
	}
	got, err = revisions.Create(ctx, p.Create)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			err = fmt.Errorf("create revision %s: %w", p.Create.Name, err)
		}
		return got, false, err
	}
	if got, err = revisions.Get(ctx, p.Create.Namespace, p.Create.Name); err != nil {
		return nil, false, fmt.Errorf("get revision %s: %w", p.Create.Name, err)
	}
	ref, want := metav1.GetControllerOf(got), metav1.GetControllerOf(p.Create)
	if ref != nil && ref.UID == want.UID && sameData(got.Data.Raw, p.Create.Data.Raw) {
		return got, false, nil // an earlier attempt created it; the cache will show it
	}
	return nil, true, nil
}

// Collided returns a workload's collision count plus one. A nil count is 0.
func Collided(count *int32) *int32 {
	n := int32(1)
	if count != nil {
		n += *count
	}
	return &n
}

// Data returns the patch that restores a template.
func Data(template *corev1.PodTemplateSpec) ([]byte, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(template)
	if err != nil {
		return nil, fmt.Errorf("encode pod template: %w", err)
	}
	fields["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
}

// Template returns the template that a revision restores.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var data struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("decode data of revision %s: %w", r.Name, err)
	}
	return &data.Spec.Template, nil
}

// sameData reports whether two patches are equal, ignoring the order of fields, which
// differs between writers, and fields that are null.
func sameData(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	canonical := func(data []byte) []byte {
		var v any
		if json.Unmarshal(data, &v) != nil {
			return nil
		}
		prune(v)
		out, err := json.Marshal(v)
		if err != nil {
			return nil
		}
		return out
	}
	x, y := canonical(a), canonical(b)
	return x != nil && bytes.Equal(x, y)
}

// prune removes fields that are null, as older writers store for unset timestamps.
func prune(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, field := range v {
			if field == nil {
				delete(v, k)
				continue
			}
			prune(field)
		}
	case []any:
		for _, element := range v {
			prune(element)
		}
	}
}

// Sorted returns the revisions in order of their numbers, newest last.
func Sorted(revisions []*appsv1.ControllerRevision) []*appsv1.ControllerRevision {
	out := slices.Clone(revisions)
	slices.SortFunc(out, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func newRevision(o client.Object, labels map[string]string, data []byte, number int64, label string, collisions *int32) *appsv1.ControllerRevision {
	hash := hashOf(data, collisions)
	base := o.GetName()
	if len(base) > maxBase {
		base = base[:maxBase]
	}
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[label] = hash
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: o.GetNamespace(), Name: base + "-" + hash, Labels: labels,
			Annotations: annotations(o), OwnerReferences: []metav1.OwnerReference{owner.Reference(o)},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: number,
	}
}

// annotations returns the annotations of a new revision: those of its owner, where
// kubectl finds the change cause, without the last applied configuration.
func annotations(o client.Object) map[string]string {
	out := maps.Clone(o.GetAnnotations())
	delete(out, corev1.LastAppliedConfigAnnotation)
	return out
}

// Hash returns the hash in a revision's labels.
func Hash(r *appsv1.ControllerRevision) string {
	if h := r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]; h != "" {
		return h
	}
	return r.Labels[HashLabel]
}

func hashOf(data []byte, collisions *int32) string {
	h := fnv.New32a()
	h.Write(data)
	// Writers differ in whether no collision is 0 or absent: the name must not.
	if collisions != nil && *collisions != 0 {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(*collisions)) //nolint:gosec // only the bits matter
		h.Write(b[:])
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// Surplus returns the oldest revisions beyond limit among those that live does not report
// as in use. A nil limit is no limit.
func Surplus(revisions []*appsv1.ControllerRevision, limit *int32, live func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	if limit == nil {
		return nil
	}
	dead := slices.DeleteFunc(Sorted(revisions), func(r *appsv1.ControllerRevision) bool {
		return live(r) || r.DeletionTimestamp != nil
	})
	if n := len(dead) - int(*limit); n > 0 {
		return dead[:n]
	}
	return nil
}
