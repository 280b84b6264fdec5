package deployment

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

const (
	// RevisionAnnotation holds the number of a deployment's template, which kubectl
	// rollout history and undo use.
	RevisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	rollbackAnnotation = "deprecated.deployment.rollback.to"
	// maxHistory is the size limit of the history annotation, in bytes.
	maxHistory = 2000
	// maxName is the longest allowed name of an object.
	maxName = 253
)

// notCopied lists the deployment's annotations that are not copied to its sets.
var notCopied = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true,
	RevisionAnnotation:                 true,
	historyAnnotation:                  true,
	desiredAnnotation:                  true,
	maxAnnotation:                      true,
	rollbackAnnotation:                 true,
}

func revision(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[RevisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// sameTemplate reports whether two templates are equal, ignoring the label with their
// hash.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return apiequality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := t.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return t
	}
	out := *t
	out.Labels = maps.Clone(t.Labels)
	delete(out.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return &out
}

// templateHash returns the hash of a template, used in names. collisions changes it.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	data, err := t.Marshal()
	if err != nil {
		data = []byte(t.String())
	}
	h.Write(data)
	if collisions != nil {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(*collisions)) //nolint:gosec // any bits do.
		h.Write(b[:])
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// adoptRevision makes the set of the current template the newest revision, with the
// deployment's annotations. If there is no such set, it is created if create is true.
func (r *rollout) adoptRevision(create bool) {
	var last int64
	for _, rs := range r.old() {
		last = max(last, revision(rs))
	}
	next := strconv.FormatInt(last+1, 10)
	if r.newest != nil {
		r.annotate(r.newest, last+1)
		r.newest.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		r.plan.Revision = r.newest.Annotations[RevisionAnnotation]
		if r.hasDeadline() && condition(&r.status, appsv1.DeploymentProgressing) == nil {
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, foundNewSet, fmt.Sprintf("Found new replica set %q", r.newest.Name))
		}
		return
	}
	if !create {
		return
	}
	r.newest = r.newSet()
	r.annotate(r.newest, last+1)
	r.sets = append(r.sets, r.newest)
	r.plan.Create, r.plan.Revision = r.newest, next
	surge, _ := r.bounds()
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		r.resize(r.newest, r.desired())
	} else {
		r.growNewest(surge)
		r.annotateSize(r.newest)
	}
	if r.hasDeadline() {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, newSetCreated, fmt.Sprintf("Created new replica set %q", r.newest.Name))
	}
}

// newSet returns a set of the current template without replicas.
func (r *rollout) newSet() *appsv1.ReplicaSet {
	hash := templateHash(&r.d.Spec.Template, r.d.Status.CollisionCount)
	template := r.d.Spec.Template.DeepCopy()
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := r.d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	none := int32(0)
	base := r.d.Name
	if keep := maxName - len(hash) - 1; len(base) > keep {
		base = base[:keep]
	}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.d.Namespace, Name: base + "-" + hash, Labels: maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{controllerRef(r.d)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &none, MinReadySeconds: r.d.Spec.MinReadySeconds, Selector: selector, Template: *template,
		},
	}
}

// annotate copies the deployment's annotations to its newest set and sets its revision
// number. An earlier number is added to the set's history.
func (r *rollout) annotate(rs *appsv1.ReplicaSet, number int64) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range r.d.Annotations {
		if !notCopied[k] {
			rs.Annotations[k] = v
		}
	}
	had := rs.Annotations[RevisionAnnotation]
	if revision(rs) >= number {
		return
	}
	rs.Annotations[RevisionAnnotation] = strconv.FormatInt(number, 10)
	if had == "" {
		return
	}
	history := had
	if h := rs.Annotations[historyAnnotation]; h != "" {
		history = h + "," + had
	}
	for len(history) > maxHistory {
		_, rest, ok := strings.Cut(history, ",")
		if !ok {
			return
		}
		history = rest
	}
	rs.Annotations[historyAnnotation] = history
}
