package pod

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/cri"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// world is a pod and its state in the runtime, built step by step.
type world struct {
	pod       *corev1.Pod
	runtime   *cri.Pod
	started   map[string]bool
	unhealthy map[string]string
}

func newWorld(policy corev1.RestartPolicy, containers ...string) *world {
	w := &world{
		pod:     &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}, Spec: corev1.PodSpec{RestartPolicy: policy}},
		runtime: &cri.Pod{UID: "u"}, started: map[string]bool{}, unhealthy: map[string]string{},
	}
	for _, name := range containers {
		w.pod.Spec.Containers = append(w.pod.Spec.Containers, corev1.Container{Name: name, Image: "image"})
	}
	return w
}

func (w *world) init(names ...string) *world {
	for _, name := range names {
		w.pod.Spec.InitContainers = append(w.pod.Spec.InitContainers, corev1.Container{Name: name, Image: "image"})
	}
	return w
}

func (w *world) sidecar(names ...string) *world {
	always := corev1.ContainerRestartPolicyAlways
	for _, name := range names {
		w.pod.Spec.InitContainers = append(w.pod.Spec.InitContainers, corev1.Container{Name: name, Image: "image", RestartPolicy: &always})
	}
	return w
}

func (w *world) debug(name, target string) *world {
	w.pod.Spec.EphemeralContainers = append(w.pod.Spec.EphemeralContainers, corev1.EphemeralContainer{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "image"}, TargetContainerName: target,
	})
	return w
}

// reported gives an ephemeral container a status that says that it ran.
func (w *world) reported(name string) *world {
	w.pod.Status.EphemeralContainerStatuses = append(w.pod.Status.EphemeralContainerStatuses, corev1.ContainerStatus{
		Name: name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	})
	return w
}

func (w *world) sandbox(ready bool) *world {
	n := len(w.runtime.Sandboxes)
	box := cri.Sandbox{ID: fmt.Sprintf("box-%d", n), Attempt: uint32(n), Ready: ready, IPs: []string{"10.0.0.1"}}
	w.runtime.Sandboxes = append([]cri.Sandbox{box}, w.runtime.Sandboxes...)
	return w
}

// has adds an instance in the newest sandbox. Negative exit codes stand for states.
const (
	running = -1 - iota
	created
	unknown
)

func (w *world) has(name string, exit int, options ...func(*cri.Container)) *world {
	spec, _ := Find(w.pod, name)
	n := len(w.runtime.Instances(name))
	c := cri.Container{
		ID: fmt.Sprintf("%s-%d", name, n), Name: name, SandboxID: w.runtime.Sandboxes[0].ID, RestartCount: n,
		CreatedAt: now.Add(-time.Minute), StartedAt: now.Add(-time.Minute), Hash: Hash(spec),
	}
	switch exit {
	case running:
		c.State = cri.StateRunning
		w.started[c.ID] = true
	case created:
		c.State, c.StartedAt = cri.StateCreated, time.Time{}
	case unknown:
		c.State = cri.StateUnknown
	default:
		c.State, c.ExitCode, c.FinishedAt = cri.StateExited, int32(exit), now.Add(-time.Second)
	}
	for _, f := range options {
		f(&c)
	}
	w.runtime.Containers = append([]cri.Container{c}, w.runtime.Containers...)
	return w
}

func backoff(d time.Duration) func(*cri.Container) { return func(c *cri.Container) { c.Backoff = d } }
func neverStarted(c *cri.Container)                { c.StartedAt = time.Time{} }
func ended(ago time.Duration) func(*cri.Container) {
	return func(c *cri.Container) { c.FinishedAt = now.Add(-ago) }
}

// notStarted marks the last added instance's startup probe as not passed.
func (w *world) notStarted() *world {
	w.started[w.runtime.Containers[0].ID] = false
	return w
}

func (w *world) sick(why string) *world {
	w.unhealthy[w.runtime.Containers[0].ID] = why
	return w
}

// summary describes a plan in a few words per action.
func summary(p Plan) []string {
	var out []string
	if p.KillAll {
		out = append(out, "kill all")
	}
	if p.CreateSandbox {
		out = append(out, fmt.Sprintf("sandbox %d", p.Attempt))
	}
	for _, k := range p.Kill {
		out = append(out, "kill "+k.Container.ID+": "+k.Why)
	}
	for _, s := range p.Start {
		text := fmt.Sprintf("start %s #%d", s.Container.Name, s.RestartCount)
		if s.Role == Init || s.Role == Sidecar {
			text += " init"
		}
		if s.Role == Ephemeral {
			text += " ephemeral"
		}
		if s.Target != "" {
			text += " at " + s.Target
		}
		out = append(out, text)
	}
	for _, name := range sortedKeys(p.Waiting) {
		out = append(out, name+" waits: "+p.Waiting[name].Reason)
	}
	if p.Finished {
		out = append(out, "finished")
	}
	return out
}

func TestMake(t *testing.T) {
	const (
		always    = corev1.RestartPolicyAlways
		onFailure = corev1.RestartPolicyOnFailure
		never     = corev1.RestartPolicyNever
	)
	for name, c := range map[string]struct {
		world *world
		want  []string
	}{
		"nothing yet":                  {newWorld(always, "a"), []string{"sandbox 0"}},
		"a sandbox":                    {newWorld(always, "a", "b").sandbox(true), []string{"start a #0", "start b #0"}},
		"all runs":                     {newWorld(always, "a").sandbox(true).has("a", running), nil},
		"first crash restarts at once": {newWorld(always, "a").sandbox(true).has("a", 1), []string{"start a #1"}},
		"success restarts too":         {newWorld(always, "a").sandbox(true).has("a", 0), []string{"start a #1"}},
		"second crash waits":           {newWorld(always, "a").sandbox(true).has("a", 1).has("a", 1, backoff(10*time.Second)), []string{"a waits: CrashLoopBackOff"}},
		"its time has come":            {newWorld(always, "a").sandbox(true).has("a", 1).has("a", 1, backoff(10*time.Second), ended(11*time.Second)), []string{"start a #2"}},
		"on failure, failed":           {newWorld(onFailure, "a").sandbox(true).has("a", 2), []string{"start a #1"}},
		"on failure, one is done":      {newWorld(onFailure, "a", "b").sandbox(true).has("a", 0).has("b", running), nil},
		"on failure, all done":         {newWorld(onFailure, "a", "b").sandbox(true).has("a", 0).has("b", 0), []string{"kill all", "finished"}},
		"never, failed":                {newWorld(never, "a").sandbox(true).has("a", 2), []string{"kill all", "finished"}},
		"never, one runs":              {newWorld(never, "a", "b").sandbox(true).has("a", 2).has("b", running), nil},
		"running but unhealthy":        {newWorld(always, "a").sandbox(true).has("a", running).sick(KillLiveness), []string{"kill a-0: failed liveness probe"}},
		"in an unknown state":          {newWorld(always, "a").sandbox(true).has("a", unknown), []string{"kill a-0: is in an unknown state"}},
		"created, never started":       {newWorld(always, "a").sandbox(true).has("a", created), []string{"start a #0"}},
		"sandbox died":                 {newWorld(always, "a").sandbox(false).has("a", running), []string{"kill all", "sandbox 1"}},
		"sandbox recreated":            {newWorld(always, "a").sandbox(false).has("a", 137).sandbox(true), []string{"start a #1"}},
		"restarted in vain in a sandbox that was being lost": {
			newWorld(always, "a").sandbox(false).has("a", 137).has("a", 128, neverStarted).sandbox(true), []string{"start a #1"}},
		"sandbox died, never":              {newWorld(never, "a").sandbox(false).has("a", 0), []string{"kill all", "finished"}},
		"sandbox died, on failure, done":   {newWorld(onFailure, "a").sandbox(false).has("a", 0), []string{"kill all", "finished"}},
		"sandbox died, on failure, failed": {newWorld(onFailure, "a").sandbox(false).has("a", 1), []string{"kill all", "sandbox 1"}},
		"sandbox died, on failure, one of two is done": {
			newWorld(onFailure, "a", "b").sandbox(false).has("a", 0).has("b", running).sandbox(true), []string{"start b #1"}},
		"sandbox died before anything ran": {newWorld(never, "a").sandbox(false), []string{"kill all", "sandbox 1"}},

		"ephemeral":                        {newWorld(always, "a").debug("d", "").sandbox(true).has("a", running), []string{"start d #0 ephemeral"}},
		"ephemeral with a target":          {newWorld(always, "a").debug("d", "a").sandbox(true).has("a", 1).has("a", running), []string{"start d #0 ephemeral at a-1"}},
		"ephemeral before its target":      {newWorld(always, "a").debug("d", "a").sandbox(true), []string{"start a #0", "d waits: CreateContainerConfigError"}},
		"ephemeral during initialization":  {newWorld(always, "a").init("i").debug("d", "").sandbox(true).has("i", running), []string{"start d #0 ephemeral"}},
		"ephemeral does not restart":       {newWorld(always, "a").debug("d", "").sandbox(true).has("a", running).has("d", 1), nil},
		"ephemeral created, never started": {newWorld(always, "a").debug("d", "").sandbox(true).has("a", running).has("d", created), []string{"start d #0 ephemeral"}},
		"ephemeral lost":                   {newWorld(always, "a").debug("d", "").sandbox(true).has("a", running).reported("d"), nil},
		"ephemeral holds nothing up":       {newWorld(never, "a").debug("d", "").sandbox(true).has("a", 0).has("d", running), []string{"kill all", "finished"}},

		"first init":                        {newWorld(always, "a").init("i", "j").sandbox(true), []string{"start i #0 init"}},
		"init runs":                         {newWorld(always, "a").init("i", "j").sandbox(true).has("i", running), nil},
		"second init":                       {newWorld(always, "a").init("i", "j").sandbox(true).has("i", 0), []string{"start j #0 init"}},
		"init done":                         {newWorld(always, "a").init("i", "j").sandbox(true).has("i", 0).has("j", 0), []string{"start a #0"}},
		"init failed":                       {newWorld(always, "a").init("i").sandbox(true).has("i", 1), []string{"start i #1 init"}},
		"init failed, never":                {newWorld(never, "a").init("i").sandbox(true).has("i", 1), []string{"kill all", "finished"}},
		"init failed again":                 {newWorld(always, "a").init("i").sandbox(true).has("i", 1).has("i", 1, backoff(10*time.Second)), []string{"i waits: CrashLoopBackOff"}},
		"init runs again in a new sandbox":  {newWorld(always, "a").init("i").sandbox(false).has("i", 0).has("a", 137).sandbox(true), []string{"start i #1 init"}},
		"init is over once a container ran": {newWorld(always, "a").init("i").sandbox(true).has("a", running), nil},

		"sidecar first":                   {newWorld(always, "a").sidecar("s").sandbox(true), []string{"start s #0 init"}},
		"sidecar starts":                  {newWorld(always, "a").sidecar("s").sandbox(true).has("s", running).notStarted(), nil},
		"sidecar started":                 {newWorld(always, "a").sidecar("s").sandbox(true).has("s", running), []string{"start a #0"}},
		"sidecars in order":               {newWorld(always, "a").sidecar("s", "r").sandbox(true).has("s", running), []string{"start r #0 init"}},
		"init after sidecar":              {newWorld(always, "a").sidecar("s").init("i").sandbox(true).has("s", running), []string{"start i #0 init"}},
		"sidecar died while init runs":    {newWorld(always, "a").sidecar("s").init("i").sandbox(true).has("s", 1).has("i", running), []string{"start s #1 init"}},
		"sidecar died while others run":   {newWorld(always, "a").sidecar("s").sandbox(true).has("s", 0).has("a", running), []string{"start s #1 init"}},
		"sidecar is unhealthy":            {newWorld(always, "a").sidecar("s").sandbox(true).has("s", running).sick(KillLiveness).has("a", running), []string{"kill s-0: failed liveness probe"}},
		"sidecar stops with the others":   {newWorld(never, "a").sidecar("s").sandbox(true).has("s", running).has("a", 0), []string{"kill all", "finished"}},
		"sidecar restarts though never":   {newWorld(never, "a").sidecar("s").sandbox(true).has("s", 1).has("a", running), []string{"start s #1 init"}},
		"sidecar at startup failed probe": {newWorld(always, "a").sidecar("s").sandbox(true).has("s", running).notStarted().sick(KillStartup), []string{"kill s-0: failed startup probe"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.world
			p := Make(View{
				Pod: w.pod, Runtime: w.runtime, Now: now,
				Started:   func(id string) bool { return w.started[id] },
				Unhealthy: func(id string) string { return w.unhealthy[id] },
			})
			if got := summary(p); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestMakeChanged(t *testing.T) {
	w := newWorld(corev1.RestartPolicyNever, "a").sandbox(true).has("a", running)
	w.pod.Spec.Containers[0].Image = "another"
	view := View{Pod: w.pod, Runtime: w.runtime, Now: now, Started: func(string) bool { return true }, Unhealthy: func(string) string { return "" }}
	if got := summary(Make(view)); !reflect.DeepEqual(got, []string{"kill a-0: definition changed"}) {
		t.Errorf("running: %q", got)
	}
	w.runtime.Containers[0].State, w.runtime.Containers[0].ExitCode = cri.StateExited, 0
	if got := summary(Make(view)); !reflect.DeepEqual(got, []string{"start a #1"}) {
		t.Errorf("ended: %q", got)
	}
	w.pod.Status.Phase = corev1.PodFailed
	if got := summary(Make(view)); !reflect.DeepEqual(got, []string{"kill all", "finished"}) {
		t.Errorf("a pod that has failed: %q", got)
	}
}

func TestMakeSandbox(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod, *cri.Sandbox){
		"host network wanted": func(p *corev1.Pod, _ *cri.Sandbox) { p.Spec.HostNetwork = true },
		"no address":          func(_ *corev1.Pod, b *cri.Sandbox) { b.IPs = nil },
	} {
		w := newWorld(corev1.RestartPolicyAlways, "a").sandbox(true)
		change(w.pod, &w.runtime.Sandboxes[0])
		if p := Make(View{Pod: w.pod, Runtime: w.runtime, Now: now}); !p.CreateSandbox || !p.KillAll || p.Attempt != 1 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestMakeRestartRules(t *testing.T) {
	never := corev1.ContainerRestartPolicyNever
	for code, want := range map[int][]string{42: {"start a #1"}, 1: {"kill all", "finished"}} {
		w := newWorld(corev1.RestartPolicyNever, "a")
		w.pod.Spec.Containers[0].RestartPolicy = &never
		w.pod.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action:    corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
		}}
		w.sandbox(true).has("a", code)
		if got := summary(Make(View{Pod: w.pod, Runtime: w.runtime, Now: now})); !reflect.DeepEqual(got, want) {
			t.Errorf("%d: %q, want %q", code, got, want)
		}
	}
}

// TestWake checks that a plan with a container in back-off sets the time at which the
// back-off ends.
func TestWake(t *testing.T) {
	w := newWorld(corev1.RestartPolicyAlways, "a", "b").sandbox(true).
		has("a", 1, backoff(20*time.Second)).has("b", 1, backoff(10*time.Second))
	p := Make(View{Pod: w.pod, Runtime: w.runtime, Now: now})
	if want := now.Add(9 * time.Second); !p.Wake.Equal(want) {
		t.Errorf("wake at %v, want %v", p.Wake, want)
	}
}

func TestRestart(t *testing.T) {
	at := func(ran, backoff time.Duration) (time.Duration, time.Duration) {
		c := &cri.Container{StartedAt: now, FinishedAt: now.Add(ran), Backoff: backoff}
		when, next := Restart(c)
		return when.Sub(c.FinishedAt), next
	}
	for _, c := range []struct{ ran, backoff, wait, next time.Duration }{
		{time.Second, 0, 0, 10 * time.Second},
		{time.Second, 10 * time.Second, 10 * time.Second, 20 * time.Second},
		{time.Second, 160 * time.Second, 160 * time.Second, 5 * time.Minute},
		{time.Second, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		{9 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		{10 * time.Minute, 5 * time.Minute, 0, 10 * time.Second},
	} {
		if wait, next := at(c.ran, c.backoff); wait != c.wait || next != c.next {
			t.Errorf("ran %v with %v: wait %v then %v, want %v then %v", c.ran, c.backoff, wait, next, c.wait, c.next)
		}
	}
}
