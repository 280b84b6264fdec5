// Package podsession is what all fronts do with the streams of pods (logs, exec, attach and
// port-forward) once a request is authorized: it reads the pod, validates what is asked for with
// Kubernetes' messages, and opens the session with the pod's node.
//
// It must never be called before the pipeline has authorized the request: it reads the pod as the
// apiserver itself.
package podsession

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/tunnel"
)

// Self is the apiserver's own user, which reads the pod of an authorized stream: the user of the
// stream needs no right to read pods.
var Self = request.User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}

// ErrNoTunnel returns the error of an apiserver without connections to nodes.
func ErrNoTunnel() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotImplemented, Reason: "NotOffered", Message: "this apiserver has no connections to nodes",
	}}
}

// Pod returns the pod that a target names. The subresource is ignored.
func Pod(ctx context.Context, api pipeline.API, t pipeline.Target) (*corev1.Pod, error) {
	t.Subresource = ""
	out, err := api.Get(request.WithUser(ctx, Self), t, pipeline.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod, ok := out.Item.Object().(*corev1.Pod)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s has no streams", t.Resource.Resource))
	}
	return pod, nil
}

// Assigned returns an error if the pod is not bound to a node.
func Assigned(pod *corev1.Pod) error {
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	return nil
}

// Container returns the reference to a container of the pod, by name or, if name is empty, to the
// only one. Its errors have Kubernetes' messages.
func Container(pod *corev1.Pod, name string) (*nodev1.PodRef, error) {
	names := containerNames(pod.Spec.Containers)
	initial := containerNames(pod.Spec.InitContainers)
	if name == "" {
		switch {
		case len(names) == 1:
			return Ref(pod, names[0]), nil
		case len(names) == 0:
			return nil, apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
		}
		text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " "))
		if len(initial) > 0 {
			text += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(initial, " "))
		}
		return nil, apierrors.NewBadRequest(text)
	}
	for _, known := range append(append(names, initial...), ephemeralNames(pod)...) {
		if known == name {
			return Ref(pod, name), nil
		}
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

func containerNames(containers []corev1.Container) []string {
	var names []string
	for i := range containers {
		names = append(names, containers[i].Name)
	}
	return names
}

func ephemeralNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	return names
}

// Ref returns the reference to a container of the pod, or to the pod if container is empty.
func Ref(pod *corev1.Pod, container string) *nodev1.PodRef {
	return &nodev1.PodRef{Namespace: pod.Namespace, Name: pod.Name, Uid: string(pod.UID), Container: container}
}

// Command returns an error if an exec has no command.
func Command(command []string) error {
	if len(command) == 0 {
		return apierrors.NewBadRequest("you must specify at least one command for the container")
	}
	return nil
}

// Logs validates the options of a log request, except its pod, with Kubernetes' messages. All
// as the stream becomes none.
func Logs(pod string, logs *nodev1.Logs) error {
	var errs field.ErrorList
	number := func(name string, n *int64, least int64, text string) {
		if n != nil && *n < least {
			errs = append(errs, field.Invalid(field.NewPath(name), *n, text))
		}
	}
	number("tailLines", logs.TailLines, 0, "must be greater than or equal to 0")
	number("limitBytes", logs.LimitBytes, 1, "must be greater than 0")
	number("sinceSeconds", logs.SinceSeconds, 1, "must be greater than 0")
	if logs.SinceTimeUnixNano != nil && logs.SinceSeconds != nil {
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	}
	switch logs.GetStream() {
	case "", corev1.LogStreamAll:
		logs.Stream = ""
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		if logs.TailLines != nil {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
	default:
		errs = append(errs, field.NotSupported(field.NewPath("stream"), logs.GetStream(),
			[]string{corev1.LogStreamAll, corev1.LogStreamStdout, corev1.LogStreamStderr}))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("PodLogOptions").GroupKind(), pod, errs)
	}
	return nil
}

// Open opens a session with the pod's node. The session ends with ctx. The tunnel's errors become
// Kubernetes'.
func Open(ctx context.Context, t *tunnel.Server, pod *corev1.Pod, open *nodev1.Open) (*tunnel.Session, error) {
	session, err := t.Open(ctx, pod.Spec.NodeName, open)
	if err == nil {
		return session, nil
	}
	var refused apierrors.APIStatus
	switch {
	case errors.As(err, &refused):
		return nil, err
	case errors.Is(err, tunnel.ErrTooMany):
		return nil, apierrors.NewTooManyRequests(err.Error(), 1)
	case errors.Is(err, tunnel.ErrTimeout):
		return nil, apierrors.NewTimeoutError(err.Error(), 1)
	case errors.Is(err, tunnel.ErrNotConnected), errors.Is(err, tunnel.ErrGone):
		return nil, apierrors.NewServiceUnavailable(err.Error())
	}
	return nil, err
}
