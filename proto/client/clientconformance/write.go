package clientconformance

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

func testCreate(t *testing.T, s *suite) {
	cm := s.create(t, "a", "k", "1")
	if cm.UID == "" || cm.ResourceVersion == "" || cm.CreationTimestamp.IsZero() {
		t.Errorf("incomplete metadata: %+v", cm.ObjectMeta)
	}
	got := must(s.maps.Get(s.ctx, s.Namespace, cm.Name))(t)
	equal(t, "data", got.Data["k"], "1")
	equal(t, "uid", got.UID, cm.UID)
	equal(t, "resourceVersion", got.ResourceVersion, cm.ResourceVersion)

	_, err := s.maps.Create(s.ctx, s.configMap("a"))
	wants(t, "create what exists", apierrors.IsAlreadyExists, err)

	generated := s.configMap("")
	generated.Name, generated.GenerateName = "", s.prefix+"gen-"
	one := must(s.maps.Create(s.ctx, generated))(t)
	two := must(s.maps.Create(s.ctx, generated))(t)
	if one.Name == two.Name || !strings.HasPrefix(one.Name, s.prefix+"gen-") {
		t.Errorf("generated names %q and %q", one.Name, two.Name)
	}
}

func testUpdate(t *testing.T, s *suite) {
	first := s.create(t, "a", "k", "1")
	second := s.set(t, first, "k", "2")
	if second.ResourceVersion == first.ResourceVersion {
		t.Error("an update kept the resourceVersion")
	}
	equal(t, "uid", second.UID, first.UID)

	stale := first.DeepCopy()
	stale.Data["k"] = "3"
	_, err := s.maps.Update(s.ctx, stale)
	wants(t, "update with a stale resourceVersion", apierrors.IsConflict, err)

	same := must(s.maps.Update(s.ctx, second.DeepCopy()))(t)
	equal(t, "resourceVersion after an update that changes nothing", same.ResourceVersion, second.ResourceVersion)

	stale.ResourceVersion = ""
	got := must(s.maps.Update(s.ctx, stale))(t)
	equal(t, "data after an unconditional update", got.Data["k"], "3")

	other := got.DeepCopy()
	other.UID = types.UID("00000000-0000-0000-0000-000000000000")
	_, err = s.maps.Update(s.ctx, other)
	wants(t, "update with another uid", apierrors.IsConflict, err)

	_, err = s.maps.Update(s.ctx, s.configMap("none"))
	wants(t, "update of what does not exist", apierrors.IsNotFound, err)
}

func testPatch(t *testing.T, s *suite) {
	cm := s.create(t, "a", "k", "1", "l", "1")
	for _, p := range []struct {
		kind types.PatchType
		data string
	}{
		{types.MergePatchType, `{"data":{"k":"merge","l":null}}`},
		{types.StrategicMergePatchType, `{"data":{"k":"strategic"}}`},
		{types.JSONPatchType, `[{"op":"test","path":"/data/k","value":"strategic"},{"op":"replace","path":"/data/k","value":"json"}]`},
	} {
		cm = must(s.maps.Patch(s.ctx, s.Namespace, cm.Name, p.kind, []byte(p.data)))(t)
	}
	equal(t, "data", cm.Data["k"], "json")
	equal(t, "number of keys", len(cm.Data), 1)

	stale := `{"metadata":{"resourceVersion":"1"},"data":{"k":"stale"}}`
	_, err := s.maps.Patch(s.ctx, s.Namespace, cm.Name, types.MergePatchType, []byte(stale))
	wants(t, "patch with a stale resourceVersion", apierrors.IsConflict, err)
	_, err = s.maps.Patch(s.ctx, s.Namespace, cm.Name, types.MergePatchType, []byte(`{"data":`))
	wants(t, "patch that does not parse", apierrors.IsBadRequest, err)
	_, err = s.maps.Patch(s.ctx, s.Namespace, s.prefix+"none", types.MergePatchType, []byte(`{}`))
	wants(t, "patch of what does not exist", apierrors.IsNotFound, err)
}

func testApply(t *testing.T, s *suite) {
	cm := must(s.maps.Apply(s.ctx, s.configMap("a", "k", "1"), "conformance"))(t)
	equal(t, "data", cm.Data["k"], "1")
	again := must(s.maps.Apply(s.ctx, s.configMap("a", "k", "2"), "conformance"))(t)
	equal(t, "data", again.Data["k"], "2")
	equal(t, "uid", again.UID, cm.UID)
	_, err := s.maps.ApplyConfiguration(s.ctx, s.Namespace, cm.Name, []byte(`{"apiVersion":"v1","kind":"ConfigMap"}`), "")
	if err == nil {
		t.Error("apply without a manager succeeded")
	}
}

func testStatus(t *testing.T, s *suite) {
	services := client.For[*corev1.Service](s.Client)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, GenerateName: s.prefix},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	condition := metav1.Condition{Type: "Example", Status: metav1.ConditionTrue, Reason: "Test", LastTransitionTime: metav1.Now()}
	svc.Status.Conditions = []metav1.Condition{condition}
	svc = must(services.Create(s.ctx, svc))(t)
	defer func() {
		if err := services.Delete(s.ctx, s.Namespace, svc.Name); err != nil {
			t.Errorf("delete: %v", err)
		}
	}()

	next := svc.DeepCopy()
	next.Status.Conditions = []metav1.Condition{condition}
	next.Spec.Ports[0].Port = 81
	next = must(services.UpdateStatus(s.ctx, next))(t)
	equal(t, "conditions after a status update", len(next.Status.Conditions), 1)
	equal(t, "port after a status update", next.Spec.Ports[0].Port, 80)

	next = next.DeepCopy()
	next.Status.Conditions = nil
	next.Spec.Ports[0].Port = 82
	next = must(services.Update(s.ctx, next))(t)
	equal(t, "conditions after an update", len(next.Status.Conditions), 1)
	equal(t, "port after an update", next.Spec.Ports[0].Port, 82)
}

func testDelete(t *testing.T, s *suite) {
	cm := s.create(t, "a")
	err := s.maps.Delete(s.ctx, s.Namespace, cm.Name, client.UID("00000000-0000-0000-0000-000000000000"))
	wants(t, "delete with another uid", apierrors.IsConflict, err)
	err = s.maps.Delete(s.ctx, s.Namespace, cm.Name, client.ResourceVersion("1"))
	wants(t, "delete with another resourceVersion", apierrors.IsConflict, err)
	_, gone, err := s.maps.DeleteObject(s.ctx, s.Namespace, cm.Name, client.UID(cm.UID))
	if err != nil || !gone {
		t.Errorf("delete: gone %v, error %v", gone, err)
	}
	_, err = s.maps.Get(s.ctx, s.Namespace, cm.Name)
	wants(t, "get what is gone", apierrors.IsNotFound, err)
	err = s.maps.Delete(s.ctx, s.Namespace, cm.Name)
	wants(t, "delete what is gone", apierrors.IsNotFound, err)
	again := s.create(t, "a")
	if again.UID == cm.UID {
		t.Error("a new object has the uid of the old one")
	}
}

func testFinalizers(t *testing.T, s *suite) {
	cm := s.configMap("a")
	cm.Finalizers = []string{"keelson.dev/conformance"}
	must(s.maps.Create(s.ctx, cm))(t)
	held, gone, err := s.maps.DeleteObject(s.ctx, s.Namespace, cm.Name)
	if err != nil || gone {
		t.Fatalf("delete: gone %v, error %v", gone, err)
	}
	if held.DeletionTimestamp == nil {
		t.Fatal("an object that was deleted has no deletionTimestamp")
	}
	held = held.DeepCopy()
	held.Finalizers = nil
	must(s.maps.Update(s.ctx, held))(t)
	_, err = s.maps.Get(s.ctx, s.Namespace, cm.Name)
	wants(t, "get after the last finalizer", apierrors.IsNotFound, err)
}

func testDeleteCollection(t *testing.T, s *suite) {
	for _, name := range []string{"a", "b", "c"} {
		cm := s.configMap(name)
		cm.Labels["half"] = map[bool]string{true: "yes", false: "no"}[name != "c"]
		must(s.maps.Create(s.ctx, cm))(t)
	}
	n := must(s.maps.DeleteCollection(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector() + ",half=yes"}))(t)
	equal(t, "count", n, 2)
	left, _, err := s.maps.List(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector()})
	if err != nil || len(left) != 1 || left[0].Name != s.prefix+"c" {
		t.Errorf("left: %v, error %v", left, err)
	}
}

func testDryRun(t *testing.T, s *suite) {
	cm := must(s.maps.Create(s.ctx, s.configMap("a"), client.DryRun()))(t)
	_, err := s.maps.Get(s.ctx, s.Namespace, cm.Name)
	wants(t, "get after a dry run", apierrors.IsNotFound, err)
	cm = s.create(t, "a", "k", "1")
	next := cm.DeepCopy()
	next.Data["k"] = "2"
	next = must(s.maps.Update(s.ctx, next, client.DryRun()))(t)
	equal(t, "the answer to a dry run", next.Data["k"], "2")
	if err := s.maps.Delete(s.ctx, s.Namespace, cm.Name, client.DryRunDelete()); err != nil {
		t.Errorf("dry delete: %v", err)
	}
	got := must(s.maps.Get(s.ctx, s.Namespace, cm.Name))(t)
	equal(t, "data after a dry run", got.Data["k"], "1")
}

func testCommit(t *testing.T, s *suite) {
	old := s.create(t, "old", "k", "1")
	stale := old.DeepCopy()
	stale.ResourceVersion = "1"
	fresh := old.DeepCopy()
	fresh.Data["k"] = "2"
	writes := []client.Write{
		client.CreateWrite(s.configMap("a", "k", "1")),
		client.CreateWrite(s.configMap("old")),
		client.UpdateWrite(stale),
		client.UpdateWrite(fresh),
		client.PatchWrite[*corev1.ConfigMap](s.Namespace, s.prefix+"none", types.MergePatchType, []byte(`{}`)),
		client.CreateWrite(s.configMap("b")),
	}
	results := must(s.Client.Commit(s.ctx, writes...))(t)
	equal(t, "results", len(results), len(writes))
	for i, is := range []func(error) bool{nil, apierrors.IsAlreadyExists, apierrors.IsConflict, nil, apierrors.IsNotFound, nil} {
		if is != nil {
			wants(t, "a write of a batch", is, results[i].Err)
		} else if results[i].Err != nil {
			t.Errorf("write %d: %v", i, results[i].Err)
		}
	}
	equal(t, "object of the first write", results[0].Object.(*corev1.ConfigMap).Data["k"], "1")
	seen := map[string]bool{}
	for _, i := range []int{0, 3, 5} {
		rv := results[i].ResourceVersion
		if rv == "" || seen[rv] {
			t.Errorf("write %d has resourceVersion %q, which is empty or another's", i, rv)
		}
		seen[rv] = true
		equal(t, "resourceVersion of the object", results[i].Object.GetResourceVersion(), rv)
	}
	quiet := must(s.Client.CommitQuietly(s.ctx, client.DeleteWrite[*corev1.ConfigMap](s.Namespace, s.prefix+"a")))(t)
	if quiet[0].Err != nil || quiet[0].Object != nil {
		t.Errorf("quiet delete: %+v", quiet[0])
	}
	_, err := s.maps.Get(s.ctx, s.Namespace, s.prefix+"a")
	wants(t, "get what a batch deleted", apierrors.IsNotFound, err)

	many := make([]client.Write, client.MaxBatch+5)
	for i := range many {
		many[i] = client.PatchWrite[*corev1.ConfigMap](s.Namespace, s.prefix+"none", types.MergePatchType, []byte(`{}`))
	}
	results = must(s.Client.Commit(s.ctx, many...))(t)
	equal(t, "results of a long batch", len(results), len(many))
}

func testErrors(t *testing.T, s *suite) {
	_, err := s.maps.Get(s.ctx, s.Namespace, s.prefix+"none")
	wants(t, "get what does not exist", apierrors.IsNotFound, err)
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) {
		return
	}
	status, _ = err.(apierrors.APIStatus) //nolint:errorlint // statuses are returned as they are.
	if d := status.Status().Details; d == nil || d.Name != s.prefix+"none" || d.Kind != "configmaps" {
		t.Errorf("details of NotFound: %+v", d)
	}
	_, _, err = s.maps.List(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: "a in ("})
	wants(t, "a selector that does not parse", apierrors.IsBadRequest, err)
	for _, err = range s.maps.Watch(s.ctx, client.WatchOptions{Namespace: s.Namespace, ResourceVersion: "x"}) {
		break
	}
	if !apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) {
		t.Errorf("watch from a malformed resourceVersion: %v", err)
	}
	_, _, err = s.maps.List(s.ctx, client.ListOptions{Namespace: s.Namespace, Limit: 1, Continue: "x"})
	if !apierrors.IsBadRequest(err) && !apierrors.IsResourceExpired(err) {
		t.Errorf("a malformed continue token: %v", err)
	}
}
