package decide

import (
	"flag"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/scheduler/internal/state"
)

var preemptCases = flag.Int("preempt.cases", 400, "how many clusters TestPreemptionIsMinimal searches exhaustively")

// TestPreemptionIsMinimal compares victims with those of an exhaustive search over all sets of pods
// of lower priority, on clusters where nothing but CPU is short. On the node that is chosen, no other
// set spares a pod that is more important than the first pod in which the two differ, so there are
// neither more victims nor more important ones than needed. On no other node is the most important
// victim less important.
func TestPreemptionIsMinimal(t *testing.T) {
	// The extremes overflow sums of 32 bits.
	priorities := []int32{math.MinInt32, -1, 0, 1, 1, 2, 1000, math.MaxInt32 - 1, math.MaxInt32}
	found, none := 0, 0
	for seed := range *preemptCases {
		d := rand.New(rand.NewPCG(uint64(seed), 7))
		pick := func() int32 { return priorities[d.IntN(len(priorities))] }
		env := newEnv()
		e := New(env)
		pods := map[string][]*state.Pod{}
		for i := range 1 + d.IntN(4) {
			n := testNode(i, 3)
			env.SetNode(n)
			for free, j := 4000, 0; free > 200 && j < 8; j++ {
				cpu := min(free, 200+100*d.IntN(12))
				free -= cpu
				p := sized(fmt.Sprintf("p-%d-%d", i, j), fmt.Sprintf("%dm", cpu), pick())
				p.Spec.NodeName = n.Name
				if d.IntN(4) > 0 {
					at := metav1.Unix(int64(1000+d.IntN(3)), 0)
					p.Status.StartTime = &at
				}
				q := state.NewPod(p)
				env.SetPod(q)
				pods[n.Name] = append(pods[n.Name], q)
			}
		}
		need := int64(500 + 100*d.IntN(36))
		sp := state.NewPod(sized("preemptor", fmt.Sprintf("%dm", need), pick()))
		if v := e.Decide(sp); v.Node != nil {
			continue
		}
		got := e.Preempt(sp, Surroundings{})
		best := map[string][]*state.Pod{} // by node
		for name, all := range pods {
			if victims := cheapestSet(all, sp.Priority, need); victims != nil {
				best[name] = victims
			}
		}
		if got.Node == nil {
			if none++; len(best) > 0 {
				t.Fatalf("seed %d: no victims, want %v: %s", seed, named(best), got.Message)
			}
			continue
		}
		found++
		if !slices.Equal(keysOf(got.Victims), keysOf(best[got.Node.Name])) {
			t.Fatalf("seed %d: victims on %s are %v, want %v", seed, got.Node.Name, keysOf(got.Victims), keysOf(best[got.Node.Name]))
		}
		for name, victims := range best {
			if victims[0].Priority < got.Victims[0].Priority {
				t.Fatalf("seed %d: a victim has priority %d; on %s the highest is %d", seed, got.Victims[0].Priority, name, victims[0].Priority)
			}
		}
	}
	if found < *preemptCases/5 || none == 0 {
		t.Fatalf("too little happened: %d preemptions, %d without victims", found, none)
	}
}

// cheapestSet returns the set of pods with a lower priority whose removal makes room for need
// thousandths of a CPU on a node of 4 CPUs, and which spares the most important pods; nil if there
// is none. It looks at all sets.
func cheapestSet(all []*state.Pod, priority int32, need int64) []*state.Pod {
	free := int64(4000)
	var low []*state.Pod
	for _, p := range all {
		free -= p.Requests.CPU
		if p.Priority < priority {
			low = append(low, p)
		}
	}
	slices.SortFunc(low, importance)
	best := -1
	for set := 1; set < 1<<len(low); set++ {
		room := free
		for i := range low {
			if set>>(len(low)-1-i)&1 == 1 { // the most important pod is the highest bit
				room += low[i].Requests.CPU
			}
		}
		if room >= need {
			best = set
			break // sets are looked at in ascending order
		}
	}
	if best < 0 {
		return nil
	}
	victims := make([]*state.Pod, 0, bits.OnesCount(uint(best)))
	for i := range low {
		if best>>(len(low)-1-i)&1 == 1 {
			victims = append(victims, low[i])
		}
	}
	return victims
}

func keysOf(pods []*state.Pod) []string {
	out := make([]string, len(pods))
	for i, p := range pods {
		out[i] = p.Name
	}
	return out
}

func named(best map[string][]*state.Pod) map[string][]string {
	out := map[string][]string{}
	for name, victims := range best {
		out[name] = keysOf(victims)
	}
	return out
}
