package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	k8sresource "k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	resourcehelper "k8s.io/component-helpers/resource"

	"keelson.dev/services/apiserver/internal/resource"
)

// LimitRanger enforces the LimitRanges of a namespace on new pods, on resizes of pods and on
// claims, and sets the default requests and limits of containers. Error texts are Kubernetes'.
type LimitRanger struct{ State State }

// limitRangerAnnotation lists the requests and limits that the plugin has set in a pod.
const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// Admit implements Mutator.
func (p *LimitRanger) Admit(_ context.Context, a *Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || !sizesPod(a) {
		return nil
	}
	p.each(a.Namespace, func(l *corev1.LimitRange) {
		for i := range l.Spec.Limits {
			if item := &l.Spec.Limits[i]; item.Type == corev1.LimitTypeContainer {
				completePod(pod, item)
			}
		}
	})
	return nil
}

// sizesPod reports whether a write determines the resources of a pod: it creates or resizes one
// that is not being deleted.
func sizesPod(a *Attributes) bool {
	if a.Operation == Create {
		return a.Is("", "pods")
	}
	return a.Operation == Update && a.Is("", "pods", "resize") && a.Old.GetDeletionTimestamp() == nil
}

// each calls f for each LimitRange of the namespace.
func (p *LimitRanger) each(namespace string, f func(*corev1.LimitRange)) {
	p.State.Each("", "limitranges", namespace, func(o resource.Object) bool {
		if l, ok := o.(*corev1.LimitRange); ok {
			f(l)
		}
		return true
	})
}

// completePod sets the requests and limits that containers lack, and lists them in an annotation.
func completePod(pod *corev1.Pod, item *corev1.LimitRangeItem) {
	var set []string
	fill := func(c *corev1.Container, what string) {
		var names [2][]string
		for i, l := range []struct {
			list *corev1.ResourceList
			from corev1.ResourceList
		}{{&c.Resources.Requests, item.DefaultRequest}, {&c.Resources.Limits, item.Default}} {
			for name, q := range l.from {
				if _, ok := (*l.list)[name]; ok {
					continue
				}
				if *l.list == nil {
					*l.list = corev1.ResourceList{}
				}
				(*l.list)[name] = q.DeepCopy()
				names[i] = append(names[i], string(name))
			}
			slices.Sort(names[i])
		}
		for i, kind := range []string{"request", "limit"} {
			if len(names[i]) > 0 {
				set = append(set, fmt.Sprintf("%s %s for %s %s", strings.Join(names[i], ", "), kind, what, c.Name))
			}
		}
	}
	for i := range pod.Spec.Containers {
		fill(&pod.Spec.Containers[i], "container")
	}
	for i := range pod.Spec.InitContainers {
		fill(&pod.Spec.InitContainers[i], "init container")
	}
	if len(set) == 0 {
		return
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[limitRangerAnnotation] = "LimitRanger plugin set: " + strings.Join(set, "; ")
}

// Validate implements Validator.
func (p *LimitRanger) Validate(_ context.Context, a *Attributes) error {
	var check func(item *corev1.LimitRangeItem) []error
	switch obj := a.Object.(type) {
	case *corev1.Pod:
		if !sizesPod(a) {
			return nil
		}
		check = func(item *corev1.LimitRangeItem) []error { return checkPod(item, obj) }
	case *corev1.PersistentVolumeClaim:
		if a.Subresource != "" || a.Old != nil && a.Old.GetDeletionTimestamp() != nil {
			return nil
		}
		check = func(item *corev1.LimitRangeItem) []error { return checkClaim(item, obj) }
	default:
		return nil
	}
	var err error
	p.each(a.Namespace, func(l *corev1.LimitRange) {
		var errs []error
		for i := range l.Spec.Limits {
			errs = append(errs, check(&l.Spec.Limits[i])...)
		}
		if err == nil && len(errs) > 0 {
			err = utilerrors.NewAggregate(errs)
		}
	})
	return err
}

// checkPod checks a pod, or its containers, against one item of a LimitRange.
func checkPod(item *corev1.LimitRangeItem, pod *corev1.Pod) []error {
	var errs []error
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				errs = append(errs, checkAmounts(item, list[i].Resources.Requests, list[i].Resources.Limits)...)
			}
		}
	case corev1.LimitTypePod:
		opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
		errs = checkAmounts(item, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))
	}
	return errs
}

// checkClaim checks a claim against one item of a LimitRange.
func checkClaim(item *corev1.LimitRangeItem, c *corev1.PersistentVolumeClaim) []error {
	if item.Type != corev1.LimitTypePersistentVolumeClaim {
		return nil
	}
	var errs []error
	requests := c.Spec.Resources.Requests
	for _, name := range sorted(item.Min) {
		errs = append(errs, atLeast(item.Type, name, item.Min[name], requests, nil))
	}
	for _, name := range sorted(item.Max) {
		most, text := item.Max[name], fmt.Sprintf("maximum %s usage per %s is", name, item.Type)
		if q, ok := requests[name]; !ok {
			errs = append(errs, fmt.Errorf("%s %s.  No request is specified", text, most.String()))
		} else if q.Cmp(most) > 0 {
			errs = append(errs, fmt.Errorf("%s %s, but request is %s", text, most.String(), q.String()))
		}
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func checkAmounts(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	for _, name := range sorted(item.Min) {
		errs = append(errs, atLeast(item.Type, name, item.Min[name], requests, limits))
	}
	for _, name := range sorted(item.Max) {
		errs = append(errs, atMost(item.Type, name, item.Max[name], requests, limits))
	}
	for _, name := range sorted(item.MaxLimitRequestRatio) {
		errs = append(errs, ratio(item.Type, name, item.MaxLimitRequestRatio[name], requests, limits))
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func sorted(list corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare[corev1.ResourceName])
	return names
}

func atLeast(t corev1.LimitType, name corev1.ResourceName, least k8sresource.Quantity, requests, limits corev1.ResourceList) error {
	text := fmt.Sprintf("minimum %s usage per %s is %s", name, t, least.String())
	request, ok := requests[name]
	if !ok {
		return errors.New(text + ".  No request is specified")
	}
	if request.Cmp(least) < 0 {
		return fmt.Errorf("%s, but request is %s", text, request.String())
	}
	if limit, ok := limits[name]; ok && limit.Cmp(least) < 0 {
		return fmt.Errorf("%s, but limit is %s", text, limit.String())
	}
	return nil
}

func atMost(t corev1.LimitType, name corev1.ResourceName, most k8sresource.Quantity, requests, limits corev1.ResourceList) error {
	text := fmt.Sprintf("maximum %s usage per %s is %s", name, t, most.String())
	limit, ok := limits[name]
	if !ok {
		return errors.New(text + ".  No limit is specified")
	}
	if limit.Cmp(most) > 0 {
		return fmt.Errorf("%s, but limit is %s", text, limit.String())
	}
	if request, ok := requests[name]; ok && request.Cmp(most) > 0 {
		return fmt.Errorf("%s, but request is %s", text, request.String())
	}
	return nil
}

// ratio checks that the limit divided by the request is at most most.
func ratio(t corev1.LimitType, name corev1.ResourceName, most k8sresource.Quantity, requests, limits corev1.ResourceList) error {
	text := fmt.Sprintf("%s max limit to request ratio per %s is %s", name, t, most.String())
	request, limit := requests[name], limits[name]
	switch {
	case request.IsZero():
		return errors.New(text + ", but no request is specified or request is 0")
	case limit.IsZero():
		return errors.New(text + ", but no limit is specified or limit is 0")
	}
	if r := limit.AsApproximateFloat64() / request.AsApproximateFloat64(); r > most.AsApproximateFloat64() {
		return fmt.Errorf("%s, but provided ratio is %f", text, r)
	}
	return nil
}
