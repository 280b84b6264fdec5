package pipeline_test

import (
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// stored puts an object into the store as it is, like a program with fewer defaults.
func (f *fixture) stored(obj resource.Object, version uint64) store.Revision {
	f.Helper()
	k := f.Table().ByResource(f.target(obj).Resource)
	value, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: k.GVK.Kind, Defaults: version}, obj)
	if err != nil {
		f.Fatal(err)
	}
	verdicts, err := f.store.Commit(f.ctx, []store.Write{{Key: k.Key(obj.GetNamespace(), obj.GetName()), Value: value, Expect: store.MustNotExist}})
	if err != nil || verdicts[0].Err != nil {
		f.Fatal(err, verdicts)
	}
	return verdicts[0].Revision
}

// TestOldStoredObjects checks that an object stored before a default existed is returned and
// compared with that default, and that the next write stores it, even one that changes nothing
// else.
func TestOldStoredObjects(t *testing.T) {
	f := newFixture(t)
	target := pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("secrets"), Namespace: "ns"}
	old := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "old", Namespace: "ns", UID: "u"}, Data: map[string][]byte{"a": {1}}}
	before, err := f.cache.Fresh(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	rev := f.stored(old, 7)

	read := get(f, old)
	if read.Type != corev1.SecretTypeOpaque || read.ResourceVersion == "" {
		t.Fatalf("read as %s", asJSON(read))
	}
	var back corev1.Secret
	out, err := f.Get(f.ctx, f.target(old), pipeline.GetOptions{})
	if err != nil || back.Unmarshal(out.Item.Raw) != nil || asJSON(back) != asJSON(read) {
		t.Errorf("the bytes are %s, %v", asJSON(back), err)
	}
	list, err := f.List(f.ctx, target, pipeline.ListOptions{FieldSelector: "type=Opaque"})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("listed: %+v, %v", list, err)
	}
	w, err := f.Watch(f.ctx, target, pipeline.WatchOptions{ResourceVersion: strconv.FormatInt(int64(before), 10)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	events, err := w.Next(f.ctx)
	if err != nil || events[0].Item.Object().(*corev1.Secret).Type != corev1.SecretTypeOpaque {
		t.Errorf("watched: %+v, %v", events, err)
	}

	if _, err := f.patch(read, types.MergePatchType, `{"type":"other"}`); err == nil || !strings.Contains(err.Error(), "field is immutable") {
		t.Errorf("changed type: %v", err)
	}
	// Write back what was read.
	out, err = f.update(read, "")
	if err != nil {
		t.Fatal(err)
	}
	if out.Item.Revision == rev || out.Item.Completed {
		t.Errorf("the defaults were not stored: %+v", out.Item)
	}
	entry, _, err := f.store.Get(f.ctx, out.Item.Key)
	if err != nil {
		t.Fatal(err)
	}
	v, err := envelope.Decode(entry.Value)
	if err != nil || v.Defaults != resource.DefaultsVersion || back.Unmarshal(v.Raw) != nil || back.Type != corev1.SecretTypeOpaque {
		t.Errorf("stored: %+v, %s, %v", v, asJSON(back), err)
	}
	if again, err := f.update(out.Item.Object().DeepCopyObject().(*corev1.Secret), ""); err != nil || again.Item.Revision != out.Item.Revision {
		t.Errorf("an unchanged object was written: %+v, %v", again, err)
	}

	// A metadata change of another object, which is in the cache since its first load.
	f.stored(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "second", Namespace: "ns", UID: "v"}}, 0)
	got, err := f.patch(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "second", Namespace: "ns"}}, types.MergePatchType, `{"metadata":{"labels":{"a":"b"}}}`)
	if err != nil || got.Item.Object().(*corev1.Secret).Type != corev1.SecretTypeOpaque {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOwnStoredObjects checks that objects stored by this program are not defaulted again.
func TestOwnStoredObjects(t *testing.T) {
	f := newFixture(t)
	rev := f.stored(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "own", Namespace: "ns"}}, resource.DefaultsVersion)
	item, err := watchcacheItem(f, rev)
	if err != nil || item.Completed || item.Object().(*corev1.Secret).Type != "" {
		t.Errorf("%+v, %v", item, err)
	}
}

func watchcacheItem(f *fixture, rev store.Revision) (*watchcache.Item, error) {
	if err := f.cache.WaitFor(f.ctx, rev); err != nil {
		return nil, err
	}
	out, err := f.Get(f.ctx, pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("secrets"), Namespace: "ns", Name: "own"}, pipeline.GetOptions{})
	if err != nil {
		return nil, err
	}
	return out.Item, nil
}
