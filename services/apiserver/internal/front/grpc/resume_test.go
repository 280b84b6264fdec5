package grpc_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	front "keelson.dev/services/apiserver/internal/front/grpc"
)

// TestEndedWatchesResumeWithoutLoss checks that a client's cache misses no change, and sees none
// twice, if the server ends watches repeatedly.
func TestEndedWatchesResumeWithoutLoss(t *testing.T) {
	const objects = 40 // all of whose changes are in the server's history
	c := dial(t, serve(t, func(s *front.Service) { s.MinWatch = time.Millisecond }))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cache := client.NewCache[*corev1.ConfigMap](c, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	var mu sync.Mutex
	seen := map[string][]string{}
	cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) {
		mu.Lock()
		defer mu.Unlock()
		name := ev.Object.Name
		seen[name] = append(seen[name], fmt.Sprint(ev.Type, " ", ev.Object.Data["n"]))
	})
	ran := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { ran <- cache.Run(running) }()
	<-cache.Synced()

	maps := client.For[*corev1.ConfigMap](c)
	var last string
	for i := range objects {
		obj, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c" + strconv.Itoa(i)}, Data: map[string]string{"n": "1"}})
		if err != nil {
			t.Fatal(err)
		}
		obj.Data["n"] = "2"
		if obj, err = maps.Update(ctx, obj); err != nil {
			t.Fatal(err)
		}
		if err := maps.Delete(ctx, obj.Namespace, obj.Name); err != nil {
			t.Fatal(err)
		}
		obj = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "last"}, Data: map[string]string{"n": strconv.Itoa(i)}}
		if obj, err = maps.Apply(ctx, obj, "test"); err != nil {
			t.Fatal(err)
		}
		last = obj.ResourceVersion
	}
	revision, err := strconv.ParseUint(last, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for cache.Revision() < revision {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the cache is at revision %d of %d: %v", cache.Revision(), revision, cache.Err())
		}
	}
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range objects {
		if got, want := seen["c"+strconv.Itoa(i)], []string{"Added 1", "Modified 2", "Deleted 2"}; !slices.Equal(got, want) {
			t.Errorf("c%d: %v; want %v", i, got, want)
		}
	}
	if got := len(seen["last"]); got != objects {
		t.Errorf("got %d changes of one object, want %d", got, objects)
	}
}
