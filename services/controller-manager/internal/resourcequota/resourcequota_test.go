package resourcequota_test

import (
	"testing"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/resourcequota"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/quota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

// TestPeriodEndsBeforeUsageIsLowered has a quota of which more is used than is stored.
func TestPeriodEndsBeforeUsageIsLowered(t *testing.T) {
	w := Start(t)
	q := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"},
		Spec:       corev1.ResourceQuotaSpec{Hard: list("configmaps", "5")},
		Status:     corev1.ResourceQuotaStatus{Hard: list("configmaps", "5"), Used: list("configmaps", "3")},
	}
	Create(w, q)
	w.Run(resourcequota.New(w.Cluster))
	w.Eventually("usage is lowered to what is stored", func() bool {
		used := Get[*corev1.ResourceQuota](w, "default", "q").Status.Used["configmaps"]
		return used.String() == "0"
	})
	if l := Get[*coordinationv1.Lease](w, quota.PeriodNamespace, quota.PeriodLease); l == nil || *l.Spec.HolderIdentity != quota.PeriodHolder {
		t.Errorf("usage was lowered without the end of a period: %v", l)
	}
}

func TestCountsStoredObjects(t *testing.T) {
	w := Start(t)
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: list("cpu", "100m")}}}},
		}
	}
	Create(w, pod("a"))
	Create(w, pod("b"))
	Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}})
	Create(w, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}, {Port: 81}}},
	})
	w.Run(resourcequota.New(w.Cluster))
	Create(w, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"},
		Spec: corev1.ResourceQuotaSpec{Hard: list("pods", "5", "requests.cpu", "1", "configmaps", "5", "count/configmaps", "5",
			"services.nodeports", "3", "count/deployments.apps", "1")},
	})
	want := map[corev1.ResourceName]string{
		"pods": "2", "requests.cpu": "200m", "configmaps": "1", "count/configmaps": "1", "services.nodeports": "2", "count/deployments.apps": "0",
	}
	shows := func() bool {
		s := Get[*corev1.ResourceQuota](w, "default", "q").Status
		for name, value := range want {
			if q, ok := s.Used[name]; !ok || q.String() != value {
				return false
			}
		}
		return len(s.Hard) == len(want)
	}
	w.Eventually("all objects are counted", shows)
	Update(w, "default", "a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, client.Subresource("status"))
	want["pods"], want["requests.cpu"] = "1", "100m"
	w.Eventually("the finished pod is no longer counted", shows)
}

// TestChangesOfPodsAreCounted changes a pod so that it uses less, or leaves a scope, which
// charges nothing.
func TestChangesOfPodsAreCounted(t *testing.T) {
	w := Start(t)
	w.Run(resourcequota.New(w.Cluster))
	Create(w, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Generation: 1},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: list("cpu", "500m")}}}},
	})
	Create(w, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"},
		Spec: corev1.ResourceQuotaSpec{
			Hard: list("pods", "5", "requests.cpu", "1"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeNotTerminating},
		},
	})
	shows := func(pods, cpu string) func() bool {
		return func() bool {
			used := Get[*corev1.ResourceQuota](w, "default", "q").Status.Used
			p, c := used["pods"], used["requests.cpu"]
			return len(used) == 2 && p.String() == pods && c.String() == cpu
		}
	}
	w.Eventually("the pod is counted", shows("1", "500m"))
	Update(w, "default", "a", func(p *corev1.Pod) {
		p.Generation++
		p.Spec.Containers[0].Resources.Requests = list("cpu", "200m")
	})
	w.Eventually("the smaller request is counted", shows("1", "200m"))
	Update(w, "default", "a", func(p *corev1.Pod) {
		seconds := int64(60)
		p.Generation++
		p.Spec.ActiveDeadlineSeconds = &seconds
	})
	w.Eventually("the pod is in another scope", shows("0", "0"))
}

// TestResourcesThatNoKindUses shows no usage for a resource that cannot be counted.
func TestResourcesThatNoKindUses(t *testing.T) {
	w := Start(t)
	w.Run(resourcequota.New(w.Cluster))
	Create(w, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"},
		Spec:       corev1.ResourceQuotaSpec{Hard: list("count/farms.example.com", "5", "count/leases.coordination.k8s.io", "5")},
	})
	w.Eventually("what is known is counted", func() bool {
		s := Get[*corev1.ResourceQuota](w, "default", "q").Status
		_, leases := s.Used["count/leases.coordination.k8s.io"]
		return len(s.Hard) == 2 && len(s.Used) == 1 && leases
	})
}
