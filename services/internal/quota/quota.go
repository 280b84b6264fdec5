// Package quota computes what objects use of a namespace's ResourceQuotas. The apiserver uses it
// to charge a write before the write is stored, and the quota controller to recount usage.
//
// # Charges
//
// A charge is a write of the quota's status that depends on the revision that was read, and
// precedes the write of the object. Concurrent writers, through any apiservers, therefore see
// each other's charges, and status.used never exceeds status.hard through them. A write that
// fails after its charge does not take it back: the writer and the controller could both take
// back the same charge, and then more objects would fit than the quota allows. The controller's
// next count corrects it.
//
// # Accounting periods
//
// A count must not miss objects that have been charged but are not stored yet, however long their
// writes take. Charges therefore belong to an accounting period, which is the revision of a key in
// the store: the fence of the Lease PeriodLease. An apiserver reads the period before it charges,
// and the write of the object depends on it, in one transaction. The controller changes used in
// this order:
//
//  1. It reads the quota, at revision R.
//  2. It ends the period, by taking the fence.
//  3. It counts, from consistent lists.
//  4. It writes the status, on the condition of R.
//
// Let a write commit that the count of step 3 did not see. Then it committed after step 2, so its
// period was read after step 2 and it was charged after that. If the charge precedes step 4, that
// fails, because the quota's revision is no longer R. If it follows, it is added to what step 4
// wrote. In neither case is a stored object missing from used. A write whose period has ended is
// charged again and takes its chance anew. Times play no part in this.
//
// The budget of an eviction is charged in the same way, and its controller ends the period before
// it gives up waiting for an eviction.
//
// The functions of this package are pure. Resource names and error texts are Kubernetes'.
package quota

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// PeriodNamespace and PeriodLease name the Lease whose fence is the accounting period. It is no
// election: any controller takes the fence to end the period, as PeriodHolder.
const (
	PeriodNamespace = "kube-system"
	PeriodLease     = "accounting-period"
	PeriodHolder    = "accounting"
)

var (
	pods     = schema.GroupResource{Resource: "pods"}
	services = schema.GroupResource{Resource: "services"}
	claims   = schema.GroupResource{Resource: "persistentvolumeclaims"}
)

// classSuffix follows the StorageClass's name in the names of resources that are limited per class.
const classSuffix = ".storageclass.storage.k8s.io/"

// aliases are the resource names for object counts that predate count/RESOURCE.GROUP.
var aliases = map[schema.GroupResource]corev1.ResourceName{
	{Resource: "configmaps"}:             corev1.ResourceConfigMaps,
	{Resource: "resourcequotas"}:         corev1.ResourceQuotas,
	{Resource: "replicationcontrollers"}: corev1.ResourceReplicationControllers,
	{Resource: "secrets"}:                corev1.ResourceSecrets,
	services:                             corev1.ResourceServices,
	claims:                               corev1.ResourcePersistentVolumeClaims,
}

// Counted reports whether quotas count objects of the resource. Events are not counted, because
// they expire, and bindings are not stored.
func Counted(gr schema.GroupResource) bool {
	return gr.Resource != "events" && gr.Resource != "bindings"
}

// CountName returns the name under which a quota limits the number of objects of a resource, such
// as "count/deployments.apps".
func CountName(gr schema.GroupResource) corev1.ResourceName {
	return corev1.ResourceName("count/" + gr.String())
}

// Uses reports whether objects of the resource can use the quota resource name.
func Uses(gr schema.GroupResource, name corev1.ResourceName) bool {
	if name == CountName(gr) || name == aliases[gr] && name != "" {
		return true
	}
	switch gr {
	case pods:
		return podName(name)
	case services:
		return name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case claims:
		_, of, class := strings.Cut(string(name), classSuffix)
		return name == corev1.ResourceRequestsStorage || class &&
			(of == string(corev1.ResourceRequestsStorage) || of == string(corev1.ResourcePersistentVolumeClaims))
	}
	return false
}

// Usage returns what an object uses. At now, a pod that is past the end of its grace period only
// counts as an object; see Alive.
func Usage(gr schema.GroupResource, obj any, now time.Time) corev1.ResourceList {
	used := corev1.ResourceList{CountName(gr): one()}
	if alias := aliases[gr]; alias != "" {
		used[alias] = one()
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		podUsage(o, used, now)
	case *corev1.Service:
		serviceUsage(&o.Spec, used)
	case *corev1.PersistentVolumeClaim:
		claimUsage(o, used)
	}
	return used
}

func one() resource.Quantity { return number(1) }

func number(n int) resource.Quantity { return *resource.NewQuantity(int64(n), resource.DecimalSI) }

func serviceUsage(s *corev1.ServiceSpec, used corev1.ResourceList) {
	ports, balancers := 0, 0
	switch s.Type {
	case corev1.ServiceTypeNodePort:
		ports = len(s.Ports)
	case corev1.ServiceTypeLoadBalancer:
		balancers = 1
		for i := range s.Ports {
			// NodePort may not be allocated yet, so count the ports that will be.
			if s.AllocateLoadBalancerNodePorts == nil || *s.AllocateLoadBalancerNodePorts || s.Ports[i].NodePort != 0 {
				ports++
			}
		}
	}
	used[corev1.ResourceServicesNodePorts] = number(ports)
	used[corev1.ResourceServicesLoadBalancers] = number(balancers)
}

func claimUsage(c *corev1.PersistentVolumeClaim, used corev1.ResourceList) {
	class := c.Annotations[corev1.BetaStorageClassAnnotation]
	if _, old := c.Annotations[corev1.BetaStorageClassAnnotation]; !old && c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	add := func(name corev1.ResourceName, q resource.Quantity) {
		used[name] = q
		if class != "" {
			used[corev1.ResourceName(class+classSuffix)+name] = q
		}
	}
	add(corev1.ResourcePersistentVolumeClaims, one())
	size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return
	}
	if allocated, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && allocated.Cmp(size) > 0 {
		size = allocated
	}
	size.RoundUp(0)
	add(corev1.ResourceRequestsStorage, size)
}

// Covers reports whether the quota applies to the object: it limits something that the object can
// use, and the object matches all its scopes.
func Covers(q *corev1.ResourceQuota, gr schema.GroupResource, obj any) bool {
	relevant := false
	for name := range q.Status.Hard {
		relevant = relevant || Uses(gr, name)
	}
	return relevant && inScopes(&q.Spec, obj)
}

// Charge returns what a write adds to the quota's usage: for each resource that the quota limits,
// the usage of obj minus that of old (nil for a create), if that is positive. The result is empty
// if the quota does not apply to obj. An error means that the write must be refused even if the
// quota has enough left.
func Charge(q *corev1.ResourceQuota, gr schema.GroupResource, obj, old any, now time.Time) (corev1.ResourceList, error) {
	if !Covers(q, gr, obj) {
		return nil, nil
	}
	var names []string
	unknown := false
	for name := range q.Status.Hard {
		if Uses(gr, name) {
			names = append(names, string(name))
			_, ok := q.Status.Used[name]
			unknown = unknown || !ok
		}
	}
	slices.Sort(names)
	if pod, ok := obj.(*corev1.Pod); ok {
		if err := unspecified(pod, names); err != nil {
			return nil, fmt.Errorf("failed quota: %s: %w", q.Name, err)
		}
	}
	if unknown {
		return nil, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, strings.Join(names, ","))
	}
	usage := Usage(gr, obj, now)
	var before corev1.ResourceList
	if old != nil && Covers(q, gr, old) {
		before = Usage(gr, old, now)
	}
	charge := corev1.ResourceList{}
	var negative []string
	for name, amount := range usage {
		if amount.Sign() < 0 {
			negative = append(negative, string(name))
		}
		if was, ok := before[name]; ok {
			amount = amount.DeepCopy()
			amount.Sub(was)
		}
		if _, limited := q.Status.Hard[name]; limited && amount.Sign() > 0 {
			charge[name] = amount
		}
	}
	if len(negative) > 0 {
		slices.Sort(negative)
		return nil, errors.New("quota usage is negative for resource(s): " + strings.Join(negative, ","))
	}
	return charge, nil
}

// Exceeded returns an error if the charge would exceed the quota, and nil otherwise.
func Exceeded(q *corev1.ResourceQuota, charge corev1.ResourceList) error {
	var requested, used, limited []string
	for _, name := range sortedNames(charge) {
		hard := q.Status.Hard[name]
		was, want := q.Status.Used[name], charge[name]
		sum := was.DeepCopy()
		sum.Add(want)
		if sum.Cmp(hard) <= 0 {
			continue
		}
		text := func(q resource.Quantity) string { return string(name) + "=" + q.String() }
		requested, used, limited = append(requested, text(want)), append(used, text(was)), append(limited, text(hard))
	}
	if len(requested) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s",
		q.Name, strings.Join(requested, ","), strings.Join(used, ","), strings.Join(limited, ","))
}

func sortedNames(list corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Add returns the sum of two lists, in a new one.
func Add(a, b corev1.ResourceList) corev1.ResourceList {
	sum := make(corev1.ResourceList, len(a)+len(b))
	for name, q := range a {
		sum[name] = q.DeepCopy()
	}
	for name, q := range b {
		s := sum[name]
		s.Add(q)
		sum[name] = s
	}
	return sum
}

// Less returns a minus b in a new list, which contains only what remains positive.
func Less(a, b corev1.ResourceList) corev1.ResourceList {
	rest := make(corev1.ResourceList, len(a))
	for name, q := range a {
		q = q.DeepCopy()
		if taken, ok := b[name]; ok {
			q.Sub(taken)
		}
		if q.Sign() > 0 {
			rest[name] = q
		}
	}
	return rest
}
