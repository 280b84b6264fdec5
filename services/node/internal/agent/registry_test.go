package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestRegistry pulls from a registry with TLS and a password: with each pull policy, with
// pull secrets, directly, and as a mirror of another registry.
func TestRegistry(t *testing.T) {
	r := newRig(t)
	reg := r.runtime.StartRegistry(t, "registry.example")
	login := func(name string, hosts ...string) corev1.LocalObjectReference {
		auths := map[string]any{}
		for _, h := range hosts {
			auths[h] = map[string]string{"username": reg.User, "password": reg.Password}
		}
		b, err := json.Marshal(map[string]any{"auths": auths})
		if err != nil {
			t.Fatal(err)
		}
		r.createObject(&corev1.Secret{ObjectMeta: meta(name), Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: b}})
		return corev1.LocalObjectReference{Name: name}
	}
	with := func(name, image string, policy corev1.PullPolicy, secrets ...corev1.LocalObjectReference) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy, p.Spec.ImagePullSecrets = image, policy, secrets
		return p
	}
	own := login("own", reg.Host)
	wrong := login("wrong", "other.example")

	denied := r.create(with("denied", reg.Host+"/denied:1", corev1.PullIfNotPresent, wrong))
	denied = r.await(denied, "is denied", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.State.Waiting != nil && strings.HasSuffix(s.State.Waiting.Reason, "ImagePull") || s.State.Waiting != nil && s.State.Waiting.Reason == "ImagePullBackOff"
	})
	if m := containerStatus(denied, "main").State.Waiting.Message; !strings.Contains(m, "denied:1") || strings.Contains(m, reg.Password) {
		t.Errorf("message: %q", m)
	}
	if reg.Manifests() != 0 {
		t.Error("the registry served a manifest without a valid password")
	}

	began := time.Now()
	p := r.awaitReady(r.create(with("direct", reg.Host+"/app:1", corev1.PullIfNotPresent, wrong, own)))
	t.Logf("pulled and ready after %v", time.Since(began))
	if s := containerStatus(p, "main"); !strings.Contains(s.ImageID, "sha256:") || s.Image != reg.Host+"/app:1" {
		t.Errorf("image %q, id %q", s.Image, s.ImageID)
	}
	for _, reason := range []string{"Pulling", "Pulled"} {
		r.until("event "+reason, time.Minute, func() bool { return r.hasEvent(p, reason) })
	}
	before := reg.Manifests()
	r.awaitReady(r.create(with("present", reg.Host+"/app:1", corev1.PullIfNotPresent, own)))
	if got := reg.Manifests(); got != before {
		t.Errorf("IfNotPresent pulled an image that is present: %d manifest requests, then %d", before, got)
	}
	r.awaitReady(r.create(with("always", reg.Host+"/app:1", corev1.PullAlways, own)))
	if got := reg.Manifests(); got == before {
		t.Error("Always did not ask the registry for the image")
	}
	r.awaitReady(r.create(with("mirrored", "registry.example/team/app:2", corev1.PullIfNotPresent, login("mirror", "registry.example"))))

	// A pull secret that is created later is used without recreating the pod.
	late := with("late", reg.Host+"/late:1", corev1.PullIfNotPresent, corev1.LocalObjectReference{Name: "comes"})
	late = r.create(late)
	r.await(late, "waits", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.State.Waiting != nil && s.State.Waiting.Reason == "ImagePullBackOff"
	})
	login("comes", reg.Host)
	r.awaitReady(late)
}
