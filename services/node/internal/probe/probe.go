// Package probe determines whether containers have started, are alive and are ready. Each
// probe runs in a goroutine of its own and reaches its verdicts by the thresholds in its
// spec.
//
// It must never act on a verdict: it reports, and package pod's plan decides.
//
// As in Kubernetes, the output of a failing exec probe and the body of a redirect to
// another host appear in the pod's events: at most 10 KiB are read, control characters are
// escaped, and an event holds 1 KiB. The command line of a probe or hook, and the output of
// a hook, never leave the node.
package probe

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

// Prober probes the containers of all pods of a node.
type Prober struct {
	exec   Execer
	events *event.Recorder
	// changed is called from any goroutine when a verdict on a pod changes.
	changed func(types.UID)

	mu   sync.Mutex
	pods map[types.UID]*podProbes
	wg   sync.WaitGroup
}

// podProbes holds the probes of one pod's running instances, by container ID.
type podProbes struct {
	instances map[string]*instance
}

type instance struct {
	probes [3]*worker
	cancel context.CancelFunc
}

type worker struct {
	mu      sync.Mutex
	machine *machine
	nudge   chan struct{}
	cancel  context.CancelFunc
}

// New returns a prober. changed must not block.
func New(exec Execer, events *event.Recorder, changed func(types.UID)) *Prober {
	return &Prober{exec: exec, events: events, changed: changed, pods: map[types.UID]*podProbes{}}
}

// Sync starts probing new running instances of a pod and stops probing those that are gone.
// If the pod is ending, only readiness is still probed.
func (pr *Prober) Sync(ctx context.Context, p *corev1.Pod, r *cri.Pod, ip string, ending bool) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	state := pr.pods[p.UID]
	if state == nil {
		state = &podProbes{instances: map[string]*instance{}}
		pr.pods[p.UID] = state
	}
	running := map[string]bool{}
	for role, c := range pod.Containers(p) {
		if role == pod.Ephemeral {
			continue
		}
		inst := r.Latest(c.Name)
		if inst == nil || inst.State != cri.StateRunning {
			continue
		}
		running[inst.ID] = true
		if state.instances[inst.ID] == nil && !ending {
			state.instances[inst.ID] = pr.begin(ctx, p, c, inst, ip)
		}
	}
	for id, inst := range state.instances {
		if !running[id] {
			inst.cancel()
			delete(state.instances, id)
			continue
		}
		if ending {
			for _, k := range []Kind{Startup, Liveness} {
				if w := inst.probes[k]; w != nil {
					w.cancel()
				}
			}
		}
	}
	if len(state.instances) == 0 {
		delete(pr.pods, p.UID)
	}
}

// Forget stops all probes of a pod.
func (pr *Prober) Forget(uid types.UID) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if state := pr.pods[uid]; state != nil {
		for _, inst := range state.instances {
			inst.cancel()
		}
		delete(pr.pods, uid)
	}
}

// Close stops all probes and waits for them.
func (pr *Prober) Close() {
	pr.mu.Lock()
	for uid, state := range pr.pods {
		for _, inst := range state.instances {
			inst.cancel()
		}
		delete(pr.pods, uid)
	}
	pr.mu.Unlock()
	pr.wg.Wait()
}

// begin starts the probes of an instance.
func (pr *Prober) begin(ctx context.Context, p *corev1.Pod, c *corev1.Container, inst *cri.Container, ip string) *instance {
	ctx, cancel := context.WithCancel(ctx)
	out := &instance{cancel: cancel}
	// After a restart of the agent, start from what was reported about this very instance,
	// until a probe finds otherwise.
	var started, ready bool
	if st := pod.Status(p, c.Name); st != nil && idOf(st.ContainerID) == inst.ID {
		started, ready = st.Started != nil && *st.Started, st.Ready
	}
	specs := [3]*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe}
	for k, spec := range specs {
		if spec == nil {
			continue
		}
		before := ready
		if Kind(k) == Startup {
			before = started
		}
		out.probes[k] = &worker{machine: newMachine(Kind(k), spec, before), nudge: make(chan struct{}, 1)}
	}
	for k, w := range out.probes {
		if w == nil {
			continue
		}
		loopCtx, loopCancel := context.WithCancel(ctx)
		w.cancel = loopCancel
		l := &loop{
			prober: pr, worker: w, instance: out, kind: Kind(k), spec: specs[k], pod: p,
			target: Target{Container: c, ContainerID: inst.ID, PodIP: ip}, started: inst.StartedAt,
		}
		pr.wg.Add(1)
		go func() {
			defer pr.wg.Done()
			defer loopCancel()
			l.run(loopCtx)
		}()
	}
	return out
}

func idOf(containerID string) string {
	for i := 0; i+3 <= len(containerID); i++ {
		if containerID[i:i+3] == "://" {
			return containerID[i+3:]
		}
	}
	return containerID
}

// Verdicts is a snapshot of the probes' verdicts on a pod's instances.
type Verdicts struct {
	started, ready map[string]bool
	unhealthy      map[string]string
}

// Verdicts returns the current verdicts on a pod's instances.
func (pr *Prober) Verdicts(uid types.UID) Verdicts {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	v := Verdicts{started: map[string]bool{}, ready: map[string]bool{}, unhealthy: map[string]string{}}
	state := pr.pods[uid]
	if state == nil {
		return v
	}
	for id, inst := range state.instances {
		v.started[id] = inst.started()
		v.ready[id] = v.started[id]
		if w := inst.probes[Readiness]; w != nil {
			passed, _ := w.verdict()
			v.ready[id] = v.ready[id] && passed
		}
		if w := inst.probes[Startup]; w != nil {
			if _, failed := w.verdict(); failed {
				v.unhealthy[id] = pod.KillStartup
			}
		}
		if w := inst.probes[Liveness]; w != nil {
			if _, failed := w.verdict(); failed {
				v.unhealthy[id] = pod.KillLiveness
			}
		}
	}
	return v
}

// Started reports whether an instance has started, as far as probes can tell.
func (v Verdicts) Started(id string) bool { return v.started[id] }

// Ready reports whether an instance is ready.
func (v Verdicts) Ready(id string) bool { return v.ready[id] }

// Unhealthy returns why an instance must be stopped, as a pod.Kill reason, or "".
func (v Verdicts) Unhealthy(id string) string { return v.unhealthy[id] }

func (w *worker) verdict() (passed, failed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine.passed, w.machine.failed
}

func (i *instance) started() bool {
	w := i.probes[Startup]
	if w == nil {
		return true
	}
	passed, _ := w.verdict()
	return passed
}

// loop runs one probe of one instance.
type loop struct {
	prober   *Prober
	worker   *worker
	instance *instance
	kind     Kind
	spec     *corev1.Probe
	pod      *corev1.Pod
	target   Target
	started  time.Time
}

func (l *loop) run(ctx context.Context) {
	period := time.Duration(max(l.spec.PeriodSeconds, 1)) * time.Second
	if !l.wait(ctx, time.Until(l.started.Add(time.Duration(l.spec.InitialDelaySeconds)*time.Second))) {
		return
	}
	for {
		if l.kind == Startup || l.instance.started() {
			l.once(ctx)
			l.worker.mu.Lock()
			over := l.worker.machine.over()
			l.worker.mu.Unlock()
			if over {
				return
			}
		}
		timer := time.NewTimer(period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-l.worker.nudge:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (l *loop) wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (l *loop) once(ctx context.Context) {
	timeout := time.Duration(max(l.spec.TimeoutSeconds, 1)) * time.Second
	out, err := Run(ctx, l.prober.exec, l.target, &l.spec.ProbeHandler, timeout)
	if ctx.Err() != nil {
		return
	}
	name := l.target.Container.Name
	if err != nil {
		l.prober.events.Pod(l.pod, name, corev1.EventTypeWarning, event.Unhealthy, "%s probe errored and resulted in unknown state: %v", l.kind, err)
		return
	}
	switch {
	case !out.OK:
		l.prober.events.Pod(l.pod, name, corev1.EventTypeWarning, event.Unhealthy, "%s probe failed: %s", l.kind, out.Message)
	case out.Warning:
		l.prober.events.Pod(l.pod, name, corev1.EventTypeWarning, event.ProbeWarning, "%s probe warning: %s", l.kind, out.Message)
	}
	l.worker.mu.Lock()
	changed := l.worker.machine.observe(out.OK)
	passed := l.worker.machine.passed
	l.worker.mu.Unlock()
	if !changed {
		return
	}
	if l.kind == Startup && passed {
		// Run the other probes now instead of at their next period.
		for _, k := range []Kind{Liveness, Readiness} {
			if w := l.instance.probes[k]; w != nil {
				select {
				case w.nudge <- struct{}{}:
				default:
				}
			}
		}
	}
	l.prober.changed(l.pod.UID)
}
