package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
)

// The reasons why the agent stops a container, as they appear in the message of the Killing
// event.
const (
	KillLiveness = "failed liveness probe"
	KillStartup  = "failed startup probe"
	KillChanged  = "definition changed"
	KillUnknown  = "is in an unknown state"
	KillResize   = "resize requires restart"
)

// View is the input of a plan.
type View struct {
	Pod     *corev1.Pod
	Runtime *cri.Pod
	Now     time.Time
	// Started reports whether a running instance has passed its startup probe, or has none.
	Started func(id string) bool
	// Unhealthy returns why a running instance must be stopped, KillLiveness or
	// KillStartup, or "".
	Unhealthy func(id string) string
	// Replaced reports whether an instance was stopped so that the next one gets other
	// resources. Nil means that none was.
	Replaced func(id string) bool
}

// Plan is the next step for a pod. All of it may be carried out at once, except that kills
// come before starts.
type Plan struct {
	// KillAll stops all containers and the sandbox first.
	KillAll bool
	// CreateSandbox creates a new sandbox with the given Attempt.
	CreateSandbox bool
	Attempt       uint32
	// SandboxID is the sandbox to start containers in, if none is created.
	SandboxID string
	Kill      []Kill
	Start     []Start
	// Waiting explains why containers are in back-off.
	Waiting map[string]corev1.ContainerStateWaiting
	// Finished is true if no container of this pod will be started again.
	Finished bool
	// Wake is when the plan may change even if nothing happens. Zero means never.
	Wake time.Time
}

// Kill is a container to stop.
type Kill struct {
	Container *cri.Container
	Why       string
}

// Start is a container to start.
type Start struct {
	Container *corev1.Container
	Role      Role
	// Target is the ID of the instance whose process namespace an ephemeral container
	// joins, or "".
	Target string
	// RestartCount is the restart count of the new instance.
	RestartCount int
	// Backoff is the delay that follows the end of the new instance.
	Backoff time.Duration
}

// Make plans the next step of a pod that should be running. A pod that is being deleted
// needs no plan: all of it is stopped.
func Make(v View) Plan {
	if Terminal(v.Pod) {
		return Plan{KillAll: true, Finished: true}
	}
	box := v.Runtime.Sandbox()
	if why := sandboxUnusable(v.Pod, box); why != "" {
		return planSandbox(v, box)
	}
	p := Plan{SandboxID: box.ID, Waiting: map[string]corev1.ContainerStateWaiting{}}
	p.planEphemeral(v)
	initialized, failed := p.planInit(v, box.ID)
	if failed {
		return Plan{KillAll: true, Finished: true, SandboxID: box.ID}
	}
	if !initialized {
		return p
	}
	if p.planRegular(v, box.ID) {
		return Plan{KillAll: true, Finished: true, SandboxID: box.ID}
	}
	return p
}

// sandboxUnusable returns why a pod needs another sandbox, or "".
func sandboxUnusable(pod *corev1.Pod, box *cri.Sandbox) string {
	switch {
	case box == nil:
		return "no sandbox"
	case !box.Ready:
		return "the sandbox has ended"
	case box.HostNetwork != pod.Spec.HostNetwork:
		return "the sandbox has another network"
	case !pod.Spec.HostNetwork && len(box.IPs) == 0:
		return "the sandbox has no address"
	}
	return ""
}

// planSandbox plans the next step of a pod without a usable sandbox.
func planSandbox(v View, box *cri.Sandbox) Plan {
	p := Plan{KillAll: box != nil, CreateSandbox: true}
	if box == nil {
		return p
	}
	p.Attempt = box.Attempt + 1
	if len(v.Runtime.Containers) == 0 {
		return p
	}
	// A sandbox in which containers have run is replaced only if the restart policy allows
	// at least one of them to start again.
	for i := range v.Pod.Spec.Containers {
		c := &v.Pod.Spec.Containers[i]
		last := v.Runtime.Latest(c.Name)
		if last == nil && v.Pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
			return p
		}
		if last == nil {
			continue
		}
		ended := *last
		if ended.State != cri.StateExited {
			ended.ExitCode = 137
		}
		if restarts(v.Pod, c, &ended) {
			return p
		}
	}
	p.CreateSandbox = false
	p.Finished = true
	return p
}

// planInit plans init containers and sidecars. initialized is true once regular containers
// may start; failed is true if initialization has failed for good.
func (p *Plan) planInit(v View, sandbox string) (initialized, failed bool) {
	inits := v.Pod.Spec.InitContainers
	reached := -1
	for i := range inits {
		if instance(v.Runtime, sandbox, inits[i].Name) != nil {
			reached = i
		}
	}
	initialized = begun(v, sandbox)
	if initialized {
		reached = len(inits)
	}
	// Sidecars before the current init container are kept running and do not block it.
	for i := 0; i < min(reached, len(inits)); i++ {
		if IsSidecar(&inits[i]) {
			p.keepRunning(v, sandbox, &inits[i], Sidecar)
		}
	}
	if initialized {
		return true, false
	}
	for i := max(reached, 0); i < len(inits); i++ {
		c := &inits[i]
		inst := instance(v.Runtime, sandbox, c.Name)
		switch {
		case inst == nil || inst.State == cri.StateCreated:
			p.start(v, c, roleOf(c))
			return false, false
		case IsSidecar(c):
			p.keepRunning(v, sandbox, c, Sidecar)
			if inst.State != cri.StateRunning || !v.Started(inst.ID) {
				return false, false
			}
		case inst.State == cri.StateExited && inst.ExitCode == 0:
		case inst.State == cri.StateExited:
			if !restarts(v.Pod, c, inst) {
				return false, true
			}
			p.restart(v, c, inst, Init)
			return false, false
		case inst.State == cri.StateUnknown:
			p.Kill = append(p.Kill, Kill{inst, KillUnknown})
			return false, false
		default:
			if inst.Hash != "" && inst.Hash != Hash(c) {
				p.Kill = append(p.Kill, Kill{inst, KillChanged})
			}
			return false, false
		}
	}
	return true, false
}

// planEphemeral plans ephemeral containers, which start at any time and never again.
func (p *Plan) planEphemeral(v View) {
	for i := range v.Pod.Spec.EphemeralContainers {
		e := &v.Pod.Spec.EphemeralContainers[i]
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		last := v.Runtime.Latest(c.Name)
		st := Status(v.Pod, c.Name)
		if last != nil && last.State != cri.StateCreated || last == nil && st != nil && (st.State.Running != nil || st.State.Terminated != nil) {
			continue
		}
		s := Start{Container: c, Role: Ephemeral}
		if e.TargetContainerName != "" {
			if target := v.Runtime.Latest(e.TargetContainerName); target != nil {
				s.Target = target.ID
			} else {
				p.Waiting[c.Name] = corev1.ContainerStateWaiting{
					Reason: "CreateContainerConfigError", Message: fmt.Sprintf("unable to find target container %s", e.TargetContainerName),
				}
				continue
			}
		}
		p.Start = append(p.Start, s)
	}
}

// planRegular plans regular containers. finished is true if all of them have ended for
// good.
func (p *Plan) planRegular(v View, sandbox string) (finished bool) {
	finished = true
	for i := range v.Pod.Spec.Containers {
		if !p.keepRunning(v, sandbox, &v.Pod.Spec.Containers[i], Regular) {
			finished = false
		}
	}
	return finished
}

// keepRunning plans one container that should be running. over is true if it has ended for
// good.
func (p *Plan) keepRunning(v View, sandbox string, c *corev1.Container, role Role) (over bool) {
	inst := instance(v.Runtime, sandbox, c.Name)
	switch {
	case inst == nil || inst.State == cri.StateCreated:
		if last := v.Runtime.Latest(c.Name); last != nil && last.SandboxID != sandbox && last.State == cri.StateExited && !restarts(v.Pod, c, last) {
			return true
		}
		p.start(v, c, role)
	case inst.State == cri.StateUnknown:
		p.Kill = append(p.Kill, Kill{inst, KillUnknown})
	case inst.State == cri.StateRunning:
		if inst.Hash != "" && inst.Hash != Hash(c) {
			p.Kill = append(p.Kill, Kill{inst, KillChanged})
		} else if why := v.Unhealthy(inst.ID); why != "" {
			p.Kill = append(p.Kill, Kill{inst, why})
		}
	case inst.Hash != "" && inst.Hash != Hash(c), v.Replaced != nil && v.Replaced(inst.ID):
		p.start(v, c, role)
	case !restarts(v.Pod, c, inst):
		return true
	default:
		p.restart(v, c, inst, role)
	}
	return false
}

// start plans an instance that starts without delay.
func (p *Plan) start(v View, c *corev1.Container, role Role) {
	s := Start{Container: c, Role: role}
	switch last := v.Runtime.Latest(c.Name); {
	case last == nil:
	case last.State == cri.StateCreated, neverRan(last):
		s.RestartCount, s.Backoff = last.RestartCount, last.Backoff
	default:
		s.RestartCount = last.RestartCount + 1
		_, s.Backoff = Restart(last)
	}
	if st := Status(v.Pod, c.Name); st != nil && v.Runtime.Latest(c.Name) == nil && (st.LastTerminationState.Terminated != nil || st.State.Running != nil || st.State.Terminated != nil) {
		s.RestartCount = int(st.RestartCount) + 1
	}
	p.Start = append(p.Start, s)
}

// neverRan reports whether an instance ended without having started. Such an instance was
// created while its sandbox was being lost, and the end of the instance before it has
// already been counted as a restart.
func neverRan(c *cri.Container) bool { return c.State == cri.StateExited && c.StartedAt.IsZero() }

// restart plans the next instance of a container that has ended, or reports the container
// as waiting while its back-off lasts.
func (p *Plan) restart(v View, c *corev1.Container, last *cri.Container, role Role) {
	at, next := Restart(last)
	if v.Now.Before(at) {
		p.Waiting[c.Name] = corev1.ContainerStateWaiting{
			Reason: "CrashLoopBackOff",
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
				last.Backoff, c.Name, v.Pod.Name, v.Pod.Namespace, v.Pod.UID),
		}
		if p.Wake.IsZero() || at.Before(p.Wake) {
			p.Wake = at
		}
		return
	}
	p.Start = append(p.Start, Start{Container: c, Role: role, RestartCount: last.RestartCount + 1, Backoff: next})
}

// begun reports whether a regular container has been started in this sandbox. If so,
// initialization is over, whatever has happened to the containers since.
func begun(v View, sandbox string) bool {
	for i := range v.Pod.Spec.Containers {
		inst := instance(v.Runtime, sandbox, v.Pod.Spec.Containers[i].Name)
		if inst != nil && inst.State != cri.StateCreated {
			return true
		}
	}
	return false
}

// instance returns the newest instance of a container in one sandbox, or nil.
func instance(r *cri.Pod, sandbox, name string) *cri.Container {
	for _, c := range r.Instances(name) {
		if c.SandboxID == sandbox {
			return c
		}
	}
	return nil
}

// restarts reports whether an instance that ended is followed by another one.
func restarts(pod *corev1.Pod, c *corev1.Container, ended *cri.Container) bool {
	for _, rule := range c.RestartPolicyRules {
		if rule.ExitCodes == nil {
			continue
		}
		match := false
		for _, code := range rule.ExitCodes.Values {
			match = match || code == ended.ExitCode
		}
		if rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpNotIn {
			match = !match
		}
		if match {
			return true
		}
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	} else if _, role := Find(pod, c.Name); role == Init && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return ended.ExitCode != 0
	default:
		return true
	}
}
