package pipeline_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/pipeline"
)

// TestUnknownResources checks that the error for an unknown resource says what was probably
// meant.
func TestUnknownResources(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		gvr  schema.GroupVersionResource
		code int32
		text string
	}{
		"no resource":          {schema.GroupVersionResource{Version: "v1"}, 400, "names no resource"},
		"no version":           {schema.GroupVersionResource{Resource: "pods"}, 400, "names no version: want v1"},
		"group in the version": {schema.GroupVersionResource{Version: "apps/v1", Resource: "deployments"}, 400, `want the group "apps" and the version "v1"`},
		"another version":      {schema.GroupVersionResource{Version: "v2", Resource: "pods"}, 404, `pods are not served in version "v2", but in v1`},
		"no group":             {schema.GroupVersionResource{Version: "v1", Resource: "deployments"}, 404, `deployments are not in the API group "", but in "apps"`},
		"a kind":               {schema.GroupVersionResource{Version: "v1", Resource: "Pod"}, 404, `want the plural, "pods"`},
		"a short name":         {schema.GroupVersionResource{Version: "v1", Resource: "po"}, 404, `want the plural, "pods"`},
		"unknown":              {schema.GroupVersionResource{Group: "g", Version: "v1", Resource: "nothings"}, 404, `no resource "nothings" in API group "g"`},
	} {
		t.Run(name, func(t *testing.T) {
			reason := metav1.StatusReasonNotFound
			if c.code == 400 {
				reason = metav1.StatusReasonBadRequest
			}
			_, err := f.Get(f.ctx, pipeline.Target{Resource: c.gvr, Namespace: "ns", Name: "n"}, pipeline.GetOptions{})
			wantStatus(t, err, c.code, reason, c.text)
		})
	}
}

// TestInvalidPathSegments checks that names which are not path segments are refused before
// they become part of a key.
func TestInvalidPathSegments(t *testing.T) {
	f := newFixture(t)
	for _, target := range []pipeline.Target{
		{Resource: configMapGVR, Namespace: "ns", Name: "a/b"},
		{Resource: configMapGVR, Namespace: "ns", Name: ".."},
		{Resource: configMapGVR, Namespace: "ns/other", Name: "a"},
		{Resource: corev1.SchemeGroupVersion.WithResource("nodes"), Name: "a%2Fb"},
	} {
		_, err := f.Get(f.ctx, target, pipeline.GetOptions{})
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "parameter invalid")
		_, err = f.Delete(f.ctx, target, pipeline.DeleteOptions{})
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "parameter invalid")
	}
}

// TestNoDeleteCollection checks that namespaces have no deletecollection.
func TestNoDeleteCollection(t *testing.T) {
	f := newFixture(t)
	_, err := f.DeleteCollection(f.ctx, pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("namespaces")}, pipeline.ListOptions{}, pipeline.DeleteOptions{})
	wantCode(t, "deletecollection of namespaces", err, 405)
}

// TestApplyWithoutAKind checks the error for a configuration without apiVersion or kind.
func TestApplyWithoutAKind(t *testing.T) {
	f := newFixture(t)
	for text, want := range map[string]string{
		`{"kind":"ConfigMap","metadata":{"name":"c"}}`:                 `the configuration has no apiVersion: want "v1"`,
		`{"apiVersion":"v1","metadata":{"name":"c"}}`:                  `the configuration has no kind: want "ConfigMap"`,
		`{"apiVersion":"v1","kind":7,"metadata":{"name":"c"}}`:         `the configuration has no kind: want "ConfigMap"`,
		`{"apiVersion":"","kind":"ConfigMap","metadata":{"name":"c"}}`: `the configuration has no apiVersion: want "v1"`,
	} {
		_, err := f.Patch(f.ctx, pipeline.Target{Resource: configMapGVR, Namespace: "ns", Name: "c"}, types.ApplyPatchType,
			pipeline.Body{Data: []byte(text), Type: pipeline.YAML}, pipeline.WriteOptions{FieldManager: "m"})
		wantStatus(t, err, 400, metav1.StatusReasonBadRequest, want)
	}
}
