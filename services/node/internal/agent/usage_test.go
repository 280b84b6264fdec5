package agent

import (
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/usage"
)

// TestUsage measures a pod that computes, writes to its layer, its log and an emptyDir.
func TestUsage(t *testing.T) {
	r := newRig(t)
	p := simple("busy", "head -c 2000000 /dev/zero >/tmp/layer; head -c 3000000 /dev/zero >/data/volume; seq 20000; touch /data/done; while :; do :; done")
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m"), corev1.ResourceMemory: resource.MustParse("256Mi")}
	p = r.awaitReady(r.create(p))
	r.awaitFile(p, "main", "/data/done")

	cgroups, err := cgroup.Detect(r.runtime.CgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	meter := usage.New(usage.Config{
		Groups: cgroups, Runtime: r.runtime.Client, Pods: r.agent.Pods().List, Dir: r.dir, Volumes: r.agent.VolumePaths,
		LogDir: func(p *corev1.Pod) string { return filepath.Join(r.dir, "var", "log", "pods", pod.LogFolder(p)) },
	})
	var got *usage.Pod
	// The runtime measures layers every ten seconds; a rate is known ten seconds after the start.
	r.until("all of the pod is measured", time.Minute, func() bool {
		report, err := meter.Read(t.Context(), usage.Want{Disk: true, MaxAge: time.Second, DiskMaxAge: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		got = report.Pod(p.UID)
		return got != nil && len(got.Containers) == 1 && got.Containers[0].CPU.Window >= usage.MinWindow && got.Containers[0].Rootfs.Used >= 2_000_000
	})
	main := got.Container("main")
	if main == nil || main.CPU.NanoCores < 50_000_000 || main.CPU.NanoCores > 400_000_000 || main.CPU.Periods == 0 {
		t.Errorf("CPU of a container that is limited to 200m: %+v", main)
	}
	if main.Memory.WorkingSet == 0 || main.Memory.WorkingSet > 200<<20 || got.Memory.WorkingSet < main.Memory.WorkingSet || got.Memory.Limit != 256<<20 {
		t.Errorf("memory: container %+v, pod %+v", main.Memory, got.Memory)
	}
	if main.Logs.Used < 100_000 || len(got.Volumes) != 1 || got.Volumes[0].FS.Used < 3_000_000 || got.Ephemeral.Used < 5_000_000 {
		t.Errorf("disk: logs %+v, volumes %+v, pod %+v", main.Logs, got.Volumes, got.Ephemeral)
	}
	if got.Network.Default == "" || len(got.Network.Interfaces) == 0 || got.PIDs == 0 {
		t.Errorf("network %+v, %d processes", got.Network, got.PIDs)
	}
}
