// Package event records what the node does to pods as Kubernetes Events. client-go's
// correlator counts repeated events, combines similar ones and limits floods, as for the
// kubelet's events.
//
// It must never delay or fail the work it reports on: its queue is bounded, and events that
// do not fit are dropped. Messages may quote output of a container or the
// runtime: they are truncated to 1024 bytes, and control characters in them are escaped.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/plaintext"
	"keelson.dev/services/node/internal/pod"
)

// Event reasons. They are the kubelet's.
const (
	Pulling            = "Pulling"
	Pulled             = "Pulled"
	Created            = "Created"
	Started            = "Started"
	Killing            = "Killing"
	Failed             = "Failed"
	BackOff            = "BackOff"
	Unhealthy          = "Unhealthy"
	ProbeWarning       = "ProbeWarning"
	FailedMount        = "FailedMount"
	SandboxChanged     = "SandboxChanged"
	FailedSandbox      = "FailedCreatePodSandBox"
	FailedPostStart    = "FailedPostStartHook"
	FailedPreStop      = "FailedPreStopHook"
	HookFallback       = "LifecycleHTTPFallback"
	DeadlineExceeded   = "DeadlineExceeded"
	NetworkNotReady    = "NetworkNotReady"
	InvalidEnvironment = "InvalidEnvironmentVariableNames"
	Evicted            = "Evicted"

	EvictionThresholdMet = "EvictionThresholdMet"
	ResizeStarted        = "ResizeStarted"
	ResizeCompleted      = "ResizeCompleted"
	ResizeDeferred       = "ResizeDeferred"
	ResizeInfeasible     = "ResizeInfeasible"
	ResizeError          = "ResizeError"
	ErrImageNeverPull    = "ErrImageNeverPull"
	FreeDiskSpaceFailed  = "FreeDiskSpaceFailed"
)

const (
	// queue is the maximum number of events that wait to be written.
	queue = 1000
	// maxMessage is the maximum length of an event's message in bytes, as in Kubernetes.
	maxMessage = 1024
)

// Sink writes events to the API.
type Sink interface {
	CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error)
	PatchEvent(ctx context.Context, namespace, name string, patch []byte) (*corev1.Event, error)
}

// Recorder records events of one source. A nil Recorder records nothing.
type Recorder struct {
	source corev1.EventSource
	sink   Sink
	events chan *corev1.Event
}

// NewRecorder returns a recorder for a component of the node. It writes nothing until Run
// is called.
func NewRecorder(sink Sink, component, node string) *Recorder {
	return &Recorder{source: corev1.EventSource{Component: component, Host: node}, sink: sink, events: make(chan *corev1.Event, queue)}
}

// Pod records an event about a pod, or about one of its containers. container may be empty.
func (r *Recorder) Pod(p *corev1.Pod, container, kind, reason, format string, args ...any) {
	if r == nil {
		return
	}
	ref := podRef(p)
	if container != "" {
		ref.FieldPath = "spec.containers{" + container + "}"
		switch _, role := pod.Find(p, container); role {
		case pod.Init, pod.Sidecar:
			ref.FieldPath = "spec.initContainers{" + container + "}"
		case pod.Ephemeral:
			ref.FieldPath = "spec.ephemeralContainers{" + container + "}"
		}
	}
	r.report(ref, nil, kind, reason, fmt.Sprintf(format, args...))
}

// Annotated records an event about a pod, with annotations.
func (r *Recorder) Annotated(p *corev1.Pod, annotations map[string]string, kind, reason, format string, args ...any) {
	if r != nil {
		r.report(podRef(p), annotations, kind, reason, fmt.Sprintf(format, args...))
	}
}

func podRef(p *corev1.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
}

// Node records an event about the node itself.
func (r *Recorder) Node(name, kind, reason, format string, args ...any) {
	if r == nil {
		return
	}
	r.report(corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}, nil, kind, reason, fmt.Sprintf(format, args...))
}

func (r *Recorder) report(ref corev1.ObjectReference, annotations map[string]string, kind, reason, message string) {
	now := metav1.Now()
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	message = plaintext.Clean(message, maxMessage)
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano()), Namespace: namespace, Annotations: annotations},
		InvolvedObject: ref, Reason: reason, Message: message, Type: kind, Count: 1,
		FirstTimestamp: now, LastTimestamp: now, Source: r.source,
		ReportingController: r.source.Component, ReportingInstance: r.source.Host,
	}
	select {
	case r.events <- e:
	default: // dropped, because the queue is full
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	correlator := record.NewEventCorrelator(clock.RealClock{})
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.events:
			r.send(ctx, correlator, e)
		}
	}
}

// attempts is how often writing one event is attempted. Events matter less than the work
// they report on.
const attempts = 3

func (r *Recorder) send(ctx context.Context, correlator *record.EventCorrelator, e *corev1.Event) {
	result, err := correlator.EventCorrelate(e)
	if err != nil || result.Skip {
		return
	}
	for try := 0; try < attempts; try++ {
		var stored *corev1.Event
		stored, err = r.write(ctx, result)
		if err == nil {
			correlator.UpdateState(stored)
			return
		}
		if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
			break // its namespace is being deleted, or it can never be stored
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second << try):
		}
	}
	slog.DebugContext(ctx, "event was not written", "reason", e.Reason, "kind", e.InvolvedObject.Kind, "namespace", e.InvolvedObject.Namespace, "name", e.InvolvedObject.Name, "error", err)
}

func (r *Recorder) write(ctx context.Context, result *record.EventCorrelateResult) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	e := result.Event
	if e.Count > 1 && len(result.Patch) > 0 {
		stored, err := r.sink.PatchEvent(ctx, e.Namespace, e.Name, result.Patch)
		if !apierrors.IsNotFound(err) {
			return stored, err
		}
	}
	e.ResourceVersion = ""
	return r.sink.CreateEvent(ctx, e)
}

// API is a Sink that uses a client.
type API struct{ Client *client.Client }

// CreateEvent implements Sink.
func (a API) CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error) {
	return client.For[*corev1.Event](a.Client).Create(ctx, e)
}

// PatchEvent implements Sink.
func (a API) PatchEvent(ctx context.Context, namespace, name string, patch []byte) (*corev1.Event, error) {
	return client.For[*corev1.Event](a.Client).Patch(ctx, namespace, name, types.StrategicMergePatchType, patch)
}
