package tracestore

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
	"keelson.dev/services/apiserver/internal/request"
)

// byObject is an authorizer that lists the "verb group/resource namespace/name" that each user
// may do. A trailing * matches everything.
type byObject map[string][]string

func (b byObject) Authorize(_ context.Context, r *request.Attributes) (bool, string, error) {
	what := r.Verb + " " + r.Resource.Group + "/" + r.Resource.Resource + " " + r.Namespace + "/" + r.Name
	if r.Path != "" {
		what = r.Verb + " " + r.Path
	}
	for _, may := range b[r.User.Name] {
		if may == what || strings.HasSuffix(may, "*") && strings.HasPrefix(what, strings.TrimSuffix(may, "*")) {
			return true, "", nil
		}
	}
	return false, "", nil
}

func TestSpansOfUnreadableObjectsAreHidden(t *testing.T) {
	s := New(Config{})
	service := NewService(s, written{"pods/n/p": parent(1, 2), "secrets/n/s": parent(1, 4)}, byObject{
		"ann":    {"get /pods n/p"},
		"foe":    {"get foreign.io/pods *", "get /deployments *"},
		"half":   {"get /pods n/p", "get /events n/e"},
		"both":   {"get /pods n/p", "get /events n/e", "get events.k8s.io/events n/e"},
		"owner":  {"get /namespaces n/n", "get /pods n/p"},
		"reader": {"get /pods n/p", "get /debug/traces"},
	}, nil)
	named := func(id, up byte, resource, namespace, name string) {
		s.Add(of("s", step(1, id, up, uint64(id), str(keyResource, resource), str(keyNamespace, namespace), str(keyName, name))))
	}
	s.Add(of("s", step(1, 1, 0, 1))) // a client's span, which names nothing
	named(2, 1, "pods", "n", "")     // the create, before the pod had a name
	s.Add(of("s", step(1, 3, 2, 3))) // its child
	named(4, 3, "secrets", "n", "s") // another object
	s.Add(of("s", step(1, 5, 4, 5))) // the child of that
	s.Add(of("s", step(1, 6, 3, 6, str(keyPod, "p"), str(keyNamespace, "n"))))
	s.Add(of("s", step(1, 7, 6, 7, str(keyPod, "other"), str(keyNamespace, "n"))))
	s.Add(of("s", step(1, 8, 6, 8, str(keyName, "p"), str(keyNamespace, "n")))) // names no kind
	named(9, 6, "events", "n", "e")                                             // in two API groups
	named(10, 6, "pods", "m", "p")
	named(11, 6, "namespaces", "", "n")
	named(12, 6, "unheardof", "n", "p")
	s.Add(of("s", step(1, 13, 14, 13), step(1, 14, 13, 14))) // each other's parents
	get := func(user, group, resource, name string) (*tracev1.GetTraceResponse, error) {
		return service.GetTrace(as(user), &tracev1.GetTraceRequest{Group: group, Resource: resource, Namespace: "n", Name: name})
	}
	for user, want := range map[string]string{
		"ann":    "2 3 6",
		"half":   "2 3 6",
		"both":   "2 3 6 9",
		"owner":  "2 3 6 11",
		"reader": "1 2 3 4 5 6 7 8 9 10 11 12 13 14",
	} {
		res, err := get(user, "", "pods", "p")
		if err != nil {
			t.Errorf("%s: %v", user, err)
			continue
		}
		var ids []string
		for _, sp := range res.GetSpans() {
			ids = append(ids, strings.TrimPrefix(sp.GetName(), "step-"))
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%s sees %s; want %s", user, got, want)
		}
		if res.GetDropped() == (user == "reader") {
			t.Errorf("%s: trace reported as complete: %t", user, !res.GetDropped())
		}
	}
	// The right to a resource of the same name in another group finds nothing.
	if res, err := get("foe", "foreign.io", "pods", "p"); status.Code(err) != codes.NotFound {
		t.Errorf("through another group: %v %v", res, err)
	}
	if res, err := get("foe", "", "pods", "p"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without the right: %v %v", res, err)
	}
	// The trace of an object that the caller may not read is not found by its id.
	if res, err := service.GetTrace(as("ann"), &tracev1.GetTraceRequest{TraceId: "00000000000000000000000000000001"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("by id: %v %v", res, err)
	}
}
