package usage

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestWalksRest checks that walks of many directories together take a bounded share of the
// time, and that those of pods that are gone no longer count.
func TestWalksRest(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	m := &Meter{disks: newDisks(), now: func() time.Time { at = at.Add(500 * time.Millisecond); return at }} // so that a walk takes 0.5 s
	pods := []*corev1.Pod{{}, {}}
	pods[0].UID, pods[1].UID = "a", "b"
	dirs := []string{t.TempDir(), t.TempDir()}
	walks := func() (n int) {
		for i, dir := range dirs {
			before := m.disks.walked[dir].at
			if m.walk(t.Context(), pods[i], dir, time.Second); m.disks.walked[dir].at != before {
				n++
			}
		}
		return n
	}
	if n := walks(); n != 2 {
		t.Fatalf("%d walks, want 2", n)
	}
	at = at.Add(10 * time.Second) // enough for one directory alone
	if n := walks(); n != 0 {
		t.Errorf("%d walks within 20 s", n)
	}
	at = at.Add(10 * time.Second)
	if n := walks(); n != 2 || m.disks.took != time.Second {
		t.Errorf("%d walks after 20 s, which took %s", n, m.disks.took)
	}
	m.disks.keep(pods[:1])
	if m.disks.took != 500*time.Millisecond || len(m.disks.walked) != 1 {
		t.Errorf("after a pod is gone: %s of %d", m.disks.took, len(m.disks.walked))
	}
}
