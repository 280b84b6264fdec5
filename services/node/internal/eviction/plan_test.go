package eviction

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// seen is what was read when n of 1000 are left of each signal.
func seen(left map[Signal]int64) Observed {
	o := Observed{}
	for s, n := range left {
		o[s] = Observation{Available: n, Capacity: 1000}
	}
	return o
}

func describe(v Verdict) string {
	out := strings.Trim(fmt.Sprint(v.Pressure), "[]")
	if v.Due != nil {
		value := v.Due.Value.Of(1000)
		out = strings.TrimSpace(out + " act:" + string(v.Due.Signal) + "<" + value.String())
	}
	return out
}

// TestStep follows a policy through looks at a machine.
func TestStep(t *testing.T) {
	p := policy(t, "--eviction-hard=memory.available<100,nodefs.available<10%,pid.available<50",
		"--eviction-soft=memory.available<300", "--eviction-soft-grace-period=memory.available=1m",
		"--eviction-minimum-reclaim=nodefs.available=50", "--eviction-pressure-transition-period=5m")
	var s State
	at := time.Unix(1_000_000, 0)
	for i, c := range []struct {
		after             time.Duration
		memory, disk, pid int64
		want              string
	}{
		{0, 500, 500, 500, ""},
		{time.Second, 299, 500, 500, "MemoryPressure"}, // soft, not due yet
		{59 * time.Second, 299, 500, 500, "MemoryPressure"},
		{time.Second, 299, 500, 500, "MemoryPressure act:memory.available<300"},
		{time.Second, 99, 500, 500, "MemoryPressure act:memory.available<100"}, // hard first
		{time.Second, 99, 99, 49, "MemoryPressure DiskPressure PIDPressure act:memory.available<100"},
		{time.Second, 500, 99, 49, "MemoryPressure DiskPressure PIDPressure act:nodefs.available<100"},
		{time.Second, 500, 120, 500, "MemoryPressure DiskPressure PIDPressure act:nodefs.available<100"}, // minimum reclaim
		{time.Second, 500, 150, 500, "MemoryPressure DiskPressure PIDPressure"},                          // transition
		{time.Second, 299, 120, 500, "MemoryPressure DiskPressure PIDPressure"},                          // grace starts again; resolved before
		{time.Second, 500, 500, 500, "MemoryPressure DiskPressure PIDPressure"},
		{296 * time.Second, 500, 500, 500, "MemoryPressure DiskPressure"},
		{2 * time.Second, 500, 500, 500, "MemoryPressure"},
		{time.Second, 500, 500, 500, ""},
		{time.Second, 0, 0, 0, "MemoryPressure DiskPressure PIDPressure act:memory.available<100"},
	} {
		at = at.Add(c.after)
		var v Verdict
		before := fmt.Sprint(s)
		old := s
		s, v = Step(p, s, seen(map[Signal]int64{MemoryAvailable: c.memory, NodeFSAvailable: c.disk, PIDAvailable: c.pid}), at)
		if got := describe(v); got != c.want {
			t.Errorf("look %d: %q, want %q", i, got, c.want)
		}
		if fmt.Sprint(old) != before {
			t.Errorf("look %d modified the previous state", i)
		}
	}
	if _, v := Step(p, State{}, nil, at); v.Due != nil || v.Pressure != nil {
		t.Errorf("nothing could be read, and yet: %+v", v)
	}
}

// TestNoTransition checks that a transition period of zero still reports pressure that is
// there.
func TestNoTransition(t *testing.T) {
	p := policy(t, "--eviction-hard=memory.available<100", "--eviction-pressure-transition-period=0s")
	at := time.Unix(1_000_000, 0)
	s, v := Step(p, State{}, seen(map[Signal]int64{MemoryAvailable: 99}), at)
	if got := describe(v); got != "MemoryPressure act:memory.available<100" {
		t.Errorf("met: %q", got)
	}
	if _, v = Step(p, s, seen(map[Signal]int64{MemoryAvailable: 100}), at.Add(time.Second)); describe(v) != "" {
		t.Errorf("not met: %q", describe(v))
	}
}

func TestPace(t *testing.T) {
	const gi = 1 << 30
	p := policy(t, "--eviction-hard=memory.available<1Gi,nodefs.available<1Gi", "--eviction-soft=memory.available<2Gi", "--eviction-soft-grace-period=memory.available=30s")
	at := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		memory, disk int64
		want         time.Duration
	}{
		"idle":                       {100 * gi, 100 * gi, 10 * time.Second},
		"8 GiB to the nearest":       {10 * gi, 100 * gi, 4 * time.Second},
		"disk is nearer":             {10 * gi, 3 * gi, 2 * time.Second},
		"soft is met, hard is near":  {3 * gi / 2, 100 * gi, 250 * time.Millisecond},
		"at the threshold":           {10 * gi, gi, 100 * time.Millisecond},
		"hard is met: others decide": {gi / 2, 5 * gi, 4 * time.Second},
		"nothing can be read":        {0, 0, 10 * time.Second},
	} {
		o := Observed{MemoryAvailable: {c.memory, 200 * gi}, NodeFSAvailable: {c.disk, 200 * gi}}
		if c.memory == 0 {
			o = nil
		}
		s, _ := Step(p, State{}, o, at)
		if got := Pace(p, s, o, at); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	// A look is made when a soft threshold becomes due.
	o := Observed{MemoryAvailable: {3 * gi / 2, 200 * gi}}
	s, _ := Step(p, State{}, o, at)
	o[MemoryAvailable] = Observation{2*gi - 1, 200 * gi}
	if got := Pace(p, s, Observed{}, at.Add(29*time.Second)); got != time.Second {
		t.Errorf("one second before a soft threshold is due: %s", got)
	}
}
