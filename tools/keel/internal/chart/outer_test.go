package chart

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cluster is an API server with Secrets, ConfigMaps and claims, which checks resource versions.
type cluster struct {
	mu      sync.Mutex
	version int
	objects map[string]map[string]any
	writes  int
}

func newCluster(t *testing.T) (*cluster, *Outer) {
	t.Helper()
	c := &cluster{objects: map[string]map[string]any{}}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return c, NewOuter(s.Client(), s.URL, "ns")
}

func (c *cluster) put(path string, o map[string]any) {
	c.version++
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		o["metadata"] = meta
	}
	meta["resourceVersion"] = strconv.Itoa(c.version)
	c.objects[path] = o
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	refuse := func(code int, reason metav1.StatusReason) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	var in map[string]any
	_ = json.NewDecoder(r.Body).Decode(&in)
	version := func() string {
		meta, _ := in["metadata"].(map[string]any)
		v, _ := meta["resourceVersion"].(string)
		return v
	}
	path := r.URL.Path
	old := c.objects[path]
	if r.Method != http.MethodGet {
		c.writes++
	}
	switch {
	case r.Method == http.MethodPost:
		path += "/" + in["metadata"].(map[string]any)["name"].(string)
		c.put(path, in)
		old = in
	case r.Method == http.MethodGet && strings.Count(path, "/") == 5:
		var items []any
		for at, o := range c.objects {
			labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
			k, v, _ := strings.Cut(r.URL.Query().Get("labelSelector"), "=")
			if strings.HasPrefix(at, path+"/") && labels[k] == v {
				items = append(items, o)
			}
		}
		old = map[string]any{"items": items}
	case old == nil:
		refuse(http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case r.Method == http.MethodDelete:
		delete(c.objects, path)
	case r.Method != http.MethodGet && version() != "" && version() != old["metadata"].(map[string]any)["resourceVersion"]:
		refuse(http.StatusConflict, metav1.StatusReasonConflict)
		return
	case r.Method == http.MethodPut:
		c.put(path, in)
		old = in
	case r.Method == http.MethodPatch:
		old["data"] = in["data"]
		c.put(path, old)
	}
	_ = json.NewEncoder(w).Encode(old)
}

func TestFounderIsRecordedOnce(t *testing.T) {
	c, o := newCluster(t)
	ctx := context.Background()
	if _, err := o.Founder(ctx, "state"); err == nil {
		t.Error("a ConfigMap that is missing is no error")
	}
	c.put("/api/v1/namespaces/ns/configmaps/state", map[string]any{})
	if got, err := o.Founder(ctx, "state"); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		if err := o.RecordFounder(ctx, "state", "a-0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.RecordFounder(ctx, "state", "b-0"); err == nil {
		t.Error("a second founder is recorded")
	}
	if got, err := o.Founder(ctx, "state"); got != "a-0" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStatefulSetThatIsGone(t *testing.T) {
	c, o := newCluster(t)
	if _, deleted, err := o.StatefulSet(context.Background(), "a"); !deleted || err != nil {
		t.Errorf("deleted %t, %v", deleted, err)
	}
	path := "/apis/apps/v1/namespaces/ns/statefulsets/a"
	c.put(path, map[string]any{"spec": map[string]any{"replicas": 3}})
	if n, deleted, err := o.StatefulSet(context.Background(), "a"); n != 3 || deleted || err != nil {
		t.Errorf("%d replicas, deleted %t, %v", n, deleted, err)
	}
	c.put(path, map[string]any{"metadata": map[string]any{"deletionTimestamp": "2026-01-02T03:04:05Z"}})
	if n, deleted, err := o.StatefulSet(context.Background(), "a"); n != 1 || !deleted || err != nil {
		t.Errorf("%d replicas, deleted %t, %v", n, deleted, err)
	}
}

// Files survive a round trip through a Secret, a second one writes nothing, and Clean leaves what
// belongs to others.
func TestStore(t *testing.T) {
	c, o := newCluster(t)
	ctx := context.Background()
	s := &Store{Outer: o, Name: "a", Labels: map[string]string{"x": "y"}}
	data := map[string][]byte{"ca.crt": []byte("1"), "peer.tls.key": []byte("2"), "peer-authority.ca.key": []byte("3"), "tokens.node.with.dots": []byte("4")}
	if changed, err := s.Keep(ctx, "authority", data); !changed || err != nil {
		t.Fatalf("changed %t, %v", changed, err)
	}
	writes := c.writes
	if changed, err := s.Keep(ctx, "authority", data); changed || err != nil || c.writes != writes {
		t.Errorf("unchanged: changed %t, %d writes, %v", changed, c.writes-writes, err)
	}
	dir := t.TempDir()
	if err := s.Load(ctx, "authority", dir); err != nil {
		t.Fatal(err)
	}
	got, err := Files(dir, "peer", "peer-authority", "tokens", "missing")
	if err != nil || len(got) != len(data) || string(got["tokens.node.with.dots"]) != "4" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := Files(filepath.Join(dir, "peer-authority")); err != nil || string(got["ca.key"]) != "3" {
		t.Errorf("%v, %v", got, err)
	}
	data["ca.crt"] = []byte("new")
	if changed, err := s.Keep(ctx, "authority", data); !changed || err != nil {
		t.Errorf("changed %t, %v", changed, err)
	}
	if err := s.Load(ctx, "missing", dir); err != nil {
		t.Error(err)
	}
	if _, err := s.Keep(ctx, "kubeconfig-gone", data); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(ctx, []string{"authority"}); err != nil {
		t.Fatal(err)
	}
	if gone, err := o.Secret(ctx, "a-kubeconfig-gone"); gone != nil || err != nil {
		t.Errorf("Prune left %v, %v", gone, err)
	}
	other := &Store{Outer: o, Name: "b"}
	if _, err := other.Keep(ctx, "authority", data); err != nil {
		t.Fatal(err)
	}
	c.put("/api/v1/namespaces/ns/persistentvolumeclaims/data-a-0", map[string]any{"metadata": map[string]any{"name": "data-a-0", "labels": map[string]any{Label: "a"}}})
	for range 2 { // the second one finds it
		if err := s.Claim(ctx, "snapshots", "fast", "1Gi"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Claim(ctx, "other", "", "much"); err == nil {
		t.Error("a size that is none is no error")
	}
	deleted, err := s.Clean(ctx)
	slices.Sort(deleted)
	if err != nil || strings.Join(deleted, ",") != "claim a-snapshots,claim data-a-0,secret a-authority" {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	var left *corev1.Secret
	if left, err = o.Secret(ctx, "b-authority"); left == nil || err != nil {
		t.Errorf("another control plane's Secret is %v, %v", left, err)
	}
}
