package agent

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/volume"
)

// TestClaim checks that a claim's directory is created by the first pod, outlives pods, and
// is removed with the PersistentVolume.
func TestClaim(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	base := t.TempDir()
	pv := &corev1.PersistentVolume{}
	pv.Name, pv.Labels, pv.Finalizers = "pvc-1234", map[string]string{LabelNode: r.node}, []string{volume.LocalDataFinalizer}
	pv.Spec.Local = &corev1.LocalVolumeSource{Path: filepath.Join(base, "pvc-1234")}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data", UID: "claim-uid"}
	r.createObject(pv)
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta("data")}
	claim.UID = types.UID("claim-uid")
	p := simple("first", "test -e /data/x || echo kept >/data/x; "+forever)
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	p = r.create(p)
	r.until("event FailedMount", time.Minute, func() bool { return r.hasEvent(p, "FailedMount") })

	r.createObject(claim)
	stored, err := client.For[*corev1.PersistentVolumeClaim](r.client).Get(ctx, "default", "data")
	if err != nil {
		t.Fatal(err)
	}
	stored.Spec.VolumeName = "pvc-1234"
	if stored, err = client.For[*corev1.PersistentVolumeClaim](r.client).Update(ctx, stored); err != nil {
		t.Fatal(err)
	}
	stored.Status.Phase = corev1.ClaimBound
	if _, err := client.For[*corev1.PersistentVolumeClaim](r.client).UpdateStatus(ctx, stored); err != nil {
		t.Fatal(err)
	}
	volumes := client.For[*corev1.PersistentVolume](r.client)
	now, err := volumes.Get(ctx, "", "pvc-1234")
	if err != nil {
		t.Fatal(err)
	}
	now.Spec.ClaimRef.UID = stored.UID
	if _, err := volumes.Update(ctx, now); err != nil {
		t.Fatal(err)
	}
	r.awaitReady(p)
	r.delete(p)
	r.awaitGone(p)
	second := simple("second", forever)
	second.Spec.Volumes, second.Spec.Containers[0].VolumeMounts = p.Spec.Volumes, p.Spec.Containers[0].VolumeMounts
	second = r.awaitReady(r.create(second))
	if got := r.exec(second, "main", "cat", "/data/x"); got != "kept\n" {
		t.Errorf("data: %q", got)
	}
	r.delete(second)
	r.awaitGone(second)
	if err := volumes.Delete(ctx, "", "pvc-1234"); err != nil {
		t.Fatal(err)
	}
	r.until("the volume is gone", time.Minute, func() bool {
		_, err := volumes.Get(ctx, "", "pvc-1234")
		return err != nil
	})
	if _, err := os.Stat(filepath.Join(base, "pvc-1234")); err == nil {
		t.Error("the volume's directory still exists")
	}
	if _, err := os.Stat(base); err != nil {
		t.Error("more than the volume's directory was removed")
	}
}

func TestLocalDir(t *testing.T) {
	for path, ok := range map[string]bool{
		"/volumes/pvc-1": true, "/volumes/other": false, "/volumes/../pvc-1": false, "pvc-1": false, "/pvc-1": false, "/": false, "": false, "/a/b/pvc-1/": false,
	} {
		pv := &corev1.PersistentVolume{}
		pv.Name = "pvc-1"
		pv.Spec.Local = &corev1.LocalVolumeSource{Path: path}
		if _, err := localDir(pv); (err == nil) != ok {
			t.Errorf("%q: %v", path, err)
		}
	}
	pv := &corev1.PersistentVolume{}
	pv.Name, pv.Spec.Local = "ssh", &corev1.LocalVolumeSource{Path: "/etc/ssh"}
	if _, err := localDir(pv); err == nil {
		t.Error("a directory without the provisioner's prefix was accepted")
	}
	if _, err := localDir(&corev1.PersistentVolume{}); err == nil {
		t.Error("a volume that is not local was accepted")
	}
}
