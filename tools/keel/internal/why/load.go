package why

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
)

// Load reads the World of an object: the objects in its namespace that it may depend on, and the
// nodes, volumes and storage classes. Kinds that the caller may not read are added to Hidden; it
// is an error only if the kind of the object itself is one of them.
func Load(ctx context.Context, c *client.Client, ref Ref) (*World, error) {
	w := &World{Now: time.Now(), Hidden: map[string]bool{}, Logs: map[string]string{}}
	l := &loader{ctx: ctx, c: c, w: w, want: ref.Kind}
	if ref.Kind == "Node" {
		w.Nodes = list[*corev1.Node](l, "")
		w.Events = list[*corev1.Event](l, "default")
		return w, l.err
	}
	ns := ref.Namespace
	w.Pods = list[*corev1.Pod](l, ns)
	w.Claims = list[*corev1.PersistentVolumeClaim](l, ns)
	w.Volumes = list[*corev1.PersistentVolume](l, "")
	w.Nodes = list[*corev1.Node](l, "")
	w.Events = list[*corev1.Event](l, ns)
	for _, class := range list[*storagev1.StorageClass](l, "") {
		w.Classes = append(w.Classes, class.Name)
		if class.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
			w.DefaultClass = class.Name
		}
	}
	switch ref.Kind {
	case "Deployment":
		w.Deployments, w.ReplicaSets = list[*appsv1.Deployment](l, ns), list[*appsv1.ReplicaSet](l, ns)
	case "ReplicaSet":
		w.ReplicaSets = list[*appsv1.ReplicaSet](l, ns)
	case "StatefulSet":
		w.StatefulSets = list[*appsv1.StatefulSet](l, ns)
	case "DaemonSet":
		w.DaemonSets = list[*appsv1.DaemonSet](l, ns)
	case "Job":
		w.Jobs = list[*batchv1.Job](l, ns)
	case "CronJob":
		w.CronJobs, w.Jobs = list[*batchv1.CronJob](l, ns), list[*batchv1.Job](l, ns)
	case "HorizontalPodAutoscaler":
		w.Autoscalers = list[*autoscalingv2.HorizontalPodAutoscaler](l, ns)
		w.Deployments, w.ReplicaSets, w.StatefulSets = list[*appsv1.Deployment](l, ns), list[*appsv1.ReplicaSet](l, ns), list[*appsv1.StatefulSet](l, ns)
	case "NetworkPolicy":
		w.Policies, w.Namespaces = list[*networkingv1.NetworkPolicy](l, ns), list[*corev1.Namespace](l, "")
		if !w.Hidden["Namespace"] { // peers may be anywhere
			if all := list[*corev1.Pod](l, ""); !w.Hidden["Pod"] {
				w.Pods = all
			} else {
				w.Hidden["Namespace"] = true // what peers match cannot be known
			}
		}
	case "Service":
		w.Services, w.Slices = list[*corev1.Service](l, ns), list[*discoveryv1.EndpointSlice](l, ns)
	}
	return w, l.err
}

type loader struct {
	ctx  context.Context
	c    *client.Client
	w    *World
	want string // the kind of the object to explain, which must be readable
	err  error
}

// list reads all objects of a kind, page by page.
func list[T client.Object](l *loader, namespace string) []T {
	if l.err != nil {
		return nil
	}
	r := client.For[T](l.c)
	kind := r.Kind().GVK.Kind
	var out []T
	for obj, err := range r.All(l.ctx, client.ListOptions{Namespace: namespace}) {
		if err == nil {
			out = append(out, obj)
			continue
		}
		if kind != l.want && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)) {
			l.w.Hidden[kind] = true
			return nil
		}
		l.err = fmt.Errorf("list %s: %w", r.Kind().Resource, err)
		return nil
	}
	return out
}

// Culprit returns the answer at the end of the chain of Because, which names the original cause.
func (a *Answer) Culprit() *Answer {
	for a.Because != nil {
		a = a.Because
	}
	return a
}

// maxLogs bounds the number of containers whose logs are read.
const maxLogs = 3

// Containers returns the containers of a pod whose logs may show why it is not ready. The value is
// true if the log of the previous instance is the one to read, because the container waits to be
// restarted.
func (w *World) Containers(ref Ref) map[string]bool {
	p := find(w.Pods, ref)
	if p == nil {
		return nil
	}
	out := map[string]bool{}
	for _, statuses := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range statuses {
			s := &statuses[i]
			ended := s.State.Terminated != nil && s.State.Terminated.ExitCode != 0
			crashed := s.State.Waiting != nil && s.LastTerminationState.Terminated != nil
			if (ended || crashed || s.State.Running != nil && !s.Ready) && len(out) < maxLogs {
				out[s.Name] = crashed
			}
		}
	}
	return out
}

// AddLog adds the last lines of a container's log to the World.
func (w *World) AddLog(ref Ref, container, text string) {
	w.Logs[ref.Name+"/"+container] = strings.ToValidUTF8(text, "\uFFFD")
}
