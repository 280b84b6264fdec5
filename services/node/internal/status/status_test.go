package status

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// States of containers in test cases.
const (
	none = iota - 5
	created
	waits // ended, in back-off
	starting
	runs
	// Values of 0 and above are exit codes.
)

func build(policy corev1.RestartPolicy, init, regular map[string]int, sidecars ...string) View {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Generation: 3}, Spec: corev1.PodSpec{RestartPolicy: policy}}
	v := View{
		Pod: p, Now: now, RuntimeName: "containerd", HostIPs: []string{"192.0.2.1"}, Waiting: map[string]corev1.ContainerStateWaiting{},
		Runtime: &cri.Pod{UID: "u", Sandboxes: []cri.Sandbox{{ID: "box", Ready: true, IPs: []string{"10.0.0.1"}}}},
	}
	notStarted := map[string]bool{}
	add := func(name string, state int, list *[]corev1.Container, sidecar bool) {
		c := corev1.Container{Name: name, Image: "image"}
		if sidecar {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		*list = append(*list, c)
		if state == none {
			return
		}
		inst := cri.Container{ID: name, Name: name, SandboxID: "box", CreatedAt: now.Add(-time.Minute), StartedAt: now.Add(-time.Minute), Image: "image", ImageRef: "ref"}
		switch {
		case state == created:
			inst.State = cri.StateCreated
		case state == starting, state == runs:
			inst.State = cri.StateRunning
			notStarted[name] = state == starting
		case state == waits:
			inst.State, inst.ExitCode, inst.FinishedAt = cri.StateExited, 1, now
			v.Waiting[name] = corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
		default:
			inst.State, inst.ExitCode, inst.FinishedAt = cri.StateExited, int32(state), now
		}
		v.Runtime.Containers = append(v.Runtime.Containers, inst)
	}
	for _, name := range []string{"i", "j", "s"} {
		if state, ok := init[name]; ok {
			sidecar := false
			for _, s := range sidecars {
				sidecar = sidecar || s == name
			}
			add(name, state, &p.Spec.InitContainers, sidecar)
		}
	}
	for _, name := range []string{"a", "b"} {
		if state, ok := regular[name]; ok {
			add(name, state, &p.Spec.Containers, false)
		}
	}
	v.Started = func(id string) bool { return !notStarted[id] }
	v.Ready = func(string) bool { return true }
	return v
}

func TestPhaseAndConditions(t *testing.T) {
	type m = map[string]int
	const (
		always    = corev1.RestartPolicyAlways
		onFailure = corev1.RestartPolicyOnFailure
		never     = corev1.RestartPolicyNever
	)
	done := func(v View) View { v.Finished = true; return v }
	for name, c := range map[string]struct {
		view        View
		phase       corev1.PodPhase
		initialized bool
		ready       bool
	}{
		"nothing yet":                  {build(always, nil, m{"a": none}), corev1.PodPending, true, false},
		"created":                      {build(always, nil, m{"a": created}), corev1.PodPending, true, false},
		"one of two":                   {build(always, nil, m{"a": runs, "b": none}), corev1.PodPending, true, false},
		"all run":                      {build(always, nil, m{"a": runs, "b": runs}), corev1.PodRunning, true, true},
		"one starts":                   {build(always, nil, m{"a": runs, "b": starting}), corev1.PodRunning, true, false},
		"one in back-off":              {build(always, nil, m{"a": runs, "b": waits}), corev1.PodRunning, true, false},
		"all in back-off":              {build(always, nil, m{"a": waits}), corev1.PodRunning, true, false},
		"ended, will restart":          {build(always, nil, m{"a": 0}), corev1.PodRunning, true, false},
		"on failure, one is done":      {build(onFailure, nil, m{"a": 0, "b": runs}), corev1.PodRunning, true, false},
		"on failure, failed":           {build(onFailure, nil, m{"a": 1}), corev1.PodRunning, true, false},
		"on failure, all done":         {done(build(onFailure, nil, m{"a": 0, "b": 0})), corev1.PodSucceeded, true, false},
		"never, failed":                {done(build(never, nil, m{"a": 1, "b": 0})), corev1.PodFailed, true, false},
		"never, one still runs":        {build(never, nil, m{"a": 1, "b": runs}), corev1.PodRunning, true, false},
		"never, done":                  {done(build(never, nil, m{"a": 0})), corev1.PodSucceeded, true, false},
		"init runs":                    {build(always, m{"i": runs}, m{"a": none}), corev1.PodPending, false, false},
		"init done":                    {build(always, m{"i": 0}, m{"a": none}), corev1.PodPending, true, false},
		"init failed":                  {build(always, m{"i": 1}, m{"a": none}), corev1.PodPending, false, false},
		"init in back-off":             {build(always, m{"i": waits}, m{"a": none}), corev1.PodPending, false, false},
		"init failed, never":           {done(build(never, m{"i": 1}, m{"a": none})), corev1.PodFailed, false, false},
		"init done, all run":           {build(always, m{"i": 0}, m{"a": runs}), corev1.PodRunning, true, true},
		"sidecar starts":               {build(always, m{"s": starting}, m{"a": none}, "s"), corev1.PodPending, false, false},
		"sidecar runs":                 {build(always, m{"s": runs}, m{"a": none}, "s"), corev1.PodPending, true, false},
		"with its sidecar":             {build(always, m{"s": runs}, m{"a": runs}, "s"), corev1.PodRunning, true, true},
		"its sidecar in back-off":      {build(always, m{"s": waits}, m{"a": runs}, "s"), corev1.PodRunning, true, false},
		"done, its sidecar still runs": {done(build(never, m{"s": runs}, m{"a": 0}, "s")), corev1.PodPending, true, false},
		"done with its sidecar":        {done(build(never, m{"s": 0}, m{"a": 0}, "s")), corev1.PodSucceeded, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Make(c.view)
			if s.Phase != c.phase {
				t.Errorf("phase %s, want %s", s.Phase, c.phase)
			}
			for kind, want := range map[corev1.PodConditionType]bool{corev1.PodInitialized: c.initialized, corev1.PodReady: c.ready, corev1.ContainersReady: c.ready, corev1.PodReadyToStartContainers: true, corev1.PodScheduled: true} {
				cond := condition(&s, kind)
				if cond == nil || (cond.Status == corev1.ConditionTrue) != want || cond.ObservedGeneration != 3 {
					t.Errorf("%s: %+v, want %v", kind, cond, want)
				}
			}
			if s.ObservedGeneration != 3 || s.PodIP != "10.0.0.1" || s.HostIP != "192.0.2.1" || s.StartTime == nil || s.QOSClass != corev1.PodQOSBestEffort {
				t.Errorf("status: %+v", s)
			}
			if !Equal(&s, &s) {
				t.Error("the status does not equal itself")
			}
		})
	}
}

func TestContainerStates(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, map[string]int{"i": runs}, map[string]int{"a": none})
	s := Make(v)
	if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "PodInitializing" {
		t.Errorf("before initialization: %+v", s.ContainerStatuses[0].State)
	}
	v = build(corev1.RestartPolicyAlways, nil, map[string]int{"a": none})
	s = Make(v)
	st := s.ContainerStatuses[0]
	if st.State.Waiting == nil || st.State.Waiting.Reason != "ContainerCreating" || st.Started == nil || *st.Started {
		t.Errorf("after initialization: %+v", st)
	}
	v = build(corev1.RestartPolicyAlways, nil, map[string]int{"a": waits})
	v.TerminationMessage = func(*cri.Container) string { return "why" }
	s = Make(v)
	st = s.ContainerStatuses[0]
	if st.State.Waiting == nil || st.LastTerminationState.Terminated == nil || st.LastTerminationState.Terminated.Message != "why" || st.LastTerminationState.Terminated.ContainerID != "containerd://a" {
		t.Errorf("in back-off: %+v", st)
	}
	// The message outlives the file that it was read from.
	v.Pod.Status = s
	v.TerminationMessage = func(*cri.Container) string { return "" }
	if got := Make(v).ContainerStatuses[0].LastTerminationState.Terminated.Message; got != "why" {
		t.Errorf("message: %q", got)
	}
	v = build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	v.Runtime.Containers[0].RestartCount = 2
	v.Runtime.Containers = append(v.Runtime.Containers, cri.Container{ID: "old", Name: "a", SandboxID: "box", State: cri.StateExited, ExitCode: 9, Reason: "OOMKilled", RestartCount: 1})
	st = Make(v).ContainerStatuses[0]
	if st.RestartCount != 2 || st.ContainerID != "containerd://a" || st.ImageID != "ref" || st.LastTerminationState.Terminated.Reason != "OOMKilled" {
		t.Errorf("restarted: %+v", st)
	}
}

// TestLost checks the status of a container that was reported before but that the runtime
// no longer has.
func TestLost(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": none})
	v.Pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", RestartCount: 1, ContainerID: "containerd://gone", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	st := Make(v).ContainerStatuses[0]
	if st.State.Waiting == nil || st.LastTerminationState.Terminated == nil || st.LastTerminationState.Terminated.Reason != "ContainerStatusUnknown" || st.RestartCount != 1 {
		t.Errorf("pod keeps running: %+v", st)
	}
	deleted := metav1.NewTime(now)
	v.Pod.DeletionTimestamp = &deleted
	v.Runtime.Sandboxes = nil
	st = Make(v).ContainerStatuses[0]
	if st.State.Terminated == nil || st.State.Terminated.ExitCode != 137 {
		t.Errorf("pod ends: %+v", st)
	}
}

func TestEnded(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	v.Ended = &pod.Ending{Reason: "DeadlineExceeded", Message: "too long"}
	v.Pod.Status.Phase = corev1.PodRunning
	if s := Make(v); s.Phase != corev1.PodRunning || s.Reason != "DeadlineExceeded" {
		t.Errorf("while its container runs: %s %s", s.Phase, s.Reason)
	}
	v.Runtime.Containers[0].State, v.Runtime.Containers[0].ExitCode = cri.StateExited, 143
	if s := Make(v); s.Phase != corev1.PodFailed {
		t.Errorf("after its container ended: %s", s.Phase)
	}
}

// TestRefused checks that a refused pod has a reason and no containers, also when it is
// reported by an agent that did not refuse it itself.
func TestRefused(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, nil)
	v.Pod.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	v.Pod.Spec.Containers = []corev1.Container{{Name: "a"}}
	v.Runtime = &cri.Pod{}
	v.Ended, v.Refused = nil, &pod.Refusal{Reason: "NodePorts", Message: "taken"}
	s := Make(v)
	if s.Phase != corev1.PodFailed || s.Reason != "NodePorts" || s.Message != "taken" || len(s.ContainerStatuses)+len(s.InitContainerStatuses) != 0 {
		t.Errorf("%+v", s)
	}
	v.Pod.Status, v.Refused = s, nil
	if again := Make(v); again.Phase != corev1.PodFailed || again.Reason != "NodePorts" || len(again.ContainerStatuses)+len(again.InitContainerStatuses) != 0 {
		t.Errorf("after a restart of the agent: %+v", again)
	}
}

// TestOrder checks that container statuses are sorted by name, that init container statuses
// are in the order of the spec, and that messages name containers in the order of the spec.
func TestOrder(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, nil)
	for _, name := range []string{"zebra", "middle", "alpha"} {
		v.Pod.Spec.Containers = append(v.Pod.Spec.Containers, corev1.Container{Name: name})
	}
	for _, name := range []string{"second", "first"} {
		v.Pod.Spec.InitContainers = append(v.Pod.Spec.InitContainers, corev1.Container{Name: name})
	}
	s := Make(v)
	var names []string
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses} {
		for _, st := range list {
			names = append(names, st.Name)
		}
	}
	if got := strings.Join(names, " "); got != "alpha middle zebra second first" {
		t.Error(got)
	}
	if c := condition(&s, corev1.ContainersReady); !strings.HasSuffix(c.Message, "[zebra middle alpha]") {
		t.Error(c.Message)
	}
}

func TestReadinessGates(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	v.Pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}}
	s := Make(v)
	if c := condition(&s, corev1.PodReady); c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, `corresponding condition of pod readiness gate "example.com/lb" does not exist.`) {
		t.Errorf("missing: %+v", c)
	}
	if c := condition(&s, corev1.ContainersReady); c.Status != corev1.ConditionTrue {
		t.Errorf("containers: %+v", c)
	}
	v.Pod.Status.Conditions = []corev1.PodCondition{{Type: "example.com/lb", Status: corev1.ConditionTrue}}
	s = Make(v)
	if c := condition(&s, corev1.PodReady); c.Status != corev1.ConditionTrue {
		t.Errorf("open: %+v", c)
	}
	if c := condition(&s, "example.com/lb"); c == nil {
		t.Error("a condition of another writer was dropped")
	}
}

// TestTransitions checks that a condition's transition time changes only with its status.
func TestTransitions(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	v.Pod.Status = Make(v)
	before := condition(&v.Pod.Status, corev1.PodReady).LastTransitionTime
	v.Now = now.Add(time.Hour)
	s := Make(v)
	if !condition(&s, corev1.PodReady).LastTransitionTime.Equal(&before) {
		t.Error("the transition time changed")
	}
	if !Equal(&s, &v.Pod.Status) {
		t.Error("the status differs although nothing changed")
	}
	v.Pod.Generation++
	s = Make(v)
	if c := condition(&s, corev1.PodScheduled); c.ObservedGeneration != v.Pod.Generation || !c.LastTransitionTime.Equal(&before) {
		t.Errorf("of another generation: %+v", c)
	}
	v.Ready = func(string) bool { return false }
	s = Make(v)
	if c := condition(&s, corev1.PodReady); !c.LastTransitionTime.Time.Equal(v.Now) || c.Message != "containers with unready status: [a]" {
		t.Errorf("changed: %+v", c)
	}
}

func TestTerminalStays(t *testing.T) {
	v := build(corev1.RestartPolicyNever, nil, map[string]int{"a": none})
	v.Pod.Status.Phase = corev1.PodSucceeded
	v.Pod.Status.PodIPs = []corev1.PodIP{{IP: "10.9.9.9"}}
	v.Runtime.Sandboxes = nil
	v.Finished = true
	if s := Make(v); s.Phase != corev1.PodSucceeded || s.PodIP != "10.9.9.9" {
		t.Errorf("%s %s", s.Phase, s.PodIP)
	}
}
