package fault

import (
	"maps"
	"regexp"
	"sync"
	"time"
)

// The two stores, by the kind of object in each.
const (
	ConfigMaps = "configmaps" // etcd
	Leases     = "leases"     // raft
)

// Action is what an operation does with its object.
type Action string

// The actions.
const (
	Get    Action = "get"
	Create Action = "create"
	Update Action = "update" // conditional
	Patch  Action = "patch"  // unconditional
	Delete Action = "delete" // conditional if Expect is set
	List   Action = "list"
)

// Outcome is the result of an operation from the client's point of view.
type Outcome string

// The outcomes.
const (
	Done     Outcome = "done"
	NotFound Outcome = "not-found"
	Exists   Outcome = "exists"
	Conflict Outcome = "conflict"
	// Refused: the operation had no effect and will have none.
	Refused Outcome = "refused"
	// Unknown: it may have taken effect, or may do so later.
	Unknown Outcome = "unknown"
)

// Op is one operation of a client on one object.
type Op struct {
	Client int
	// Via is "grpc", "rest" or "batch", and the member if it was chosen.
	Via    string
	Kind   string // ConfigMaps or Leases
	Name   string
	Action Action
	// Value is what it writes. It is unique among the operations of a run.
	Value string
	// Expect is the resourceVersion that it depends on; 0 means none.
	Expect int64
	// Call and Return are times since the run began.
	Call, Return time.Duration
	Outcome      Outcome
	// RV is the resourceVersion of what was written, read or listed; 0 if the response had
	// none. Read is the value that was read.
	RV   int64
	Read string
	// Items are the objects in the response to a list.
	Items map[string]Version
	// Err is the text of the error that the client received.
	Err string
}

// Version is a state of an object.
type Version struct {
	Value string
	RV    int64
}

// Event is what a watch saw.
type Event struct {
	RV      int64
	Type    string // "Added", "Modified", "Deleted"
	Name    string
	Value   string
	Seen    time.Duration // since the run began
	Deleted bool
}

// same reports whether two watches saw the same event.
func (e Event) same(o Event) bool {
	return e.RV == o.RV && e.Type == o.Type && e.Name == o.Name && e.Value == o.Value
}

// History is what the clients did.
type History struct {
	mu     sync.Mutex
	ops    []Op
	counts map[string]int // by action and outcome
	errors map[string]int // by text, few of them
}

func (h *History) add(op Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	if h.counts == nil {
		h.counts, h.errors = map[string]int{}, map[string]int{}
	}
	h.counts[string(op.Action)+" "+string(op.Outcome)]++
	if op.Err != "" {
		if text := words(op.Err); len(h.errors) < 60 || h.errors[text] > 0 {
			h.errors[text]++
		}
	}
}

var (
	where = regexp.MustCompile(`https?://[^ "]+|\b\d+\.\d+\.\d+\.\d+(:\d+)?|fault/[a-z0-9-]*|"o\d-\d+"`)
	count = regexp.MustCompile(`\d+`)
)

// words returns the text of an error without addresses and names, which differ between operations.
func words(err string) string {
	return count.ReplaceAllString(where.ReplaceAllString(err, "…"), "N")
}

// All returns the operations so far.
func (h *History) All() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Op(nil), h.ops...)
}

// Counts returns the number of operations by action and outcome.
func (h *History) Counts() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}
