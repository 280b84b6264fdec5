// Package front_test checks that all fronts give the same verdict on the same request.
package front_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	podv1 "keelson.dev/proto/keelson/pod/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	grpcfront "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/rpc"
)

var (
	seed  = flag.Uint64("parity.seed", 1, "random seed of the selected writes")
	share = flag.Int("parity.share", 12, "test one in this many writes; 1 tests all")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a resource or subresource, and what is written there.
type place struct {
	group, version, resource, subresource string
	kind                                  string // of the body
	cluster                               bool
	content                               string // JSON fields of the body
	own                                   string // the name that rules may allow
}

func (p *place) gvr() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: p.group, Version: p.version, Resource: p.resource}
}

var places = []place{
	{"", "v1", "configmaps", "", "ConfigMap", false, `"data":{"k":"v"}`, "own"},
	{"", "v1", "secrets", "", "Secret", false, `"stringData":{"k":"v"}`, "own"},
	{"", "v1", "pods", "", "Pod", false, `"spec":{"containers":[{"name":"c","image":"i"}]}`, "own"},
	{"", "v1", "pods", "status", "Pod", false, `"status":{"message":"m"}`, "own"},
	{"", "v1", "pods", "binding", "Binding", false, `"target":{"kind":"Node","name":"own"}`, "own"},
	{"", "v1", "pods", "eviction", "Eviction", false, ``, "own"},
	{"", "v1", "pods", "none", "Pod", false, ``, "own"},
	{"", "v1", "bindings", "", "Binding", false, `"target":{"kind":"Node","name":"own"}`, "own"},
	{"", "v1", "serviceaccounts", "", "ServiceAccount", false, ``, "own"},
	{"", "v1", "serviceaccounts", "token", "TokenRequest", false, ``, "own"},
	{"", "v1", "namespaces", "", "Namespace", true, ``, "mine"},
	{"", "v1", "namespaces", "finalize", "Namespace", true, `"spec":{"finalizers":["kubernetes"]}`, "mine"},
	{"", "v1", "nodes", "", "Node", true, ``, "own"},
	{"", "v1", "nodes", "status", "Node", true, `"status":{"phase":"p"}`, "own"},
	{"apps", "v1", "deployments", "scale", "Scale", false, `"spec":{"replicas":3}`, "own"},
	{"coordination.k8s.io", "v1", "leases", "", "Lease", false, `"spec":{"holderIdentity":"me"}`, "own"},
	{"rbac.authorization.k8s.io", "v1", "roles", "", "Role", false, ``, "own"},
	{"rbac.authorization.k8s.io", "v1", "clusterroles", "", "ClusterRole", true, ``, "own"},
	{"authorization.k8s.io", "v1", "localsubjectaccessreviews", "", "LocalSubjectAccessReview", false, ``, "own"},
	{"authorization.k8s.io", "v1", "subjectaccessreviews", "", "SubjectAccessReview", true, ``, "own"},
	{"authentication.k8s.io", "v1", "tokenreviews", "", "TokenReview", true, ``, "own"},
}

// caller is a user, its role, and what that role should allow, defined here independently of
// package authz.
type caller struct {
	name string
	may  func(p *place, namespace, name string) bool
}

var anything = []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}}

var ownByName = []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, ResourceNames: []string{"own", "mine"}, Verbs: []string{"*"}}}

var callers = []caller{
	{"nothing", func(*place, string, string) bool { return false }},
	{"namespace", func(_ *place, namespace, _ string) bool { return namespace == "mine" }},
	{"name-in-namespace", func(_ *place, namespace, name string) bool {
		return namespace == "mine" && (name == "own" || name == "mine")
	}},
	{"name-in-cluster", func(_ *place, _, name string) bool { return name == "own" || name == "mine" }},
	{"everything", func(*place, string, string) bool { return true }},
}

func grant(z *authz.Authorizers) {
	z.RBAC.SetRole("", "anything", anything)
	z.RBAC.SetRole("", "own", ownByName)
	user := func(name string) []rbacv1.Subject { return []rbacv1.Subject{{Kind: "User", Name: name}} }
	ref := func(name string) rbacv1.RoleRef { return rbacv1.RoleRef{Kind: "ClusterRole", Name: name} }
	z.RBAC.SetBinding("mine", "namespace", ref("anything"), user("namespace"))
	z.RBAC.SetBinding("mine", "name", ref("own"), user("name-in-namespace"))
	z.RBAC.SetBinding("", "name", ref("own"), user("name-in-cluster"))
	z.RBAC.SetBinding("", "everything", ref("anything"), user("everything"))
}

// tuple is one request.
type tuple struct {
	caller                  *caller
	verb                    string
	place                   *place
	namespace, name         string // of the reference
	bodyNamespace, bodyName string
}

func (q *tuple) String() string {
	return fmt.Sprintf("user=%s verb=%s %s/%s ref=%q/%q body=%q/%q", q.caller.name, q.verb, q.place.resource, q.place.subresource,
		q.namespace, q.name, q.bodyNamespace, q.bodyName)
}

func (q *tuple) writes() bool {
	return slices.Contains([]string{"create", "update", "patch", "apply"}, q.verb)
}

// asked reports whether RBAC allows the request, judging from its reference only.
func (q *tuple) asked() bool {
	namespace := q.namespace
	if q.place.resource == "namespaces" && q.name != "" {
		namespace = q.name
	}
	return q.caller.may(q.place, namespace, q.name)
}

// body returns the JSON of the object.
func (q *tuple) body() []byte {
	apiVersion := strings.TrimPrefix(q.place.group+"/"+q.place.version, "/")
	switch q.place.kind {
	case "Eviction":
		apiVersion = "policy/v1"
	case "Scale":
		apiVersion = "autoscaling/v1"
	case "TokenRequest":
		apiVersion = "authentication.k8s.io/v1"
	}
	var meta []string
	for key, value := range map[string]string{"name": q.bodyName, "namespace": q.bodyNamespace} {
		if value != "" {
			meta = append(meta, fmt.Sprintf("%q:%q", key, value))
		}
	}
	slices.Sort(meta)
	text := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{%s}`, apiVersion, q.place.kind, strings.Join(meta, ","))
	if q.place.content != "" {
		text += "," + q.place.content
	}
	return []byte(text + "}")
}

// answer is a verdict and the bytes of the response.
type answer struct {
	verdict string
	data    []byte
	detail  string
}

// verdict classifies a Status. All malformed requests are one class: HTTP has no route where gRPC
// has an invalid reference.
func verdict(s *metav1.Status) string {
	switch {
	case s == nil || s.Code < 300:
		return "allowed"
	case s.Code == 403:
		return "forbidden"
	case s.Code == 404 && s.Details != nil && s.Details.Name != "":
		return "not found"
	case s.Code == 400, s.Code == 404, s.Code == 405:
		return "malformed"
	case s.Code == 409:
		return "conflict"
	case s.Code == 422:
		return "invalid"
	}
	return fmt.Sprint(s.Code)
}

// names authenticates by a token that is the user's name.
type names struct{}

func (names) Authenticate(_ context.Context, _ []*x509.Certificate, token string) (request.User, error) {
	return request.User{Name: token, Groups: []string{"system:authenticated"}}, nil
}

// world is one pipeline behind both fronts.
type world struct {
	t        *testing.T
	store    *memory.Store
	cache    *watchcache.Cache
	table    *resource.Table
	api      *pipeline.Pipeline
	rights   *authz.Authorizers
	rest     *rest.Handler
	grpc     resourcev1.ResourceServiceClient
	pods     podv1.PodServiceClient
	baseline map[string][]byte
	acted    []string // namespace/name of the objects that actions ran on
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: memory.New(), table: resource.NewTable(kind.All()...)}
	var stored []*resource.Kind
	for _, k := range w.table.Kinds() {
		if !k.Virtual() && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	w.cache = watchcache.New(watchcache.Config{Store: w.store, Kinds: stored, HistoryEvents: 200, HistoryMin: 10})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	go func() { _ = w.cache.Run(ctx); done <- struct{}{} }()
	<-w.cache.Ready()
	rights := authz.New()
	w.rights = rights
	grant(rights)
	act := func(_ context.Context, t pipeline.Target, obj resource.Object, _ pipeline.WriteOptions) (*pipeline.Outcome, error) {
		w.acted = append(w.acted, t.Namespace+"/"+t.Name)
		return &pipeline.Outcome{Other: obj, Created: true}, nil
	}
	w.api = pipeline.New(pipeline.Config{
		Table: w.table, Lasting: pipeline.Place{Store: w.store, Cache: w.cache}, Authorizer: rights, RulesChanged: rights.RBAC.Changed, Fields: fieldmanager.New(w.table),
		Admission: admission.Default(admission.Config{
			State: pipeline.NewState(w.table, w.cache, w.store), Authorizer: rights, Escalation: rights, NodeOf: authz.NodeName,
			NotReadySeconds: 300, UnreachableSeconds: 300,
		}),
		Actions: map[resource.Action]pipeline.Action{
			resource.IssueToken:        act,
			resource.ReviewLocalAccess: act, resource.ReviewAccess: act, resource.ReviewToken: act,
		},
	})
	go func() { _ = w.api.Recheck(ctx); done <- struct{}{} }()
	nodes := tunnel.New(tunnel.Config{})
	w.rest = rest.New(rest.Config{API: w.api, Authn: names{}, Tunnel: nodes})
	server := rpc.NewServer(rpc.ServerConfig{Authenticate: grpcfront.Authentication(names{}, rights), Codec: grpcfront.NewCodec()})
	resourcev1.RegisterResourceServiceServer(server, grpcfront.New(w.api))
	podv1.RegisterPodServiceServer(server, grpcfront.NewPodService(w.api, nodes))
	l := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(ctx, l); done <- struct{}{} }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	w.grpc = resourcev1.NewResourceServiceClient(conn)
	w.pods = podv1.NewPodServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		for range cap(done) {
			<-done
		}
		w.store.Close()
	})
	w.fill()
	w.baseline = w.dump()
	return w
}

// fill creates a marked object in each place.
func (w *world) fill() {
	ctx := request.WithUser(context.Background(), request.User{Name: "everything", Groups: []string{"system:masters"}})
	post := func(p *place, namespace, name string) {
		k := w.table.ByResource(p.gvr())
		q := tuple{place: p, bodyName: name, bodyNamespace: namespace}
		if k.Resource == "deployments" {
			q.place = &place{group: "apps", version: "v1", kind: "Deployment", content: `"spec":{"selector":{"matchLabels":{"a":"b"}},` +
				`"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}`}
		}
		text := strings.Replace(string(q.body()), `"metadata":{`, fmt.Sprintf(`"metadata":{"annotations":{"mark":"mark.%s.%s.%s."},`, k.Resource, namespace, name), 1)
		_, err := w.api.Create(ctx, pipeline.Target{Resource: p.gvr(), Namespace: namespace}, pipeline.Body{Data: []byte(text), Type: pipeline.JSON}, pipeline.WriteOptions{})
		if err != nil {
			w.t.Fatalf("%s %s/%s: %v", p.resource, namespace, name, err)
		}
	}
	post(&place{version: "v1", resource: "namespaces", kind: "Namespace"}, "", "mine")
	post(&place{version: "v1", resource: "namespaces", kind: "Namespace"}, "", "other")
	for _, namespace := range []string{"mine", "other"} {
		post(&place{version: "v1", resource: "serviceaccounts", kind: "ServiceAccount"}, namespace, "default")
	}
	for i := range places {
		p := &places[i]
		if p.subresource != "" && p.subresource != "scale" || p.resource == "namespaces" || w.table.ByResource(p.gvr()).Virtual() {
			continue
		}
		for _, name := range []string{"own", "else"} {
			if p.cluster {
				post(p, "", name)
				continue
			}
			post(p, "mine", name)
			post(p, "other", name)
		}
	}
}

func (w *world) dump() map[string][]byte {
	page, err := w.store.List(context.Background(), "/", store.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	state := make(map[string][]byte, len(page.Entries))
	for _, e := range page.Entries {
		state[e.Key] = e.Value
	}
	return state
}

// changed returns the keys that differ from the baseline, and restores them.
func (w *world) changed() []string {
	now := w.dump()
	var keys []string
	var back []store.Write
	for key, value := range now {
		if was, ok := w.baseline[key]; !ok || !bytes.Equal(was, value) {
			keys = append(keys, key)
			back = append(back, store.Write{Key: key, Value: was, Expect: store.Any})
		}
	}
	for key, was := range w.baseline {
		if _, ok := now[key]; !ok {
			keys = append(keys, key)
			back = append(back, store.Write{Key: key, Value: was, Expect: store.Any})
		}
	}
	if len(back) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	verdicts, err := w.store.Commit(ctx, back)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range verdicts {
		if v.Err != nil {
			w.t.Fatal(v.Err)
		}
		if err := w.cache.WaitFor(ctx, v.Revision); err != nil {
			w.t.Fatal(err)
		}
	}
	slices.Sort(keys)
	return keys
}

// viaREST sends the request over HTTP. It returns false if HTTP cannot express it: without a
// name, a get becomes a list and a delete a deletecollection, and a list cannot have a name.
func (w *world) viaREST(q *tuple) (answer, bool) {
	method := map[string]string{
		"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "apply": "PATCH",
		"delete": "DELETE", "deletecollection": "DELETE",
	}[q.verb]
	single := q.verb == "get" || q.verb == "delete"
	collective := q.verb == "list" || q.verb == "deletecollection"
	if single && q.name == "" || collective && q.name != "" || q.name == "" && q.place.subresource != "" || collective && q.place.subresource != "" {
		return answer{}, false
	}
	if q.verb == "watch" && q.place.subresource != "" {
		return answer{}, false
	}
	path := "/apis/" + q.place.group
	if q.place.group == "" {
		path = "/api"
	}
	path += "/" + q.place.version
	query := url.Values{}
	if q.verb == "watch" {
		path += "/watch"
		query = url.Values{"sendInitialEvents": {"true"}, "resourceVersionMatch": {"NotOlderThan"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {"20"}}
	}
	if q.verb == "apply" {
		query = url.Values{"fieldManager": {"m"}, "force": {"true"}}
	}
	if q.namespace != "" {
		path += "/namespaces/" + q.namespace
	}
	path += "/" + q.place.resource
	for _, segment := range []string{q.name, q.place.subresource} {
		if segment != "" {
			path += "/" + segment
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var body io.Reader = http.NoBody
	if q.writes() {
		body = bytes.NewReader(q.body())
	}
	r := httptest.NewRequestWithContext(ctx, method, path+"?"+query.Encode(), body)
	r.Header.Set("Authorization", "Bearer "+q.caller.name)
	r.Header.Set("Content-Type", map[string]string{"patch": "application/merge-patch+json", "apply": "application/apply-patch+yaml"}[q.verb])
	out := &recorder{ResponseRecorder: httptest.NewRecorder(), ended: cancel}
	w.rest.ServeHTTP(out, r)
	a := answer{data: out.Body.Bytes()}
	s := &metav1.Status{}
	if out.Code >= 300 {
		if err := json.Unmarshal(a.data, s); err != nil {
			w.t.Fatalf("%s: %d %s", q, out.Code, a.data)
		}
		s.Code = int32(out.Code)
	}
	a.verdict, a.detail = verdict(s), s.Message
	return a, true
}

// recorder ends a watch when its initial state is complete.
type recorder struct {
	*httptest.ResponseRecorder
	ended func()
}

func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseRecorder.Write(p)
	if bytes.Contains(r.Body.Bytes(), []byte("k8s.io/initial-events-end")) {
		r.ended()
	}
	return n, err
}

func (q *tuple) ref() *resourcev1.Ref {
	return &resourcev1.Ref{
		Group: q.place.group, Version: q.place.version, Resource: q.place.resource, Subresource: q.place.subresource,
		Namespace: q.namespace, Name: q.name,
	}
}

// message returns the body in protobuf.
func (w *world) message(q *tuple) *anypb.Any {
	var obj resource.Object
	switch q.place.kind {
	case "Binding":
		obj = &corev1.Binding{}
	case "Eviction":
		obj = &policyv1.Eviction{}
	case "TokenRequest":
		obj = &authenticationv1.TokenRequest{}
	case "Scale":
		obj = &autoscalingv1.Scale{}
	default:
		obj = w.table.ByResource(q.place.gvr()).New()
	}
	if err := json.Unmarshal(q.body(), obj); err != nil {
		w.t.Fatal(err)
	}
	data, err := obj.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	pkg := map[string]string{"Eviction": "policy", "TokenRequest": "authentication", "Scale": "autoscaling"}[q.place.kind]
	if pkg == "" {
		pkg, _, _ = strings.Cut(q.place.group, ".")
	}
	if pkg == "" {
		pkg = "core"
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.api." + pkg + ".v1." + q.place.kind, Value: data}
}

// write returns the request as a write of a batch, or nil if batches do not have the verb.
func (w *world) write(q *tuple) *resourcev1.Write {
	switch q.verb {
	case "create":
		return &resourcev1.Write{Write: &resourcev1.Write_Create{Create: &resourcev1.CreateRequest{Ref: q.ref(), Object: w.message(q)}}}
	case "update":
		return &resourcev1.Write{Write: &resourcev1.Write_Update{Update: &resourcev1.UpdateRequest{Ref: q.ref(), Object: w.message(q)}}}
	case "patch":
		return &resourcev1.Write{Write: &resourcev1.Write_Patch{Patch: &resourcev1.PatchRequest{Ref: q.ref(), Kind: resourcev1.PatchRequest_KIND_MERGE, Patch: q.body()}}}
	case "apply":
		return &resourcev1.Write{Write: &resourcev1.Write_Apply{Apply: &resourcev1.ApplyRequest{
			Ref: q.ref(), Configuration: q.body(), Force: true, Options: &resourcev1.WriteOptions{FieldManager: "m"},
		}}}
	case "delete":
		return &resourcev1.Write{Write: &resourcev1.Write_Delete{Delete: &resourcev1.DeleteRequest{Ref: q.ref()}}}
	}
	return nil
}

// decode decodes a Status from an Any.
func (w *world) decode(a *anypb.Any) *metav1.Status {
	s := &metav1.Status{}
	if err := s.Unmarshal(a.GetValue()); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) answerOf(q *tuple, data []byte, err error) answer {
	if err == nil {
		return answer{verdict: "allowed", data: data}
	}
	for _, d := range status.Convert(err).Proto().GetDetails() {
		s := w.decode(d)
		return answer{verdict: verdict(s), data: append(data, s.Message...), detail: s.Message}
	}
	w.t.Fatalf("%s: got an error without a Status: %v", q, err)
	return answer{}
}

func (q *tuple) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+q.caller.name), cancel
}

func (w *world) viaGRPC(q *tuple) answer {
	ctx, cancel := q.context()
	defer cancel()
	switch q.verb {
	case "get":
		resp, err := w.grpc.Get(ctx, &resourcev1.GetRequest{Ref: q.ref()})
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	case "list":
		stream, err := w.grpc.List(ctx, &resourcev1.ListRequest{Ref: q.ref()})
		var data []byte
		for err == nil {
			var page *resourcev1.ListResponse
			page, err = stream.Recv()
			for _, item := range page.GetItems() {
				data = append(data, item.GetValue()...)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return w.answerOf(q, data, err)
	case "watch":
		stream, err := w.grpc.Watch(ctx, &resourcev1.WatchRequest{Ref: q.ref(), SendInitialEvents: true})
		var data []byte
		for err == nil {
			var ev *resourcev1.WatchResponse
			if ev, err = stream.Recv(); ev.GetInitialEventsEnd() {
				break
			}
			data = append(data, ev.GetObject().GetValue()...)
		}
		return w.answerOf(q, data, err)
	case "deletecollection":
		_, err := w.grpc.DeleteCollection(ctx, &resourcev1.DeleteCollectionRequest{Ref: q.ref()})
		return w.answerOf(q, nil, err)
	}
	one := w.write(q)
	switch one := one.GetWrite().(type) {
	case *resourcev1.Write_Create:
		resp, err := w.grpc.Create(ctx, one.Create)
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	case *resourcev1.Write_Update:
		resp, err := w.grpc.Update(ctx, one.Update)
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	case *resourcev1.Write_Patch:
		resp, err := w.grpc.Patch(ctx, one.Patch)
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	case *resourcev1.Write_Apply:
		resp, err := w.grpc.Apply(ctx, one.Apply)
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	case *resourcev1.Write_Delete:
		resp, err := w.grpc.Delete(ctx, one.Delete)
		return w.answerOf(q, resp.GetObject().GetValue(), err)
	}
	w.t.Fatal(q.verb)
	return answer{}
}

// viaCommit sends the request as part of a batch, between two writes that are refused.
func (w *world) viaCommit(q *tuple) (answer, bool) {
	one := w.write(q)
	if one == nil {
		return answer{}, false
	}
	ctx, cancel := q.context()
	defer cancel()
	refused := &resourcev1.Write{Write: &resourcev1.Write_Delete{Delete: &resourcev1.DeleteRequest{
		Ref: &resourcev1.Ref{Version: "v1", Resource: "configmaps", Namespace: "nowhere", Name: "nothing"},
	}}}
	resp, err := w.grpc.Commit(ctx, &resourcev1.CommitRequest{Writes: []*resourcev1.Write{refused, one, refused}})
	if err != nil {
		return w.answerOf(q, nil, err), true
	}
	for _, i := range []int{0, 2} {
		if resp.GetResults()[i].GetStatus() == nil {
			w.t.Errorf("%s: a delete of a missing object succeeded in the same batch", q)
		}
	}
	r := resp.GetResults()[1]
	if r.GetStatus() == nil {
		return answer{verdict: "allowed", data: r.GetObject().GetValue()}, true
	}
	s := w.decode(r.GetStatus())
	return answer{verdict: verdict(s), data: []byte(s.Message), detail: s.Message}, true
}

var mark = regexp.MustCompile(`mark\.([a-z]+)\.([a-z]*)\.([a-z]+)\.`)

// outside lists the objects beyond the caller's rights that the response contains, that were
// written, or that an action ran on.
func (w *world) outside(q *tuple, a answer, written []string) []string {
	var found []string
	check := func(what, resource, namespace, name string) {
		if resource == "namespaces" {
			namespace = name
		}
		if !q.caller.may(q.place, namespace, name) {
			found = append(found, fmt.Sprintf("%s %s %s/%s", what, resource, namespace, name))
		}
	}
	for _, m := range mark.FindAllSubmatch(a.data, -1) {
		check("shows", string(m[1]), string(m[2]), string(m[3]))
	}
	for _, key := range written {
		rest, _ := strings.CutPrefix(key, "/registry/")
		parts := strings.Split(rest, "/")
		namespace := ""
		if !q.place.cluster {
			namespace = parts[len(parts)-2]
		}
		check("writes", q.place.resource, namespace, parts[len(parts)-1])
	}
	for _, target := range w.acted {
		namespace, name, _ := strings.Cut(target, "/")
		check("acts on", q.place.resource, namespace, name)
	}
	if a.verdict != "allowed" && (len(written) > 0 || len(w.acted) > 0) {
		found = append(found, fmt.Sprintf("%s, but it was executed: %v %v", a.verdict, written, w.acted))
	}
	w.acted = nil
	return found
}

// product returns the requests: every read, and a random selection of the writes.
func product() []*tuple {
	draw := rand.New(rand.NewPCG(*seed, 1))
	var list []*tuple
	for c := range callers {
		for p := range places {
			names := []string{"", places[p].own, "else"}
			if places[p].resource == "namespaces" {
				names[2] = "other"
			}
			for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "apply", "delete", "deletecollection"} {
				for _, namespace := range []string{"", "mine", "other"} {
					for _, name := range names {
						q := tuple{caller: &callers[c], verb: verb, place: &places[p], namespace: namespace, name: name}
						if !q.writes() {
							list = append(list, &q)
							continue
						}
						for _, bodyNamespace := range []string{"", "mine", "other"} {
							for _, bodyName := range append(slices.Clone(names), "new") {
								if draw.IntN(*share) != 0 {
									continue
								}
								one := q
								one.bodyNamespace, one.bodyName = bodyNamespace, bodyName
								list = append(list, &one)
							}
						}
					}
				}
			}
		}
	}
	return list
}

// TestFrontsAgree checks that a request gets the same verdict over HTTP, over gRPC and in a
// batch, that what RBAC does not allow for the reference is refused, and that nothing outside the
// caller's rights is read or written, whatever the body contains.
func TestFrontsAgree(t *testing.T) {
	w := newWorld(t)
	failed, verdicts := 0, map[string]int{}
	fail := func(q *tuple, format string, args ...any) {
		if failed++; failed <= 40 {
			t.Errorf("%s: %s", q, fmt.Sprintf(format, args...))
		}
	}
	for _, q := range product() {
		type door struct {
			name string
			answer
		}
		var doors []door
		through := func(name string, a answer) {
			for _, o := range w.outside(q, a, w.changed()) {
				fail(q, "%s %s", name, o)
			}
			doors = append(doors, door{name, a})
		}
		through("gRPC", w.viaGRPC(q))
		if a, ok := w.viaCommit(q); ok {
			through("batch", a)
		}
		if a, ok := w.viaREST(q); ok {
			through("REST", a)
		}
		for _, d := range doors {
			verdicts[d.verdict]++
			if d.verdict != doors[0].verdict {
				fail(q, "%s: %s (%s), %s: %s (%s)", doors[0].name, doors[0].verdict, doors[0].detail, d.name, d.verdict, d.detail)
			}
			if !q.asked() && d.verdict != "forbidden" {
				fail(q, "%s: %s (%s); want forbidden", d.name, d.verdict, d.detail)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d failures with -parity.seed %d", failed, *seed)
	}
	t.Log(verdicts)
	for _, v := range []string{"allowed", "forbidden", "malformed", "not found", "conflict", "invalid"} {
		if verdicts[v] == 0 {
			t.Errorf("no request was %s: the selection is too small", v)
		}
	}
}
