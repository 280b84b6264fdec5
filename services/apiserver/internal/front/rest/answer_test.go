package rest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// TestErrorsBecomeStatus checks how errors of the pipeline are returned to the client.
func TestErrorsBecomeStatus(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		code   int
		reason metav1.StatusReason
		header string // Retry-After
	}{
		{"status", apierrors.NewNotFound(podsGVR.GroupResource(), "p"), 404, "NotFound", ""},
		{"wrapped status", fmt.Errorf("getting: %w", apierrors.NewConflict(podsGVR.GroupResource(), "p", errors.New("x"))), 409, "Conflict", ""},
		{"retry", apierrors.NewTooManyRequests("busy", 7), 429, "TooManyRequests", "7"},
		{"deadline", context.DeadlineExceeded, 504, "Timeout", ""},
		{"cancelled", context.Canceled, 503, "ServiceUnavailable", ""},
		{"unknown", errors.New("disk on fire"), 500, "InternalError", ""},
		{"empty status", &apierrors.StatusError{}, 500, "", ""},
	} {
		f := newFake(smallTable()...)
		f.fail = tc.err
		h := New(Config{API: f, Authn: fakeAuthn{}})
		for _, path := range []string{"/api/v1/namespaces/ns/pods/p", "/api/v1/pods", "/api/v1/pods?watch=1"} {
			resp, body := do(t, h, http.MethodGet, path, "", nil)
			var s metav1.Status
			if err := json.Unmarshal(body, &s); err != nil {
				t.Fatalf("%s: %v: %s", tc.name, err, body)
			}
			if resp.StatusCode != tc.code || int(s.Code) != tc.code || s.Reason != tc.reason || s.Status != metav1.StatusFailure || resp.Header.Get("Retry-After") != tc.header {
				t.Errorf("%s: %d %v %s", tc.name, resp.StatusCode, resp.Header, body)
			}
			resp, body = do(t, h, http.MethodGet, path, "", map[string]string{"Accept": "application/vnd.kubernetes.protobuf"})
			obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
			if err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			if got := obj.(*metav1.Status); resp.Header.Get("Content-Type") != "application/vnd.kubernetes.protobuf" || got.Reason != tc.reason {
				t.Errorf("%s: protobuf %+v", tc.name, got)
			}
		}
	}
}

// TestForbiddenComesFirst checks that a user without the right to a request learns nothing else
// about it.
func TestForbiddenComesFirst(t *testing.T) {
	f := newFake(smallTable()...)
	f.deny = func(verb string, target pipeline.Target, _ request.User) error {
		return apierrors.NewForbidden(target.Resource.GroupResource(), target.Name, errors.New(verb))
	}
	h := New(Config{API: f, Authn: fakeAuthn{}})
	for _, tc := range []struct{ method, path, body, contentType string }{
		{"GET", "/api/v1/nopes", "", ""},
		{"GET", "/api/v1/pods?limit=x", "", ""},
		{"POST", "/api/v1/namespaces/ns/pods", "x", "text/plain"},
		{"POST", "/api/v1/namespaces/ns/pods", strings.Repeat("x", maxBody+1), "application/json"},
		{"PATCH", "/api/v1/namespaces/ns/pods/p", "x", "text/plain"},
		{"DELETE", "/api/v1/namespaces/ns/pods/p", "{", ""},
		{"POST", "/api/v1/pods", "", ""},
		{"GET", "/nope", "", ""},
		{"GET", "/apis", "", ""},
		{"GET", "/metrics", "", ""},
		{"GET", "/debug/pprof/heap", "", ""},
	} {
		if resp, body := do(t, h, tc.method, tc.path, tc.body, map[string]string{"Content-Type": tc.contentType}); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, resp.StatusCode, body)
		}
	}
}

func TestOutcomes(t *testing.T) {
	pod := samplePod(0)
	for _, tc := range []struct {
		name, method, path string
		outcome            pipeline.Outcome
		code               int
		contains           string
	}{
		{"created", "POST", "/api/v1/namespaces/ns/pods", pipeline.Outcome{}, 201, `"kind":"Pod","apiVersion":"v1"`},
		{"updated", "PUT", "/api/v1/namespaces/ns/pods/p", pipeline.Outcome{}, 200, `"kind":"Pod"`},
		{"created by update", "PUT", "/api/v1/namespaces/ns/pods/p", pipeline.Outcome{Created: true}, 201, `"kind":"Pod"`},
		{"deleted", "DELETE", "/api/v1/namespaces/ns/pods/p", pipeline.Outcome{Gone: true, Status: &metav1.Status{Status: "Success", Details: &metav1.StatusDetails{Name: "p"}}}, 200, `"status":"Success","details":{"name":"p"}}`},
		{"being deleted", "DELETE", "/api/v1/namespaces/ns/pods/p", pipeline.Outcome{}, 200, `"kind":"Pod"`},
		{"being deleted with dependents", "DELETE", "/api/v1/namespaces/ns/pods/p?orphanDependents=false", pipeline.Outcome{}, 202, `"kind":"Pod"`},
		{"bound", "POST", "/api/v1/namespaces/ns/pods/p/binding", pipeline.Outcome{Status: &metav1.Status{Status: "Success"}}, 201, `"status":"Success","code":201`},
		{"token", "POST", "/api/v1/namespaces/ns/serviceaccounts/a/token", pipeline.Outcome{Other: &corev1.Secret{}}, 201, `{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","metadata":{}}`},
		{"scale", "GET", "/apis/apps/v1/namespaces/ns/deployments/d/scale", pipeline.Outcome{Other: &corev1.Secret{}}, 200, `{"kind":"Scale","apiVersion":"autoscaling/v1"`},
	} {
		f := newFake(smallTable()...)
		if tc.outcome.Other == nil && tc.outcome.Status == nil {
			tc.outcome.Item = f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), pod)
		}
		f.outcome = &tc.outcome
		body := "{}"
		if tc.method == "DELETE" || tc.method == "GET" {
			body = ""
		}
		resp, got := do(t, New(Config{API: f, Authn: fakeAuthn{}}), tc.method, tc.path, body, nil)
		if resp.StatusCode != tc.code || !bytes.Contains(got, []byte(tc.contains)) {
			t.Errorf("%s: %d %s", tc.name, resp.StatusCode, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	f := newFake(smallTable()...)
	item := f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), samplePod(0))
	f.outcome = &pipeline.Outcome{Item: item, Warnings: []string{`unknown field "spec.x"`, "second\nline", strings.Repeat("long", 2000)}}
	resp, _ := do(t, New(Config{API: f, Authn: fakeAuthn{}}), "POST", "/api/v1/namespaces/ns/pods", "{}", nil)
	got := resp.Header.Values("Warning")
	if len(got) != 2 || got[0] != `299 - "unknown field \"spec.x\""` || strings.Contains(got[1], "\n") {
		t.Errorf("warnings %q", got)
	}
}

// TestWarningsOfRefusals checks that the warnings which precede an error are sent with it.
func TestWarningsOfRefusals(t *testing.T) {
	f := newFake(smallTable()...)
	f.outcome = &pipeline.Outcome{Warnings: []string{`unknown field "spec.x"`}}
	f.fail = apierrors.NewConflict(podsGVR.GroupResource(), "p", errors.New("x"))
	h := New(Config{API: f, Authn: fakeAuthn{}})
	for method, path := range map[string]string{
		"POST": "/api/v1/namespaces/ns/pods", "PUT": "/api/v1/namespaces/ns/pods/p",
		"PATCH": "/api/v1/namespaces/ns/pods/p", "DELETE": "/api/v1/namespaces/ns/pods/p",
	} {
		contentType := ""
		if method == "PATCH" {
			contentType = "application/merge-patch+json"
		}
		resp, _ := do(t, h, method, path, "{}", map[string]string{"Content-Type": contentType})
		if got := resp.Header.Values("Warning"); resp.StatusCode != 409 || !slices.Equal(got, []string{`299 - "unknown field \"spec.x\""`}) {
			t.Errorf("%s: %d %q", method, resp.StatusCode, got)
		}
	}
}

// TestDeprecationWarnings checks that every response of a deprecated version has the warning.
func TestDeprecationWarnings(t *testing.T) {
	f := newFake(kind.All()...)
	h := New(Config{API: f, Authn: fakeAuthn{}})
	f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Endpoints")), &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "e"}})
	const want = `299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"`
	for _, path := range []string{"endpoints", "endpoints/e", "endpoints?watch=1&timeoutSeconds=1"} {
		resp, _ := do(t, h, "GET", "/api/v1/namespaces/ns/"+path, "", nil)
		if got := resp.Header.Values("Warning"); resp.StatusCode != 200 || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %d %q", path, resp.StatusCode, got)
		}
	}
	if resp, _ := do(t, h, "GET", "/api/v1/namespaces/ns/pods", "", nil); len(resp.Header.Values("Warning")) != 0 {
		t.Errorf("pods: %q", resp.Header.Values("Warning"))
	}
}

// TestDefaultClass checks that the table of a list marks the default class, and no other.
func TestDefaultClass(t *testing.T) {
	f := newFake(kind.All()...)
	h := New(Config{API: f, Authn: fakeAuthn{}})
	row := f.table.ByKind(storagev1.SchemeGroupVersion.WithKind("StorageClass"))
	for name, c := range map[string]struct {
		annotation string
		second     int64
	}{
		"a": {"", 9}, "b": {"storageclass.kubernetes.io/is-default-class", 1},
		"c": {"storageclass.beta.kubernetes.io/is-default-class", 5}, "d": {"storageclass.kubernetes.io/is-default-class", 5},
	} {
		f.put(row, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{
			Name: name, Annotations: map[string]string{c.annotation: "true"}, CreationTimestamp: metav1.Unix(c.second, 0),
		}})
	}
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	const path = "/apis/storage.k8s.io/v1/storageclasses"
	names := func(path string) (out []string) {
		_, body := do(t, h, "GET", path, "", map[string]string{"Accept": table})
		var got metav1.Table
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		for _, r := range got.Rows {
			out = append(out, r.Cells[0].(string))
		}
		return out
	}
	if got, want := names(path), []string{"a", "b", "c (default)", "d"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := names(path + "/c"); !slices.Equal(got, []string{"c"}) {
		t.Errorf("a single object: %q", got)
	}
}

// TestListsDecode checks that client libraries can decode the lists, which are assembled from
// bytes.
func TestListsDecode(t *testing.T) {
	f := newFake(smallTable()...)
	row := f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	for i := range 1200 {
		f.put(row, samplePod(i))
	}
	server := httptest.NewServer(New(Config{API: f, Authn: fakeAuthn{}}))
	defer server.Close()
	for _, accept := range []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"} {
		body := fetch(t, server.URL+"/api/v1/pods", accept, "")
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", accept, err)
		}
		list := obj.(*corev1.PodList)
		if len(list.Items) != 1200 || list.ResourceVersion != "1200" || list.Items[0].Name != "pod-0" || list.Items[0].ResourceVersion != "1" || list.Items[7].Spec.NodeName != "node-1" {
			t.Errorf("%s: %d items, %+v", accept, len(list.Items), list.ListMeta)
		}
	}
	body := fetch(t, server.URL+"/api/v1/pods", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "")
	var meta metav1.PartialObjectMetadataList
	if err := meta.Unmarshal(unwrap(t, body, "PartialObjectMetadataList")); err != nil || len(meta.Items) != 1200 || meta.Items[3].Labels["app"] != "web" {
		t.Errorf("metadata: %d items, %v", len(meta.Items), err)
	}
}

// unwrap removes Kubernetes' envelope.
func unwrap(t *testing.T, body []byte, kind string) []byte {
	t.Helper()
	var unknown runtime.Unknown
	if !bytes.HasPrefix(body, []byte("k8s\x00")) {
		t.Fatalf("no envelope: %q", body[:min(len(body), 20)])
	}
	if err := unknown.Unmarshal(body[4:]); err != nil || unknown.Kind != kind {
		t.Fatalf("%v: %+v", err, unknown.TypeMeta)
	}
	return unknown.Raw
}

func fetch(t *testing.T, url, accept, encoding string) []byte {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	r.Header.Set("Accept-Encoding", encoding)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v: %s", resp.StatusCode, err, body)
	}
	return body
}

func TestGzip(t *testing.T) {
	f := newFake(smallTable()...)
	row := f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	for i := range 1000 {
		f.put(row, samplePod(i))
	}
	h := New(Config{API: f, Authn: fakeAuthn{}})
	for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf", "application/yaml"} {
		_, plain := do(t, h, http.MethodGet, "/api/v1/pods", "", map[string]string{"Accept": accept})
		resp, body := do(t, h, http.MethodGet, "/api/v1/pods", "", map[string]string{"Accept": accept, "Accept-Encoding": "gzip"})
		if resp.Header.Get("Content-Encoding") != "gzip" || resp.Header.Get("Content-Length") != "" || len(body) > len(plain)/5 {
			t.Fatalf("%s: %v, %d of %d bytes", accept, resp.Header, len(body), len(plain))
		}
		zip, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(zip); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", accept, err)
		}
	}
	if resp, _ := do(t, h, http.MethodGet, "/api/v1/namespaces/default/pods/pod-0", "", map[string]string{"Accept-Encoding": "gzip"}); resp.Header.Get("Content-Encoding") != "" {
		t.Error("a small response was compressed")
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = "127.0.0.1:5"
	if !local(r) {
		t.Error("a loopback address is not local")
	}
}

func TestPanics(t *testing.T) {
	f := newFake(smallTable()...)
	f.deny = func(string, pipeline.Target, request.User) error { panic("oops") }
	resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), http.MethodGet, "/api/v1/pods", "", nil)
	var s metav1.Status
	if err := json.Unmarshal(body, &s); err != nil || resp.StatusCode != 500 || s.Reason != metav1.StatusReasonInternalError {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestImpersonation(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header map[string][]string
		asked  []string
		user   request.User
	}{
		{"user", map[string][]string{"Impersonate-User": {"bob"}}, []string{"users bob"},
			request.User{Name: "bob", Groups: []string{"system:authenticated"}}},
		{"groups, uid, extra", map[string][]string{"Impersonate-User": {"bob"}, "Impersonate-Group": {"a", "b"}, "Impersonate-Uid": {"u"}, "Impersonate-Extra-Acme.com%2fproject": {"x"}},
			[]string{"users bob", "groups a", "groups b", "userextras/acme.com/project x", "uids u"},
			request.User{Name: "bob", UID: "u", Groups: []string{"a", "b", "system:authenticated"}, Extra: map[string][]string{"acme.com/project": {"x"}}}},
		{"service account", map[string][]string{"Impersonate-User": {"system:serviceaccount:ns:sa"}}, []string{"serviceaccounts ns/sa"},
			request.User{Name: "system:serviceaccount:ns:sa", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"}}},
		{"anonymous", map[string][]string{"Impersonate-User": {"system:anonymous"}}, []string{"users system:anonymous"},
			request.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(smallTable()...)
			asked := map[string]bool{}
			var final request.User
			f.deny = func(verb string, target pipeline.Target, user request.User) error {
				if strings.HasPrefix(verb, "impersonate-on:") { // only the unconstrained permission is there
					return apierrors.NewForbidden(schema.GroupResource{Resource: "users"}, target.Name, errors.New("no"))
				}
				if verb != "impersonate" {
					final = user
					return nil
				}
				what := target.Resource.Resource
				if target.Subresource != "" {
					what += "/" + target.Subresource
				}
				name := target.Name
				if target.Namespace != "" {
					name = target.Namespace + "/" + name
				}
				asked[what+" "+name] = true
				if user.Name != "admin" {
					t.Errorf("authorized %s as %s", what, user.Name)
				}
				return nil
			}
			r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
			r.Header.Set("Authorization", "Bearer admin")
			for k, v := range tc.header {
				r.Header[k] = v
			}
			w := httptest.NewRecorder()
			New(Config{API: f, Authn: fakeAuthn{}}).ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			for _, a := range tc.asked {
				if !asked[a] {
					t.Errorf("did not authorize %q: %v", a, asked)
				}
			}
			if final.Impersonation == nil {
				t.Error("the user has no Impersonation to recheck")
			}
			final.Impersonation = nil
			if len(asked) != len(tc.asked) || fmt.Sprint(final) != fmt.Sprint(tc.user) {
				t.Errorf("authorized %v, acts as %+v", asked, final)
			}
		})
	}
	f := newFake(smallTable()...)
	f.deny = func(verb string, target pipeline.Target, user request.User) error {
		if strings.HasPrefix(verb, "impersonate") {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "users"}, target.Name, errors.New("no"))
		}
		return nil
	}
	if resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), http.MethodGet, "/api/v1/pods", "", map[string]string{"Impersonate-User": "root"}); resp.StatusCode != http.StatusForbidden {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	var verbs []string
	f.deny = func(verb string, target pipeline.Target, user request.User) error {
		if verbs = append(verbs, user.Name+" "+verb); verb == "impersonate" {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "users"}, target.Name, errors.New("no"))
		}
		return nil
	}
	resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), http.MethodGet, "/api/v1/pods?watch=0", "", map[string]string{"Impersonate-User": "bob", "Authorization": "Bearer admin"})
	if got := strings.Join(verbs, ", "); resp.StatusCode != http.StatusOK || got != "admin impersonate-on:user-info:list, admin impersonate:user-info, bob list" {
		t.Errorf("authorized %s; %d %s", got, resp.StatusCode, body)
	}
}
