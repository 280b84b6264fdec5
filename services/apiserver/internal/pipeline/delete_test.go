package pipeline_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

func ptr[T any](v T) *T { return &v }

func TestDelete(t *testing.T) {
	f := newFixture(t)
	cm := f.mustCreate(configMap("a")).(*corev1.ConfigMap)
	_, err := f.delete(cm, pipeline.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr(types.UID("other"))}})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the UID in the precondition (other) does not match the UID in record")
	_, err = f.delete(cm, pipeline.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: ptr("1")}})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the ResourceVersion in the precondition (1) does not match the ResourceVersion in record")
	_, err = f.delete(cm, pipeline.DeleteOptions{PropagationPolicy: ptr(metav1.DeletionPropagation("Sideways"))})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "propagationPolicy")
	_, err = f.delete(cm, pipeline.DeleteOptions{PropagationPolicy: ptr(metav1.DeletePropagationOrphan), OrphanDependents: ptr(true)})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "orphanDependents and deletionPropagation cannot be both set")
	out, err := f.delete(cm, pipeline.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &cm.UID, ResourceVersion: &cm.ResourceVersion}})
	if err != nil || !out.Gone || out.Item.Object().GetUID() != cm.UID {
		t.Fatalf("%+v, %v", out, err)
	}
	_, err = f.delete(cm)
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `configmaps "a" not found`)
}

func TestFinalizersHoldAnObject(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a")
	cm.Finalizers = []string{"example.com/one", "example.com/two"}
	f.mustCreate(cm)
	out, err := f.delete(cm)
	if err != nil || out.Gone || out.Item.Object().GetDeletionTimestamp() == nil || *out.Item.Object().GetDeletionGracePeriodSeconds() != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	before := out.Item.Object().GetResourceVersion()
	if out, err := f.delete(cm); err != nil || out.Item.Object().GetResourceVersion() != before {
		t.Errorf("a second delete: %+v, %v", out, err)
	}
	_, err = f.patch(cm, types.JSONPatchType, `[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/three"}]`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted")
	if out, err := f.patch(cm, types.MergePatchType, `{"metadata":{"finalizers":["example.com/two"]}}`); err != nil || out.Gone {
		t.Fatalf("%+v, %v", out, err)
	}
	out, err = f.patch(cm, types.MergePatchType, `{"metadata":{"finalizers":null}}`)
	if err != nil || !out.Gone || len(out.Item.Object().GetFinalizers()) != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if get(f, cm) != nil {
		t.Error("the object still exists")
	}
}

func TestPropagationBecomesFinalizers(t *testing.T) {
	f := newFixture(t)
	for i, test := range []struct {
		had    []string
		policy metav1.DeletionPropagation
		orphan *bool
		want   []string
	}{
		{nil, metav1.DeletePropagationOrphan, nil, []string{"orphan"}},
		{nil, metav1.DeletePropagationForeground, nil, []string{"foregroundDeletion"}},
		{nil, "", ptr(true), []string{"orphan"}},
		{nil, "", ptr(false), nil},
		{[]string{"orphan"}, metav1.DeletePropagationBackground, nil, nil},
		{[]string{"orphan"}, metav1.DeletePropagationForeground, nil, []string{"foregroundDeletion"}},
		{[]string{"foregroundDeletion"}, "", nil, []string{"foregroundDeletion"}},
		{[]string{"a.b/c"}, metav1.DeletePropagationOrphan, nil, []string{"a.b/c", "orphan"}},
	} {
		cm := configMap("p" + strconv.Itoa(i))
		cm.Finalizers = test.had
		f.mustCreate(cm)
		o := pipeline.DeleteOptions{OrphanDependents: test.orphan}
		if test.policy != "" {
			o.PropagationPolicy = &test.policy
		}
		out, err := f.delete(cm, o)
		if err != nil {
			t.Fatal(err)
		}
		if out.Gone != (len(test.want) == 0) || !out.Gone && !slices.Equal(out.Item.Object().GetFinalizers(), test.want) {
			t.Errorf("%+v: gone %v, finalizers %v", test, out.Gone, out.Item.Object().GetFinalizers())
		}
	}
}

// bound creates a pod that runs on a node.
func (f *fixture) bound(name string) *corev1.Pod {
	f.Helper()
	p := pod(name)
	p.Spec.NodeName = "node"
	return f.mustCreate(p).(*corev1.Pod)
}

func TestGracefulDelete(t *testing.T) {
	f := newFixture(t)
	unscheduled := f.mustCreate(pod("unscheduled"))
	if out, err := f.delete(unscheduled); err != nil || !out.Gone {
		t.Errorf("pod without a node: %+v, %v", out, err)
	}
	p := f.bound("a")
	out, err := f.delete(p)
	if err != nil || out.Gone {
		t.Fatalf("%+v, %v", out, err)
	}
	got := out.Item.Object()
	if *got.GetDeletionGracePeriodSeconds() != 30 || got.GetDeletionTimestamp().Unix() != f.now.Unix()+30 || got.GetGeneration() != p.Generation+1 {
		t.Errorf("%+v", got)
	}
	f.now = f.now.Add(5 * time.Second)
	version := got.GetResourceVersion()
	for _, longer := range []*int64{nil, ptr(int64(30)), ptr(int64(60))} {
		out, err = f.delete(p, pipeline.DeleteOptions{GracePeriodSeconds: longer})
		if err != nil || out.Item.Object().GetResourceVersion() != version {
			t.Errorf("a second delete modified the pod: %+v, %v", out, err)
		}
	}
	out, err = f.delete(p, pipeline.DeleteOptions{GracePeriodSeconds: ptr(int64(10))})
	if err != nil || *out.Item.Object().GetDeletionGracePeriodSeconds() != 10 || out.Item.Object().GetDeletionTimestamp().Unix() != f.now.Unix()-5+10 {
		t.Errorf("shorter grace period: %+v, %v", out, err)
	}
	out, err = f.delete(p, pipeline.DeleteOptions{GracePeriodSeconds: ptr(int64(0))})
	if err != nil || !out.Gone {
		t.Errorf("grace period 0: %+v, %v", out, err)
	}
	q := f.bound("q")
	out, err = f.delete(q, pipeline.DeleteOptions{GracePeriodSeconds: ptr(int64(-5))})
	if err != nil || *out.Item.Object().GetDeletionGracePeriodSeconds() != 1 {
		t.Errorf("negative grace period, want one second: %+v, %v", out, err)
	}
	r := f.bound("r")
	r.Status.Phase = corev1.PodSucceeded
	if _, err := f.update(r, "status"); err != nil {
		t.Fatal(err)
	}
	if out, err := f.delete(r); err != nil || !out.Gone {
		t.Errorf("finished pod: %+v, %v", out, err)
	}
}

func TestNamespaces(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"default", "kube-system"} {
		ns := f.mustCreate(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		_, err := f.delete(ns)
		wantStatus(t, err, 403, metav1.StatusReasonForbidden, `namespaces "`+name+`" is forbidden: this namespace may not be deleted`)
	}
	ns := f.mustCreate(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}).(*corev1.Namespace)
	if ns.Labels[corev1.LabelMetadataName] != "a" || ns.Status.Phase != corev1.NamespaceActive || len(ns.Spec.Finalizers) != 1 {
		t.Errorf("%+v", ns)
	}
	out, err := f.delete(ns)
	if err != nil || out.Gone {
		t.Fatalf("%+v, %v", out, err)
	}
	got := get(f, ns)
	if got.Status.Phase != corev1.NamespaceTerminating || got.DeletionTimestamp == nil || got.DeletionGracePeriodSeconds != nil {
		t.Errorf("%+v", got)
	}
	if out, err := f.delete(ns); err != nil || out.Gone || out.Item.Object().GetResourceVersion() != got.ResourceVersion {
		t.Errorf("a second delete: %+v, %v", out, err)
	}
	final := got.DeepCopy()
	final.Spec.Finalizers = nil
	out, err = f.update(final, "finalize")
	if err != nil || !out.Gone {
		t.Fatalf("finalize: %+v, %v", out, err)
	}
	if get(f, ns) != nil {
		t.Error("the namespace still exists")
	}
}

func TestDeleteCollection(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		cm := configMap("a" + strconv.Itoa(i))
		cm.Labels = map[string]string{"even": strconv.FormatBool(i%2 == 0)}
		f.mustCreate(cm)
	}
	target := pipeline.Target{Resource: configMapGVR, Namespace: "ns"}
	list, err := f.DeleteCollection(f.ctx, target, pipeline.ListOptions{LabelSelector: "even=true"}, pipeline.DeleteOptions{})
	if err != nil || len(list.Items) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	rest, err := f.List(f.ctx, target, pipeline.ListOptions{})
	if err != nil || len(rest.Items) != 2 {
		t.Errorf("%+v, %v", rest, err)
	}
}

// TestDeleteAnswer checks the response of a delete that removes the object: for most kinds a
// Status that names the resource, as in Kubernetes, and for some the object's last state.
func TestDeleteAnswer(t *testing.T) {
	f := newFixture(t)
	cm := f.mustCreate(configMap("a"))
	want := metav1.Status{Status: metav1.StatusSuccess, Details: &metav1.StatusDetails{Name: "a", Kind: "configmaps", UID: cm.GetUID()}}
	for _, dry := range []bool{true, false} {
		out, err := f.delete(cm, pipeline.DeleteOptions{WriteOptions: pipeline.WriteOptions{DryRun: dry}})
		if err != nil || !out.Gone || out.Status == nil || asJSON(out.Status) != asJSON(want) {
			t.Errorf("dry run %v: %+v, %v", dry, out, err)
		}
		if out.Item == nil || out.Item.Object().GetUID() != cm.GetUID() {
			t.Errorf("the outcome lacks the last state: %+v", out)
		}
	}
	role := f.mustCreate(&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "ns"}})
	if out, err := f.delete(role); err != nil || out.Status == nil || out.Status.Details.Group != "rbac.authorization.k8s.io" || out.Status.Details.Kind != "roles" {
		t.Errorf("%+v, %v", out, err)
	}
	held := configMap("held")
	held.Finalizers = []string{"a.b/c"}
	f.mustCreate(held)
	if out, err := f.delete(held); err != nil || out.Gone || out.Status != nil || out.Item.Object().GetDeletionTimestamp() == nil {
		t.Errorf("object with a finalizer: %+v, %v", out, err)
	}
	p := f.mustCreate(pod("p"))
	before := asJSON(p)
	out, err := f.delete(p)
	if err != nil || !out.Gone || out.Status != nil {
		t.Fatalf("pod: %+v, %v", out, err)
	}
	last := out.Item.Object()
	if last.GetDeletionTimestamp() == nil || *last.GetDeletionGracePeriodSeconds() != 0 || last.GetGeneration() != p.GetGeneration()+1 {
		t.Errorf("the answer is not marked as being deleted: %s", asJSON(last))
	}
	if rv := last.GetResourceVersion(); rv == "" || rv == p.GetResourceVersion() {
		t.Errorf("the answer has the resource version %q, the pod had %q", rv, p.GetResourceVersion())
	}
	raw := &corev1.Pod{}
	if err := raw.Unmarshal(out.Item.Raw); err != nil || asJSON(raw) != asJSON(last) {
		t.Errorf("encoded as %s, %v; want %s", asJSON(raw), err, asJSON(last))
	}
	if now := asJSON(p); now != before {
		t.Errorf("the delete changed the stored object: %s, was %s", now, before)
	}
	var object []string
	for _, k := range f.Table().Kinds() {
		if k.ReturnsDeleted {
			object = append(object, k.Resource)
		}
	}
	slices.Sort(object)
	if want := []string{"namespaces", "persistentvolumeclaims", "persistentvolumes", "pods",
		"podtemplates", "resourcequotas", "serviceaccounts", "services", "storageclasses"}; !slices.Equal(object, want) {
		t.Errorf("%v, want %v", object, want)
	}
}

// TestJobDeletionWarning checks the warning, for deletes of a Job without a propagation policy,
// that its pods remain.
func TestJobDeletionWarning(t *testing.T) {
	f := newFixture(t)
	const want = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
	job := func(name string) *batchv1.Job {
		return f.mustCreate(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Spec: batchv1.JobSpec{
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		}}).(*batchv1.Job)
	}
	for i, o := range []pipeline.DeleteOptions{
		{}, {PropagationPolicy: ptr(metav1.DeletePropagationBackground)}, {OrphanDependents: ptr(true)},
	} {
		out, err := f.delete(job("j"+strconv.Itoa(i)), o)
		if err != nil || (i == 0) != slices.Equal(out.Warnings, []string{want}) {
			t.Errorf("%+v: %q, %v", o, out.Warnings, err)
		}
	}
	job("j")
	list, err := f.DeleteCollection(f.ctx, pipeline.Target{Resource: batchv1.SchemeGroupVersion.WithResource("jobs"), Namespace: "ns"}, pipeline.ListOptions{}, pipeline.DeleteOptions{})
	if err != nil || !slices.Equal(list.Warnings, []string{want}) {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestEviction(t *testing.T) {
	f := newFixture(t)
	p := f.bound("a")
	evict := func(name string, e *policyv1.Eviction) (*pipeline.Outcome, error) {
		data, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: name, Subresource: "eviction"},
			pipeline.Body{Data: data, Type: pipeline.Message, GVK: policyv1.SchemeGroupVersion.WithKind("Eviction")}, pipeline.WriteOptions{})
	}
	_, err := evict("a", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "name in URL does not match name in Eviction object")
	_, err = evict("a", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "a"}, DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr(types.UID("x"))}}})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the UID in the precondition")
	out, err := evict("a", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	if err != nil || out.Status == nil || out.Status.Status != metav1.StatusSuccess {
		t.Fatalf("%+v, %v", out, err)
	}
	if got := get(f, p); got.DeletionTimestamp == nil {
		t.Error("the pod has no deletionTimestamp")
	}
	_, err = evict("none", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "none"}})
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `pods "none" not found`)
}

// TestEvictionCondition checks that an evicted pod has the condition before it is removed.
func TestEvictionCondition(t *testing.T) {
	f := newFixture(t)
	evict := func(name string, d metav1.DeleteOptions, o pipeline.WriteOptions) error {
		t.Helper()
		data, err := (&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name}, DeleteOptions: &d}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: name, Subresource: "eviction"},
			pipeline.Body{Data: data, Type: pipeline.Message, GVK: policyv1.SchemeGroupVersion.WithKind("Eviction")}, o)
		return err
	}
	want := corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(f.now),
		Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
	}
	conditions := func(obj resource.Object) []corev1.PodCondition {
		var out []corev1.PodCondition
		for _, c := range obj.(*corev1.Pod).Status.Conditions {
			if c.Type == corev1.DisruptionTarget {
				out = append(out, c)
			}
		}
		return out
	}
	check := func(what string, obj resource.Object) {
		t.Helper()
		if got := conditions(obj); len(got) != 1 || asJSON(got[0]) != asJSON(want) {
			t.Errorf("%s: %s", what, asJSON(got))
		}
	}

	p := f.bound("graceful")
	if err := evict("graceful", metav1.DeleteOptions{}, pipeline.WriteOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	if got := get(f, p); got.ResourceVersion != p.ResourceVersion {
		t.Errorf("a dry run wrote %s", asJSON(got))
	}
	rv := p.ResourceVersion
	if err := evict("graceful", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &rv}}, pipeline.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	got := get(f, p)
	check("graceful", got)
	if got.DeletionTimestamp == nil {
		t.Error("the pod has no deletionTimestamp")
	}
	f.now = f.now.Add(5 * time.Second)
	if err := evict("graceful", metav1.DeleteOptions{}, pipeline.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if again := get(f, p); again.ResourceVersion != got.ResourceVersion {
		t.Errorf("a second eviction modified the pod: %s", asJSON(again))
	}
	f.now = f.now.Add(-5 * time.Second)

	// A pod that is already being deleted gets the condition as well.
	q := f.bound("deleted")
	if _, err := f.delete(q); err != nil {
		t.Fatal(err)
	}
	if err := evict("deleted", metav1.DeleteOptions{}, pipeline.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	check("deleted", get(f, q))

	// A pod that is removed at once is modified first, so that watchers see the reason.
	r := f.mustCreate(pod("at-once"))
	w, err := f.Watch(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns"}, pipeline.WatchOptions{ResourceVersion: r.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	rv = r.GetResourceVersion()
	if err := evict("at-once", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &rv}}, pipeline.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	var events []*watchcache.Event
	for len(events) < 2 {
		next, err := w.Next(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, next...)
	}
	if events[0].Type != watchcache.Modified || events[1].Type != watchcache.Deleted {
		t.Fatalf("%v, %v", events[0].Type, events[1].Type)
	}
	for _, e := range events {
		check(fmt.Sprint(e.Type), e.Item.Object())
	}
	if err := evict("graceful", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &rv}}, pipeline.WriteOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("another resource version: %v", err)
	}
}
