package fault

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds.
const (
	Kill         Kind = "kill"            // SIGKILL; the process is started again at once
	KillAll      Kind = "kill-all"        // of all members at the same time
	Pause        Kind = "pause"           // SIGSTOP, SIGCONT
	Partition    Kind = "partition"       // one member from all members and clients
	Isolate      Kind = "isolate"         // one member from the other members, not from clients
	OneWay       Kind = "one-way"         // what it sends to members is lost, or what they send to it
	Bridge       Kind = "bridge"          // two members from each other; the third reaches both
	SlowNetwork  Kind = "slow-network"    // latency and loss, both ways
	DiskFull     Kind = "disk-full"       // no space is left
	SlowSync     Kind = "slow-sync"       // fsync and fdatasync are delayed
	FailedSync   Kind = "failed-sync"     // fsync and fdatasync report a failure
	ClockJump    Kind = "clock-jump"      // the wall clock, forward or back
	TornTail     Kind = "torn-tail"       // part of a torn write follows what was acknowledged
	BrokenTail   Kind = "broken-tail"     // acknowledged bytes are damaged, and later the disk is emptied
	EmptiedDisk  Kind = "emptied-disk"    // the data of both stores is removed
	Rolling      Kind = "rolling-restart" // SIGTERM, one after the other
	Failpoints   Kind = "failpoints"      // proposals are refused, lost, or done and reported as failed
	DiskFailures Kind = "log-failpoints"  // the same for raft's writes to its disk
)

// Kinds lists all kinds, in the order of the selection; see NewSelection.
var Kinds = []Kind{
	Kill, Pause, Partition, OneWay, Bridge, SlowNetwork, DiskFull, SlowSync, FailedSync, ClockJump,
	TornTail, BrokenTail, EmptiedDisk, Rolling, Failpoints, DiskFailures, Isolate, KillAll,
}

// mild faults may be combined with any other fault.
var mild = []Kind{Kill, Pause, Partition, Isolate, OneWay, Bridge, SlowNetwork, SlowSync, ClockJump, Failpoints}

// harmless faults stop no member, so they may be combined with the loss of a member's disk.
var harmless = []Kind{SlowNetwork, SlowSync, ClockJump, Failpoints}

// Fault is a fault that a plan has chosen.
type Fault struct {
	Kind Kind
	// Target is a member's index, "0" to "2", or "leader of etcd", or "leader of raft".
	Target string
	// For is how long it lasts.
	For time.Duration
	// The meaning of Amount and Chance depends on the kind; see inject.
	Amount time.Duration
	Chance float64
	Choice int
}

func (f Fault) String() string {
	s := fmt.Sprintf("%s of %s for %s", f.Kind, f.Target, f.For.Round(time.Millisecond))
	if f.Amount != 0 {
		s += fmt.Sprintf(" by %s", f.Amount)
	}
	if f.Chance != 0 {
		s += fmt.Sprintf(" with %.2f", f.Chance)
	}
	return s
}

// Plan chooses faults. The same seed gives the same sequence.
type Plan struct {
	rng   *rand.Rand
	next  int  // of the selection
	short bool // the selection, in which each kind comes once
	only  []Kind
}

// NewPlan returns an endless sequence.
func NewPlan(seed uint64) *Plan {
	return &Plan{rng: rand.New(rand.NewPCG(seed, 0x6661756c74))}
}

// NewSelection returns a sequence in which each kind occurs once and does not last long.
func NewSelection(seed uint64) *Plan {
	p := NewPlan(seed)
	p.short = true
	return p
}

// NewSeries returns an endless sequence of faults of these kinds, one at a time.
func NewSeries(seed uint64, kinds ...Kind) *Plan {
	p := NewPlan(seed)
	p.only = kinds
	return p
}

// Step returns the faults to inject together next: one or two, or none at the end of a selection.
func (p *Plan) Step() []Fault {
	if p.short {
		if p.next == len(Kinds) {
			return nil
		}
		p.next++
		return []Fault{p.fault(Kinds[p.next-1])}
	}
	if len(p.only) > 0 {
		p.next++
		return []Fault{p.fault(p.only[(p.next-1)%len(p.only)])}
	}
	first := p.fault(Kinds[p.rng.IntN(len(Kinds))])
	if p.rng.IntN(3) > 0 {
		return []Fault{first}
	}
	with := mild
	if !slices.Contains(mild, first.Kind) {
		with = harmless
	}
	second := p.fault(with[p.rng.IntN(len(with))])
	if second.Kind == first.Kind {
		return []Fault{first}
	}
	return []Fault{first, second}
}

func (p *Plan) between(from, to time.Duration) time.Duration {
	return from + time.Duration(p.rng.Int64N(int64(to-from))).Truncate(time.Millisecond)
}

// fault draws a fault of a kind. Every kind draws the same numbers in the same order,
// so that a change of one changes no other.
func (p *Plan) fault(k Kind) Fault {
	f := Fault{Kind: k, For: p.between(300*time.Millisecond, 4*time.Second), Choice: p.rng.IntN(1 << 20)}
	f.Target = []string{"0", "1", "2", "leader of etcd", "leader of raft"}[p.rng.IntN(5)]
	a, b := p.rng.Float64(), p.rng.Float64()
	if p.short {
		f.For = 300*time.Millisecond + time.Duration(a*float64(700*time.Millisecond)).Truncate(time.Millisecond)
	}
	switch k {
	case Kill, KillAll, TornTail, BrokenTail, EmptiedDisk, Rolling:
		f.For = 0
	case SlowNetwork:
		f.Amount, f.Chance = time.Duration(1+a*120)*time.Millisecond, b*0.1
	case SlowSync:
		f.Amount = time.Duration(10+a*a*500) * time.Millisecond
	case FailedSync:
		f.Choice = 1 + f.Choice%3
	case ClockJump:
		f.Amount = time.Duration((a-0.5)*2*36*3600) * time.Second
	case Failpoints:
		f.Chance = 0.02 + b*b*0.5
	case DiskFailures:
		f.Chance = 0.01 + b*b*0.2
	}
	return f
}
