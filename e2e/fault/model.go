package fault

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is the state of one object in the model.
type register struct {
	Exists bool
	Value  string
	RV     int64
	// Last is the largest resourceVersion that the object has had, also before a deletion:
	// resourceVersions never decrease.
	Last int64
}

// step returns the states that an operation with its outcome may lead to, or none if it cannot have
// had that outcome.
func step(s register, op Op) []register {
	write := func() []register {
		return []register{{Exists: true, Value: op.Value, RV: op.RV, Last: op.RV}}
	}
	gone := register{Last: s.Last}
	same := []register{s}
	only := func(ok bool, then []register) []register {
		if ok {
			return then
		}
		return nil
	}
	switch op.Outcome {
	case Refused:
		return same
	case NotFound:
		return only(!s.Exists, same)
	case Exists:
		return only(s.Exists && op.Action == Create, same)
	case Conflict:
		// A write without a condition may also fail, after too many conflicts. A PUT creates
		// a Lease that does not exist, so one with a condition conflicts.
		return only(op.Expect == 0 || s.Exists && s.RV != op.Expect || !s.Exists && op.Kind == Leases && op.Action == Update, same)
	case Unknown:
		if op.Action != Delete { // resolve has determined the outcome of all others
			return nil
		}
		if s.Exists && (op.Expect == 0 || op.Expect == s.RV) {
			return []register{s, gone}
		}
		return same
	}
	switch op.Action {
	case Get:
		return only(s.Exists && s.RV == op.RV && s.Value == op.Read, same)
	case Create:
		return only(!s.Exists && op.RV > s.Last, write())
	case Update:
		return only(s.Exists && s.RV == op.Expect && op.RV > s.Last, write())
	case Patch:
		return only(s.Exists && op.RV > s.Last, write())
	case Delete:
		return only(s.Exists && (op.Expect == 0 || s.RV == op.Expect), []register{gone})
	}
	return nil
}

var model = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byObject := map[string][]porcupine.Operation{}
		for _, o := range history {
			op := o.Input.(Op)
			byObject[op.Kind+"/"+op.Name] = append(byObject[op.Kind+"/"+op.Name], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range byObject {
			out = append(out, ops)
		}
		return out
	},
	Init: func() []any { return []any{register{}} },
	Step: func(state, input, _ any) []any {
		var out []any
		for _, s := range step(state.(register), input.(Op)) {
			out = append(out, s)
		}
		return out
	},
	DescribeOperation: func(input, _ any) string {
		op := input.(Op)
		return fmt.Sprintf("%s %s %s value=%q expect=%d -> %s rv=%d read=%q %s", op.Via, op.Action, op.Name, op.Value, op.Expect, op.Outcome, op.RV, op.Read, op.Err)
	},
}

// linearizable checks the operations on single objects and returns what is wrong. The
// events, complete and in order, show the effect of operations of unknown outcome.
func linearizable(ops []Op, events map[string][]Event, patience time.Duration) (wrong []string) {
	byObject := map[string][]porcupine.Operation{}
	for _, op := range resolve(ops, events) {
		key := op.Kind + "/" + op.Name
		byObject[key] = append(byObject[key], porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Call), Return: int64(op.Return)})
	}
	deadline := time.Now().Add(patience)
	m := model.ToModel()
	for object, history := range byObject {
		left := max(time.Until(deadline), time.Second)
		if res, info := porcupine.CheckOperationsVerbose(m, history, left); res != porcupine.Ok {
			wrong = append(wrong, fmt.Sprintf("the history of %s (%d operations) is not linearizable: %s%s", object, len(history), res, explain(history, info)))
		}
	}
	return wrong
}

// explain shows the operations around the first one that has no place in a linearization: those of
// the longest partial linearization, each with its place in it, and those that follow.
func explain(history []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []int
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	place := map[int]int{}
	for i, op := range longest {
		place[op] = i + 1
	}
	first := int64(math.MaxInt64) // end of the first operation without a place
	for i, o := range history {
		if place[i] == 0 {
			first = min(first, o.Return)
		}
	}
	text := ""
	for i, o := range history {
		if near := place[i] == 0 && o.Call <= first || place[i] > len(longest)-15; !near {
			continue
		}
		at := "no place"
		if place[i] > 0 {
			at = fmt.Sprint(place[i])
		}
		text += fmt.Sprintf("\n\t%s\t%d [%.4f %.4f] %s", at, o.ClientId, time.Duration(o.Call).Seconds(), time.Duration(o.Return).Seconds(), model.DescribeOperation(o.Input, nil))
	}
	return text
}

// resolve drops lists and failed reads, and determines the outcome of writes from the events: a
// value among them was written, at that revision, at the latest when it was seen; any other value
// was not. Deletions of unknown outcome stay unknown, unless all deletions of the object are
// accounted for.
func resolve(ops []Op, events map[string][]Event) []Op {
	written := map[string]Event{}
	deletions := map[string]int{}
	lastDeletion := map[string]time.Duration{}
	for kind, list := range events {
		for _, e := range list {
			key := kind + "/" + e.Name
			if e.Deleted {
				deletions[key]++
				lastDeletion[key] = max(lastDeletion[key], e.Seen)
			} else {
				written[e.Value] = e
			}
		}
	}
	for _, op := range ops {
		if op.Action == Delete && op.Outcome == Done {
			deletions[op.Kind+"/"+op.Name]--
		}
	}
	var out []Op
	for _, op := range ops {
		key := op.Kind + "/" + op.Name
		switch {
		case op.Action == List:
			continue
		case op.Outcome != Unknown:
		case op.Action == Get:
			continue
		case op.Action == Delete:
			if deletions[key] <= 0 || lastDeletion[key] < op.Call {
				continue
			}
			op.Return = max(lastDeletion[key], op.Call)
		default:
			e, ok := written[op.Value]
			if !ok {
				continue
			}
			op.Outcome, op.RV, op.Return = Done, e.RV, max(e.Seen, op.Call)
		}
		out = append(out, op)
	}
	return out
}
