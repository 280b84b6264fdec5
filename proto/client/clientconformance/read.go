package clientconformance

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"google.golang.org/grpc/metadata"

	"keelson.dev/proto/client"
)

func (s *suite) list(t *testing.T, o client.ListOptions) ([]string, client.ListMeta) {
	t.Helper()
	o.Namespace = s.Namespace
	if o.LabelSelector == "" {
		o.LabelSelector = s.selector()
	}
	items, meta, err := s.maps.List(s.ctx, o)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	names := make([]string, 0, len(items))
	for _, cm := range items {
		names = append(names, strings.TrimPrefix(cm.Name, s.prefix))
	}
	return names, meta
}

func testList(t *testing.T, s *suite) {
	names, meta := s.list(t, client.ListOptions{})
	equal(t, "objects", len(names), 0)
	if meta.ResourceVersion == "" {
		t.Error("an empty list has no resourceVersion")
	}
	for _, name := range []string{"b", "c", "a"} {
		s.create(t, name)
	}
	names, next := s.list(t, client.ListOptions{})
	equalSlices(t, "names", names, []string{"a", "b", "c"})
	if next.ResourceVersion == meta.ResourceVersion {
		t.Error("the list's resourceVersion did not move")
	}
}

func testPages(t *testing.T, s *suite) {
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("n%d", i))
		s.create(t, want[i])
	}
	var got []string
	for o := (client.ListOptions{Limit: 3}); ; {
		names, meta := s.list(t, o)
		got = append(got, names...)
		if meta.Continue == "" {
			equal(t, "names on the last page", len(names), 1)
			break
		}
		equal(t, "names on a page", len(names), 3)
		o.Continue = meta.Continue
	}
	equalSlices(t, "all pages", got, want)

	got = nil
	for cm, err := range s.maps.All(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector(), PageSize: 2}) {
		got = append(got, strings.TrimPrefix(must(cm, err)(t).Name, s.prefix))
	}
	equalSlices(t, "all", got, want)

	for range s.maps.All(s.ctx, client.ListOptions{Namespace: s.Namespace, PageSize: 1}) {
		break // leaving early ends the stream.
	}
}

func testSelectors(t *testing.T, s *suite) {
	for name, tier := range map[string]string{"a": "front", "b": "back", "c": "back"} {
		cm := s.configMap(name)
		cm.Labels["tier"] = tier
		must(s.maps.Create(s.ctx, cm))(t)
	}
	for selector, want := range map[string][]string{
		"tier=front":          {"a"},
		"tier!=front":         {"b", "c"},
		"tier in (back,none)": {"b", "c"},
		"!tier":               {},
	} {
		names, _ := s.list(t, client.ListOptions{LabelSelector: s.selector() + "," + selector})
		equalSlices(t, selector, names, want)
	}
	names, _ := s.list(t, client.ListOptions{FieldSelector: "metadata.name=" + s.prefix + "b"})
	equalSlices(t, "metadata.name", names, []string{"b"})
	names, _ = s.list(t, client.ListOptions{FieldSelector: "metadata.name!=" + s.prefix + "b"})
	equalSlices(t, "metadata.name!=", names, []string{"a", "c"})
}

func testMetadata(t *testing.T, s *suite) {
	cm := s.create(t, "a", "k", "1")
	meta := client.Metadata(s.Client, client.KindOf(cm))
	got := must(meta.Get(s.ctx, s.Namespace, cm.Name))(t)
	equal(t, "uid", got.UID, cm.UID)
	if _, err := meta.Update(s.ctx, got); err == nil {
		t.Error("an update with metadata alone was not refused")
	}
	patched := must(meta.Patch(s.ctx, s.Namespace, cm.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"x":"y"}}}`)))(t)
	equal(t, "annotation", patched.Annotations["x"], "y")
	if err := meta.Delete(s.ctx, s.Namespace, cm.Name); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// watch collects n events.
func (s *suite) watch(t *testing.T, c *client.Client, o client.WatchOptions, n int) (lines []string, versions []string) {
	t.Helper()
	o.Namespace = s.Namespace
	if o.LabelSelector == "" {
		o.LabelSelector = s.selector()
	}
	if n == 0 {
		return nil, nil
	}
	for ev, err := range client.For[*corev1.ConfigMap](c).Watch(s.ctx, o) {
		if err != nil {
			t.Fatalf("watch after %d of %d events: %v", len(lines), n, err)
		}
		if ev.Type == client.Bookmark && !ev.InitialEnd {
			continue
		}
		lines = append(lines, strings.ReplaceAll(describe(ev), s.prefix, ""))
		versions = append(versions, ev.ResourceVersion)
		if len(lines) == n {
			return lines, versions
		}
	}
	t.Fatalf("the watch ended after %d of %d events", len(lines), n)
	return nil, nil
}

// history makes changes and returns the resource version before them and the events that
// a watch must report.
func (s *suite) history(t *testing.T) (start string, want []string) {
	t.Helper()
	_, meta := s.list(t, client.ListOptions{})
	a := s.create(t, "a", "v", "0")
	want = append(want, "Added a 0")
	for i := 1; i <= 3; i++ {
		a = s.set(t, a, "v", fmt.Sprint(i))
		want = append(want, fmt.Sprintf("Modified a %d", i))
	}
	b := s.create(t, "b", "v", "0")
	if err := s.maps.Delete(s.ctx, s.Namespace, a.Name); err != nil {
		t.Fatal(err)
	}
	s.set(t, b, "v", "1")
	s.create(t, "a", "v", "again")
	return meta.ResourceVersion, append(want, "Added b 0", "Deleted a 3", "Modified b 1", "Added a again")
}

func testWatchOrder(t *testing.T, s *suite) {
	start, want := s.history(t)
	got, versions := s.watch(t, s.Client, client.WatchOptions{ResourceVersion: start}, len(want))
	equalSlices(t, "events", got, want)
	seen := map[string]bool{start: true}
	for _, v := range versions {
		if seen[v] {
			t.Errorf("two events of one revision: %v", versions)
		}
		seen[v] = true
	}
}

func testWatchInitial(t *testing.T, s *suite) {
	s.create(t, "a", "v", "1")
	s.create(t, "b", "v", "1")
	got, versions := s.watch(t, s.Client, client.WatchOptions{SendInitialEvents: true, AllowBookmarks: true}, 3)
	equalSlices(t, "initial state", got, []string{"Added a 1", "Added b 1", "Bookmark"})
	c := s.create(t, "c", "v", "1")
	s.set(t, c, "v", "2")
	got, _ = s.watch(t, s.Client, client.WatchOptions{ResourceVersion: versions[2]}, 2)
	equalSlices(t, "after the bookmark", got, []string{"Added c 1", "Modified c 2"})
	got, _ = s.watch(t, s.Client, client.WatchOptions{}, 3)
	equalSlices(t, "without a resourceVersion", got, []string{"Added a 1", "Added b 1", "Added c 2"})
	got, _ = s.watch(t, s.Client, client.WatchOptions{Name: s.prefix + "b"}, 1)
	equalSlices(t, "of one object", got, []string{"Added b 1"})
}

func testWatchSelector(t *testing.T, s *suite) {
	_, meta := s.list(t, client.ListOptions{})
	cm := s.create(t, "a", "v", "0")
	for i, on := range []string{"yes", "yes", "no", "no", "yes"} {
		cm = cm.DeepCopy()
		cm.Labels["on"] = on
		cm = s.set(t, cm, "v", fmt.Sprint(i+1))
	}
	if err := s.maps.Delete(s.ctx, s.Namespace, cm.Name); err != nil {
		t.Fatal(err)
	}
	o := client.WatchOptions{ResourceVersion: meta.ResourceVersion, LabelSelector: s.selector() + ",on=yes"}
	got, _ := s.watch(t, s.Client, o, 5)
	// What leaves the selection is reported as deleted, in the state in which it
	// last belonged to it.
	equalSlices(t, "events", got, []string{"Added a 1", "Modified a 2", "Deleted a 2", "Added a 5", "Deleted a 5"})
}

func testWatchResume(t *testing.T, s *suite) {
	start, want := s.history(t)
	_, versions := s.watch(t, s.Client, client.WatchOptions{ResourceVersion: start}, len(want))
	for i, v := range versions {
		got, _ := s.watch(t, s.Client, client.WatchOptions{ResourceVersion: v}, len(want)-i-1)
		equalSlices(t, fmt.Sprintf("events after event %d", i), got, want[i+1:])
	}
}

func testWatchExpired(t *testing.T, s *suite) {
	if s.Compact == nil {
		return // this server's history is not ours to end.
	}
	start, _ := s.history(t)
	s.Compact()
	for _, err := range s.maps.Watch(s.ctx, client.WatchOptions{Namespace: s.Namespace, ResourceVersion: start}) {
		wants(t, "watch from a forgotten revision", apierrors.IsResourceExpired, err)
		return
	}
	t.Error("the watch ended without an error")
}

func testTraceparent(t *testing.T, s *suite) {
	_, meta := s.list(t, client.ListOptions{})
	const id = "0af7651916cd43dd8448eb211c80319c"
	traced := metadata.AppendToOutgoingContext(s.ctx, "traceparent", "00-"+id+"-b7ad6b7169203331-01")
	cm := must(s.maps.Create(traced, s.configMap("a")))(t)
	results := must(s.Client.Commit(s.ctx, client.DeleteWrite[*corev1.ConfigMap](s.Namespace, cm.Name).
		WithTraceparent("00-"+id+"-b7ad6b7169203332-01")))(t)
	if results[0].Err != nil {
		t.Fatal(results[0].Err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	n := 0
	for ev, err := range s.maps.Watch(ctx, client.WatchOptions{Namespace: s.Namespace, LabelSelector: s.selector(), ResourceVersion: meta.ResourceVersion}) {
		ev := must(ev, err)(t)
		if ev.Type == client.Bookmark {
			continue
		}
		if !strings.Contains(ev.Traceparent, id) {
			t.Errorf("%s: traceparent %q", ev.Type, ev.Traceparent)
		}
		if n++; n == 2 {
			return
		}
	}
}
