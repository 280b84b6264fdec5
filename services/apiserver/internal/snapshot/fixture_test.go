package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// started once per process by an etcd package
		goleak.IgnoreAnyFunction("go.etcd.io/etcd/client/pkg/v3/logutil.(*MergeLogger).outputLoop"),
	)
}

var table = resource.NewTable(kind.All()...)

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// stores are the two stores of an apiserver.
type stores struct {
	etcd *etcd.Embedded
	raft *raft.Store
}

// openStores opens the stores in an apiserver's data directory.
func openStores(t testing.TB, name, dir string) *stores {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lasting, err := etcd.Start(ctx, etcd.EmbeddedConfig{Name: name, Dir: filepath.Join(dir, etcdDir), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lasting.Close)
	transient, err := raft.Open(ctx, raft.Config{Name: name, Dir: filepath.Join(dir, raftDir), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transient.Close)
	return &stores{lasting, transient}
}

func (s *stores) close() {
	s.raft.Close()
	s.etcd.Close()
}

func put(t testing.TB, s store.Store, key string, value []byte) store.Revision {
	t.Helper()
	v, err := s.Commit(context.Background(), []store.Write{{Key: key, Value: value, Expect: store.Any}})
	if err != nil || v[0].Err != nil {
		t.Fatalf("%s: %v %v", key, err, v)
	}
	return v[0].Revision
}

func entries(t testing.TB, s store.Store) map[string]store.Entry {
	t.Helper()
	page, err := s.List(context.Background(), objectPrefix, store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]store.Entry{}
	for _, e := range page.Entries {
		out[e.Key] = e
	}
	return out
}

func same(t testing.TB, what string, got, want map[string]store.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d entries, want %d", what, len(got), len(want))
	}
	for key, w := range want {
		if g, ok := got[key]; !ok || !bytes.Equal(g.Value, w.Value) || g.ModRevision != w.ModRevision || g.CreateRevision != w.CreateRevision {
			t.Fatalf("%s: %s is %q of %d, created at %d; want %q of %d, created at %d", what, key, g.Value, g.ModRevision, g.CreateRevision, w.Value, w.ModRevision, w.CreateRevision)
		}
	}
}

// configMap returns a stored ConfigMap with size bytes of data.
func configMap(t testing.TB, name string, size int) []byte {
	t.Helper()
	data, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "ConfigMap"}, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"k": string(bytes.Repeat([]byte("x"), size))},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func event(t testing.TB, name string) []byte {
	t.Helper()
	data, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "Event"}, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// filled returns stores with some content.
func filled(t testing.TB, objects int) *stores {
	t.Helper()
	s := openStores(t, "a", t.TempDir())
	for i := range objects {
		put(t, s.etcd, fmt.Sprintf("/registry/configmaps/default/m%d", i), configMap(t, fmt.Sprintf("m%d", i), 100))
	}
	for _, key := range []string{fencePrefix + "scheduler", joinPrefix + "b", changeKey} {
		put(t, s.etcd, key, []byte("1"))
	}
	put(t, s.raft, "/registry/events/default/e", event(t, "e"))
	return s
}

// saveFile writes a snapshot to a file, without gRPC.
func saveFile(t testing.TB, s *stores) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.snapshot")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = write(context.Background(), f, Manifest{Apiserver: "a", Program: "test"}, s.etcd, s.raft)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}
