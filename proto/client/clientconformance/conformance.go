// Package clientconformance is the suite of what every ResourceService must do for its
// clients. It runs against any *client.Client: against the in-memory server of clienttest
// here, and against a real apiserver elsewhere.
//
// It writes into one namespace only, a Lease among other things, and must never depend on
// whether a controller runs.
package clientconformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// Config is what the suite runs against.
type Config struct {
	// Client is a client of the server.
	Client *client.Client
	// Namespace is an existing namespace, in which the suite creates and deletes
	// ConfigMaps, Services and a Lease.
	Namespace string
	// Endpoint is the server's address, host:port.
	Endpoint string
	// Dial returns a client that connects to address as if it were Endpoint: the suite
	// puts a proxy between them, and cuts it.
	Dial func(t *testing.T, address string) *client.Client
	// Compact, if set, makes the server forget the changes so far, so that
	// watches expire.
	Compact func()
}

// Run runs the suite, as subtests of t.
func Run(t *testing.T, cfg Config) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"Create", testCreate},
		{"Update", testUpdate},
		{"Patch", testPatch},
		{"Apply", testApply},
		{"Status", testStatus},
		{"Delete", testDelete},
		{"Finalizers", testFinalizers},
		{"DeleteCollection", testDeleteCollection},
		{"DryRun", testDryRun},
		{"List", testList},
		{"Pages", testPages},
		{"Selectors", testSelectors},
		{"Metadata", testMetadata},
		{"WithoutManagedFields", testWithoutManagedFields},
		{"Repeat", testRepeat},
		{"Commit", testCommit},
		{"WatchOrder", testWatchOrder},
		{"WatchInitial", testWatchInitial},
		{"WatchSelector", testWatchSelector},
		{"WatchResume", testWatchResume},
		{"WatchExpired", testWatchExpired},
		{"Traceparent", testTraceparent},
		{"Errors", testErrors},
		{"Fence", testFence},
		{"Cache", testCache},
		{"CacheCut", testCacheCut},
		{"CacheExpired", testCacheExpired},
		{"Watches", testWatches},
		{"WatchesCut", testWatchesCut},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			s := &suite{
				Config: cfg, ctx: ctx,
				prefix: strings.ToLower(test.name) + "-",
				maps:   client.For[*corev1.ConfigMap](cfg.Client),
			}
			s.clear(t)
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				s.ctx = ctx
				s.clear(t)
			})
			test.run(t, s)
		})
	}
}

// suite is the view of one test, whose objects carry a label of their own.
type suite struct {
	Config

	ctx    context.Context
	prefix string
	maps   client.Resource[*corev1.ConfigMap]
}

const label = "clientconformance.keelson.dev/test"

func (s *suite) selector() string { return label + "=" + strings.TrimSuffix(s.prefix, "-") }

func (s *suite) clear(t *testing.T) {
	t.Helper()
	if _, err := s.maps.DeleteCollection(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector()}); err != nil {
		t.Fatalf("clear: %v", err)
	}
}

// configMap is an object that is not stored yet.
func (s *suite) configMap(name string, data ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: s.Namespace, Name: s.prefix + name,
		Labels: map[string]string{label: strings.TrimSuffix(s.prefix, "-")},
	}}
	for i := 0; i+1 < len(data); i += 2 {
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		cm.Data[data[i]] = data[i+1]
	}
	return cm
}

func (s *suite) create(t *testing.T, name string, data ...string) *corev1.ConfigMap {
	t.Helper()
	return must(s.maps.Create(s.ctx, s.configMap(name, data...)))(t)
}

func (s *suite) set(t *testing.T, cm *corev1.ConfigMap, key, value string) *corev1.ConfigMap {
	t.Helper()
	return s.setAs(t, s.ctx, cm, key, value)
}

func (s *suite) setAs(t *testing.T, ctx context.Context, cm *corev1.ConfigMap, key, value string) *corev1.ConfigMap { //nolint:revive // the test comes first, as everywhere here.
	t.Helper()
	cm = cm.DeepCopy()
	if cm.Data == nil {
		cm.Data = map[string]string{}
	}
	cm.Data[key] = value
	return must(s.maps.Update(ctx, cm))(t)
}

// must returns the value of a call that must not fail.
func must[V any](v V, err error) func(testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatalf("unexpected error: %v", err)
		}
		return v
	}
}

// wants checks the kind of an error.
func wants(t *testing.T, what string, is func(error) bool, err error) {
	t.Helper()
	if !is(err) {
		t.Errorf("%s: got error %v (%T)", what, err, err)
	}
}

func equal[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func equalSlices(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// describe is an event in a line: its type, the object's name and its data.
func describe(ev client.Event[*corev1.ConfigMap]) string {
	if ev.Type == client.Bookmark {
		return "Bookmark"
	}
	return fmt.Sprintf("%s %s %s", ev.Type, ev.Object.Name, ev.Object.Data["v"])
}
