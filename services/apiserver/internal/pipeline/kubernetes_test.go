package pipeline_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/pipeline/serviceaddress"
	"keelson.dev/services/apiserver/internal/resource"
)

// withAddresses configures the allocation of addresses for Services.
func withAddresses(t *testing.T) func(*pipeline.Config) {
	return func(c *pipeline.Config) {
		a, err := serviceaddress.New(serviceaddress.Config{
			Store: c.Lasting.Store, Addresses: netip.MustParsePrefix("10.0.0.0/24"), FirstPort: 30000, LastPort: 30099,
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Table.ByResource(corev1.SchemeGroupVersion.WithResource("services")).Claimer = a
	}
}

// TestServiceClusterIP checks that an update or patch without clusterIP or clusterIPs keeps them,
// and that contradictory values are refused.
func TestServiceClusterIP(t *testing.T) {
	f := newFixture(t, withAddresses(t))
	service := func(name, ip string, selector map[string]string) *corev1.Service {
		return f.mustCreate(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, Selector: selector, Ports: []corev1.ServicePort{{Port: 80}}},
		}).(*corev1.Service)
	}
	plain := service("plain", "", map[string]string{"a": "b"})
	headless := service("headless", corev1.ClusterIPNone, map[string]string{"a": "b"})
	placeless := service("placeless", corev1.ClusterIPNone, nil)
	kept := func(what string, was *corev1.Service, out *pipeline.Outcome, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		got := out.Item.Object().(*corev1.Service)
		if got.Spec.ClusterIP != was.Spec.ClusterIP || !slices.Equal(got.Spec.ClusterIPs, was.Spec.ClusterIPs) || !slices.Equal(got.Spec.IPFamilies, was.Spec.IPFamilies) {
			t.Errorf("%s: %+v, was %+v", what, got.Spec, was.Spec)
		}
	}
	for _, s := range []*corev1.Service{plain, headless, placeless} {
		manifest := s.DeepCopy()
		manifest.Spec.ClusterIPs, manifest.Spec.IPFamilies, manifest.Spec.IPFamilyPolicy = nil, nil, nil
		manifest.ResourceVersion = ""
		out, err := f.update(manifest, "")
		kept("PUT of "+s.Name+" without clusterIPs", s, out, err)
		out, err = f.patch(s, types.MergePatchType, `{"spec":{"clusterIP":null}}`)
		kept("a patch that empties clusterIP of "+s.Name, s, out, err)
		out, err = f.patch(s, types.StrategicMergePatchType, `{"spec":{"clusterIPs":null}}`)
		kept("a patch that empties clusterIPs of "+s.Name, s, out, err)
	}
	_, err := f.patch(plain, types.MergePatchType, `{"spec":{"clusterIPs":["10.0.0.77"]}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "spec.clusterIPs: Invalid value: [\"10.0.0.77\"]: first value must match `clusterIP`")
	_, err = f.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "plural", Namespace: "ns"},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.78"}, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "must be empty when `clusterIP` is not specified")
}

// TestUpdateCreates checks that a PUT of a missing object creates it, for the kinds for which
// Kubernetes does so.
func TestUpdateCreates(t *testing.T) {
	f := newFixture(t, withAddresses(t))
	meta := metav1.ObjectMeta{Name: "a", Namespace: "ns"}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "a"}
	for _, obj := range []resource.Object{
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
		&corev1.Endpoints{ObjectMeta: meta},
		&coordinationv1.Lease{ObjectMeta: meta},
		&rbacv1.Role{ObjectMeta: meta},
		&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "a"}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "a"}, RoleRef: ref},
	} {
		out, err := f.update(obj, "")
		if err != nil || !out.Created || out.Item.Object().GetUID() == "" {
			t.Errorf("%T: %+v, %v", obj, out, err)
		}
	}
	s := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if out, err := f.Get(f.ctx, f.target(s), pipeline.GetOptions{}); err != nil || out.Item.Object().(*corev1.Service).Spec.ClusterIP == "" {
		t.Errorf("a Service that an update created has no address: %+v, %v", out, err)
	}
	for _, obj := range []resource.Object{configMap("a"), pod("a"), &corev1.Secret{ObjectMeta: meta}} {
		_, err := f.update(obj, "")
		wantStatus(t, err, 404, metav1.StatusReasonNotFound, `"a" not found`)
	}
}

// TestLeaseNeedsVersion checks that a Lease cannot be updated without its resourceVersion.
func TestLeaseNeedsVersion(t *testing.T) {
	f := newFixture(t)
	l := f.mustCreate(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "l", Namespace: "ns"}}).(*coordinationv1.Lease)
	l.Spec.HolderIdentity = ptr("me")
	blind := l.DeepCopy()
	blind.ResourceVersion = ""
	_, err := f.update(blind, "")
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, `leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update`)
	if _, err := f.update(l, ""); err != nil {
		t.Error(err)
	}
	if _, err := f.patch(l, types.MergePatchType, `{"spec":{"holderIdentity":"you"}}`); err != nil {
		t.Errorf("a patch: %v", err)
	}
	if _, err := f.patch(l, types.ApplyPatchType, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"l"},"spec":{"leaseDurationSeconds":3}}`,
		pipeline.WriteOptions{FieldManager: "m"}); err != nil {
		t.Errorf("an apply: %v", err)
	}
}

// TestPodIPs checks that podIP and podIPs are kept consistent, at each door.
func TestPodIPs(t *testing.T) {
	f := newFixture(t)
	p := f.bound("p")
	check := func(what string, out *pipeline.Outcome, err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		s := out.Item.Object().(*corev1.Pod).Status
		var got []string
		for _, ip := range s.PodIPs {
			got = append(got, ip.IP)
		}
		if s.PodIP != want[0] || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %q; want %q", what, s.PodIP, got, want)
		}
	}
	p.Status.PodIP = "10.1.0.1"
	out, err := f.update(p, "status")
	check("the singular", out, err, "10.1.0.1")
	target := f.target(p)
	target.Subresource = "status"
	patch := func(text string) (*pipeline.Outcome, error) {
		return f.Patch(f.ctx, target, types.MergePatchType, pipeline.Body{Data: []byte(text), Type: pipeline.JSON}, pipeline.WriteOptions{})
	}
	out, err = patch(`{"status":{"podIP":"10.1.0.2"}}`)
	check("another singular", out, err, "10.1.0.2")
	out, err = patch(`{"status":{"podIP":null,"podIPs":[{"ip":"10.1.0.3"},{"ip":"fd00::3"}]}}`)
	check("the plural", out, err, "10.1.0.3", "fd00::3")
	_, err = patch(`{"status":{"podIP":"10.1.0"}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "status.podIPs[0]: Invalid value")
}

// TestReviewNamespace checks that a posted object gets the namespace of the request.
func TestReviewNamespace(t *testing.T) {
	var asked resource.Object
	f := newFixture(t, func(c *pipeline.Config) {
		c.Actions = map[resource.Action]pipeline.Action{
			resource.ReviewLocalAccess: answer(&asked), resource.IssueToken: answer(&asked),
		}
	})
	target := pipeline.Target{Resource: authorizationv1.SchemeGroupVersion.WithResource("localsubjectaccessreviews"), Namespace: "ns"}
	post := func(body string) error {
		_, err := f.Create(f.ctx, target, pipeline.Body{Data: []byte(body), Type: pipeline.JSON}, pipeline.WriteOptions{})
		return err
	}
	const spec = `"spec":{"user":"u","resourceAttributes":{"namespace":"ns","verb":"get","resource":"pods"}}}`
	if err := post(`{` + spec); err != nil || asked.GetNamespace() != "ns" {
		t.Errorf("without a namespace: %v, %+v", err, asked)
	}
	wantStatus(t, post(`{"metadata":{"namespace":"other"},`+spec), 400, metav1.StatusReasonBadRequest, "does not match the namespace sent on the request")
	target = pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("serviceaccounts"), Namespace: "ns", Name: "default", Subresource: "token"}
	wantStatus(t, post(`{"metadata":{"namespace":"other"},"spec":{"audiences":[]}}`), 400, metav1.StatusReasonBadRequest, "does not match the namespace sent on the request")
}

// answer returns an action that returns the posted object and stores it in asked.
func answer(asked *resource.Object) pipeline.Action {
	return func(_ context.Context, _ pipeline.Target, obj resource.Object, _ pipeline.WriteOptions) (*pipeline.Outcome, error) {
		*asked = obj
		return &pipeline.Outcome{Other: obj, Created: true}, nil
	}
}

// TestIndexedJobGrows checks that completions and parallelism of an indexed Job may only change
// together.
func TestIndexedJobGrows(t *testing.T) {
	f := newFixture(t)
	indexed := batchv1.IndexedCompletion
	job := f.mustCreate(&batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "ns"},
		Spec: batchv1.JobSpec{
			Completions: ptr(int32(4)), Parallelism: ptr(int32(2)), CompletionMode: &indexed,
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		},
	}).(*batchv1.Job)
	_, err := f.patch(job, types.MergePatchType, `{"spec":{"completions":6}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "spec.completions: Invalid value: 6: can only be modified in tandem with spec.parallelism")
	_, err = f.patch(job, types.MergePatchType, `{"spec":{"completions":null}}`)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "spec.completions: Required value: when completion mode is Indexed")
	if d := statusDetails(err); d == nil || len(d.Causes) != 1 {
		t.Errorf("causes %+v", d)
	}
	if _, err := f.patch(job, types.MergePatchType, `{"spec":{"completions":6,"parallelism":6}}`); err != nil {
		t.Error(err)
	}
}

// TestNegativeGrace checks that a negative grace period becomes 1, wherever it comes from.
func TestNegativeGrace(t *testing.T) {
	f := newFixture(t)
	p := pod("p")
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(-5))
	stored := f.mustCreate(p).(*corev1.Pod)
	if g := stored.Spec.TerminationGracePeriodSeconds; g == nil || *g != 1 {
		t.Errorf("stored %v", g)
	}
	again := stored.DeepCopy()
	again.Spec.TerminationGracePeriodSeconds, again.Labels = ptr(int64(-5)), map[string]string{"a": "b"}
	if out, err := f.update(again, ""); err != nil || *out.Item.Object().(*corev1.Pod).Spec.TerminationGracePeriodSeconds != 1 {
		t.Errorf("the same manifest again: %+v, %v", out, err)
	}
	old := &corev1.PodSpec{TerminationGracePeriodSeconds: ptr(int64(-5))}
	if podspec.DefaultPod(old); *old.TerminationGracePeriodSeconds != 1 {
		t.Error("a stored pod's negative grace period was not changed to 1")
	}
}

// TestApplyFlowStyle checks that an applied configuration is YAML even if it begins with a brace.
func TestApplyFlowStyle(t *testing.T) {
	f := newFixture(t)
	apply := func(text string, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
		o.FieldManager = "m"
		return f.patch(configMap("a"), types.ApplyPatchType, text, o)
	}
	for _, text := range []string{
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: 'b'}}`,
		"{\"apiVersion\": \"v1\", 'kind': ConfigMap, metadata: {name: a}, # a comment\n data: {a: b,},}",
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"a":"b"}}`,
	} {
		if out, err := apply(text, pipeline.WriteOptions{}); err != nil || out.Item.Object().(*corev1.ConfigMap).Data["a"] != "b" {
			t.Errorf("%s: %+v, %v", text, out, err)
		}
	}
	const twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: b\n  a: b\n"
	if out, err := apply(twice, pipeline.WriteOptions{}); err != nil || !slices.Equal(out.Warnings, []string{`line 6: key "a" already set in map`}) {
		t.Errorf("duplicate key: %+v, %v", out, err)
	}
	_, err := apply(twice, pipeline.WriteOptions{FieldValidation: "Strict"})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, `error strict decoding patch: error converting YAML to JSON: yaml: unmarshal errors:`)
}

// TestWarningsOfRefusals checks that an error comes with the warnings that preceded it.
func TestWarningsOfRefusals(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(configMap("a"))
	target := f.target(configMap("a"))
	json := func(text string) pipeline.Body { return pipeline.Body{Data: []byte(text), Type: pipeline.JSON} }
	const unknown = `unknown field "what"`
	for name, write := range map[string]func() (*pipeline.Outcome, error){
		"create that exists": func() (*pipeline.Outcome, error) {
			return f.Create(f.ctx, pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, json(`{"metadata":{"name":"a"},"what":1}`), pipeline.WriteOptions{})
		},
		"create that is invalid": func() (*pipeline.Outcome, error) {
			return f.Create(f.ctx, pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, json(`{"metadata":{"name":"A"},"what":1}`), pipeline.WriteOptions{})
		},
		"update of another name": func() (*pipeline.Outcome, error) {
			return f.Update(f.ctx, target, json(`{"metadata":{"name":"b"},"what":1}`), pipeline.WriteOptions{})
		},
		"update that is invalid": func() (*pipeline.Outcome, error) {
			return f.Update(f.ctx, target, json(`{"metadata":{"name":"a","labels":{"a":"!"}},"what":1}`), pipeline.WriteOptions{})
		},
		"patch that is invalid": func() (*pipeline.Outcome, error) {
			return f.Patch(f.ctx, target, types.MergePatchType, json(`{"metadata":{"labels":{"a":"!"}},"what":1}`), pipeline.WriteOptions{})
		},
		"binding that is invalid": func() (*pipeline.Outcome, error) {
			return f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "binding"}, json(`{"what":1}`), pipeline.WriteOptions{})
		},
	} {
		out, err := write()
		if err == nil || out == nil || !slices.Equal(out.Warnings, []string{unknown}) {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	out, err := f.delete(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "none", Namespace: "ns"}})
	if err == nil || out == nil || len(out.Warnings) != 1 {
		t.Errorf("delete of a missing job: %+v, %v", out, err)
	}
	out, err = f.Update(f.ctx, target, json(`{"metadata":{"name":"b"},"what":1}`), pipeline.WriteOptions{FieldValidation: "Ignore"})
	if err == nil || out != nil {
		t.Errorf("without warnings: %+v, %v", out, err)
	}
}

// TestDeleteAnswersMarked checks that the response for a pod that is removed at once shows it as
// being deleted.
func TestDeleteAnswersMarked(t *testing.T) {
	f := newFixture(t)
	check := func(what string, was *corev1.Pod, out *pipeline.Outcome, err error) {
		t.Helper()
		if err != nil || !out.Gone {
			t.Fatalf("%s: %+v, %v", what, out, err)
		}
		got := out.Item.Object().(*corev1.Pod)
		if got.DeletionTimestamp == nil || got.DeletionTimestamp.Unix() != f.now.Unix() || got.DeletionGracePeriodSeconds == nil ||
			*got.DeletionGracePeriodSeconds != 0 || got.Generation != was.Generation+1 || got.ResourceVersion == was.ResourceVersion || len(got.Finalizers) > 0 {
			t.Errorf("%s: %+v", what, got.ObjectMeta)
		}
		if get(f, was) != nil {
			t.Errorf("%s: the pod still exists", what)
		}
	}
	p := f.mustCreate(pod("unscheduled")).(*corev1.Pod)
	out, err := f.delete(p)
	check("a pod without a node", p, out, err)
	p = f.bound("bound")
	out, err = f.delete(p, pipeline.DeleteOptions{GracePeriodSeconds: ptr(int64(0))})
	check("a pod without grace", p, out, err)
	orphan := pod("orphan")
	orphan.Finalizers = []string{metav1.FinalizerOrphanDependents}
	p = f.mustCreate(orphan).(*corev1.Pod)
	out, err = f.delete(p, pipeline.DeleteOptions{PropagationPolicy: ptr(metav1.DeletePropagationBackground)})
	check("a pod whose finalizer is removed", p, out, err)
	p = f.bound("twice")
	out, err = f.delete(p)
	if err != nil {
		t.Fatal(err)
	}
	p = out.Item.Object().DeepCopyObject().(*corev1.Pod)
	p.Generation-- // the first delete has counted already
	out, err = f.delete(p, pipeline.DeleteOptions{GracePeriodSeconds: ptr(int64(0))})
	check("a pod that is being deleted", p, out, err)
}

// TestPatchRefusals checks that a patch cannot change the kind or the name of an object, and that
// a patch that cannot be merged is a client error.
func TestPatchRefusals(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(configMap("a"))
	p := f.mustCreate(pod("p"))
	const strategic, merge, ops = types.StrategicMergePatchType, types.MergePatchType, types.JSONPatchType
	for _, test := range []struct {
		obj    resource.Object
		kind   types.PatchType
		text   string
		code   int32
		reason metav1.StatusReason
		want   string
	}{
		{configMap("a"), merge, `{"kind":"Secret"}`, 422, metav1.StatusReasonInvalid, `: converting (v1.Secret) to (core.ConfigMap): unknown conversion`},
		{configMap("a"), ops, `[{"op":"replace","path":"/kind","value":"Thing"}]`, 422, metav1.StatusReasonInvalid, `no kind "Thing" is registered for version "v1"`},
		{configMap("a"), merge, `{"apiVersion":"v2"}`, 422, metav1.StatusReasonInvalid, "patch: Invalid value"},
		{configMap("a"), merge, `{"metadata":{"name":"b"}}`, 400, metav1.StatusReasonBadRequest, "the name of the object (b) does not match the name on the URL (a)"},
		{configMap("a"), strategic, `{"metadata":{"name":"b"}}`, 400, metav1.StatusReasonBadRequest, "the name of the object (b) does not match the name on the URL (a)"},
		{configMap("a"), merge, `{"metadata":{"namespace":"b","name":"b"}}`, 400, metav1.StatusReasonBadRequest, "the namespace of the provided object does not match"},
		{configMap("none"), merge, `{`, 400, metav1.StatusReasonBadRequest, "invalid JSON patch"},
		{configMap("none"), ops, ``, 400, metav1.StatusReasonBadRequest, "invalid JSON patch"},
		{configMap("a"), ops, `{}`, 400, metav1.StatusReasonBadRequest, "error decoding patch: json: cannot unmarshal object into Go value"},
		{p, strategic, `{"spec":{"volumes":[{"name":{}}]}}`, 400, metav1.StatusReasonBadRequest, "the patch cannot be merged"},
		{p, strategic, `{"spec":{"$retainKeys":[{}]}}`, 400, metav1.StatusReasonBadRequest, "the patch cannot be merged"},
	} {
		_, err := f.patch(test.obj, test.kind, test.text)
		t.Run(test.text, func(t *testing.T) {
			wantStatus(t, err, test.code, test.reason, test.want)
		})
	}
	out, err := f.patch(configMap("a"), ops, `[{"op":"test","path":"/kind","value":"ConfigMap","what":1}]`)
	if err != nil || !slices.Equal(out.Warnings, []string{`json patch unknown field "[0].what"`}) {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := f.patch(configMap("a"), merge, `{"kind":"ConfigMap","apiVersion":"v1","data":{"a":"b"}}`); err != nil {
		t.Errorf("a patch that names its kind: %v", err)
	}
}

// TestNamesOfPathSegments checks that some kinds allow any name that is a path segment.
func TestNamesOfPathSegments(t *testing.T) {
	f := newFixture(t)
	named := func(name string) resource.Object {
		return &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: "ns"},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "p"},
		}
	}
	if _, err := f.create(named("a@b")); err != nil {
		t.Error(err)
	}
	_, err := f.create(named("a/b"))
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "may not contain '/'")
	_, err = f.create(&eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: "a@b", Namespace: "ns"}})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "a lowercase RFC 1123 subdomain")
	_, err = f.create(&certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "user:alice"}})
	if d := statusDetails(err); d == nil || slices.ContainsFunc(d.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.name" }) {
		t.Errorf("a CSR called user:alice: %v", err)
	}
}

// TestSmallDifferences checks individual responses against Kubernetes'.
func TestSmallDifferences(t *testing.T) {
	f := newFixture(t)
	class := f.mustCreate(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Value: 7})
	out, err := f.patch(class, types.MergePatchType, `{"description":"x"}`)
	if err != nil || out.Item.Object().GetGeneration() != 1 {
		t.Errorf("the generation of a PriorityClass: %+v, %v", out, err)
	}
	f.mustCreate(configMap("a"))
	list, err := f.List(f.ctx, pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.ListOptions{Limit: -1})
	if err != nil || len(list.Items) != 1 || list.Continue != "" {
		t.Errorf("limit=-1: %+v, %v", list, err)
	}
	items, err := f.DeleteCollection(f.ctx, pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.ListOptions{}, pipeline.DeleteOptions{
		PropagationPolicy: ptr(metav1.DeletePropagationOrphan),
	})
	if err != nil || len(items.Items) != 1 || items.Items[0].Object().GetDeletionTimestamp() != nil {
		t.Errorf("a deleted collection is returned as it was read: %+v, %v", items, err)
	}
}

// TestCreateWithVersion checks that a create with a resourceVersion is refused, except for one
// that is not a number.
func TestCreateWithVersion(t *testing.T) {
	f := newFixture(t)
	for version, refused := range map[string]bool{"": false, "0": false, "00": false, "x": false, "7": true} {
		c := configMap("v" + version)
		c.ResourceVersion = version
		if _, err := f.create(c); (err != nil) != refused {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// TestUnreadableManagedFields checks that managed fields which are not JSON, possible in
// protobuf, are refused: no client could read the object, or a list with it, as JSON.
func TestUnreadableManagedFields(t *testing.T) {
	f := newFixture(t)
	for _, text := range []string{"{]", "{\"f:a\b\":{}}", "{} {}"} {
		broken := metav1.ManagedFieldsEntry{
			Manager: "m", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(text),
		}
		c := configMap("a")
		c.ManagedFields = []metav1.ManagedFieldsEntry{broken}
		_, err := f.create(c)
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, `managedFields[0].fieldsV1 of manager "m" is not JSON`)
		r := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "ns"}}
		r.Spec.Template.ManagedFields = []metav1.ManagedFieldsEntry{broken}
		_, err = f.create(r)
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, `managedFields[0].fieldsV1 of manager "m" is not JSON`)
	}
}
