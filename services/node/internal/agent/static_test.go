package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/node/internal/manifest"
	"keelson.dev/services/node/internal/pod"
)

// staticRig is a rig whose node has a directory of manifests.
type staticRig struct {
	*rig
	manifests string
}

func newStaticRig(t *testing.T) *staticRig {
	r := &staticRig{rig: newRig(t)}
	r.manifests = filepath.Join(r.dir, "manifests")
	if err := os.Mkdir(r.manifests, 0o700); err != nil {
		t.Fatal(err)
	}
	r.static = manifest.Dir{Path: r.manifests, Node: r.node}
	t.Cleanup(func() { // before the rig ends: static pods end with their manifests
		names, _ := filepath.Glob(r.manifests + "/*")
		for _, name := range names {
			_ = os.Remove(name)
		}
		r.until("no pod is active", 2*time.Minute, func() bool { return len(r.agent.Active()) == 0 })
	})
	r.stop()
	r.start()
	return r
}

func (r *staticRig) write(p *corev1.Pod) {
	r.t.Helper()
	p.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	text, err := json.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	// Renamed into place, so that no part of it is read.
	name := filepath.Join(r.manifests, p.Name+".json")
	if err := os.WriteFile(filepath.Join(r.manifests, ".new"), text, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.manifests, ".new"), name); err != nil {
		r.t.Fatal(err)
	}
}

// awaitMirror waits until the mirror of a static pod satisfies ok, and returns it.
func (r *staticRig) awaitMirror(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	r.t.Helper()
	var now *corev1.Pod
	r.until("the mirror of "+name+" "+what, 2*time.Minute, func() bool {
		p, err := client.For[*corev1.Pod](r.client).Get(context.Background(), "default", name+"-"+r.node)
		if err != nil {
			return false
		}
		now = p
		return ok(p)
	})
	return now
}

// TestStaticPod checks the life of a static pod: it has a mirror with its status, survives
// the mirror's deletion and a restart of the agent, is replaced when its manifest changes,
// and ends with it.
func TestStaticPod(t *testing.T) {
	r := newStaticRig(t)
	p := simple("static", "echo one; "+forever)
	r.write(p)
	mirror := r.awaitMirror("static", "is ready", ready)
	hash := mirror.Annotations["kubernetes.io/config.hash"]
	owner := mirror.OwnerReferences
	if mirror.Annotations[corev1.MirrorPodAnnotationKey] != hash || mirror.Annotations["kubernetes.io/config.source"] != "file" || string(mirror.UID) == hash {
		t.Errorf("annotations: %v", mirror.Annotations)
	}
	if len(owner) != 1 || owner[0].Kind != "Node" || owner[0].Name != r.node || owner[0].Controller == nil || !*owner[0].Controller {
		t.Errorf("owners: %+v", owner)
	}
	id := containerStatus(mirror, "main").ContainerID
	if found, ok := r.agent.Find("default", mirror.Name, string(mirror.UID)); !ok || string(found.UID) != hash || found.Status.Phase != corev1.PodRunning {
		t.Errorf("sessions find %v", found)
	}

	r.delete(mirror)
	again := r.awaitMirror("static", "exists again", func(p *corev1.Pod) bool { return p.UID != mirror.UID && ready(p) })
	r.stop()
	r.start()
	r.until("the new agent has the pod", time.Minute, func() bool { return len(r.agent.Active()) == 1 })
	again = r.awaitMirror("static", "is kept", func(p *corev1.Pod) bool { return p.UID == again.UID && ready(p) })
	if now := containerStatus(again, "main"); now.ContainerID != id || now.RestartCount != 0 {
		t.Errorf("container %s became %s, %d restarts", id, now.ContainerID, now.RestartCount)
	}

	p.Spec.Containers[0].Command[2] = "echo two; " + forever
	r.write(p)
	changed := r.awaitMirror("static", "shows the changed pod", func(p *corev1.Pod) bool {
		return p.Annotations["kubernetes.io/config.hash"] != hash && ready(p)
	})
	if state, err := r.runtime.Client.Pod(context.Background(), hash); err != nil || len(state.Running()) > 0 {
		t.Errorf("the old pod still runs: %v", err)
	}
	if err := os.Remove(filepath.Join(r.manifests, "static.json")); err != nil {
		t.Fatal(err)
	}
	r.awaitGone(changed)
	r.until("nothing is left", time.Minute, func() bool {
		state, err := r.runtime.Client.Pod(context.Background(), changed.Annotations["kubernetes.io/config.hash"])
		return err == nil && len(state.Sandboxes) == 0
	})
}

// TestStaticPodAfterShutdown checks that a static pod that its node has ended, before the
// machine was shut down, runs again under the next agent, with another mirror.
func TestStaticPodAfterShutdown(t *testing.T) {
	r := newStaticRig(t)
	r.write(simple("revived", forever))
	mirror := r.awaitMirror("revived", "is ready", ready)
	hash := types.UID(mirror.Annotations[corev1.MirrorPodAnnotationKey])
	if _, err := r.agent.Evict(hash, pod.Ending{Reason: "Terminated", Conditions: []corev1.PodCondition{pod.Disrupted("shutdown")}}); err != nil {
		t.Fatal(err)
	}
	r.awaitMirror("revived", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Terminated" })
	r.stop()
	r.start()
	r.awaitMirror("revived", "is another one, and ready", func(p *corev1.Pod) bool { return p.UID != mirror.UID && ready(p) && p.Status.Reason == "" })
}

// TestStaticPodWithoutAPI checks that a static pod runs before the API has ever answered,
// and is not restarted when it does. A mirror without a manifest is deleted then.
func TestStaticPodWithoutAPI(t *testing.T) {
	r := newStaticRig(t)
	orphan := simple("orphan", forever)
	orphan.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "0", "kubernetes.io/config.hash": "0"}
	r.stop()
	orphan = r.create(orphan)
	r.server.Fail(func(string, *resourcev1.Ref) error { return status.Error(codes.Unavailable, "no API") })
	r.server.Cut()
	r.start()
	p := simple("first", forever)
	r.write(p)
	var uid types.UID
	var id string
	r.until("the container runs", time.Minute, func() bool {
		for _, p := range r.agent.Active() {
			uid = p.UID
		}
		state, err := r.runtime.Client.Pod(context.Background(), string(uid))
		if uid == "" || err != nil || len(state.Running()) != 1 {
			return false
		}
		id = state.Running()[0].ID
		return true
	})
	r.server.Fail(nil)
	mirror := r.awaitMirror("first", "is ready", ready)
	if now := containerStatus(mirror, "main"); now.ContainerID != "containerd://"+id {
		t.Errorf("container %s became %s", id, now.ContainerID)
	}
	r.until("the orphan is gone", time.Minute, func() bool {
		_, err := client.For[*corev1.Pod](r.client).Get(context.Background(), orphan.Namespace, orphan.Name)
		return apierrors.IsNotFound(err)
	})
	if state := r.state(orphan); len(state.Sandboxes) > 0 {
		t.Error("the mirror of no pod was run")
	}
}

// TestStaticPodChangedWhileDown checks that a static pod whose manifest changed while no agent
// ran ends before its successor starts, even if the API does not answer.
func TestStaticPodChangedWhileDown(t *testing.T) {
	r := newStaticRig(t)
	p := simple("changed", "echo one; "+forever)
	r.write(p)
	mirror := r.awaitMirror("changed", "is ready", ready)
	old := mirror.Annotations[corev1.MirrorPodAnnotationKey]
	r.stop()
	p.Spec.Containers[0].Command[2] = "echo two; " + forever
	r.write(p)
	r.server.Fail(func(string, *resourcev1.Ref) error { return status.Error(codes.Unavailable, "no API") })
	r.server.Cut()
	r.start()
	r.until("the successor runs", 2*time.Minute, func() bool {
		for _, p := range r.agent.Active() {
			if state, err := r.runtime.Client.Pod(context.Background(), string(p.UID)); err == nil && len(state.Running()) == 1 {
				return string(p.UID) != old
			}
		}
		return false
	})
	if state, err := r.runtime.Client.Pod(context.Background(), old); err != nil || len(state.Running()) > 0 {
		t.Errorf("the old pod still runs: %v", err)
	}
	r.server.Fail(nil)
	r.awaitMirror("changed", "shows the successor", func(p *corev1.Pod) bool {
		return p.Annotations[corev1.MirrorPodAnnotationKey] != old && ready(p)
	})
}

// TestStaticPodsUnknown checks that an agent leaves the static pods of an earlier agent and
// their mirrors as they are while it cannot read their manifests, and runs other pods.
func TestStaticPodsUnknown(t *testing.T) {
	r := newStaticRig(t)
	r.write(simple("kept", forever))
	mirror := r.awaitMirror("kept", "is ready", ready)
	id := containerStatus(mirror, "main").ContainerID
	r.stop()
	if err := os.Chmod(r.manifests, 0o777); err != nil {
		t.Fatal(err)
	}
	r.start()
	other := r.awaitReady(r.create(simple("other", forever)))
	r.until("pods of neither source are removed", time.Minute, r.agent.began.Load)
	known, err := r.runtime.Client.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.agent.adopt(known)
	if err := os.Chmod(r.manifests, 0o700); err != nil {
		t.Fatal(err)
	}
	r.until("the agent has the static pod", time.Minute, func() bool { return len(r.agent.Active()) == 2 })
	again := r.awaitMirror("kept", "is ready", ready)
	if now := containerStatus(again, "main"); again.UID != mirror.UID || now.ContainerID != id || now.RestartCount != 0 {
		t.Errorf("mirror %s became %s; container %s became %s, %d restarts", mirror.UID, again.UID, id, now.ContainerID, now.RestartCount)
	}
	r.delete(other)
	r.awaitGone(other)
}
