package fault

import (
	"fmt"
	"slices"
	"sort"
	"time"
)

// Watched is what one watch has seen, over all the times that it was cut and resumed.
type Watched struct {
	Name   string
	Kind   string
	Events []Event
	// From is the revision after which it began; Gaps are the ranges of revisions (first
	// excluded, last included) across which the server could not resume it.
	From int64
	Gaps [][2]int64
	// Resumed counts how often the watch was cut and resumed.
	Resumed int
}

// merge compares the watches of one kind with each other and returns all events in order.
func merge(watches []*Watched) (all []Event, wrong []string) {
	byRV := map[int64]Event{}
	for _, w := range watches {
		last := w.From
		for _, e := range w.Events {
			if e.RV <= last {
				wrong = append(wrong, fmt.Sprintf("%s: event %d (%s %s) came after revision %d", w.Name, e.RV, e.Type, e.Name, last))
			}
			last = max(last, e.RV)
			seen, ok := byRV[e.RV]
			switch {
			case !ok:
				byRV[e.RV] = e
			case !seen.same(e):
				wrong = append(wrong, fmt.Sprintf("%s: saw %+v, another watch saw %+v", w.Name, e, seen))
			case e.Seen < seen.Seen:
				seen.Seen = e.Seen
				byRV[e.RV] = seen
			}
		}
	}
	for _, e := range byRV {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Event) int { return int(a.RV - b.RV) })
	for _, w := range watches {
		have := map[int64]bool{}
		for _, e := range w.Events {
			have[e.RV] = true
		}
		for _, e := range all {
			if !have[e.RV] && e.RV > w.From && !inside(e.RV, w.Gaps) {
				wrong = append(wrong, fmt.Sprintf("%s: missed event %d (%s %s %s)", w.Name, e.RV, e.Type, e.Name, e.Value))
			}
		}
	}
	return all, wrong
}

func inside(rv int64, gaps [][2]int64) bool {
	return slices.ContainsFunc(gaps, func(g [2]int64) bool { return rv > g[0] && rv <= g[1] })
}

// accounted compares the results of writes with the events of a kind.
func accounted(kind string, ops []Op, events []Event) (wrong []string) {
	type written struct {
		op   Op
		seen int
	}
	writes := map[string]*written{}
	type count struct{ done, maybe, seen int }
	deletions := map[string]*count{}
	of := func(name string) *count {
		if deletions[name] == nil {
			deletions[name] = &count{}
		}
		return deletions[name]
	}
	for _, op := range ops {
		if op.Kind != kind {
			continue
		}
		switch {
		case op.Action == Delete && op.Outcome == Done:
			of(op.Name).done++
		case op.Action == Delete && op.Outcome == Unknown:
			of(op.Name).maybe++
		case op.Value != "":
			writes[op.Value] = &written{op: op}
		}
	}
	exists := map[string]bool{}
	for _, e := range events {
		if want := map[bool]string{true: "Modified", false: "Added"}[exists[e.Name]]; !e.Deleted && e.Type != want {
			wrong = append(wrong, fmt.Sprintf("%s: event %d of %s is %s, want %s", kind, e.RV, e.Name, e.Type, want))
		}
		if e.Deleted && !exists[e.Name] {
			wrong = append(wrong, fmt.Sprintf("%s: event %d deletes %s, which did not exist", kind, e.RV, e.Name))
		}
		exists[e.Name] = !e.Deleted
		if e.Deleted {
			of(e.Name).seen++
			continue
		}
		w := writes[e.Value]
		if w == nil {
			wrong = append(wrong, fmt.Sprintf("%s: event %d wrote %q to %s, which no client did", kind, e.RV, e.Value, e.Name))
			continue
		}
		w.seen++
		switch {
		case w.seen > 1:
			wrong = append(wrong, fmt.Sprintf("%s: %q was written to %s %d times, now at %d: %+v", kind, e.Value, e.Name, w.seen, e.RV, w.op))
		case w.op.Name != e.Name:
			wrong = append(wrong, fmt.Sprintf("%s: %q was written to %s, not to %s", kind, e.Value, e.Name, w.op.Name))
		case w.op.Outcome == Done && w.op.RV != e.RV:
			wrong = append(wrong, fmt.Sprintf("%s: %q was acknowledged at %d and written at %d", kind, e.Value, w.op.RV, e.RV))
		case w.op.Outcome != Done && w.op.Outcome != Unknown:
			wrong = append(wrong, fmt.Sprintf("%s: a refused write took effect at %d: %+v", kind, e.RV, w.op))
		}
	}
	for _, w := range writes {
		if w.op.Outcome == Done && w.seen == 0 {
			wrong = append(wrong, fmt.Sprintf("%s: an acknowledged write is lost: %+v", kind, w.op))
		}
	}
	for name, c := range deletions {
		if c.seen < c.done || c.seen > c.done+c.maybe {
			wrong = append(wrong, fmt.Sprintf("%s: %s was deleted %d times; %d deletions were acknowledged and %d are unknown", kind, name, c.seen, c.done, c.maybe))
		}
	}
	return wrong
}

// listed compares each list of a kind with the state at its revision. The state is derived from the
// events alone, so no objects may exist when a run begins.
func listed(kind string, ops []Op, events []Event) (wrong []string) {
	var lists []Op
	for _, op := range ops {
		if op.Kind == kind && op.Action == List && op.Outcome == Done {
			lists = append(lists, op)
		}
	}
	slices.SortFunc(lists, func(a, b Op) int { return int(a.RV - b.RV) })
	state := map[string]Version{}
	next := 0
	for _, l := range lists {
		for ; next < len(events) && events[next].RV <= l.RV; next++ {
			e := events[next]
			if e.Deleted {
				delete(state, e.Name)
			} else {
				state[e.Name] = Version{e.Value, e.RV}
			}
		}
		for name, v := range state {
			if got, ok := l.Items[name]; !ok || got != v {
				wrong = append(wrong, fmt.Sprintf("%s: a list at %d via %s shows %s as %+v, want %+v", kind, l.RV, l.Via, name, got, v))
			}
		}
		for name := range l.Items {
			if _, ok := state[name]; !ok {
				wrong = append(wrong, fmt.Sprintf("%s: a list at %d via %s shows %s, which did not exist", kind, l.RV, l.Via, name))
			}
		}
	}
	return wrong
}

// inTime checks the revisions of a kind against real time: a list is at least as new as any revision
// that a client knew before the call, and a write gets a greater revision.
func inTime(kind string, ops []Op) (wrong []string) {
	type known struct {
		at time.Duration
		rv int64
	}
	var all []known
	for _, op := range ops {
		if op.Kind == kind && op.Outcome == Done && op.RV > 0 {
			all = append(all, known{op.Return, op.RV})
		}
	}
	slices.SortFunc(all, func(a, b known) int { return int(a.at - b.at) })
	for i := 1; i < len(all); i++ {
		all[i].rv = max(all[i].rv, all[i-1].rv)
	}
	for _, op := range ops {
		if op.Kind != kind || op.Outcome != Done || op.RV == 0 || op.Action == Get {
			continue
		}
		i := sort.Search(len(all), func(i int) bool { return all[i].at >= op.Call })
		if i == 0 {
			continue
		}
		before := all[i-1].rv
		if op.RV < before || op.Action != List && op.RV == before {
			wrong = append(wrong, fmt.Sprintf("%s: %s of %s via %s got revision %d after a client had seen %d", kind, op.Action, op.Name, op.Via, op.RV, before))
		}
	}
	return wrong
}
