package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/watchcache"
)

var maps = pipeline.Target{Resource: configMapGVR, Namespace: "ns"}

func names(l *pipeline.List) (out []string) {
	for _, it := range l.Items {
		out = append(out, it.Object().GetName())
	}
	return out
}

func TestListSelects(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	f.mustCreate(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "other"}})
	for _, name := range []string{"a", "b"} {
		p := pod(name)
		p.Labels = map[string]string{"name": name}
		p.Spec.NodeName = "node-" + name
		f.mustCreate(p)
	}
	p := pod("c")
	p.Namespace = "other"
	f.mustCreate(p)
	all := pipeline.Target{Resource: podGVR}
	for name, test := range map[string]struct {
		target pipeline.Target
		o      pipeline.ListOptions
		want   string
	}{
		"all":                 {all, pipeline.ListOptions{}, "[a b c]"},
		"namespace":           {pipeline.Target{Resource: podGVR, Namespace: "other"}, pipeline.ListOptions{}, "[c]"},
		"label":               {all, pipeline.ListOptions{LabelSelector: "name in (a,x)"}, "[a]"},
		"no label":            {all, pipeline.ListOptions{LabelSelector: "!name"}, "[c]"},
		"field":               {all, pipeline.ListOptions{FieldSelector: "spec.nodeName=node-b"}, "[b]"},
		"not field":           {all, pipeline.ListOptions{FieldSelector: "spec.nodeName!=node-b"}, "[a c]"},
		"name":                {all, pipeline.ListOptions{FieldSelector: "metadata.name=a"}, "[a]"},
		"namespace and name":  {all, pipeline.ListOptions{FieldSelector: "metadata.namespace=ns,metadata.name=b"}, "[b]"},
		"contradicting names": {pipeline.Target{Resource: podGVR, Namespace: "ns"}, pipeline.ListOptions{FieldSelector: "metadata.name=a,metadata.name=b"}, "[]"},
		"other namespace":     {pipeline.Target{Resource: podGVR, Namespace: "ns"}, pipeline.ListOptions{FieldSelector: "metadata.namespace=other"}, "[]"},
		"label and field":     {all, pipeline.ListOptions{LabelSelector: "name", FieldSelector: "metadata.name!=a"}, "[b]"},
	} {
		list, err := f.List(f.ctx, test.target, test.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := fmt.Sprint(names(list)); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

func TestListIsRefused(t *testing.T) {
	f := newFixture(t)
	for name, test := range map[string]struct {
		target pipeline.Target
		o      pipeline.ListOptions
		code   int32
		text   string
	}{
		"unknown field of pods":        {pipeline.Target{Resource: podGVR}, pipeline.ListOptions{FieldSelector: "spec.foo=x"}, 400, "field label not supported: spec.foo"},
		"unknown field":                {maps, pipeline.ListOptions{FieldSelector: "data.x=y"}, 400, `"data.x" is not a known field selector: only "metadata.name", "metadata.namespace"`},
		"field syntax":                 {maps, pipeline.ListOptions{FieldSelector: "metadata.name"}, 400, "invalid selector"},
		"label syntax":                 {maps, pipeline.ListOptions{LabelSelector: "a in b"}, 400, "unable to parse requirement"},
		"unknown field of jobs":        {pipeline.Target{Resource: metav1GVR("batch", "jobs")}, pipeline.ListOptions{FieldSelector: "spec.foo=x"}, 400, `field label "spec.foo" not supported for Job`},
		"unknown field of replicasets": {pipeline.Target{Resource: metav1GVR("apps", "replicasets")}, pipeline.ListOptions{FieldSelector: "spec.foo=x"}, 400, `"spec.foo" is not a known field selector: only "metadata.name", "metadata.namespace"`},
		"options before fields":        {maps, pipeline.ListOptions{FieldSelector: "data.x=y", ResourceVersionMatch: "Exact"}, 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"syntax before options":        {maps, pipeline.ListOptions{FieldSelector: "x", ResourceVersionMatch: "Exact"}, 400, "invalid selector"},
		"match alone":                  {maps, pipeline.ListOptions{ResourceVersionMatch: "Exact"}, 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"exact zero":                   {maps, pipeline.ListOptions{ResourceVersionMatch: "Exact", ResourceVersion: "0"}, 422, `resourceVersionMatch "exact" is forbidden for resourceVersion "0"`},
		"bad match":                    {maps, pipeline.ListOptions{ResourceVersionMatch: "Roughly", ResourceVersion: "1"}, 422, `resourceVersionMatch: Unsupported value: "Roughly"`},
		"bad version":                  {maps, pipeline.ListOptions{ResourceVersion: "x"}, 422, "resourceVersion: Invalid value"},
		"bad token":                    {maps, pipeline.ListOptions{Continue: "x"}, 400, "invalid continue token: continue key is not valid: illegal base64"},
		"token and version":            {maps, pipeline.ListOptions{Continue: "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0", ResourceVersion: "3"}, 400, "specifying resource version is not allowed when using continue"},
		"namespaced":                   {pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("nodes"), Namespace: "ns"}, pipeline.ListOptions{}, 400, "not namespaced"},
		"virtual": {pipeline.Target{Resource: metav1GVR("authentication.k8s.io", "tokenreviews")}, pipeline.ListOptions{}, 405,
			"list is not supported on resources of kind"},
	} {
		_, err := f.List(f.ctx, test.target, test.o)
		t.Run(name, func(t *testing.T) { wantStatus(t, err, test.code, reasonOf(test.code), test.text) })
	}
}

func TestPages(t *testing.T) {
	f := newFixture(t)
	for i := range 7 {
		f.mustCreate(configMap("m" + strconv.Itoa(i)))
	}
	first, err := f.List(f.ctx, maps, pipeline.ListOptions{Limit: 3})
	if err != nil || len(first.Items) != 3 || first.Continue == "" || *first.Remaining != 4 {
		t.Fatalf("%+v, %v", first, err)
	}
	f.mustCreate(configMap("m3a"))
	if _, err := f.delete(configMap("m4")); err != nil {
		t.Fatal(err)
	}
	got := names(first)
	page := first
	for page.Continue != "" {
		if page, err = f.List(f.ctx, maps, pipeline.ListOptions{Limit: 3, Continue: page.Continue}); err != nil {
			t.Fatal(err)
		}
		if page.Revision != first.Revision {
			t.Errorf("a page of revision %d in a list of %d", page.Revision, first.Revision)
		}
		got = append(got, names(page)...)
	}
	if want := "[m0 m1 m2 m3 m4 m5 m6]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	selected, err := f.List(f.ctx, maps, pipeline.ListOptions{Limit: 2, LabelSelector: "x!=y"})
	if err != nil || selected.Remaining != nil || selected.Continue == "" {
		t.Errorf("list with a selector: %+v, %v", selected, err)
	}
	if any, err := f.List(f.ctx, maps, pipeline.ListOptions{Limit: 2, ResourceVersion: "0"}); err != nil || len(any.Items) != 7 {
		t.Errorf("list at version 0, want no limit: %v, %v", any, err)
	}
}

func TestListAtRevisions(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(configMap("a"))
	old, err := f.List(f.ctx, maps, pipeline.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.mustCreate(configMap("b"))
	at := strconv.FormatInt(int64(old.Revision), 10)
	exact, err := f.List(f.ctx, maps, pipeline.ListOptions{ResourceVersion: at, ResourceVersionMatch: "Exact"})
	if err != nil || len(exact.Items) != 1 || exact.Revision != old.Revision {
		t.Errorf("exact: %+v, %v", exact, err)
	}
	for _, o := range []pipeline.ListOptions{{}, {ResourceVersion: at}, {ResourceVersion: at, ResourceVersionMatch: "NotOlderThan"}} {
		if l, err := f.List(f.ctx, maps, o); err != nil || len(l.Items) != 2 {
			t.Errorf("%+v: %v, %v", o, l, err)
		}
	}
	if legacy, err := f.List(f.ctx, maps, pipeline.ListOptions{ResourceVersion: at, Limit: 5}); err != nil || len(legacy.Items) != 1 {
		t.Errorf("list with a limit, want the exact version: %v, %v", legacy, err)
	}
	_, err = f.List(f.ctx, maps, pipeline.ListOptions{ResourceVersion: "9999"})
	wantStatus(t, err, 504, metav1.StatusReasonTimeout, "Too large resource version: 9999, current: ")
	if !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("%v has no cause", err)
	}
	_, err = f.Get(f.ctx, f.target(configMap("a")), pipeline.GetOptions{ResourceVersion: "9999"})
	wantStatus(t, err, 504, metav1.StatusReasonTimeout, "Too large resource version: 9999, current: ")
}

func TestExpiredPages(t *testing.T) {
	f := newFixture(t)
	for i := range 4 {
		f.mustCreate(configMap("m" + strconv.Itoa(i)))
	}
	first, err := f.List(f.ctx, maps, pipeline.ListOptions{Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 150 { // more than the watch cache keeps
		cm := configMap("filler")
		cm.Labels = map[string]string{"n": strconv.Itoa(i)}
		f.mustCreate(cm)
		if _, err := f.delete(cm); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.List(f.ctx, maps, pipeline.ListOptions{}); err != nil { // lets the cache catch up
		t.Fatal(err)
	}
	page, err := f.List(f.ctx, maps, pipeline.ListOptions{Limit: 9, Continue: first.Continue})
	if err != nil || fmt.Sprint(names(page)) != "[m2 m3]" {
		t.Fatalf("page from the store: %v, %v", page, err)
	}
	rev, err := f.store.Revision(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.Compact(f.ctx, rev); err != nil {
		t.Fatal(err)
	}
	_, err = f.List(f.ctx, maps, pipeline.ListOptions{Limit: 9, Continue: first.Continue})
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "The provided continue parameter is too old to display a consistent list result")
	se, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || se.ErrStatus.ListMeta.Continue == "" {
		t.Fatalf("no continue token: %v", err)
	}
	page, err = f.List(f.ctx, maps, pipeline.ListOptions{Continue: se.ErrStatus.ListMeta.Continue})
	if err != nil || fmt.Sprint(names(page)) != "[m2 m3]" {
		t.Errorf("inconsistent page: %v, %v", page, err)
	}
	_, err = f.List(f.ctx, maps, pipeline.ListOptions{ResourceVersion: strconv.FormatInt(int64(first.Revision), 10), ResourceVersionMatch: "Exact"})
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "The resourceVersion for the provided list is too old.")
}

// collect reads events until there are n.
func collect(t *testing.T, w pipeline.Watch, n int) (out []*watchcache.Event) {
	t.Helper()
	for len(out) < n {
		events, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, events...)
	}
	return out
}

func describeEvents(events []*watchcache.Event) string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString([]string{"", "+", "~", "-", "|"}[e.Type])
		if e.Item != nil {
			b.WriteString(e.Item.Object().GetName())
		}
		if e.InitialEnd {
			b.WriteString("end")
		}
		b.WriteByte(' ')
	}
	return strings.TrimSpace(b.String())
}

func TestWatch(t *testing.T) {
	f := newFixture(t)
	a := f.mustCreate(configMap("a")).(*corev1.ConfigMap)
	list, err := f.List(f.ctx, maps, pipeline.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := strconv.FormatInt(int64(list.Revision), 10)
	b := configMap("b")
	b.Labels = map[string]string{"x": "y"}
	f.mustCreate(b)
	if _, err := f.update(configMap("a", "k", "v"), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := f.delete(a); err != nil {
		t.Fatal(err)
	}
	if _, err := f.update(configMap("b"), ""); err != nil { // loses its label
		t.Fatal(err)
	}
	if _, err := f.List(f.ctx, maps, pipeline.ListOptions{}); err != nil { // lets the cache catch up
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		target pipeline.Target
		o      pipeline.WatchOptions
		want   string
	}{
		"from a revision": {maps, pipeline.WatchOptions{ResourceVersion: at}, "+b ~a -a ~b"},
		"by label":        {maps, pipeline.WatchOptions{ResourceVersion: at, LabelSelector: "x=y"}, "+b -b"},
		"by name":         {maps, pipeline.WatchOptions{ResourceVersion: at, FieldSelector: "metadata.name=a"}, "~a -a"},
		"one object":      {f.target(a), pipeline.WatchOptions{ResourceVersion: at}, "~a -a"},
		"present state":   {maps, pipeline.WatchOptions{}, "+b"},
		"any state":       {maps, pipeline.WatchOptions{ResourceVersion: "0"}, "+b"},
		"initial events":  {maps, pipeline.WatchOptions{SendInitialEvents: true, ResourceVersionMatch: "NotOlderThan", AllowBookmarks: true}, "+b |end"},
	} {
		w, err := f.Watch(f.ctx, test.target, test.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		events := collect(t, w, len(strings.Fields(test.want)))
		if got := describeEvents(events); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
		if !slices.IsSortedFunc(events, func(a, b *watchcache.Event) int { return int(a.Revision - b.Revision) }) {
			t.Errorf("%s: not in order", name)
		}
		w.Close()
	}
	w, err := f.Watch(f.ctx, maps, pipeline.WatchOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	// Without initial events, a watch starts with the next event.
	for i, rv := range []string{"", "0", at} {
		w, err := f.Watch(f.ctx, maps, pipeline.WatchOptions{ResourceVersion: rv, NoInitialEvents: true})
		if err != nil {
			t.Fatal(err)
		}
		next := "later" + strconv.Itoa(i)
		f.mustCreate(configMap(next))
		want := "+" + next
		if rv == at {
			want = "+b"
		}
		if got := describeEvents(collect(t, w, 1)[:1]); got != want {
			t.Errorf("no initial events from %q: got %s, want %s", rv, got, want)
		}
		w.Close()
	}
	_, err = f.Watch(f.ctx, maps, pipeline.WatchOptions{FieldSelector: "data.x=y"})
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "is not a known field selector")
	_, err = f.Watch(f.ctx, maps, pipeline.WatchOptions{ResourceVersionMatch: "Exact", SendInitialEvents: true})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "resourceVersionMatch")
}

func TestExpiredWatch(t *testing.T) {
	f := newFixture(t)
	for range 150 {
		cm := f.mustCreate(configMap("filler"))
		if _, err := f.delete(cm); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.List(f.ctx, maps, pipeline.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := f.Watch(f.ctx, maps, pipeline.WatchOptions{ResourceVersion: "2"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = w.Next(f.ctx)
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "too old resource version: 2 (")
	ctx, cancel := context.WithCancel(f.ctx)
	w, err = f.Watch(ctx, maps, pipeline.WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestEventsInTwoVersions reads and writes the same objects in both of their versions.
func TestEventsInTwoVersions(t *testing.T) {
	f := newFixture(t)
	target := pipeline.Target{Resource: eventsv1.SchemeGroupVersion.WithResource("events"), Namespace: "ns"}
	w, err := f.Watch(f.ctx, target, pipeline.WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f.mustCreate(&corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "ns"}, InvolvedObject: corev1.ObjectReference{Namespace: "ns", Name: "p"},
		Reason: "Because", Message: "it happened", Type: "Normal", Count: 3,
	})
	target.Name = "e"
	out, err := f.Get(f.ctx, target, pipeline.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := out.Item.Object().(*eventsv1.Event)
	decoded := &eventsv1.Event{}
	if e.Note != "it happened" || e.Regarding.Name != "p" || decoded.Unmarshal(out.Item.Raw) != nil || decoded.Note != e.Note || decoded.ResourceVersion == "" {
		t.Errorf("%+v", e)
	}
	events := collect(t, w, 1)
	if seen, ok := events[0].Item.Object().(*eventsv1.Event); !ok || seen.Note != e.Note {
		t.Errorf("watched %T", events[0].Item.Object())
	}
	second := f.mustCreate(&eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e2", Namespace: "ns"}, EventTime: metav1.NowMicro(), Regarding: corev1.ObjectReference{Namespace: "ns", Name: "p"},
		ReportingController: "example.com/c", ReportingInstance: "c-0", Action: "Look", Reason: "Because", Type: "Normal", Note: "so be it",
	})
	if got := get(f, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e2", Namespace: "ns"}}); got.Message != "so be it" || got.UID != second.GetUID() {
		t.Errorf("%+v", got)
	}
	if _, err := f.delete(second); err != nil {
		t.Error(err)
	}
}
