package usage

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(seconds int, used time.Duration) sample {
		return sample{t0.Add(time.Duration(seconds) * time.Second), used}
	}
	for _, c := range []struct {
		name  string
		have  []sample
		start time.Time
		now   sample
		rate  uint64
		over  time.Duration
	}{
		{"no sample", nil, time.Time{}, at(0, 5), 0, 0},
		{"a sample of 3 s ago is too young", []sample{at(0, 0)}, time.Time{}, at(3, time.Second), 0, 0},
		{"a sample of 10 s ago", []sample{at(0, 0)}, time.Time{}, at(10, time.Second), 100_000_000, 10 * time.Second},
		{"the youngest that is old enough", []sample{at(0, 0), at(20, 2*time.Second), at(35, 9*time.Second)}, time.Time{}, at(40, 12*time.Second), 500_000_000, 20 * time.Second},
		{"since the start", nil, t0, at(20, time.Second), 50_000_000, 20 * time.Second},
		{"started just now", nil, t0, at(9, time.Second), 0, 0},
		{"a sample is better than the start", []sample{at(10, 0)}, t0, at(20, time.Second), 100_000_000, 10 * time.Second},
		{"a counter that was reset", []sample{at(0, time.Hour)}, time.Time{}, at(20, time.Second), 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w window
			for _, s := range c.have {
				w = w.add(s)
			}
			if rate, over := w.rate(c.now, c.start); rate != c.rate || over != c.over {
				t.Errorf("rate %d over %s, want %d over %s", rate, over, c.rate, c.over)
			}
		})
	}
}

func TestWindowIsBounded(t *testing.T) {
	var w window
	for i := range 10_000 {
		w = w.add(sample{time.Unix(0, 0).Add(time.Duration(i) * 100 * time.Millisecond), time.Duration(i)})
		if len(w) > 7 {
			t.Fatalf("%d samples", len(w))
		}
	}
	if age := w[len(w)-1].at.Sub(w[0].at); age < MinWindow-spacing {
		t.Errorf("the oldest sample is %s old", age)
	}
}

func TestWindowsForget(t *testing.T) {
	w := windows{}
	w.see("old", sample{time.Unix(10, 0), 1}, time.Time{})
	w.see("new", sample{time.Unix(90, 0), 1}, time.Time{})
	w.keep(time.Unix(50, 0))
	if _, ok := w["old"]; ok || len(w) != 1 {
		t.Errorf("%v", w)
	}
}
