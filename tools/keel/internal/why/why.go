// Package why explains why an object does not have the state that its spec asks for: the cause,
// the evidence for it, and what to do next.
//
// Explain is a pure function of a World, which Load reads from the API. If a pod is the reason for
// the state of a workload, the workload's answer contains the pod's answer in Because. Codes are
// stable, so that scripts can depend on them. A cause is named only if something in the World
// shows it; otherwise the answer says what is known and where to look. The package must never
// change an object.
package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Answer explains one object.
type Answer struct {
	Object Ref `json:"object"`
	// Healthy is true if nothing prevents the object from reaching the state that its spec asks for.
	Healthy bool `json:"healthy"`
	// Code identifies the cause; see the constants.
	Code Code `json:"code"`
	// Cause is a sentence about the object, without its name.
	Cause string `json:"cause"`
	// Evidence lists the observations that show the cause, the most significant first.
	Evidence []Evidence `json:"evidence,omitempty"`
	// Next lists what to do, in order.
	Next []string `json:"next,omitempty"`
	// Because explains the object that causes this one's problem, if another object does.
	Because *Answer `json:"because,omitempty"`
}

// Ref names an object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (r Ref) String() string { return strings.ToLower(r.Kind) + "/" + r.Name }

// Evidence is one observation.
type Evidence struct {
	// Source is where it was observed: "status", "spec", "event", "log" or "span".
	Source string `json:"source"`
	Object Ref    `json:"object"`
	Text   string `json:"text"`
	// Time is when it was last observed, and Count how often; zero means unknown.
	Time  metav1.Time `json:"time,omitzero"`
	Count int32       `json:"count,omitempty"`
}

// Code identifies a cause.
type Code string

// World is the input of an explanation: the object itself and the objects that it may depend on.
// An object that is not in the World does not exist, unless its kind is Hidden.
type World struct {
	Now time.Time

	Pods         []*corev1.Pod
	Nodes        []*corev1.Node
	Services     []*corev1.Service
	Slices       []*discoveryv1.EndpointSlice
	Claims       []*corev1.PersistentVolumeClaim
	Volumes      []*corev1.PersistentVolume
	Deployments  []*appsv1.Deployment
	ReplicaSets  []*appsv1.ReplicaSet
	StatefulSets []*appsv1.StatefulSet
	DaemonSets   []*appsv1.DaemonSet
	Jobs         []*batchv1.Job
	CronJobs     []*batchv1.CronJob
	Autoscalers  []*autoscalingv2.HorizontalPodAutoscaler
	Policies     []*networkingv1.NetworkPolicy
	Namespaces   []*corev1.Namespace
	Events       []*corev1.Event
	// Logs are the last lines of containers' logs, by "pod/container".
	Logs map[string]string
	// DefaultClass is the name of the default StorageClass, or ""; Classes are the names of all.
	DefaultClass string
	Classes      []string
	// Hidden contains the kinds that the caller may not read. The World has no objects of these
	// kinds, whether or not any exist.
	Hidden map[string]bool
}

// Kinds maps the names that kubectl accepts for the kinds that Explain supports, in lower case, to
// the kinds.
var Kinds = map[string]string{
	"pod": "Pod", "pods": "Pod", "po": "Pod",
	"deployment": "Deployment", "deployments": "Deployment", "deploy": "Deployment",
	"replicaset": "ReplicaSet", "replicasets": "ReplicaSet", "rs": "ReplicaSet",
	"statefulset": "StatefulSet", "statefulsets": "StatefulSet", "sts": "StatefulSet",
	"daemonset": "DaemonSet", "daemonsets": "DaemonSet", "ds": "DaemonSet",
	"job": "Job", "jobs": "Job",
	"cronjob": "CronJob", "cronjobs": "CronJob", "cj": "CronJob",
	"persistentvolumeclaim": "PersistentVolumeClaim", "persistentvolumeclaims": "PersistentVolumeClaim", "pvc": "PersistentVolumeClaim",
	"horizontalpodautoscaler": "HorizontalPodAutoscaler", "horizontalpodautoscalers": "HorizontalPodAutoscaler", "hpa": "HorizontalPodAutoscaler",
	"service": "Service", "services": "Service", "svc": "Service",
	"networkpolicy": "NetworkPolicy", "networkpolicies": "NetworkPolicy", "netpol": "NetworkPolicy",
	"node": "Node", "nodes": "Node", "no": "Node",
}

// Explain explains the object that ref names. It fails if the World does not contain the object.
func (w *World) Explain(ref Ref) (*Answer, error) {
	var a *Answer
	switch ref.Kind {
	case "Pod":
		a = answer(find(w.Pods, ref), w.pod)
	case "Deployment":
		a = answer(find(w.Deployments, ref), w.deployment)
	case "ReplicaSet":
		a = answer(find(w.ReplicaSets, ref), w.replicaSet)
	case "StatefulSet":
		a = answer(find(w.StatefulSets, ref), w.statefulSet)
	case "DaemonSet":
		a = answer(find(w.DaemonSets, ref), w.daemonSet)
	case "Job":
		a = answer(find(w.Jobs, ref), w.job)
	case "CronJob":
		a = answer(find(w.CronJobs, ref), w.cronJob)
	case "HorizontalPodAutoscaler":
		a = answer(find(w.Autoscalers, ref), w.autoscaler)
	case "PersistentVolumeClaim":
		a = answer(find(w.Claims, ref), w.claim)
	case "Service":
		a = answer(find(w.Services, ref), w.service)
	case "NetworkPolicy":
		a = answer(find(w.Policies, ref), w.networkPolicy)
	case "Node":
		a = answer(find(w.Nodes, ref), w.node)
	default:
		return nil, fmt.Errorf("%s: kind %s is not supported", ref, ref.Kind)
	}
	if a == nil {
		return nil, fmt.Errorf("%s not found", ref)
	}
	a.Object = ref
	return a, nil
}

type object interface {
	comparable
	metav1.Object
}

func find[T object](list []T, ref Ref) T {
	for _, o := range list {
		if o.GetName() == ref.Name && o.GetNamespace() == ref.Namespace {
			return o
		}
	}
	var none T
	return none
}

func answer[T object](o T, explain func(T) *Answer) *Answer {
	var none T
	if o == none {
		return nil
	}
	return explain(o)
}

// events returns the events of an object with one of these reasons, or with any if none is given,
// the latest first. Of each reason only the latest event is returned.
func (w *World) events(uid types.UID, reasons ...string) []*corev1.Event {
	var out []*corev1.Event
	for _, e := range w.Events {
		if e.InvolvedObject.UID == uid && (len(reasons) == 0 || slices.Contains(reasons, e.Reason)) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b *corev1.Event) int { return lastSeen(b).Compare(lastSeen(a)) })
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(e *corev1.Event) bool {
		again := seen[e.Reason]
		seen[e.Reason] = true
		return again
	})
}

func lastSeen(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// seen adds the object's events with these reasons to the evidence, and reports whether there are
// any.
func (w *World) seen(a *Answer, ref Ref, uid types.UID, reasons ...string) bool {
	found := w.events(uid, reasons...)
	for _, e := range found {
		count := e.Count
		if e.Series != nil {
			count = e.Series.Count
		}
		a.Evidence = append(a.Evidence, Evidence{
			Source: "event", Object: ref, Text: e.Reason + ": " + e.Message, Time: metav1.NewTime(lastSeen(e)), Count: count,
		})
	}
	return len(found) > 0
}

func refOf(kind string, o metav1.Object) Ref {
	return Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (a *Answer) status(ref Ref, format string, args ...any) {
	a.Evidence = append(a.Evidence, Evidence{Source: "status", Object: ref, Text: fmt.Sprintf(format, args...)})
}

func (a *Answer) spec(ref Ref, format string, args ...any) {
	a.Evidence = append(a.Evidence, Evidence{Source: "spec", Object: ref, Text: fmt.Sprintf(format, args...)})
}

func (a *Answer) next(format string, args ...any) {
	a.Next = append(a.Next, fmt.Sprintf(format, args...))
}

func problem(code Code, format string, args ...any) *Answer {
	return &Answer{Code: code, Cause: fmt.Sprintf(format, args...)}
}

func healthy(format string, args ...any) *Answer {
	return &Answer{Healthy: true, Code: Healthy, Cause: fmt.Sprintf(format, args...)}
}

// controlled returns the pods whose controller has this UID.
func (w *World) controlled(uid types.UID) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range w.Pods {
		if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.UID == uid {
			out = append(out, p)
		}
	}
	return out
}

// selected returns the pods of the namespace that the selector matches.
func (w *World) selected(namespace string, selector map[string]string) []*corev1.Pod {
	var out []*corev1.Pod
	s := labels.SelectorFromSet(selector)
	for _, p := range w.Pods {
		if p.Namespace == namespace && s.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// worst returns the answer for the unhealthy pod whose code has the highest severity, or nil if no
// pod is unhealthy.
func (w *World) worst(pods []*corev1.Pod) *Answer {
	var worst *Answer
	rank := func(a *Answer) int { return slices.Index(severity, a.Code) }
	for _, p := range pods {
		a := w.pod(p)
		a.Object = refOf("Pod", p)
		if !a.Healthy && (worst == nil || rank(a) > rank(worst)) {
			worst = a
		}
	}
	return worst
}

// ago returns the time since t, rounded to seconds.
func (w *World) ago(t metav1.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return w.Now.Sub(t.Time).Round(time.Second).String()
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func orOne(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// namespaced returns the kubectl flag for a namespace, with a leading space; "" for the default
// namespace.
func namespaced(namespace string) string {
	if cmp.Or(namespace, "default") == "default" {
		return ""
	}
	return " -n " + namespace
}
