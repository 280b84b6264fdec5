package quota_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/internal/quota"
)

var now = time.Unix(1.8e9, 0)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func gr(name string) schema.GroupResource { return schema.ParseGroupResource(name) }

func container(requests, limits corev1.ResourceList) corev1.Container {
	return corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func TestUsage(t *testing.T) {
	class := "gold"
	off := false
	grace := int64(30)
	past := metav1.NewTime(now.Add(-time.Minute))
	spec := corev1.PodSpec{
		Containers:     []corev1.Container{container(list("cpu", "1", "memory", "1Gi", "example.com/gpu", "2", "hugepages-2Mi", "4Mi"), list("cpu", "2"))},
		InitContainers: []corev1.Container{container(list("cpu", "3"), nil)},
		Overhead:       list("cpu", "100m"),
	}
	for name, c := range map[string]struct {
		resource string
		obj      any
		want     corev1.ResourceList
	}{
		"any kind":  {"deployments.apps", nil, list("count/deployments.apps", "1")},
		"an alias":  {"secrets", &corev1.Secret{}, list("count/secrets", "1", "secrets", "1")},
		"a service": {"services", &corev1.Service{}, list("count/services", "1", "services", "1", "services.nodeports", "0", "services.loadbalancers", "0")},
		"node ports": {"services", &corev1.Service{Spec: corev1.ServiceSpec{Type: "NodePort", Ports: make([]corev1.ServicePort, 3)}},
			list("count/services", "1", "services", "1", "services.nodeports", "3", "services.loadbalancers", "0")},
		"a load balancer": {"services", &corev1.Service{Spec: corev1.ServiceSpec{Type: "LoadBalancer", Ports: make([]corev1.ServicePort, 2)}},
			list("count/services", "1", "services", "1", "services.nodeports", "2", "services.loadbalancers", "1")},
		"a load balancer without ports": {"services", &corev1.Service{Spec: corev1.ServiceSpec{
			Type: "LoadBalancer", AllocateLoadBalancerNodePorts: &off, Ports: []corev1.ServicePort{{}, {NodePort: 30000}}}},
			list("count/services", "1", "services", "1", "services.nodeports", "1", "services.loadbalancers", "1")},
		"a claim": {"persistentvolumeclaims", &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: list("storage", "1500m")}}},
			list("count/persistentvolumeclaims", "1", "persistentvolumeclaims", "1", "requests.storage", "2",
				"gold.storageclass.storage.k8s.io/persistentvolumeclaims", "1", "gold.storageclass.storage.k8s.io/requests.storage", "2")},
		"a pod": {"pods", &corev1.Pod{Spec: spec}, list("count/pods", "1", "pods", "1", "cpu", "3100m", "requests.cpu", "3100m", "limits.cpu", "2100m",
			"memory", "1Gi", "requests.memory", "1Gi", "requests.example.com/gpu", "2", "hugepages-2Mi", "4Mi", "requests.hugepages-2Mi", "4Mi")},
		"a pod that ended": {"pods", &corev1.Pod{Spec: spec, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, list("count/pods", "1")},
		"a pod that should have ended": {"pods", &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &past, DeletionGracePeriodSeconds: &grace}, Spec: spec}, list("count/pods", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			got := quota.Usage(gr(c.resource), c.obj, now)
			if !equality.Semantic.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			for name := range got {
				if !quota.Uses(gr(c.resource), name) {
					t.Errorf("Uses(%s, %s) is false, although Usage contains it", c.resource, name)
				}
			}
		})
	}
}

func TestCharge(t *testing.T) {
	deadline := int64(5)
	besteffort := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	high := &corev1.Pod{Spec: corev1.PodSpec{PriorityClassName: "high", ActiveDeadlineSeconds: &deadline, Containers: []corev1.Container{container(list("cpu", "1"), nil)}}}
	across := &corev1.Pod{Spec: corev1.PodSpec{Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{Namespaces: []string{"x"}}}}}}}
	selector := func(scope corev1.ResourceQuotaScope, op corev1.ScopeSelectorOperator, values ...string) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: scope, Operator: op, Values: values}}}}
	}
	scopes := func(s ...corev1.ResourceQuotaScope) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{Scopes: s}
	}
	for name, c := range map[string]struct {
		spec       corev1.ResourceQuotaSpec
		hard, used corev1.ResourceList
		resource   string
		obj, old   any
		want       corev1.ResourceList
		err        string
	}{
		"counted":           {hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high, want: list("pods", "1")},
		"not limited":       {hard: list("secrets", "1"), used: list("secrets", "0"), resource: "pods", obj: high},
		"no usage yet":      {hard: list("pods", "1"), resource: "pods", obj: high, err: "status unknown for quota: q, resources: pods"},
		"unspecified":       {hard: list("limits.cpu", "1"), used: list("limits.cpu", "0"), resource: "pods", obj: high, err: "failed quota: q: must specify limits.cpu for: c"},
		"best effort":       {spec: scopes("BestEffort"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: besteffort, want: list("pods", "1")},
		"not best effort":   {spec: scopes("BestEffort"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high},
		"terminating":       {spec: scopes("Terminating", "NotBestEffort"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high, want: list("pods", "1")},
		"not terminating":   {spec: scopes("NotTerminating"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high},
		"in a class":        {spec: selector("PriorityClass", "In", "high"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high, want: list("pods", "1")},
		"in another class":  {spec: selector("PriorityClass", "NotIn", "high"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: high},
		"without a class":   {spec: selector("PriorityClass", "DoesNotExist"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: besteffort, want: list("pods", "1")},
		"across namespaces": {spec: scopes("CrossNamespacePodAffinity"), hard: list("pods", "1"), used: list("pods", "0"), resource: "pods", obj: across, want: list("pods", "1")},
		"no scopes":         {spec: scopes("Terminating"), hard: list("secrets", "1"), used: list("secrets", "0"), resource: "secrets", obj: &corev1.Secret{}},
		"a change": {hard: list("services.nodeports", "5"), used: list("services.nodeports", "1"), resource: "services",
			obj:  &corev1.Service{Spec: corev1.ServiceSpec{Type: "NodePort", Ports: make([]corev1.ServicePort, 3)}},
			old:  &corev1.Service{Spec: corev1.ServiceSpec{Type: "NodePort", Ports: make([]corev1.ServicePort, 1)}},
			want: list("services.nodeports", "2")},
		"less": {hard: list("services.nodeports", "5"), used: list("services.nodeports", "1"), resource: "services",
			obj: &corev1.Service{}, old: &corev1.Service{Spec: corev1.ServiceSpec{Type: "NodePort", Ports: make([]corev1.ServicePort, 1)}}},
	} {
		t.Run(name, func(t *testing.T) {
			q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: c.spec,
				Status: corev1.ResourceQuotaStatus{Hard: c.hard, Used: c.used}}
			got, err := quota.Charge(q, gr(c.resource), c.obj, c.old, now)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got error %v", err)
				}
				return
			}
			if err != nil || !equality.Semantic.DeepEqual(got, c.want) && len(got)+len(c.want) > 0 {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestExceeded(t *testing.T) {
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Status: corev1.ResourceQuotaStatus{
		Hard: list("pods", "2", "cpu", "1"), Used: list("pods", "2", "cpu", "500m")}}
	if err := quota.Exceeded(q, list("cpu", "500m")); err != nil {
		t.Error(err)
	}
	err := quota.Exceeded(q, list("cpu", "501m", "pods", "1"))
	if want := "exceeded quota: q, requested: cpu=501m,pods=1, used: cpu=500m,pods=2, limited: cpu=1,pods=2"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
