package rest

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/pipeline"
)

func ptr[T any](v T) *T { return &v }

var (
	podsGVR        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	deploymentsGVR = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
)

// TestRequestBecomesCall checks which call of the pipeline each request results in.
func TestRequestBecomesCall(t *testing.T) {
	pod := pipeline.Target{Resource: podsGVR, Namespace: "ns", Name: "p"}
	pods := pipeline.Target{Resource: podsGVR, Namespace: "ns"}
	const jsonBody = `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}`
	agent := pipeline.WriteOptions{UserAgent: "kubectl/v1.37"}
	for _, tc := range []struct {
		name, method, path, body string
		header                   map[string]string
		want                     call
	}{
		{"get", "GET", "/api/v1/namespaces/ns/pods/p?resourceVersion=0", "", nil,
			call{Verb: "get", Target: pod, Options: pipeline.GetOptions{ResourceVersion: "0"}}},
		{"get with watch is a get", "GET", "/api/v1/namespaces/ns/pods/p?watch=1", "", nil,
			call{Verb: "get", Target: pod, Options: pipeline.GetOptions{}}},
		{"get of a cluster-scoped object", "GET", "/api/v1/nodes/n", "", nil,
			call{Verb: "get", Target: pipeline.Target{Resource: schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, Name: "n"}, Options: pipeline.GetOptions{}}},
		{"status", "GET", "/apis/apps/v1/namespaces/ns/deployments/d/status", "", nil,
			call{Verb: "get", Target: pipeline.Target{Resource: deploymentsGVR, Namespace: "ns", Name: "d", Subresource: "status"}, Options: pipeline.GetOptions{}}},
		{"list", "GET", "/api/v1/namespaces/ns/pods?labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn&limit=5&continue=c&resourceVersion=7&resourceVersionMatch=Exact", "", nil,
			call{Verb: "list", Target: pods, Options: pipeline.ListOptions{LabelSelector: "a=b", FieldSelector: "spec.nodeName=n", Limit: 5, Continue: "c", ResourceVersion: "7", ResourceVersionMatch: "Exact"}}},
		{"list over all namespaces", "GET", "/api/v1/pods", "", nil,
			call{Verb: "list", Target: pipeline.Target{Resource: podsGVR}, Options: pipeline.ListOptions{}}},
		{"watch", "GET", "/api/v1/pods?watch=true&resourceVersion=9&allowWatchBookmarks=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1&labelSelector=x", "", nil,
			call{Verb: "watch", Target: pipeline.Target{Resource: podsGVR}, Options: pipeline.WatchOptions{LabelSelector: "x", ResourceVersion: "9", ResourceVersionMatch: "NotOlderThan", SendInitialEvents: true, AllowBookmarks: true}}},
		{"watch without initial events", "GET", "/api/v1/pods?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=3&timeoutSeconds=1", "", nil,
			call{Verb: "watch", Target: pipeline.Target{Resource: podsGVR}, Options: pipeline.WatchOptions{ResourceVersion: "3", NoInitialEvents: true}}},
		{"watch from now on", "GET", "/api/v1/pods?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&timeoutSeconds=1", "", nil,
			call{Verb: "watch", Target: pipeline.Target{Resource: podsGVR}, Options: pipeline.WatchOptions{NoInitialEvents: true}}},
		{"watch of everything with bookmarks", "GET", "/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion=0&timeoutSeconds=1", "", nil,
			call{Verb: "watch", Target: pipeline.Target{Resource: podsGVR}, Options: pipeline.WatchOptions{ResourceVersion: "0", SendInitialEvents: true, AllowBookmarks: true}}},
		{"watch by the deprecated path", "GET", "/api/v1/watch/namespaces/ns/pods?timeoutSeconds=1", "", nil,
			call{Verb: "watch", Target: pods, Options: pipeline.WatchOptions{}}},
		{"watch of one object by the deprecated path", "GET", "/api/v1/watch/namespaces/ns/pods/p?timeoutSeconds=1&fieldSelector=a%3Db", "", nil,
			call{Verb: "watch", Target: pod, Options: pipeline.WatchOptions{FieldSelector: "a=b"}}},
		{"create", "POST", "/api/v1/namespaces/ns/pods?dryRun=All&fieldManager=m&fieldValidation=Strict", jsonBody, nil,
			call{Verb: "create", Target: pods, Type: codec.JSON, Options: pipeline.WriteOptions{UserAgent: "kubectl/v1.37", DryRun: true, FieldManager: "m", FieldValidation: "Strict"}}},
		{"create from YAML", "POST", "/api/v1/namespaces/ns/pods", "kind: Pod\napiVersion: v1\n", map[string]string{"Content-Type": "application/yaml"},
			call{Verb: "create", Target: pods, Type: codec.YAML, Options: agent}},
		{"update", "PUT", "/api/v1/namespaces/ns/pods/p", jsonBody, nil,
			call{Verb: "update", Target: pod, Type: codec.JSON, Options: agent}},
		{"merge patch", "PATCH", "/api/v1/namespaces/ns/pods/p", "{}", map[string]string{"Content-Type": "application/merge-patch+json"},
			call{Verb: "patch", Target: pod, Type: codec.JSON, Patch: types.MergePatchType, Options: agent}},
		{"apply", "PATCH", "/api/v1/namespaces/ns/pods/p?fieldManager=m&force=true", "a: b", map[string]string{"Content-Type": "application/apply-patch+yaml"},
			call{Verb: "patch", Target: pod, Type: codec.YAML, Patch: types.ApplyYAMLPatchType, Options: pipeline.WriteOptions{UserAgent: "kubectl/v1.37", FieldManager: "m", Force: true}}},
		{"delete by query", "DELETE", "/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=3&propagationPolicy=Foreground&dryRun=All", "", nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{
				WriteOptions:       pipeline.WriteOptions{UserAgent: "kubectl/v1.37", DryRun: true},
				GracePeriodSeconds: ptr(int64(3)), PropagationPolicy: ptr(metav1.DeletePropagationForeground),
			}}},
		{"delete with preconditions", "DELETE", "/api/v1/namespaces/ns/pods/p?uid=u&resourceVersion=7", "", nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{
				WriteOptions:  agent,
				Preconditions: &metav1.Preconditions{UID: ptr(types.UID("u")), ResourceVersion: ptr("7")},
			}}},
		{"delete with one precondition", "DELETE", "/api/v1/namespaces/ns/pods/p?uid=u&uid=v&resourceVersion=", "", nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{
				WriteOptions: agent, Preconditions: &metav1.Preconditions{UID: ptr(types.UID("u"))},
			}}},
		{"delete of a collection with a precondition", "DELETE", "/api/v1/namespaces/ns/pods?uid=u", "", nil,
			call{Verb: "deletecollection", Target: pods, Options: []any{
				pipeline.ListOptions{}, pipeline.DeleteOptions{WriteOptions: agent, Preconditions: &metav1.Preconditions{UID: ptr(types.UID("u"))}},
			}}},
		{"numbers that the verb does not read", "GET", "/api/v1/namespaces/ns/pods/p?limit=x&timeoutSeconds=y&gracePeriodSeconds=z", "", nil,
			call{Verb: "get", Target: pod, Options: pipeline.GetOptions{}}},
		{"delete by body, and a bad number", "DELETE", "/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=x", `{"gracePeriodSeconds":0}`, nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{WriteOptions: agent, GracePeriodSeconds: ptr(int64(0))}}},
		{"delete by body, whatever the query says", "DELETE", "/api/v1/namespaces/ns/pods/p?uid=u", `{"gracePeriodSeconds":0}`, nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{WriteOptions: agent, GracePeriodSeconds: ptr(int64(0))}}},
		{"delete by body", "DELETE", "/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=3", `{"kind":"DeleteOptions","apiVersion":"policy/v1","preconditions":{"uid":"u"},"orphanDependents":false}`, nil,
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{
				WriteOptions:  agent,
				Preconditions: &metav1.Preconditions{UID: ptr(types.UID("u"))}, OrphanDependents: ptr(false),
			}}},
		{"delete by a protobuf body", "DELETE", "/api/v1/namespaces/ns/pods/p", deleteOptionsProtobuf(t), map[string]string{"Content-Type": "application/vnd.kubernetes.protobuf"},
			call{Verb: "delete", Target: pod, Options: pipeline.DeleteOptions{WriteOptions: agent, GracePeriodSeconds: ptr(int64(0))}}},
		{"delete of a collection", "DELETE", "/api/v1/namespaces/ns/pods?labelSelector=a", "", nil,
			call{Verb: "deletecollection", Target: pods, Options: []any{
				pipeline.ListOptions{LabelSelector: "a"}, pipeline.DeleteOptions{WriteOptions: agent},
			}}},
		{"binding", "POST", "/api/v1/namespaces/ns/pods/p/binding", `{"kind":"Binding"}`, nil,
			call{Verb: "create", Target: pipeline.Target{Resource: podsGVR, Namespace: "ns", Name: "p", Subresource: "binding"}, Type: codec.JSON, Options: agent}},
		{"finalize", "PUT", "/api/v1/namespaces/ns/finalize", `{"kind":"Namespace"}`, nil,
			call{Verb: "update", Target: pipeline.Target{Resource: schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, Name: "ns", Subresource: "finalize"}, Type: codec.JSON, Options: agent}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(smallTable()...)
			f.outcome = &pipeline.Outcome{Status: &metav1.Status{Status: metav1.StatusSuccess}}
			header := map[string]string{"User-Agent": "kubectl/v1.37"}
			for k, v := range tc.header {
				header[k] = v
			}
			resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), tc.method, tc.path, tc.body, header)
			if resp.StatusCode > 299 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			tc.want.User = "admin"
			if got := f.last(); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			if resp.Header.Get("Audit-Id") == "" || resp.Header.Get("Cache-Control") != "no-cache, private" {
				t.Errorf("headers %v", resp.Header)
			}
		})
	}
}

func deleteOptionsProtobuf(t *testing.T) string {
	t.Helper()
	raw, err := (&metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(appendEnveloped(nil, schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}, raw))
}

// TestUnknownPath checks that unknown paths outside the API are answered as text.
func TestUnknownPath(t *testing.T) {
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}})
	for _, path := range []string{"/nope", "/apis/none", "/apis/none/v1", "/apis/none/v1/things/x", "//api/v1/pods"} {
		for _, method := range []string{"GET", "POST"} {
			resp, body := do(t, h, method, path, "", nil)
			if resp.StatusCode != 404 || string(body) != "404 page not found\n" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("%s %s: %d %v %q", method, path, resp.StatusCode, resp.Header, body)
			}
		}
	}
}

// TestRefusals checks the requests that the front itself refuses.
func TestRefusals(t *testing.T) {
	deep := `{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}"
	for _, tc := range []struct {
		name, method, path, body string
		header                   map[string]string
		code                     int
		reason                   metav1.StatusReason
		text                     string
	}{
		{"initial events of a list", "GET", "/api/v1/pods?sendInitialEvents=true", "", nil, 422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"},
		{"initial events without match", "GET", "/api/v1/pods?watch=1&sendInitialEvents=true", "", nil, 422, "Invalid", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"},
		{"no initial events without match", "GET", "/api/v1/pods?watch=1&sendInitialEvents=false", "", nil, 422, "Invalid", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"},
		{"another match of a watch", "GET", "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=Exact&resourceVersion=5", "", nil, 422, "Invalid", `resourceVersionMatch: Unsupported value: "Exact": supported values: "NotOlderThan"`},
		{"match of a watch", "GET", "/api/v1/pods?watch=1&resourceVersionMatch=NotOlderThan", "", nil, 422, "Invalid", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"},
		{"review as a table", "POST", "/apis/authentication.k8s.io/v1/tokenreviews", "{}", map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}, 406, "NotAcceptable", ""},
		{"binding as a table", "POST", "/api/v1/namespaces/ns/pods/p/binding", "{}", map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}, 406, "NotAcceptable", ""},
		{"discovery as HTML", "GET", "/apis", "", map[string]string{"Accept": "text/html"}, 406, "NotAcceptable", ""},
		{"unknown version", "GET", "/apis/apps/v9", "", nil, 404, "NotFound", ""},
		{"unknown resource", "GET", "/api/v1/nopes", "", nil, 404, "NotFound", "the server could not find the requested resource"},
		{"unknown subresource", "GET", "/api/v1/namespaces/ns/pods/p/nope", "", nil, 404, "NotFound", ""},
		{"path below a subresource", "GET", "/api/v1/namespaces/ns/pods/p/status/x", "", nil, 404, "NotFound", ""},
		{"namespaced without namespace", "GET", "/api/v1/pods/p", "", nil, 404, "NotFound", ""},
		{"cluster-scoped in a namespace", "GET", "/api/v1/namespaces/ns/nodes", "", nil, 404, "NotFound", ""},
		{"create over all namespaces", "POST", "/api/v1/pods", "{}", nil, 405, "MethodNotAllowed", "the server does not allow this method on the requested resource"},
		{"create on an object", "POST", "/api/v1/namespaces/ns/pods/p", "{}", nil, 405, "MethodNotAllowed", ""},
		{"put on a collection", "PUT", "/api/v1/namespaces/ns/pods", "{}", nil, 405, "MethodNotAllowed", ""},
		{"delete all namespaces", "DELETE", "/api/v1/namespaces", "", nil, 405, "MethodNotAllowed", ""},
		{"list reviews", "GET", "/apis/authentication.k8s.io/v1/tokenreviews", "", nil, 405, "MethodNotAllowed", ""},
		{"delete finalize", "DELETE", "/api/v1/namespaces/ns/finalize", "", nil, 405, "MethodNotAllowed", ""},
		{"options", "OPTIONS", "/api/v1/pods", "", nil, 405, "MethodNotAllowed", ""},
		{"head", "HEAD", "/api/v1/namespaces/ns/pods/p", "", nil, 405, "", ""},
		{"post to discovery", "POST", "/api", "", nil, 405, "MethodNotAllowed", ""},
		{"limit", "GET", "/api/v1/pods?limit=x", "", nil, 400, "BadRequest", `strconv.ParseInt: parsing "x": invalid syntax`},
		{"two numbers", "GET", "/api/v1/pods?limit=x&timeoutSeconds=y", "", nil, 400, "BadRequest", `strconv.ParseInt: parsing "y": invalid syntax`},
		{"grace", "DELETE", "/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=x", "", nil, 400, "BadRequest", `strconv.ParseInt: parsing "x": invalid syntax`},
		{"timeout", "GET", "/api/v1/pods?timeout=x", "", nil, 400, "BadRequest", "invalid timeout specified in the request URL"},
		{"accept", "GET", "/api/v1/pods", "", map[string]string{"Accept": "text/html"}, 406, "NotAcceptable", "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"},
		{"watch in YAML", "GET", "/api/v1/pods?watch=1", "", map[string]string{"Accept": "application/yaml;as=Table"}, 406, "NotAcceptable", ""},
		{"content type", "POST", "/api/v1/namespaces/ns/pods", "{}", map[string]string{"Content-Type": "text/plain"}, 415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{"patch type", "PATCH", "/api/v1/namespaces/ns/pods/p", "{}", nil, 415, "UnsupportedMediaType", "415: Unsupported Media Type"},
		{"apply without manager", "PATCH", "/api/v1/namespaces/ns/pods/p", "{}", map[string]string{"Content-Type": "application/apply-patch+yaml"}, 422, "Invalid", `PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch`},
		{"force without apply", "PATCH", "/api/v1/namespaces/ns/pods/p?force=1", "{}", map[string]string{"Content-Type": "application/merge-patch+json"}, 422, "Invalid", "force: Forbidden: may not be specified for non-apply patch"},
		{"dry run", "POST", "/api/v1/namespaces/ns/pods?dryRun=Some", "{}", nil, 422, "Invalid", `dryRun: Unsupported value: ["Some"]: supported values: "All"`},
		{"field validation", "PUT", "/api/v1/namespaces/ns/pods/p?fieldValidation=Hard", "{}", nil, 422, "Invalid", `fieldValidation: Unsupported value: "Hard"`},
		{"field manager", "POST", "/api/v1/namespaces/ns/pods?fieldManager=" + strings.Repeat("x", 129), "{}", nil, 422, "Invalid", "fieldManager: Too long"},
		{"too large", "POST", "/api/v1/namespaces/ns/pods", strings.Repeat("x", maxBody+1), nil, 413, "RequestEntityTooLarge", "limit is 3145728"},
		{"delete options", "DELETE", "/api/v1/namespaces/ns/pods/p", "{", nil, 400, "BadRequest", ""},
		{"delete options of another kind", "DELETE", "/api/v1/namespaces/ns/pods/p", `{"kind":"Pod"}`, nil, 400, "BadRequest", "decoded object cannot be converted to DeleteOptions"},
		{"deep delete options", "DELETE", "/api/v1/namespaces/ns/pods/p", deep, nil, 400, "BadRequest", ""},
		{"broken protobuf delete options", "DELETE", "/api/v1/namespaces/ns/pods/p", "k8s\x00\xff\xff", map[string]string{"Content-Type": "application/vnd.kubernetes.protobuf"}, 400, "BadRequest", ""},
		{"both propagations", "DELETE", "/api/v1/namespaces/ns/pods/p?propagationPolicy=Orphan&orphanDependents=true", "", nil, 422, "Invalid", "orphanDependents and deletionPropagation cannot be both set"},
		{"propagation", "DELETE", "/api/v1/namespaces/ns/pods/p?propagationPolicy=Sideways", "", nil, 422, "Invalid", "propagationPolicy: Unsupported value"},
		{"delete of an unreadable object", "DELETE", "/api/v1/namespaces/ns/pods/p?ignoreStoreReadErrorWithClusterBreakingPotential=true", "", nil, 422, "Invalid", "ignoreStoreReadErrorWithClusterBreakingPotential: Forbidden: not supported by Keelson"},
		{"delete of an unreadable object, by body", "DELETE", "/api/v1/namespaces/ns/pods/p", `{"ignoreStoreReadErrorWithClusterBreakingPotential":true}`, nil, 422, "Invalid", "ignoreStoreReadErrorWithClusterBreakingPotential: Forbidden"},
		{"include object", "GET", "/api/v1/pods?includeObject=Half", "", map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}, 400, "BadRequest", "must be 'Metadata', 'Object', 'None', or empty"},
		{"bad token", "GET", "/api/v1/pods", "", map[string]string{"Authorization": "Bearer bad"}, 401, "Unauthorized", "Unauthorized"},
		{"impersonated groups alone", "GET", "/api/v1/pods", "", map[string]string{"Impersonate-Group": "g"}, 400, "BadRequest", "without impersonating a user"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(smallTable()...)
			resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), tc.method, tc.path, tc.body, tc.header)
			if resp.StatusCode != tc.code {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			if tc.method == http.MethodHead {
				return
			}
			var s metav1.Status
			if err := json.Unmarshal(body, &s); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if s.Kind != "Status" || s.APIVersion != "v1" || s.Status != metav1.StatusFailure || s.Reason != tc.reason || int(s.Code) != tc.code || !strings.Contains(s.Message, tc.text) {
				t.Errorf("got %s", body)
			}
			if len(f.calls) > 0 {
				t.Errorf("the pipeline was called: %+v", f.calls)
			}
		})
	}
}
