package device

import (
	"fmt"
	"maps"
	"slices"
)

// Want is a container's request for devices of one resource, and what there is.
type Want struct {
	Resource string
	Need     int
	// Healthy holds the devices that work, and Taken those that are allocated.
	Healthy, Taken map[string]bool
	// Reusable holds the devices of the pod's init containers that no container has taken
	// over. They are in Taken, too.
	Reusable map[string]bool
	// Preferred are the devices that the plug-in prefers.
	Preferred []string
}

// reused returns the devices that the container takes over from init containers, and free
// those that it may have in addition, both in the order of their IDs.
func (w Want) reused() (reused, free []string) {
	for _, id := range slices.Sorted(maps.Keys(w.Healthy)) {
		switch {
		case w.Reusable[id]:
			if len(reused) < w.Need {
				reused = append(reused, id)
			}
		case !w.Taken[id]:
			free = append(free, id)
		}
	}
	return reused, free
}

// Plan chooses the devices of a container: those of init containers first, then those that
// the plug-in prefers, then any that are free, in the order of their IDs. It returns an error
// with the kubelet's words if there are too few.
func Plan(w Want) ([]string, error) {
	if w.Need > 0 && len(w.Healthy) == 0 {
		return nil, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", w.Resource)
	}
	out, free := w.reused()
	if need := w.Need - len(out); need > len(free) {
		return nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", w.Resource, need, len(free))
	}
	for _, list := range [][]string{w.Preferred, free} {
		for _, id := range list {
			if len(out) == w.Need {
				break
			}
			if _, ok := slices.BinarySearch(free, id); ok && !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
