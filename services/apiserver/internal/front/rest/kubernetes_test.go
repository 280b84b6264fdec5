package rest

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Accept headers of TestAnswersOfKubernetes.
const (
	acceptsObject = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	acceptsList   = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	threeTypes    = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
)

// indented returns a Status as Kubernetes sends it to a client that accepts none.
func indented(reason, code, message, details string) string {
	return `{
  "kind": "Status",
  "apiVersion": "v1",
  "metadata": {},
  "status": "Failure",
  "message": "` + message + `",
  "reason": "` + reason + `",` + details + `
  "code": ` + code + `
}`
}

// TestAnswersOfKubernetes compares responses of the front itself with those of kube-apiserver
// 1.37, byte by byte.
func TestAnswersOfKubernetes(t *testing.T) {
	const noDetails = "\n  \"details\": {},"
	for _, tc := range []struct {
		name, method, path, accept, body string
		code                             int
		want                             string // the entire response
	}{
		{"nothing named", "GET", "/api/v1/namespaces/ns/pods/p", "text/html", "", 406,
			indented("NotAcceptable", "406", `406: Not Acceptable\n\nAvailable representations: `+threeTypes, noDetails)},
		{"nothing named of a list", "GET", "/api/v1/pods", "text/html", "", 406,
			indented("NotAcceptable", "406", `406: Not Acceptable\n\nAvailable representations: `+threeTypes+", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch", noDetails)},
		{"nothing named of discovery", "GET", "/api", "text/html", "", 406,
			indented("NotAcceptable", "406", `406: Not Acceptable\n\nAvailable representations: `+threeTypes, noDetails)},
		{"unknown transformation", "GET", "/api/v1/namespaces/ns/pods/p", "application/json;as=Poem;g=meta.k8s.io;v=v1", "", 406,
			indented("NotAcceptable", "406", "only the following media types are accepted: "+threeTypes, "")},
		{"group and version without a transformation", "GET", "/api/v1/pods", "application/json;g=meta.k8s.io;v=v1", "", 406,
			indented("NotAcceptable", "406", "only the following media types are accepted: "+threeTypes, "")},
		{"a watch in YAML", "GET", "/api/v1/pods?watch=1", "application/yaml", "",
			406, "apiVersion: v1\ncode: 406\nkind: Status\nmessage: 'only the following media types are accepted: application/json;stream=watch,\n  application/vnd.kubernetes.protobuf;stream=watch'\nmetadata: {}\nreason: NotAcceptable\nstatus: Failure\n"},
		{"an error for a table", "GET", "/api/v1/namespaces/ns/pods/none", "application/yaml;as=Table;g=meta.k8s.io;v=v1", "", 404,
			indented("NotFound", "404", `pods \"none\" not found`, `
  "details": {
    "name": "none",
    "kind": "pods"
  },`)},
		{"an indented error", "GET", "/api/v1/namespaces/ns/pods/none", "application/json;pretty=1", "", 404,
			indented("NotFound", "404", `pods \"none\" not found`, `
  "details": {
    "name": "none",
    "kind": "pods"
  },`)},
		{"metadata of an object of a list", "GET", "/api/v1/pods", acceptsObject, "", 406,
			indented("NotAcceptable", "406", "you requested PartialObjectMetadata, but the requested object is a list (PodList)", "")},
		{"metadata of a list of an object", "GET", "/api/v1/namespaces/ns/pods/p", acceptsList, "", 406,
			indented("NotAcceptable", "406", "you requested PartialObjectMetadataList, but the requested object is not a list (Pod)", "")},
		{"a watch of lists", "GET", "/api/v1/pods?watch=1", acceptsList, "", 200, ""},
		{"a patch without a type", "PATCH", "/api/v1/namespaces/ns/pods/p", "", "{}", 415,
			`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"415: Unsupported Media Type","reason":"UnsupportedMediaType","details":{},"code":415}` + "\n"},
		{"a patch without a type, not acceptable", "PATCH", "/api/v1/namespaces/ns/pods/p", "text/html", "{}", 415,
			indented("UnsupportedMediaType", "415", "415: Unsupported Media Type", noDetails)},
		{"a version as HTML", "GET", "/version", "text/html", "", 406,
			indented("NotAcceptable", "406", `406: Not Acceptable\n\nAvailable representations: application/json`, noDetails)},
		{"OpenAPI as HTML", "GET", "/openapi/v2", "text/html", "", 406, ""},
		{"OpenAPI of an unknown group", "GET", "/openapi/v3/apis/none", "", "", 404, ""},
		{"an empty segment", "GET", "/api/v1//pods", "", "", 404,
			`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}` + "\n"},
		{"a method of an unknown group", "POST", "/apis/none", "", "{}", 404, "404 page not found\n"},
		{"a method of an unknown version", "POST", "/apis/apps/v9", "", "{}", 404,
			`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(smallTable()...)
			f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), &corev1.Pod{})
			p := samplePod(0)
			p.Namespace, p.Name = "ns", "p"
			f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), p)
			header := map[string]string{}
			if tc.accept != "" {
				header["Accept"] = tc.accept
			}
			resp, body := do(t, New(Config{API: f, Authn: fakeAuthn{}}), tc.method, tc.path, tc.body, header)
			if resp.StatusCode != tc.code || string(body) != tc.want {
				t.Errorf("%d %s\nwant %s", resp.StatusCode, body, tc.want)
			}
		})
	}
}

// TestDiscoveryMethods checks that the lists of groups are returned for every method, and that
// only the aggregated documents depend on the Accept header.
func TestDiscoveryMethods(t *testing.T) {
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}})
	for _, tc := range []struct {
		method, path, accept string
		code                 int
		vary                 string
	}{
		{"GET", "/apis", "", 200, ""},
		{"POST", "/apis", "", 200, ""},
		{"OPTIONS", "/apis/apps", "", 200, ""},
		{"HEAD", "/apis", "", 200, ""},
		{"HEAD", "/api", "", 405, ""},
		{"POST", "/apis/apps/v1", "", 405, ""},
		{"GET", "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", 200, "Accept"},
	} {
		resp, body := do(t, h, tc.method, tc.path, "", map[string]string{"Accept": tc.accept})
		if got := strings.Join(resp.Header.Values("Vary"), ", "); resp.StatusCode != tc.code || got != tc.vary {
			t.Errorf("%s %s: %d, Vary %q: %s", tc.method, tc.path, resp.StatusCode, got, body)
		}
	}
	if _, body := do(t, h, "GET", "/apis/apps/v1", "", map[string]string{"Accept": "application/json;pretty=1"}); !strings.HasPrefix(string(body), "{\n  ") {
		t.Errorf("the response is not indented: %s", body)
	}
}
