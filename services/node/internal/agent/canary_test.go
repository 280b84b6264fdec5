package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/ops"
)

// lockedBuffer is a bytes.Buffer for several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestCanary checks that arguments, environment variables, hook commands and hook output
// appear in no log line, event, status, span, metric or profile of the node. What
// Kubernetes exposes on purpose is not covered: the termination message and the output of a
// failing exec probe.
func TestCanary(t *testing.T) {
	const canary = "canary-5d1f"
	logs := &lockedBuffer{}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	spans := tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.AlwaysSample())))
	t.Cleanup(func() {
		slog.SetDefault(before)
		otel.SetTracerProvider(noop.NewTracerProvider())
	})
	r := newRig(t)

	grace := int64(1)
	loud := &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo " + canary + "; echo " + canary + " >&2; exit 7"}}}
	absent := &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/" + canary, canary}}}
	given := func(name string, lifecycle *corev1.Lifecycle) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.TerminationGracePeriodSeconds = &grace
		c := &p.Spec.Containers[0]
		c.Args = []string{canary}
		c.Env = []corev1.EnvVar{{Name: "TOKEN", Value: canary}}
		c.Lifecycle = lifecycle
		return p
	}
	post := r.create(given("post", &corev1.Lifecycle{PostStart: loud}))
	postAbsent := r.create(given("post-absent", &corev1.Lifecycle{PostStart: absent}))
	pre := given("pre", &corev1.Lifecycle{PreStop: loud})
	pre.Spec.Containers[0].LivenessProbe = &corev1.Probe{ // a probe whose program does not exist
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/" + canary, canary}}}, PeriodSeconds: 1, FailureThreshold: 100, TimeoutSeconds: 30,
	}
	preAbsent := given("pre-absent", &corev1.Lifecycle{PreStop: absent})
	sub := given("sub", nil) // a path expanded from the environment that leaves the volume
	sub.Spec.Containers[0].Env = append(sub.Spec.Containers[0].Env, corev1.EnvVar{Name: "SUB", Value: "../" + canary})
	sub.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	sub.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(SUB)"}}
	sub = r.create(sub)
	pre, preAbsent = r.awaitReady(r.create(pre)), r.awaitReady(r.create(preAbsent))
	r.until("the probe was tried", time.Minute, func() bool { return r.hasEvent(pre, "Unhealthy") })
	r.delete(pre)
	r.delete(preAbsent)
	r.awaitGone(pre)
	r.awaitGone(preAbsent)
	for p, reason := range map[*corev1.Pod]string{post: "FailedPostStartHook", postAbsent: "FailedPostStartHook", pre: "FailedPreStopHook", preAbsent: "FailedPreStopHook", sub: "Failed"} {
		r.until(p.Name+" has event "+reason, time.Minute, func() bool { return r.hasEvent(p, reason) })
	}
	r.await(post, "shows that its container ended", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.LastTerminationState.Terminated != nil || s.State.Terminated != nil
	})

	out := map[string]string{"log": logs.String(), "spans": fmt.Sprintf("%+v", spans.GetSpans())}
	if len(spans.GetSpans()) == 0 {
		t.Error("no spans were recorded, so the test checks nothing")
	}
	events, _, err := client.For[*corev1.Event](r.client).List(context.Background(), client.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		out["event "+e.Reason+" of "+e.InvolvedObject.Name] += e.String()
	}
	for _, p := range []*corev1.Pod{post, postAbsent, sub} {
		now := r.get(p)
		out["status of "+p.Name] = now.Status.String() + fmt.Sprint(now.Annotations)
	}
	families, err := ops.New().Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	out["metrics"] = fmt.Sprint(families)
	for _, p := range pprof.Profiles() {
		var b bytes.Buffer
		if err := p.WriteTo(&b, 1); err != nil {
			t.Fatal(err)
		}
		out["profile "+p.Name()] = b.String()
	}
	for where, text := range out {
		if i := strings.Index(text, canary); i >= 0 {
			t.Errorf("%s: %q", where, text[max(0, i-200):min(len(text), i+100)])
		}
	}
}
