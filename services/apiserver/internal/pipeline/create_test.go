package pipeline_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
)

func TestCreateFillsInMetadata(t *testing.T) {
	f := newFixture(t)
	out, err := f.create(pod("a"), pipeline.WriteOptions{UserAgent: "kubectl/v1.37 (linux)"})
	if err != nil {
		t.Fatal(err)
	}
	p := out.Item.Object().(*corev1.Pod)
	if !out.Created || p.UID == "" || p.CreationTimestamp.Unix() != f.now.Unix() || p.Generation != 1 || p.ResourceVersion == "" {
		t.Errorf("metadata is incomplete: %+v", p.ObjectMeta)
	}
	if p.Status.Phase != corev1.PodPending || p.Spec.RestartPolicy != corev1.RestartPolicyAlways || p.Spec.ServiceAccountName != "default" {
		t.Errorf("defaults are missing: %+v", p)
	}
	if len(p.ManagedFields) != 1 || p.ManagedFields[0].Manager != "kubectl" {
		t.Errorf("managed fields: %+v", p.ManagedFields)
	}
	if got := get(f, p); asJSON(got) != asJSON(p) {
		t.Errorf("the cache has\n%s\nthe response was\n%s", asJSON(got), asJSON(p))
	}
	if fresh := new(corev1.Pod); fresh.Unmarshal(out.Item.Raw) != nil || asJSON(fresh) != asJSON(p) {
		t.Errorf("raw and object differ")
	}
}

func TestCreateIsRefused(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(configMap("there"))
	f.mustCreate(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}})
	if _, err := f.delete(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}}); err != nil {
		t.Fatal(err)
	}
	finalized := configMap("finalized")
	finalized.Finalizers = []string{"example.com/wait"}
	f.mustCreate(finalized)
	if _, err := f.delete(finalized); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*corev1.ConfigMap)) *corev1.ConfigMap {
		cm := configMap("new")
		change(cm)
		return cm
	}
	for name, test := range map[string]struct {
		obj    *corev1.ConfigMap
		code   int32
		reason metav1.StatusReason
		text   string
	}{
		"exists":        {configMap("there"), 409, metav1.StatusReasonAlreadyExists, `configmaps "there" already exists`},
		"being deleted": {configMap("finalized"), 409, metav1.StatusReasonAlreadyExists, `object is being deleted: configmaps "finalized" already exists`},
		"no name":       {configMap(""), 422, metav1.StatusReasonInvalid, `metadata.name: Required value: name or generateName is required`},
		"bad name":      {configMap("Bad_Name"), 422, metav1.StatusReasonInvalid, `metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain`},
		"bad label":     {with(func(c *corev1.ConfigMap) { c.Labels = map[string]string{"a b": ""} }), 422, metav1.StatusReasonInvalid, `metadata.labels: Invalid value: "a b"`},
		"long annotations": {with(func(c *corev1.ConfigMap) { c.Annotations = map[string]string{"a": strings.Repeat("x", 257<<10)} }),
			422, metav1.StatusReasonInvalid, "metadata.annotations: Too long"},
		"bad finalizer": {with(func(c *corev1.ConfigMap) { c.Finalizers = []string{"nope"} }), 422, metav1.StatusReasonInvalid, "metadata.finalizers"},
		"bad owner": {with(func(c *corev1.ConfigMap) { c.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod"}} }),
			422, metav1.StatusReasonInvalid, "metadata.ownerReferences"},
		"resource version": {with(func(c *corev1.ConfigMap) { c.ResourceVersion = "7" }), 500, "", "resourceVersion should not be set on objects to be created"},
		"too large": {with(func(c *corev1.ConfigMap) {
			c.Data = map[string]string{"a": strings.Repeat("x", 900<<10)}
			c.BinaryData = map[string][]byte{"b": make([]byte, 900<<10)}
		}), 0, "", ""},
		"no namespace": {with(func(c *corev1.ConfigMap) { c.Namespace = "none" }), 404, metav1.StatusReasonNotFound, `namespaces "none" not found`},
		"ending namespace": {with(func(c *corev1.ConfigMap) { c.Namespace = "ending" }), 403, metav1.StatusReasonForbidden,
			"unable to create new content in namespace ending because it is being terminated"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.create(test.obj)
			if test.code == 0 { // the kind's own limit or the store's
				if !apierrors.IsInvalid(err) && !apierrors.IsRequestEntityTooLargeError(err) {
					t.Errorf("got %v", err)
				}
				return
			}
			wantStatus(t, err, test.code, test.reason, test.text)
		})
	}
}

func TestCreateInTheWrongPlace(t *testing.T) {
	f := newFixture(t)
	body := f.body(configMap("a"))
	for name, test := range map[string]struct {
		target pipeline.Target
		body   pipeline.Body
		code   int32
		text   string
	}{
		"other namespace":  {pipeline.Target{Resource: configMapGVR, Namespace: "other"}, body, 400, "the namespace of the provided object does not match the namespace sent on the request"},
		"no namespace":     {pipeline.Target{Resource: configMapGVR}, body, 400, "an empty namespace may not be set during creation"},
		"other kind":       {pipeline.Target{Resource: podGVR, Namespace: "ns"}, body, 400, `ConfigMap in version "v1" cannot be handled as a Pod`},
		"unknown resource": {pipeline.Target{Resource: podGVR.GroupVersion().WithResource("nothings")}, body, 404, "the server could not find the requested resource"},
		"unknown subresource": {pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "a", Subresource: "nothing"}, body, 404,
			"the server could not find the requested resource"},
		"truncated": {pipeline.Target{Resource: configMapGVR, Namespace: "ns"}, pipeline.Body{Data: body.Data[:len(body.Data)-1], Type: body.Type, GVK: body.GVK}, 400, "cannot be handled as a ConfigMap"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Create(f.ctx, test.target, test.body, pipeline.WriteOptions{})
			wantStatus(t, err, test.code, reasonOf(test.code), test.text)
		})
	}
}

func reasonOf(code int32) metav1.StatusReason {
	switch code {
	case 400:
		return metav1.StatusReasonBadRequest
	case 403:
		return metav1.StatusReasonForbidden
	case 404:
		return metav1.StatusReasonNotFound
	case 405:
		return metav1.StatusReasonMethodNotAllowed
	case 409:
		return metav1.StatusReasonConflict
	case 410:
		return metav1.StatusReasonExpired
	case 422:
		return metav1.StatusReasonInvalid
	case 504:
		return metav1.StatusReasonTimeout
	}
	return ""
}

func TestGenerateName(t *testing.T) {
	f := newFixture(t)
	seen := map[string]bool{}
	for range 20 {
		cm := configMap("")
		cm.GenerateName = "made-"
		got := f.mustCreate(cm).GetName()
		if !strings.HasPrefix(got, "made-") || len(got) != len("made-")+5 || seen[got] {
			t.Errorf("name %q", got)
		}
		seen[got] = true
	}
	long := configMap("")
	long.GenerateName = strings.Repeat("x", 80)
	if got := f.mustCreate(long).GetName(); len(got) != 63 {
		t.Errorf("a long base gives a name of %d characters", len(got))
	}
}

func TestFieldValidation(t *testing.T) {
	f := newFixture(t)
	text := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"NAME"},"spec":{"foo":1,"containers":[{"name":"c","image":"i","image":"j"}]}}`
	for _, test := range []struct {
		directive string
		warnings  int
		text      string
	}{
		{"", 2, ""},
		{metav1.FieldValidationWarn, 2, ""},
		{metav1.FieldValidationIgnore, 0, ""},
		{metav1.FieldValidationStrict, 0, `Pod in version "v1" cannot be handled as a Pod: strict decoding error: duplicate field "spec.containers[0].image", unknown field "spec.foo"`},
	} {
		body := pipeline.Body{Data: []byte(strings.Replace(text, "NAME", "v"+strings.ToLower(test.directive), 1)), Type: pipeline.JSON}
		out, err := f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns"}, body, pipeline.WriteOptions{FieldValidation: test.directive})
		if test.text != "" {
			if s, ok := errors.AsType[*apierrors.StatusError](err); !ok || !strings.Contains(s.ErrStatus.Message, `unknown field "spec.foo"`) || !strings.Contains(s.ErrStatus.Message, `duplicate field "spec.containers[0].image"`) {
				t.Errorf("%s: %v", test.directive, err)
			}
			continue
		}
		if err != nil || len(out.Warnings) != test.warnings {
			t.Errorf("%q: %v, warnings %v", test.directive, err, out)
		}
	}
	_, err := f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns"}, pipeline.Body{Data: []byte(text), Type: pipeline.JSON}, pipeline.WriteOptions{FieldValidation: "Perhaps"})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, `fieldValidation: Unsupported value: "Perhaps"`)
}

func TestDryRunStoresNothing(t *testing.T) {
	f := newFixture(t)
	dry := pipeline.WriteOptions{DryRun: true}
	out, err := f.create(configMap("a"), dry)
	if err != nil || out.Item.Object().GetUID() == "" || out.Item.Object().GetResourceVersion() != "" {
		t.Fatalf("%+v, %v", out, err)
	}
	if get(f, configMap("a")) != nil {
		t.Error("a dry run created an object")
	}
	there := f.mustCreate(configMap("a", "k", "v"))
	_, err = f.create(configMap("a"), dry)
	wantStatus(t, err, 409, metav1.StatusReasonAlreadyExists, "already exists")
	change := configMap("a", "k", "w")
	if out, err := f.update(change, "", dry); err != nil || out.Item.Object().(*corev1.ConfigMap).Data["k"] != "w" {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := f.delete(change, pipeline.DeleteOptions{WriteOptions: dry}); err != nil {
		t.Fatal(err)
	}
	if got := get(f, configMap("a")); asJSON(got) != asJSON(there) {
		t.Errorf("dry runs changed %s to %s", asJSON(there), asJSON(got))
	}
}

func TestOwnersAreDeduplicated(t *testing.T) {
	f := newFixture(t)
	cm := configMap("a")
	ref := metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "1"}
	cm.OwnerReferences = []metav1.OwnerReference{ref, ref}
	out, err := f.create(cm)
	if err != nil || len(out.Item.Object().GetOwnerReferences()) != 1 || len(out.Warnings) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}
