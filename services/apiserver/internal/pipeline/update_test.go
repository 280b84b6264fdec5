package pipeline_test

import (
	"strconv"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
)

func TestOptimisticConcurrency(t *testing.T) {
	f := newFixture(t)
	first := f.mustCreate(configMap("a")).(*corev1.ConfigMap)
	second := first.DeepCopy()
	second.Data = map[string]string{"k": "2"}
	out, err := f.update(second, "")
	if err != nil || out.Item.Object().GetResourceVersion() == first.ResourceVersion {
		t.Fatalf("%+v, %v", out, err)
	}
	first.Data = map[string]string{"k": "1"}
	_, err = f.update(first, "")
	wantStatus(t, err, 409, metav1.StatusReasonConflict,
		`Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again`)
	first.ResourceVersion = ""
	if _, err := f.update(first, ""); err != nil {
		t.Errorf("unconditional update: %v", err)
	}
	first.ResourceVersion = "x"
	_, err = f.update(first, "")
	wantStatus(t, err, 500, metav1.StatusReasonUnknown, `strconv.ParseUint: parsing "x": invalid syntax`)
}

func TestUpdateIsRefused(t *testing.T) {
	f := newFixture(t)
	cm := f.mustCreate(configMap("a")).(*corev1.ConfigMap)
	other := cm.DeepCopy()
	other.UID = "other"
	_, err := f.update(other, "")
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "Precondition failed: UID in precondition: other, UID in object meta: "+string(cm.UID))
	target := f.target(cm)
	target.Name = "b"
	_, err = f.Update(f.ctx, target, f.body(cm), pipeline.WriteOptions{})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "the name of the object (a) does not match the name on the URL (b)")
	_, err = f.update(configMap("none"), "")
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `configmaps "none" not found`)
}

func TestUnchangedUpdatesWriteNothing(t *testing.T) {
	f := newFixture(t)
	p := f.mustCreate(pod("a"), pipeline.WriteOptions{FieldManager: "m"}).(*corev1.Pod)
	f.now = f.now.Add(time.Hour)
	for name, write := range map[string]func() (*pipeline.Outcome, error){
		"update": func() (*pipeline.Outcome, error) { return f.update(p.DeepCopy(), "") },
		"status": func() (*pipeline.Outcome, error) { return f.update(p.DeepCopy(), "status") },
		"merge":  func() (*pipeline.Outcome, error) { return f.patch(p, types.MergePatchType, `{}`) },
		"strategic": func() (*pipeline.Outcome, error) {
			return f.patch(p, types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"c","image":"i"}]}}`)
		},
		"json": func() (*pipeline.Outcome, error) {
			return f.patch(p, types.JSONPatchType, `[{"op":"test","path":"/metadata/name","value":"a"}]`)
		},
		"apply": func() (*pipeline.Outcome, error) { return nil, nil },
	} {
		before, _ := f.store.Revision(f.ctx)
		out, err := write()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if after, _ := f.store.Revision(f.ctx); after != before {
			t.Errorf("%s wrote: revision %d became %d", name, before, after)
		}
		if out != nil && out.Item.Object().GetResourceVersion() != p.ResourceVersion {
			t.Errorf("%s: resource version %s became %s", name, p.ResourceVersion, out.Item.Object().GetResourceVersion())
		}
	}
}

func TestGeneration(t *testing.T) {
	f := newFixture(t)
	one := int32(1)
	labels := map[string]string{"a": "b"}
	d := f.mustCreate(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"},
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}},
	}).(*appsv1.Deployment)
	step := func(what string, want int64, out *pipeline.Outcome, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := get(f, d).Generation; got != want {
			t.Errorf("%s: generation %d, want %d", what, got, want)
		}
	}
	out, err := f.patch(d, types.MergePatchType, `{"metadata":{"labels":{"x":"y"},"generation":77}}`)
	step("labels", 1, out, err)
	out, err = f.patch(d, types.MergePatchType, `{"spec":{"replicas":3}}`)
	step("spec", 2, out, err)
	d = get(f, d).DeepCopy()
	d.Status.Replicas = 2
	d.Spec.Paused = true
	out, err = f.update(d, "status")
	step("status", 2, out, err)
	if got := get(f, d); got.Status.Replicas != 2 || got.Spec.Paused {
		t.Errorf("an update of the status wrote %+v", got)
	}
	d = get(f, d).DeepCopy()
	d.Status.Replicas = 9
	out, err = f.update(d, "")
	step("main door", 2, out, err)
	if got := get(f, d); got.Status.Replicas != 2 {
		t.Errorf("an update of the object wrote the status")
	}
}

func TestCreationIsImmutable(t *testing.T) {
	f := newFixture(t)
	was := f.mustCreate(configMap("a")).(*corev1.ConfigMap)
	cm := was.DeepCopy()
	cm.CreationTimestamp = metav1.Unix(1, 0)
	cm.UID = ""
	cm.Data = map[string]string{"x": "y"}
	now := metav1.Now()
	if _, err := f.update(cm, ""); err != nil {
		t.Fatal(err)
	}
	if got := get(f, cm); got.UID != was.UID || !got.CreationTimestamp.Equal(&was.CreationTimestamp) {
		t.Errorf("%+v", got.ObjectMeta)
	}
	cm.ResourceVersion, cm.DeletionTimestamp = "", &now
	_, err := f.update(cm, "")
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "metadata.deletionTimestamp")
}

// TestConcurrentPatches applies many patches to one object concurrently. All must take effect.
func TestConcurrentPatches(t *testing.T) {
	f := newFixture(t)
	cm := f.mustCreate(configMap("a"))
	var wg sync.WaitGroup
	const writers, each = 8, 10
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				kind, text := types.MergePatchType, `{"data":{"w`+strconv.Itoa(w)+`-`+strconv.Itoa(i)+`":"x"}}`
				if i%2 == 1 {
					kind = types.StrategicMergePatchType
				}
				if _, err := f.patch(cm, kind, text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := get(f, configMap("a")); len(got.Data) != writers*each {
		t.Errorf("%d of %d patches took effect", len(got.Data), writers*each)
	}
}

func TestPatchErrors(t *testing.T) {
	f := newFixture(t)
	cm := f.mustCreate(configMap("a", "k", "v"))
	for name, test := range map[string]struct {
		kind types.PatchType
		text string
		o    pipeline.WriteOptions
		code int32
		want string
	}{
		"json syntax":           {types.JSONPatchType, `{`, pipeline.WriteOptions{}, 400, "invalid JSON patch"},
		"json test":             {types.JSONPatchType, `[{"op":"test","path":"/data/k","value":"w"}]`, pipeline.WriteOptions{}, 422, "the server rejected our request due to an error in our request"},
		"json missing":          {types.JSONPatchType, `[{"op":"remove","path":"/data/none"}]`, pipeline.WriteOptions{}, 422, "the server rejected our request due to an error in our request"},
		"merge syntax":          {types.MergePatchType, `{`, pipeline.WriteOptions{}, 400, "invalid JSON patch"},
		"merge type":            {types.MergePatchType, `{"data":5}`, pipeline.WriteOptions{}, 422, `\"data\":5,\"kind\":\"ConfigMap\"`},
		"merge unknown":         {types.MergePatchType, `{"foo":5}`, pipeline.WriteOptions{FieldValidation: "Strict"}, 422, `strict decoding error: unknown field "foo"`},
		"strategic type":        {types.StrategicMergePatchType, `{"data":5}`, pipeline.WriteOptions{}, 422, ""},
		"immutable name":        {types.MergePatchType, `{"metadata":{"name":"b"}}`, pipeline.WriteOptions{}, 400, "the name of the object (b) does not match the name on the URL (a)"},
		"stale":                 {types.MergePatchType, `{"metadata":{"resourceVersion":"1"}}`, pipeline.WriteOptions{}, 409, "the object has been modified"},
		"forced":                {types.MergePatchType, `{}`, pipeline.WriteOptions{Force: true}, 422, "force: Forbidden: may not be specified for non-apply patch"},
		"apply without manager": {types.ApplyPatchType, `{}`, pipeline.WriteOptions{}, 422, "fieldManager: Required value: is required for apply patch"},
		"unknown kind":          {types.PatchType("text/plain"), `{}`, pipeline.WriteOptions{}, 415, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.patch(cm, test.kind, test.text, test.o)
			reason := reasonOf(test.code)
			if test.code == 415 {
				reason = metav1.StatusReasonUnsupportedMediaType
			}
			wantStatus(t, err, test.code, reason, test.want)
		})
	}
	_, err := f.patch(configMap("none"), types.MergePatchType, `{}`)
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, "not found")
}

func TestPatchKinds(t *testing.T) {
	f := newFixture(t)
	p := f.mustCreate(pod("a"))
	for _, step := range []struct {
		kind types.PatchType
		text string
		ok   func(*corev1.Pod) bool
	}{
		{types.JSONPatchType, `[{"op":"add","path":"/metadata/labels","value":{"a":"1"}}]`, func(p *corev1.Pod) bool { return p.Labels["a"] == "1" }},
		{types.MergePatchType, `{"metadata":{"labels":{"b":"2","a":null}}}`, func(p *corev1.Pod) bool { return p.Labels["b"] == "2" && len(p.Labels) == 1 }},
		{types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"c","image":"j"}]}}`, func(p *corev1.Pod) bool {
			return len(p.Spec.Containers) == 1 && p.Spec.Containers[0].Image == "j" && p.Spec.Containers[0].TerminationMessagePath != ""
		}},
		{types.StrategicMergePatchType, `{"metadata":{"finalizers":["a.b/c"],"$setElementOrder/finalizers":["a.b/c"]}}`, func(p *corev1.Pod) bool { return len(p.Finalizers) == 1 }},
	} {
		if _, err := f.patch(p, step.kind, step.text); err != nil {
			t.Errorf("%s: %v", step.text, err)
		} else if got := get(f, p.(*corev1.Pod)); !step.ok(got) {
			t.Errorf("%s resulted in %s", step.text, asJSON(got))
		}
	}
}
