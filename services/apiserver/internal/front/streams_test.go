package front_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	podv1 "keelson.dev/proto/keelson/pod/v1"
)

// streamPlaces are the streams of pods.
var streamPlaces = []place{
	{version: "v1", resource: "pods", subresource: "log", kind: "Pod", own: "own"},
	{version: "v1", resource: "pods", subresource: "exec", kind: "Pod", own: "own"},
	{version: "v1", resource: "pods", subresource: "attach", kind: "Pod", own: "own"},
	{version: "v1", resource: "pods", subresource: "portforward", kind: "Pod", own: "own"},
}

// streamViaREST requests a stream over HTTP, without upgrading the connection: an authorized request
// is malformed for that reason.
func (w *world) streamViaREST(q *tuple) answer {
	r := httptest.NewRequestWithContext(w.t.Context(), map[string]string{"get": "GET", "create": "POST"}[q.verb],
		"/api/v1/namespaces/"+q.namespace+"/pods/"+q.name+"/"+q.place.subresource+"?command=x", nil)
	r.Header.Set("Authorization", "Bearer "+q.caller.name)
	out := httptest.NewRecorder()
	w.rest.ServeHTTP(out, r)
	s := &metav1.Status{}
	if out.Code >= 300 {
		if err := json.Unmarshal(out.Body.Bytes(), s); err != nil {
			w.t.Fatalf("%s: %d %s", q, out.Code, out.Body)
		}
		s.Code = int32(out.Code)
	}
	return answer{verdict: verdict(s), detail: s.Message}
}

// streamViaGRPC requests a stream of PodService. The pods are not bound to a node: an authorized
// request is malformed for that reason, or has an empty log.
func (w *world) streamViaGRPC(q *tuple) answer {
	ctx, cancel := q.context()
	defer cancel()
	c := &podv1.ContainerRef{Namespace: q.namespace, Pod: q.name}
	var err error
	switch q.place.subresource {
	case "log":
		stream, failed := w.pods.Logs(ctx, &podv1.LogsRequest{Container: c})
		if err = failed; err == nil {
			_, err = stream.Recv()
		}
	case "exec":
		stream, failed := w.pods.Exec(ctx)
		if err = failed; err == nil {
			_ = stream.Send(&podv1.ExecRequest{Message: &podv1.ExecRequest_Start{Start: &podv1.ExecStart{Container: c, Command: []string{"x"}}}})
			_, err = stream.Recv()
		}
	case "attach":
		stream, failed := w.pods.Attach(ctx)
		if err = failed; err == nil {
			_ = stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Start{Start: &podv1.AttachStart{Container: c}}})
			_, err = stream.Recv()
		}
	case "portforward":
		stream, failed := w.pods.PortForward(ctx)
		if err = failed; err == nil {
			_ = stream.Send(&podv1.PortForwardRequest{Message: &podv1.PortForwardRequest_Start{Start: &podv1.PortForwardStart{Namespace: q.namespace, Pod: q.name, Port: 80}}})
			_, err = stream.Recv()
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return w.answerOf(q, nil, err)
}

// TestStreamsAgree checks that a stream of a pod gets the same verdict over HTTP and over gRPC, and
// that RBAC's refusal precedes everything that would tell whether the pod exists.
func TestStreamsAgree(t *testing.T) {
	w := newWorld(t)
	verdicts := map[string]int{}
	for c := range callers {
		for p := range streamPlaces {
			q := &tuple{caller: &callers[c], verb: "create", place: &streamPlaces[p]}
			if q.place.subresource == "log" {
				q.verb = "get"
			}
			for _, q.namespace = range []string{"mine", "other"} {
				for _, q.name = range []string{"own", "else", "none"} {
					http, grpc := w.streamViaREST(q), w.streamViaGRPC(q)
					if http.verdict != grpc.verdict {
						t.Errorf("%s: REST: %s (%s), gRPC: %s (%s)", q, http.verdict, http.detail, grpc.verdict, grpc.detail)
					}
					if !q.asked() && grpc.verdict != "forbidden" {
						t.Errorf("%s: %s (%s); want forbidden", q, grpc.verdict, grpc.detail)
					}
					verdicts[grpc.verdict]++
				}
			}
			// HTTP has no path without a namespace or a name.
			for _, ref := range [][2]string{{"", "own"}, {"mine", ""}} {
				q.namespace, q.name = ref[0], ref[1]
				if got := w.streamViaGRPC(q); got.verdict != "malformed" && got.verdict != "forbidden" {
					t.Errorf("%s: %s (%s); want malformed or forbidden", q, got.verdict, got.detail)
				}
			}
		}
	}
	for _, v := range []string{"allowed", "forbidden", "malformed", "not found"} {
		if verdicts[v] == 0 {
			t.Errorf("no request was %s: %v", v, verdicts)
		}
	}
}
