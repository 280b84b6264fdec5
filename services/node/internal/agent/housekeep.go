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
	// housekeeping is the interval at which log sizes are checked.
	housekeeping = 10 * time.Second
	// logSize is the size of a log file in bytes at which it is rotated by default, and
	// logFiles the number of files kept per container. They are the kubelet's defaults.
	logSize  = 10 << 20
	logFiles = 5
)

// housekeep rotates logs periodically, and whenever rotate receives.
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

// rotateLogs rotates the logs of running containers that have grown too large.
func (a *Agent) rotateLogs(ctx context.Context, rotation log.Rotation) {
	running, err := a.cfg.Runtime.RunningContainers(ctx)
	if err != nil {
		return // retried at the next interval
	}
	for _, id := range running {
		status, err := a.cfg.Runtime.ContainerStatus(ctx, id)
		if err != nil || status.LogPath == "" {
			continue
		}
		if err := rotation.Rotate(ctx, id, status.LogPath); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "container log was not rotated", "container_id", id, "error", cri.Message(err))
		}
	}
}

// shareCPU sets the CPU shares of the QoS classes from the requests of their pods.
func (a *Agent) shareCPU(ctx context.Context) {
	var milli int64
	for _, p := range a.Active() {
		if pod.QOS(p) == corev1.PodQOSBurstable && !pod.Terminal(p) {
			total := pod.PodTotal(p)
			milli += total.Requests.Cpu().MilliValue()
		}
	}
	if err := a.cfg.Cgroups.SetClasses(pod.SharesOf(milli)); err != nil {
		a.log.WarnContext(ctx, "CPU shares of the QoS classes were not set", "error", err)
	}
}
