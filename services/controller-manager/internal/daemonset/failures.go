package daemonset

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

// A failed pod is replaced after a delay that doubles with each failure, from
// firstReplacement up to lastReplacement, and is tracked per set and node. It starts
// over when there was no failure for twice lastReplacement.
const (
	firstReplacement = time.Second
	lastReplacement  = 15 * time.Minute
)

// failures records when pods failed last. It has an entry for at most each existing set on
// each existing node.
type failures struct {
	mu   sync.Mutex
	sets map[client.Key]*setFailures
}

type setFailures struct {
	uid   types.UID
	nodes map[string]failure // by node
}

type failure struct {
	last  time.Time
	delay time.Duration
}

func newFailures() *failures { return &failures{sets: map[client.Key]*setFailures{}} }

// wait returns how long after now the failed pod of a set on a node is to be replaced; 0
// means now.
func (f *failures) wait(set client.Key, uid types.UID, node string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sets[set]
	if s == nil || s.uid != uid {
		return 0
	}
	e, ok := s.nodes[node]
	if !ok {
		return 0
	}
	return max(e.delay-now.Sub(e.last), 0)
}

// add records that a failed pod is replaced now.
func (f *failures) add(set client.Key, uid types.UID, node string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sets[set]
	if s == nil || s.uid != uid {
		s = &setFailures{uid: uid, nodes: map[string]failure{}}
		f.sets[set] = s
	}
	e, ok := s.nodes[node]
	if !ok || now.Sub(e.last) > 2*lastReplacement {
		e.delay = 0
	}
	s.nodes[node] = failure{last: now, delay: min(max(2*e.delay, firstReplacement), lastReplacement)}
}

// forgetSet drops the entries of a set that was deleted.
func (f *failures) forgetSet(set client.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sets, set)
}

// forgetNode drops the entries of a node that was deleted.
func (f *failures) forgetNode(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sets {
		delete(s.nodes, node)
	}
}
