package pipeline_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
)

func (f *fixture) bind(name string, b *corev1.Binding) (*pipeline.Outcome, error) {
	f.Helper()
	data, err := b.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	return f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: name, Subresource: "binding"},
		pipeline.Body{Data: data, Type: pipeline.Message, GVK: corev1.SchemeGroupVersion.WithKind("Binding")}, pipeline.WriteOptions{})
}

func binding(pod, node string) *corev1.Binding {
	return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "ns"}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
}

func TestBinding(t *testing.T) {
	f := newFixture(t)
	get(f, f.mustCreate(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}))
	p := f.mustCreate(pod("a")).(*corev1.Pod)
	p.Status.NominatedNodeName = "m"
	if _, err := f.update(p, "status"); err != nil {
		t.Fatal(err)
	}
	p = get(f, p)
	f.now = f.now.Add(1e10)
	b := binding("a", "n")
	b.Annotations, b.Labels = map[string]string{"why": "so"}, map[string]string{"shard": "7"}
	p.Status.NominatedNodeName = "m"
	p = f.mustStatus(p).(*corev1.Pod)
	out, err := f.bind("a", b)
	if err != nil || out.Status == nil || out.Status.Status != metav1.StatusSuccess {
		t.Fatalf("%+v, %v", out, err)
	}
	got := get(f, p)
	if got.Spec.NodeName != "n" || got.Annotations["why"] != "so" || got.Labels[corev1.LabelTopologyZone] != "z" || got.Labels["shard"] != "7" || got.Status.NominatedNodeName != "" {
		t.Errorf("%+v", got)
	}
	if got.Status.NominatedNodeName != "" {
		t.Errorf("bound, and still nominated for %s", got.Status.NominatedNodeName)
	}
	if c := got.Status.Conditions; len(c) != 1 || c[0].Type != corev1.PodScheduled || c[0].Status != corev1.ConditionTrue || c[0].LastTransitionTime.Unix() != f.now.Unix() {
		t.Errorf("conditions %+v", c)
	}
	if asJSON(got.ManagedFields) != asJSON(p.ManagedFields) || got.Generation != p.Generation {
		t.Errorf("a binding was tracked: %+v", got.ManagedFields)
	}
	// The legacy resource bindings takes the pod's name from the Binding.
	old := f.mustCreate(pod("old")).(*corev1.Pod)
	out, err = f.Create(f.ctx, pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("bindings"), Namespace: "ns"}, f.body(binding("old", "n")), pipeline.WriteOptions{})
	if err != nil || out.Status == nil || get(f, old).Spec.NodeName != "n" {
		t.Errorf("bindings: %+v, %v", out, err)
	}
	gated := pod("gated")
	gated.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	f.mustCreate(gated)
	ending := pod("ending")
	ending.Finalizers = []string{"example.com/wait"}
	f.mustCreate(ending)
	if _, err := f.delete(ending); err != nil {
		t.Fatal(err)
	}
	uid := binding("free", "n")
	uid.UID = "other"
	f.mustCreate(pod("free"))
	noTarget := binding("free", "")
	for name, test := range map[string]struct {
		pod  string
		b    *corev1.Binding
		code int32
		text string
	}{
		"bound":             {"a", binding("a", "m"), 409, `Operation cannot be fulfilled on pods/binding "a": pod a is already assigned to node "n"`},
		"gated":             {"gated", binding("gated", "n"), 409, "pod gated has non-empty .spec.schedulingGates"},
		"ending":            {"ending", binding("ending", "n"), 409, "pod ending is being deleted, cannot be assigned to a host"},
		"other uid":         {"free", uid, 409, `Operation cannot be fulfilled on pods "free": StorageError: invalid object, Code: 4, Key: /registry/pods/ns/free, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: other, UID in object meta: `},
		"no name of a node": {"free", binding("free", "a/b"), 500, `target.name: Invalid value: "a/b": a lowercase RFC 1123 subdomain must consist of`},
		"no target":         {"free", noTarget, 422, "target.name: Required value"},
		"no name":           {"free", binding("", "n"), 400, "name in URL does not match name in Binding object"},
		"other name":        {"free", binding("a", "n"), 400, "name in URL does not match name in Binding object"},
		"none":              {"none", binding("none", "n"), 404, `pods "none" not found`},
	} {
		_, err := f.bind(test.pod, test.b)
		t.Run(name, func(t *testing.T) { wantStatus(t, err, test.code, reasonOf(test.code), test.text) })
	}
}

func TestScale(t *testing.T) {
	f := newFixture(t)
	two := int32(2)
	labels := map[string]string{"a": "b"}
	d := f.mustCreate(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"},
		Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}},
	}).(*appsv1.Deployment)
	target := f.target(d)
	target.Subresource = "scale"
	out, err := f.Get(f.ctx, target, pipeline.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := out.Other.(*autoscalingv1.Scale)
	if s.Spec.Replicas != 2 || s.Status.Selector != "a=b" || s.UID != d.UID || s.ResourceVersion != d.ResourceVersion {
		t.Errorf("%+v", s)
	}
	write := func(s *autoscalingv1.Scale) (*pipeline.Outcome, error) {
		data, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return f.Update(f.ctx, target, pipeline.Body{Data: data, Type: pipeline.Message, GVK: autoscalingv1.SchemeGroupVersion.WithKind("Scale")}, pipeline.WriteOptions{FieldManager: "scaler"})
	}
	s.Spec.Replicas = 5
	if out, err = write(s); err != nil || out.Other.(*autoscalingv1.Scale).Spec.Replicas != 5 {
		t.Fatalf("%+v, %v", out, err)
	}
	got := get(f, d)
	if *got.Spec.Replicas != 5 || got.Generation != 2 {
		t.Errorf("%+v", got)
	}
	by := slices.IndexFunc(got.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == "scaler" })
	if m := got.ManagedFields[max(by, 0)]; by < 0 || m.Subresource != "scale" || m.FieldsV1.GetRawString() != `{"f:spec":{"f:replicas":{}}}` {
		t.Errorf("managed fields %+v", m)
	}
	_, err = write(s)
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the object has been modified")
	s.ResourceVersion, s.Spec.Replicas = "", -1
	_, err = write(s)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "spec.replicas: Invalid value: -1: must be greater than or equal to 0")
	if _, err := f.Patch(f.ctx, target, types.MergePatchType, pipeline.Body{Data: []byte(`{"spec":{"replicas":1}}`), Type: pipeline.JSON}, pipeline.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := get(f, d); *got.Spec.Replicas != 1 {
		t.Errorf("%d replicas", *got.Spec.Replicas)
	}
}

func TestApply(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a")
	apply := func(manager, data string, force bool) (*pipeline.Outcome, error) {
		return f.patch(cm, types.ApplyPatchType, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: ns}\ndata: "+data,
			pipeline.WriteOptions{FieldManager: manager, Force: force})
	}
	out, err := apply("one", "{a: '1', b: '1'}", false)
	if err != nil || !out.Created {
		t.Fatalf("%+v, %v", out, err)
	}
	version := out.Item.Object().GetResourceVersion()
	f.now = f.now.Add(1e10)
	if out, err = apply("one", "{a: '1', b: '1'}", false); err != nil || out.Item.Object().GetResourceVersion() != version {
		t.Errorf("applied again: %+v, %v", out, err)
	}
	_, err = apply("two", "{a: '2'}", false)
	wantStatus(t, err, 409, metav1.StatusReasonConflict, `Apply failed with 1 conflict: conflict with "one": .data.a`)
	if d := statusDetails(err); d == nil || len(d.Causes) != 1 || d.Causes[0].Type != metav1.CauseTypeFieldManagerConflict || d.Causes[0].Field != ".data.a" {
		t.Errorf("causes %+v", d)
	}
	if _, err := apply("two", "{a: '2'}", true); err != nil {
		t.Fatal(err)
	}
	if _, err := apply("one", "{}", false); err != nil {
		t.Fatal(err)
	}
	if got := get(f, cm); len(got.Data) != 1 || got.Data["a"] != "2" {
		t.Errorf("after forcing and giving up fields: %v", got.Data)
	}
	for text, want := range map[string]string{
		"kind: ConfigMap":             "invalid object type",
		"apiVersion: v1\nkind: Pod\n": "invalid object type",
		"a: b: c":                     "error encoding patch: yaml: mapping values are not allowed in this context",
		"{a: b":                       "error decoding patch: error converting YAML to JSON: yaml: ",
		"- a":                         "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, managedFields: [{}]}": "metadata.managedFields must be nil",
	} {
		_, err := f.patch(cm, types.ApplyPatchType, text, pipeline.WriteOptions{FieldManager: "x"})
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, want)
	}
	_, err = f.patch(cm, types.ApplyPatchType, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nfoo: 1", pipeline.WriteOptions{FieldManager: "x"})
	wantStatus(t, err, 500, "", ".foo: field not declared in schema")
}

// TestScaleApply checks that the applier of a scale owns spec.replicas of the object.
func TestScaleApply(t *testing.T) {
	f := newFixture(t)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"}}
	const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d","namespace":"ns"},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},` +
		`"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`
	if _, err := f.patch(d, types.ApplyPatchType, deployment, pipeline.WriteOptions{FieldManager: "owner"}); err != nil {
		t.Fatal(err)
	}
	target := f.target(d)
	apply := func(name, manager, text string, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
		t.Helper()
		o.FieldManager, target.Name, target.Subresource = manager, name, "scale"
		return f.Patch(f.ctx, target, types.ApplyPatchType, pipeline.Body{Data: []byte(text), Type: pipeline.YAML}, o)
	}
	const five = "apiVersion: autoscaling/v1\nkind: Scale\nmetadata: {name: d, namespace: ns}\nspec: {replicas: 5}"
	owners := func() (out []string) {
		for _, m := range get(f, d).ManagedFields {
			if strings.Contains(m.FieldsV1.GetRawString(), `"f:replicas":{}`) {
				out = append(out, fmt.Sprint(m.Manager, " ", m.Operation, " ", m.APIVersion, " ", m.Subresource))
			}
		}
		return out
	}
	_, err := apply("d", "scaler", five, pipeline.WriteOptions{})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, `Apply failed with 1 conflict: conflict with "owner": .spec.replicas`)
	if out, err := apply("d", "scaler", five, pipeline.WriteOptions{Force: true, DryRun: true}); err != nil || out.Other.(*autoscalingv1.Scale).Spec.Replicas != 5 || *get(f, d).Spec.Replicas != 3 {
		t.Errorf("dry run: %+v, %v", out, err)
	}
	out, err := apply("d", "scaler", five, pipeline.WriteOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	s := out.Other.(*autoscalingv1.Scale)
	if s.Spec.Replicas != 5 || s.Status.Selector != "a=b" || len(s.ManagedFields) != 0 || *get(f, d).Spec.Replicas != 5 {
		t.Errorf("%s", asJSON(s))
	}
	if got := owners(); !slices.Equal(got, []string{"scaler Apply apps/v1 scale"}) {
		t.Errorf("owners %q", got)
	}
	version := get(f, d).ResourceVersion
	if _, err := apply("d", "scaler", five, pipeline.WriteOptions{}); err != nil || get(f, d).ResourceVersion != version {
		t.Errorf("applied again: %v", err)
	}
	_, err = f.patch(d, types.ApplyPatchType, deployment, pipeline.WriteOptions{FieldManager: "owner"})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, `conflict with "scaler" with subresource "scale": .spec.replicas`)
	// Two appliers of the same value share it.
	if _, err := apply("d", "other", five, pipeline.WriteOptions{}); err != nil {
		t.Error(err)
	}
	if got := owners(); len(got) != 2 {
		t.Errorf("owners %q", got)
	}
	_, err = apply("none", "scaler", five, pipeline.WriteOptions{})
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `deployments.apps "none" not found`)
	_, err = apply("d", "scaler", strings.ReplaceAll(five, "name: d", "name: e"), pipeline.WriteOptions{})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "the name of the object (e) does not match the name on the URL (d)")
	_, err = apply("d", "scaler", strings.ReplaceAll(five, "autoscaling/v1", "apps/v1"), pipeline.WriteOptions{})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "invalid object type: apps/v1, Kind=Scale")
	_, err = apply("d", "scaler", strings.ReplaceAll(five, "5", "-1"), pipeline.WriteOptions{Force: true})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "must be greater than or equal to 0")
	_, err = apply("d", "scaler", strings.ReplaceAll(five, "replicas", "size"), pipeline.WriteOptions{})
	wantStatus(t, err, 500, "", ".spec.size: field not declared in schema")
	_, err = apply("d", "late", five+"\nmetadata: {resourceVersion: '1'}", pipeline.WriteOptions{Force: true})
	if err == nil {
		t.Error("a duplicate key and an outdated version were accepted")
	}
}

func TestApplyAfterClientSideApply(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a", "k", "v", "gone", "x")
	cm.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"ns","annotations":{}},"data":{"k":"v","gone":"x"}}`}
	f.mustCreate(cm, pipeline.WriteOptions{FieldManager: "kubectl-client-side-apply"})
	out, err := f.patch(cm, types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"ns"},"data":{"k":"w","gone":"x"}}`,
		pipeline.WriteOptions{FieldManager: "kubectl"})
	if err != nil {
		t.Fatal(err) // kubectl's own earlier client-side apply is not a conflict
	}
	if got := out.Item.Object().(*corev1.ConfigMap); got.Data["k"] != "w" {
		t.Errorf("%+v", got)
	}
}

func TestCommit(t *testing.T) {
	f := newFixture(t)
	there := f.mustCreate(configMap("there", "k", "v"))
	f.mustCreate(pod("p"))
	write := func(verb string, obj resource.Object) pipeline.Write {
		target := f.target(obj)
		if verb == "create" {
			target.Name = ""
		}
		return pipeline.Write{Verb: verb, Target: target, Body: f.body(obj)}
	}
	bind := binding("p", "n")
	data, err := bind.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	patch := write("patch", configMap("there"))
	patch.PatchType, patch.Body = types.MergePatchType, pipeline.Body{Data: []byte(`{"data":{"x":"y"}}`), Type: pipeline.JSON}
	results := f.Commit(f.ctx, []pipeline.Write{
		write("create", configMap("new")),
		write("create", configMap("there")),
		write("update", configMap("there", "k", "w")),
		patch,
		write("delete", configMap("none")),
		{Verb: "create", Target: pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "binding"},
			Body: pipeline.Body{Data: data, Type: pipeline.Message, GVK: corev1.SchemeGroupVersion.WithKind("Binding")}},
		{Verb: "explode"},
		{Verb: "create", Target: maps, Body: pipeline.Body{Data: []byte{255}, Type: pipeline.Message, GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap")}},
	})
	for i, code := range []int32{0, 409, 0, 0, 404, 0, 400, 400} {
		err := results[i].Err
		if code == 0 {
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
			continue
		}
		wantCode(t, strconv.Itoa(i), err, code)
	}
	if got := get(f, there.(*corev1.ConfigMap)); got.Data["k"] != "w" || got.Data["x"] != "y" {
		t.Errorf("writes to the same object were not executed in order: %v", got.Data)
	}
	if get(f, pod("p")).Spec.NodeName != "n" {
		t.Error("the pod was not bound")
	}
}

// TestCacheTakesOverObjects compares the objects that the watch cache took over from writers with
// what it would have decoded.
func TestCacheTakesOverObjects(t *testing.T) {
	f := newFixture(t)
	check := func(what string) {
		t.Helper()
		out, err := f.Get(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p"}, pipeline.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		decoded := &corev1.Pod{}
		if err := decoded.Unmarshal(out.Item.Raw); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(decoded, out.Item.Object()) || asJSON(decoded) != asJSON(out.Item.Object()) {
			t.Errorf("after the %s the cache has\n%s\nbut the store has\n%s", what, asJSON(out.Item.Object()), asJSON(decoded))
		}
		if v := strconv.FormatInt(int64(out.Item.Revision), 10); out.Item.Object().GetResourceVersion() != v {
			t.Errorf("after the %s the version is %s, want %s", what, out.Item.Object().GetResourceVersion(), v)
		}
	}
	p := f.mustCreate(benchPod("p"), pipeline.WriteOptions{FieldManager: "m"}).(*corev1.Pod)
	check("create")
	for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType, types.JSONPatchType} {
		text := `{"metadata":{"annotations":{"by":"` + string(kind) + `"},"finalizers":null}}`
		if kind == types.JSONPatchType {
			text = `[{"op":"add","path":"/spec/tolerations/-","value":{"operator":"Exists"}}]`
		}
		if _, err := f.patch(p, kind, text); err != nil {
			t.Fatal(err)
		}
		check(string(kind))
	}
	if _, err := f.bind("p", binding("p", "n")); err != nil {
		t.Fatal(err)
	}
	check("binding")
	status := get(f, p).DeepCopy()
	status.Status.Phase, status.Status.PodIPs = corev1.PodRunning, []corev1.PodIP{{IP: "10.0.0.1"}}
	if _, err := f.update(status, "status"); err != nil {
		t.Fatal(err)
	}
	check("status")
	if _, err := f.delete(p); err != nil {
		t.Fatal(err)
	}
	check("delete")
}
