package daemonset

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

func TestDelayDoublesUpToALimit(t *testing.T) {
	f, now, set := newFailures(), time.Unix(1000, 0), client.Key{Namespace: "default", Name: "agent"}
	if w := f.wait(set, "u", "n", now); w != 0 {
		t.Errorf("waits %v before the first failure", w)
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
		f.add(set, "u", "n", now)
		if w := f.wait(set, "u", "n", now); w != want*time.Second {
			t.Fatalf("waits %v, want %v", w, want*time.Second)
		}
		now = now.Add(want * time.Second)
		if w := f.wait(set, "u", "n", now); w != 0 {
			t.Fatalf("waits another %v after the delay has passed", w)
		}
	}
	if w := f.wait(set, "another", "n", now.Add(-time.Second)); w != 0 {
		t.Errorf("a new set of the same name waits %v", w)
	}
	now = now.Add(2*lastReplacement + time.Second)
	f.add(set, "u", "n", now)
	if w := f.wait(set, "u", "n", now); w != firstReplacement {
		t.Errorf("waits %v after a long time without failures, want %v", w, firstReplacement)
	}
}

// TestFailuresDoNotOutgrowTheCluster lets nodes come, fail their pods and go.
func TestFailuresDoNotOutgrowTheCluster(t *testing.T) {
	r, set := &reconciler{failures: newFailures()}, client.Key{Namespace: "default", Name: "agent"}
	for i := range 10_000 {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}}
		r.failures.add(set, "u", node.Name, time.Unix(int64(i), 0))
		r.forgetNode(client.Event[*corev1.Node]{Type: client.Deleted, Object: node})
	}
	if n := len(r.failures.sets[set].nodes); n != 0 {
		t.Errorf("%d entries of nodes that are gone", n)
	}
	r.failures.forgetSet(set)
	if n := len(r.failures.sets); n != 0 {
		t.Errorf("%d entries of sets that are gone", n)
	}
}
