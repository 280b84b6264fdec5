package podautoscaler

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
)

// Options are the controller's flags, which are those of kube-controller-manager.
type Options struct {
	// Sync is how often each autoscaler is evaluated.
	Sync time.Duration
	// DownscaleStabilization is how long a higher recommendation prevents scaling down, unless
	// the autoscaler's behavior says otherwise.
	DownscaleStabilization time.Duration
	// Tolerance is the deviation of a ratio from 1 that is ignored, unless the autoscaler's
	// behavior says otherwise.
	Tolerance float64
	// CPUInitialization is the time after a pod's start in which its CPU samples may be skipped,
	// and InitialReadinessDelay the time in which changes of its readiness count as its start.
	CPUInitialization, InitialReadinessDelay time.Duration
	// Concurrent is how many autoscalers are evaluated at once.
	Concurrent int
}

// DefaultOptions are the defaults of the flags.
var DefaultOptions = Options{
	Sync: 15 * time.Second, DownscaleStabilization: 5 * time.Minute, Tolerance: 0.1,
	CPUInitialization: 5 * time.Minute, InitialReadinessDelay: 30 * time.Second, Concurrent: 5,
}

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Options {
	o := &Options{}
	d := DefaultOptions
	fs.DurationVar(&o.Sync, "horizontal-pod-autoscaler-sync-period", d.Sync, "how often each HorizontalPodAutoscaler is evaluated")
	fs.DurationVar(&o.DownscaleStabilization, "horizontal-pod-autoscaler-downscale-stabilization", d.DownscaleStabilization, "how long a higher recommendation prevents scaling down")
	fs.Float64Var(&o.Tolerance, "horizontal-pod-autoscaler-tolerance", d.Tolerance, "deviation of usage from its target that is ignored, as a fraction")
	fs.DurationVar(&o.CPUInitialization, "horizontal-pod-autoscaler-cpu-initialization-period", d.CPUInitialization, "time after a pod's start in which its CPU usage may be skipped")
	fs.DurationVar(&o.InitialReadinessDelay, "horizontal-pod-autoscaler-initial-readiness-delay", d.InitialReadinessDelay, "time after a pod's start in which changes of its readiness count as its start")
	fs.IntVar(&o.Concurrent, "concurrent-horizontal-pod-autoscaler-syncs", d.Concurrent, "how many HorizontalPodAutoscalers are evaluated at once")
	return o
}

// Check returns an error if a flag is out of range.
func (o *Options) Check() error {
	switch {
	case o.Sync < time.Second:
		return errors.New("--horizontal-pod-autoscaler-sync-period: must be at least 1s")
	case o.DownscaleStabilization < 0 || o.DownscaleStabilization > maxWindow:
		return fmt.Errorf("--horizontal-pod-autoscaler-downscale-stabilization: must be from 0 to %s", maxWindow)
	case !(o.Tolerance >= 0 && o.Tolerance <= 1):
		return errors.New("--horizontal-pod-autoscaler-tolerance: must be from 0 to 1")
	case o.CPUInitialization < 0 || o.InitialReadinessDelay < 0:
		return errors.New("--horizontal-pod-autoscaler-cpu-initialization-period and --horizontal-pod-autoscaler-initial-readiness-delay: must not be negative")
	case o.Concurrent < 1:
		return errors.New("--concurrent-horizontal-pod-autoscaler-syncs: must be positive")
	}
	return nil
}
