package resourcequota

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/controller"
)

// TestInterruptedWatchHidesNoCharge has events that span this controller's own update of a
// quota, from 5 pods to 2, as they arrive after a watch was interrupted.
func TestInterruptedWatchHidesNoCharge(t *testing.T) {
	pods := func(n int64) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(n, resource.DecimalSI)}
	}
	q := func(uid, version string, n int64) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q", UID: types.UID(uid), ResourceVersion: version},
			Status:     corev1.ResourceQuotaStatus{Used: pods(n)},
		}
	}
	key := controller.Key{Namespace: "default", Name: "q"}
	for name, c := range map[string]struct {
		from, to *corev1.ResourceQuota
		want     string // charged
	}{
		"the own update alone":             {q("u", "5", 5), q("u", "6", 2), "0"},
		"a charge after the own update":    {q("u", "5", 5), q("u", "7", 3), "1"},
		"several charges after it":         {q("u", "5", 5), q("u", "9", 7), "5"},
		"a charge, the update conflicted":  {q("u", "5", 5), q("u", "6", 6), "4"}, // more than was charged, which is safe
		"a charge, watched without a gap":  {q("u", "6", 2), q("u", "7", 3), "1"},
		"another quota with the same name": {q("u", "5", 5), q("new", "9", 7), "0"},
	} {
		t.Run(name, func(t *testing.T) {
			at := time.Unix(1000, 0)
			r := &reconciler{window: time.Minute, now: func() time.Time { return at }, follows: map[controller.Key]*charges{}}
			r.ofQuota(client.Event[*corev1.ResourceQuota]{Type: client.Added, Object: q("u", "5", 5)})
			at = at.Add(time.Hour)
			r.writing(key, "5", pods(2))
			r.ofQuota(client.Event[*corev1.ResourceQuota]{Type: client.Modified, Object: c.to, Old: c.from})
			used, lower, _ := r.pending(key, at)
			got := used[corev1.ResourcePods]
			if got.String() != c.want {
				t.Errorf("charged %s, want %s", got.String(), c.want)
			}
			if fresh := c.to.UID == "new"; lower == fresh {
				t.Errorf("usage may be lowered: %v", lower)
			}
		})
	}
}
