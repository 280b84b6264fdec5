package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// housekeeping is how often logs are looked at.
const housekeeping = 10 * time.Second

// housekeep does what is due from time to time.
func (a *Agent) housekeep(ctx context.Context) error {
	ticker := time.NewTicker(housekeeping)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
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
