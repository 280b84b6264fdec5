package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/runtimetest"
)

// eventMessage returns the message of a pod's event with this reason, or "".
func (r *rig) eventMessage(p *corev1.Pod, reason string) string {
	events, _, err := client.For[*corev1.Event](r.client).List(context.Background(), client.ListOptions{Namespace: p.Namespace})
	if err != nil {
		return ""
	}
	for _, e := range events {
		if e.InvolvedObject.UID == p.UID && e.Reason == reason {
			return e.Message
		}
	}
	return ""
}

// TestRuntimeClass checks that a pod gets the handler of its RuntimeClass, and that an
// unknown class or handler is reported in an event.
func TestRuntimeClass(t *testing.T) {
	r := newRig(t)
	class := func(name, handler string) {
		r.createObject(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: handler})
	}
	class("good", runtimetest.Handler)
	class("bad", "no-such-handler")
	of := func(name, class string) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.RuntimeClassName = &class
		return r.create(p)
	}
	good, bad, missing := of("good", "good"), of("bad", "bad"), of("missing", "missing")
	good = r.awaitReady(good)
	resp, err := r.runtime.Client.SandboxStatus(context.Background(), r.state(good).Sandbox().ID, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.GetStatus().GetRuntimeHandler(); got != runtimetest.Handler {
		t.Errorf("runtime handler %q, want %q", got, runtimetest.Handler)
	}
	for p, want := range map[*corev1.Pod]string{
		bad: `no-such-handler`, missing: `failed to lookup RuntimeClass missing: runtimeclass.node.k8s.io "missing" not found`,
	} {
		r.until(p.Name+" has an event", time.Minute, func() bool {
			text := r.eventMessage(p, "FailedCreatePodSandBox")
			return strings.HasPrefix(text, "Failed to create pod sandbox: ") && strings.Contains(text, want)
		})
	}
	class("missing", runtimetest.Handler)
	r.awaitReady(missing)
}
