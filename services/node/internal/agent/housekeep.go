package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
)

const (
	// housekeeping is how often logs are looked at.
	housekeeping = 10 * time.Second
	// The kubelet's bounds on a container's log.
	logSize  = 10 << 20
	logFiles = 5
)

// housekeep does what is due from time to time.
func (a *Agent) housekeep(ctx context.Context) error {
	ticker := time.NewTicker(housekeeping)
	defer ticker.Stop()
	rotation := log.Rotation{Size: a.cfg.LogSize, Files: logFiles, Reopen: a.cfg.Runtime.ReopenLog}
	if rotation.Size == 0 {
		rotation.Size = logSize
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-a.rotate:
		}
		a.rotateLogs(ctx, rotation)
	}
}

// rotateLogs bounds the logs of running containers.
func (a *Agent) rotateLogs(ctx context.Context, rotation log.Rotation) {
	running, err := a.cfg.Runtime.RunningContainers(ctx)
	if err != nil {
		return // the next round will do
	}
	for _, id := range running {
		status, err := a.cfg.Runtime.ContainerStatus(ctx, id)
		if err != nil || status.LogPath == "" {
			continue
		}
		if err := rotation.Rotate(ctx, id, status.LogPath); err != nil && ctx.Err() == nil {
			a.log.Warn("log was not rotated", "container", id, "error", cri.Message(err))
		}
	}
}

// shareCPU sets the classes' shares of CPU time by what their pods asked for.
func (a *Agent) shareCPU() {
	var milli int64
	for _, p := range a.pods.List() {
		if pod.QOS(p) == corev1.PodQOSBurstable && !pod.Terminal(p) {
			total := pod.PodTotal(p)
			milli += total.Requests.Cpu().MilliValue()
		}
	}
	if err := a.cfg.Cgroups.SetClasses(pod.SharesOf(milli)); err != nil {
		a.log.Warn("shares of CPU time were not set", "error", err)
	}
}
