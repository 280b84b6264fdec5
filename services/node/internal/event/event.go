// Package event reports what the node does to pods as Kubernetes Events:
// repeated ones are counted, similar ones combined, and floods cut off by
// client-go's correlator, so that they look as people know them.
//
// It must never hold up or fail the work it reports on: its queue is bounded,
// and what does not fit is dropped and counted. Messages may quote what a
// container or a runtime wrote: they are cut off at 1024 bytes, and control
// characters in them are escaped.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/plaintext"
)

// The reasons of events that people know.
const (
	Pulling             = "Pulling"
	Pulled              = "Pulled"
	Created             = "Created"
	Started             = "Started"
	Killing             = "Killing"
	Failed              = "Failed"
	BackOff             = "BackOff"
	Unhealthy           = "Unhealthy"
	ProbeWarning        = "ProbeWarning"
	FailedMount         = "FailedMount"
	SandboxChanged      = "SandboxChanged"
	FailedSandbox       = "FailedCreatePodSandBox"
	FailedPostStart     = "FailedPostStartHook"
	FailedPreStop       = "FailedPreStopHook"
	HookFallback        = "LifecycleHTTPFallback"
	DeadlineExceeded    = "DeadlineExceeded"
	NetworkNotReady     = "NetworkNotReady"
	InvalidEnvironment  = "InvalidEnvironmentVariableNames"
	Evicted             = "Evicted"
	ErrImageNeverPull   = "ErrImageNeverPull"
	FreeDiskSpaceFailed = "FreeDiskSpaceFailed"
)

const (
	// queue is how many events may wait for the API.
	queue = 1000
	// maxMessage bounds an event's message in bytes, as Kubernetes does.
	maxMessage = 1024
)

// Sink writes events.
type Sink interface {
	CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error)
	PatchEvent(ctx context.Context, namespace, name string, patch []byte) (*corev1.Event, error)
}

// Recorder reports events of one source. A nil Recorder reports nothing.
type Recorder struct {
	source  corev1.EventSource
	sink    Sink
	events  chan *corev1.Event
	dropped atomic.Int64
}

// NewRecorder makes a recorder for the component on the node; Run sends.
func NewRecorder(sink Sink, component, node string) *Recorder {
	return &Recorder{source: corev1.EventSource{Component: component, Host: node}, sink: sink, events: make(chan *corev1.Event, queue)}
}

// Dropped is how many events did not fit into the queue.
func (r *Recorder) Dropped() int64 { return r.dropped.Load() }

// Pod reports an event of a pod; container may be empty.
func (r *Recorder) Pod(p *corev1.Pod, container, kind, reason, format string, args ...any) {
	if r == nil {
		return
	}
	ref := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
	if container != "" {
		ref.FieldPath = "spec.containers{" + container + "}"
		for i := range p.Spec.InitContainers {
			if p.Spec.InitContainers[i].Name == container {
				ref.FieldPath = "spec.initContainers{" + container + "}"
			}
		}
	}
	r.report(ref, kind, reason, fmt.Sprintf(format, args...))
}

// Node reports an event of the node itself.
func (r *Recorder) Node(name, kind, reason, format string, args ...any) {
	if r == nil {
		return
	}
	r.report(corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}, kind, reason, fmt.Sprintf(format, args...))
}

func (r *Recorder) report(ref corev1.ObjectReference, kind, reason, message string) {
	now := metav1.Now()
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	message = plaintext.Clean(message, maxMessage)
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano()), Namespace: namespace},
		InvolvedObject: ref, Reason: reason, Message: message, Type: kind, Count: 1,
		FirstTimestamp: now, LastTimestamp: now, Source: r.source,
		ReportingController: r.source.Component, ReportingInstance: r.source.Host,
	}
	select {
	case r.events <- e:
	default:
		r.dropped.Add(1)
	}
}

// Run sends events until ctx ends.
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

// attempts is how often one event is tried: events matter less than what they
// report on.
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
			break // its namespace is going away, or it can never be stored
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second << try):
		}
	}
	slog.Debug("event was not written", "reason", e.Reason, "object", e.InvolvedObject.Name, "error", err)
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

// API is a Sink on a client.
type API struct{ Client *client.Client }

// CreateEvent implements Sink.
func (a API) CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error) {
	return client.For[*corev1.Event](a.Client).Create(ctx, e)
}

// PatchEvent implements Sink.
func (a API) PatchEvent(ctx context.Context, namespace, name string, patch []byte) (*corev1.Event, error) {
	return client.For[*corev1.Event](a.Client).Patch(ctx, namespace, name, types.StrategicMergePatchType, patch)
}
