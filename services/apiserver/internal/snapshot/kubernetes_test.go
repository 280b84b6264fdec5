package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/snapshot/snapshottest"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// kubernetes starts the etcd of a cluster with an object of each kind, and returns the stored
// values by key.
func kubernetes(t *testing.T) (*snapshottest.Kubernetes, map[string][]byte) {
	t.Helper()
	k := snapshottest.New(t)
	values := map[string][]byte{}
	add := func(key string, value []byte, ttl int64) {
		k.Put(key, value, ttl)
		values[key] = value
	}
	for _, row := range table.Kinds() {
		if row.Virtual() || row.StoredAs != nil {
			continue
		}
		obj := row.New()
		obj.SetName("one")
		obj.SetUID("7e9a0b5e-4d6b-4d0e-8a6e-5f0d3c1b2a90")
		obj.SetLabels(map[string]string{"kind": row.Resource})
		namespace := ""
		if row.Namespaced {
			namespace = "default"
		}
		obj.SetNamespace(namespace)
		add(row.Key(namespace, "one"), snapshottest.Encode(t, obj, row.GVK.GroupVersion()), row.TTLSeconds)
	}
	holder := "scheduler-7"
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-scheduler"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
	add("/registry/leases/kube-system/kube-scheduler", snapshottest.Encode(t, lease, coordinationv1.SchemeGroupVersion), 0)
	// Objects that Keelson does not serve: a custom resource, its definition, and others.
	add("/registry/stable.example.com/crontabs/default/mine", []byte(`{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"mine","namespace":"default"}}`), 0)
	add("/registry/stable.example.com/crontabs/default/yours", []byte(`{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"yours","namespace":"default"}}`), 0)
	add("/registry/apiextensions.k8s.io/customresourcedefinitions/crontabs.stable.example.com", []byte(`{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1","metadata":{"name":"crontabs.stable.example.com"}}`), 0)
	add("/registry/masterleases/10.0.0.1", []byte("k8s\x00\n\x0f\n\x02v1\x12\x09Endpoints\x12\x00"), 3600)
	k.Put("compact_rev_key", []byte("100"), 0)
	return k, values
}

func TestKubernetesIsRestored(t *testing.T) {
	ctx := context.Background()
	k, values := kubernetes(t)
	k.Put("/registry/configmaps/default/gone", []byte("x"), 0)
	if _, err := k.Client.Delete(ctx, "/registry/configmaps/default/gone"); err != nil {
		t.Fatal(err)
	}
	leases, err := k.Client.Get(ctx, "/registry/leases/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	k.RequirePassword() // which belongs to the old etcd and must not be required by the restored one
	file := k.Save()
	st, err := ReadStatus(ctx, file, "", table)
	if err != nil || st.Problem != "" || st.Kind != "etcd" || st.Objects != len(values) || st.OtherKeys != 1 {
		t.Fatalf("%+v, %v; want %d objects", st, err, len(values))
	}
	dir := t.TempDir()
	r, err := Restore(ctx, config(file, dir))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.NotServed); got != "[{crontabs.stable.example.com 2 209 false etcd} {customresourcedefinitions.apiextensions.k8s.io 1 124 false etcd} {masterleases 1 23 false etcd}]" {
		t.Errorf("not served: %s", got)
	}
	if len(r.Moved) != 2 || r.Moved[0].Resource != "events" || r.Moved[0].Objects != 1 || r.Moved[1].Resource != "leases.coordination.k8s.io" || r.Moved[1].Objects != 2 {
		t.Errorf("moved: %+v", r.Moved)
	}
	n := openStores(t, "a", dir)
	inEtcd, inRaft := entries(t, n.etcd), entries(t, n.raft)
	kinds := newCatalogue(table)
	for key, value := range values {
		row := kinds.kind(key)
		from, other := inEtcd, inRaft
		if row != nil && row.Transient {
			from, other = inRaft, inEtcd
		}
		e, ok := from[key]
		if _, twice := other[key]; !ok || twice || !bytes.Equal(e.Value, value) {
			t.Errorf("%s is %q (found: %v, in both stores: %v), want %q", key, e.Value, ok, twice, value)
			continue
		}
		if row == nil {
			continue
		}
		item, err := watchcache.Decode(row, e)
		if err != nil || item.Object().GetName() == "" {
			t.Errorf("%s: %v", key, err)
		}
	}
	if len(inEtcd)+len(inRaft) != len(values) {
		t.Errorf("%d and %d entries, want %d", len(inEtcd), len(inRaft), len(values))
	}
	for _, kv := range leases.Kvs {
		if got := inRaft[string(kv.Key)].ModRevision; got != store.Revision(kv.ModRevision) {
			t.Errorf("%s has revision %d, want %d", kv.Key, got, kv.ModRevision)
		}
	}
	for what, s := range map[string]store.Store{"etcd": n.etcd, "raft": n.raft} {
		if rev, err := s.Revision(ctx); err != nil || int64(rev) < st.EtcdRevision+revisionSkip {
			t.Errorf("%s: revision %d, %v; Kubernetes' was %d", what, rev, err, st.EtcdRevision)
		}
	}
}

func TestEncryptedAtRestIsRefused(t *testing.T) {
	k := snapshottest.New(t)
	k.Put("/registry/configmaps/default/m", configMap(t, "m", 1), 0)
	k.Put("/registry/secrets/default/s", []byte("k8s:enc:aescbc:v1:key1:\x01\x02\x03"), 0)
	k.Put("/registry/stable.example.com/crontabs/default/mine", []byte("k8s:enc:kms:v2:key1:\x01\x02\x03"), 0)
	file := k.Save()
	dir := t.TempDir()
	_, err := Restore(context.Background(), config(file, dir))
	if err == nil || !strings.Contains(err.Error(), "encrypted at rest: crontabs.stable.example.com (kms), secrets (aescbc).") {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v was left behind, %v", left, err)
	}
	st, err := ReadStatus(context.Background(), file, "", table)
	if err != nil || !strings.Contains(st.Problem, "secrets (aescbc)") {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestRestoreRefusesSnapshotWithoutObjects(t *testing.T) {
	k := snapshottest.New(t)
	k.Put("/other/configmaps/default/m", configMap(t, "m", 1), 0)
	if _, err := Restore(context.Background(), config(k.Save(), t.TempDir())); err == nil || !strings.Contains(err.Error(), "no objects under /registry/") {
		t.Fatal(err)
	}
	k.Put("/registry/configmaps/default/m", []byte("k8s\x00garbage"), 0)
	if _, err := Restore(context.Background(), config(k.Save(), t.TempDir())); err == nil || !strings.Contains(err.Error(), "/registry/configmaps/default/m") {
		t.Fatal(err)
	}
}

func TestKeysAndKinds(t *testing.T) {
	kinds := newCatalogue(table)
	for key, want := range map[string]string{
		"/registry/pods/default/p":                      "pods",
		"/registry/services/specs/default/s":            "services",
		"/registry/services/endpoints/default/s":        "endpoints",
		"/registry/deployments/default/d":               "deployments.apps",
		"/registry/minions/n":                           "nodes",
		"/registry/clusterroles/system:node":            "clusterroles.rbac.authorization.k8s.io",
		"/registry/stable.example.com/crontabs/ns/name": "",
	} {
		got := ""
		if k := kinds.kind(key); k != nil {
			got = resourceName(k)
		}
		if got != want {
			t.Errorf("kind of %s is %q, want %q", key, got, want)
		}
	}
	if got := group("/registry/stable.example.com/crontabs/ns/name"); got != "crontabs.stable.example.com" {
		t.Error(got)
	}
}
