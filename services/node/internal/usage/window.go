package usage

import "time"

const (
	// MinWindow is the shortest time over which a CPU rate is stated, as in metrics-server.
	MinWindow = 10 * time.Second
	// spacing is the shortest time between two samples that are kept.
	spacing = 2 * time.Second
)

// sample is a CPU time at a moment.
type sample struct {
	at   time.Time
	used time.Duration
}

// window is the recent CPU times of one container, or of the machine, oldest first. It holds
// one sample that is at least MinWindow old, if there was one, and the younger ones.
type window []sample

// add appends a sample and drops what is not needed any more.
func (w window) add(s sample) window {
	if n := len(w); n > 0 && s.used < w[n-1].used {
		w = w[:0] // another one by the same name, or a reset counter
	}
	if n := len(w); n > 0 && s.at.Sub(w[n-1].at) < spacing {
		return w
	}
	first := 0
	for i := range w {
		if s.at.Sub(w[i].at) >= MinWindow {
			first = i
		}
	}
	return append(w[first:len(w):len(w)], s)
}

// rate returns the rate up to now since the youngest sample that is old enough or, if there is
// none, since start. The window is 0 if that is less than MinWindow ago.
func (w window) rate(now sample, start time.Time) (nanoCores uint64, over time.Duration) {
	since := sample{at: start}
	if start.IsZero() {
		since.at = now.at
	}
	for _, s := range w {
		if now.at.Sub(s.at) >= MinWindow && s.used <= now.used {
			since = s
		}
	}
	over = now.at.Sub(since.at)
	if over < MinWindow {
		return 0, 0
	}
	return uint64(float64(now.used-since.used) / over.Seconds()), over
}

// windows holds the windows by cgroup.
type windows map[string]window

// see returns the rate of a CPU time and remembers it.
func (w windows) see(group string, now sample, start time.Time) (nanoCores uint64, over time.Duration) {
	have := w[group]
	nanoCores, over = have.rate(now, start)
	w[group] = have.add(now)
	return nanoCores, over
}

// keep forgets the cgroups that were not seen since a time.
func (w windows) keep(since time.Time) {
	for group, list := range w {
		if list[len(list)-1].at.Before(since) {
			delete(w, group)
		}
	}
}
