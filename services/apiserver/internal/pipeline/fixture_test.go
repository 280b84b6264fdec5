package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// fixture is a pipeline over the in-memory store, with all kinds and the default admission chain.
type fixture struct {
	testing.TB
	*pipeline.Pipeline
	store *memory.Store
	cache *watchcache.Cache
	ctx   context.Context
	now   time.Time
}

var admin = request.User{Name: "admin", Groups: []string{"system:masters", "system:authenticated"}}

func newFixture(tb testing.TB, change ...func(*pipeline.Config)) *fixture {
	tb.Helper()
	st := memory.New()
	table := resource.NewTable(kind.All()...)
	var stored []*resource.Kind
	for _, k := range table.Kinds() {
		if !k.Virtual() && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	cache := watchcache.New(watchcache.Config{Store: st, Kinds: stored, HistoryEvents: 200, HistoryMin: 10})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	ran := make(chan struct{})
	go func() { defer close(ran); _ = cache.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-ran; st.Close() })
	<-cache.Ready()
	f := &fixture{TB: tb, store: st, cache: cache, ctx: request.WithUser(ctx, admin), now: time.Unix(1.8e9, 0)}
	rights := authz.New()
	cfg := pipeline.Config{
		Table: table, Lasting: pipeline.Place{Store: st, Cache: cache}, Authorizer: rights, Fields: fieldmanager.New(table),
		Now: func() time.Time { return f.now },
		Admission: admission.Default(admission.Config{
			State: pipeline.NewState(table, cache, st), Authorizer: rights, Escalation: rights, NodeOf: authz.NodeName,
			NotReadySeconds: 300, UnreachableSeconds: 300,
		}),
	}
	for _, c := range change {
		c(&cfg)
	}
	f.Pipeline = pipeline.New(cfg)
	f.mustCreate(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	f.mustCreate(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "ns"}})
	return f
}

// target returns the target of an object, by its Go type.
func (f *fixture) target(obj resource.Object) pipeline.Target {
	f.Helper()
	for _, k := range f.Table().Kinds() {
		if probe := k.New(); reflect.TypeOf(probe) == reflect.TypeOf(obj) {
			return pipeline.Target{Resource: k.GVR(), Namespace: obj.GetNamespace(), Name: obj.GetName()}
		}
	}
	f.Fatalf("%T is not in the table of kinds", obj)
	return pipeline.Target{}
}

func (f *fixture) body(obj resource.Object) pipeline.Body {
	f.Helper()
	data, err := obj.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	return pipeline.Body{Data: data, Type: pipeline.Message, GVK: f.Table().ByResource(f.target(obj).Resource).GVK}
}

func (f *fixture) create(obj resource.Object, o ...pipeline.WriteOptions) (*pipeline.Outcome, error) {
	f.Helper()
	t := f.target(obj)
	t.Name = ""
	return f.Create(f.ctx, t, f.body(obj), one(o))
}

func one[T any](list []T) (v T) {
	if len(list) > 0 {
		v = list[0]
	}
	return v
}

func (f *fixture) mustCreate(obj resource.Object, o ...pipeline.WriteOptions) resource.Object {
	f.Helper()
	out, err := f.create(obj, o...)
	if err != nil {
		f.Fatal(err)
	}
	return out.Item.Object().DeepCopyObject().(resource.Object)
}

func (f *fixture) update(obj resource.Object, subresource string, o ...pipeline.WriteOptions) (*pipeline.Outcome, error) {
	f.Helper()
	t := f.target(obj)
	t.Subresource = subresource
	return f.Update(f.ctx, t, f.body(obj), one(o))
}

func (f *fixture) patch(obj resource.Object, kind types.PatchType, text string, o ...pipeline.WriteOptions) (*pipeline.Outcome, error) {
	f.Helper()
	return f.Patch(f.ctx, f.target(obj), kind, pipeline.Body{Data: []byte(text), Type: pipeline.JSON}, one(o))
}

func (f *fixture) delete(obj resource.Object, o ...pipeline.DeleteOptions) (*pipeline.Outcome, error) {
	f.Helper()
	return f.Delete(f.ctx, f.target(obj), one(o))
}

// get reads the object consistently. It returns nil if the object does not exist.
func get[T resource.Object](f *fixture, obj T) (none T) {
	f.Helper()
	out, err := f.Get(f.ctx, f.target(obj), pipeline.GetOptions{})
	if apierrors.IsNotFound(err) {
		return none
	}
	if err != nil {
		f.Fatal(err)
	}
	return out.Item.Object().(T)
}

func configMap(name string, data ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}}
	for i := 0; i+1 < len(data); i += 2 {
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		cm.Data[data[i]] = data[i+1]
	}
	return cm
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

// wantStatus checks the code, the reason and a part of the message.
func wantStatus(t testing.TB, err error, code int32, reason metav1.StatusReason, text string) {
	t.Helper()
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok {
		t.Errorf("got %T %v; want %d %s %q", err, err, code, reason, text)
		return
	}
	if s := status.Status(); s.Code != code || s.Reason != reason || !strings.Contains(s.Message, text) {
		t.Errorf("got %d %s %q\nwant %d %s %q", s.Code, s.Reason, s.Message, code, reason, text)
	}
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

var podGVR = corev1.SchemeGroupVersion.WithResource("pods")

var configMapGVR = corev1.SchemeGroupVersion.WithResource("configmaps")

func metav1GVR(group, res string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: "v1", Resource: res}
}

func statusDetails(err error) *metav1.StatusDetails {
	if s, ok := err.(apierrors.APIStatus); ok {
		return s.Status().Details
	}
	return nil
}

func wantCode(t testing.TB, what string, err error, code int32) {
	t.Helper()
	if s, ok := err.(apierrors.APIStatus); !ok || s.Status().Code != code {
		t.Errorf("%s: got %v, want code %d", what, err, code)
	}
}
