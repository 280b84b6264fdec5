package agent

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

const (
	// relistPeriod is the interval at which all containers are listed if the runtime sends
	// no events. With events, relistWithEvents is enough to catch lost ones.
	relistPeriod     = time.Second
	relistWithEvents = 5 * time.Second
	eventsRetry      = time.Second
	// eventsSteady is how long an event stream must last before it is relied on.
	eventsSteady      = 2 * time.Second
	eventsUnsupported = time.Minute
)

// watchRuntime wakes the workers of pods whose sandboxes or containers have changed. It
// uses the runtime's events, if it sends any, and compares periodic lists.
func (a *Agent) watchRuntime(ctx context.Context) error {
	relist := make(chan struct{}, 1)
	streaming := make(chan bool)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.streamEvents(ctx, relist, streaming)
	}()
	var known map[string]cri.Seen
	period := relistPeriod
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			<-ended
			return nil
		case on := <-streaming:
			period = relistPeriod
			if on {
				period = relistWithEvents
			}
			timer.Reset(0)
			continue
		case <-relist:
		case <-timer.C:
		}
		known = a.relist(ctx, known)
		timer.Reset(period)
	}
}

// relist compares the runtime's containers with the previous list and wakes the workers of
// pods that changed.
func (a *Agent) relist(ctx context.Context, known map[string]cri.Seen) map[string]cri.Seen {
	now, err := a.cfg.Runtime.List(ctx)
	if err != nil {
		return known
	}
	changed := map[types.UID]bool{}
	for id, s := range now {
		if before, ok := known[id]; !ok || before.State != s.State {
			changed[types.UID(s.PodUID)] = true
		}
	}
	for id, s := range known {
		if _, ok := now[id]; !ok {
			changed[types.UID(s.PodUID)] = true
		}
	}
	for uid := range changed {
		a.wake(uid)
	}
	if a.began.Load() {
		// A call that creates a sandbox may succeed after its pod has gone.
		for _, s := range now {
			a.adoptPod(types.UID(s.PodUID))
		}
	}
	return now
}

// streamEvents follows the runtime's events. It sends on streaming whether events arrive,
// and on relist when some may have been lost.
func (a *Agent) streamEvents(ctx context.Context, relist chan<- struct{}, streaming chan<- bool) {
	say := func(on bool) {
		select {
		case streaming <- on:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		// A runtime without event support fails at once.
		steady := time.AfterFunc(eventsSteady, func() { say(true) })
		err := a.cfg.Runtime.Events(ctx, func(ev *runtimev1.ContainerEventResponse) {
			if uid := ev.GetPodSandboxStatus().GetMetadata().GetUid(); uid != "" {
				a.wake(types.UID(uid))
				return
			}
			select {
			case relist <- struct{}{}:
			default:
			}
		})
		if !steady.Stop() {
			say(false)
		}
		wait := eventsRetry
		if cri.Unimplemented(err) {
			wait = eventsUnsupported
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
