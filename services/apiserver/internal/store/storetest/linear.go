package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"keelson.dev/services/apiserver/internal/store"
)

// operation is a read or write of one key.
type operation struct {
	key    string
	read   bool
	value  string // to write; empty deletes
	expect store.Revision
}

// outcome is the result of an operation: the entry that was read, the revision of the write, or
// the error.
type outcome struct {
	value string
	rev   store.Revision
	err   error
}

// register is the state of one key. It has no value while the key does not exist.
type register struct {
	value string
	rev   store.Revision // unsure after a write with an unknown outcome
	last  store.Revision // of all known writes
}

const unsure store.Revision = -1

// step returns the states that an operation with this outcome may lead to. It returns none if
// the outcome is impossible in state s.
func step(s register, op operation, out outcome) []register {
	exists := s.value != ""
	written := func(rev store.Revision) register {
		n := register{value: op.value, rev: rev, last: max(s.last, rev)}
		if op.value == "" {
			n.rev = 0
		}
		return n
	}
	// Whether the precondition may hold, and whether it may fail.
	holds := op.expect == store.Any || s.rev == op.expect || (exists && s.rev == unsure && op.expect > 0)
	fails := op.expect != store.Any && (s.rev != op.expect || s.rev == unsure)
	if op.value == "" && !exists {
		holds, fails = false, true
	}
	switch {
	case errors.Is(out.err, store.ErrUnavailable), errors.Is(out.err, store.ErrTooMany):
		return []register{s} // nothing was done, because the machine was busy
	case op.read && errors.Is(out.err, store.ErrNotFound):
		if !exists {
			return []register{s}
		}
	case op.read:
		if out.value == s.value && (s.rev == out.rev || s.rev == unsure) {
			return []register{{value: s.value, rev: out.rev, last: max(s.last, out.rev)}}
		}
	case out.err == nil:
		if holds && out.rev > s.last {
			return []register{written(out.rev)}
		}
	case errors.Is(out.err, store.ErrUnknownOutcome):
		if holds {
			return []register{s, written(unsure)}
		}
		return []register{s}
	case errors.Is(out.err, store.ErrNotFound):
		if !exists && fails {
			return []register{s}
		}
	case errors.Is(out.err, store.ErrExists):
		if exists && op.expect == store.MustNotExist {
			return []register{s}
		}
	case errors.Is(out.err, store.ErrConflict):
		if exists && fails {
			return []register{s}
		}
	}
	return nil
}

var model = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(operation).key
			byKey[key] = append(byKey[key], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byKey {
			out = append(out, ops)
		}
		return out
	},
	Init: func() []any { return []any{register{}} },
	Step: func(state, input, output any) []any {
		var out []any
		for _, s := range step(state.(register), input.(operation), output.(outcome)) {
			out = append(out, s)
		}
		return out
	},
}

// Linearizable runs clients against a store until faults returns, which may stop and start its
// members meanwhile, and checks that their history is linearizable. The store may only return
// errors of package store; failures after which nothing was written must be retried by the
// store itself.
func Linearizable(t *testing.T, s store.Store, faults func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		faults()
	}()
	// Limit the pace, so that the history stays short enough to be checked.
	history(&kit{T: t, Store: s, ctx: ctx}, func(int) bool {
		select {
		case <-over:
			return false
		case <-time.After(15 * time.Millisecond):
			return true
		}
	})
}

// linearizable runs clients against a few keys and checks that their history is linearizable.
func linearizable(k *kit) { history(k, func(done int) bool { return done < 60 }) }

// history runs clients, each as long as more returns true for the number of its operations, and
// checks that their history is linearizable.
func history(k *kit, more func(done int) bool) {
	const clients = 6
	var mu sync.Mutex
	var history []porcupine.Operation
	began := time.Now()
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(client)))
			known := map[string]store.Revision{}
			for i := 0; more(i); i++ {
				op := operation{key: fmt.Sprintf("/lin/%d", rng.IntN(3))}
				switch rng.IntN(8) {
				case 0, 1, 2:
					op.read = true
				case 3:
					op.expect = known[op.key]
				case 4:
					op.value, op.expect = fmt.Sprintf("%d.%d", client, i), store.Any
				default:
					op.value, op.expect = fmt.Sprintf("%d.%d", client, i), known[op.key]
				}
				call := time.Since(began).Nanoseconds()
				out := k.operate(op)
				end := time.Since(began).Nanoseconds()
				if out.err == nil {
					known[op.key] = out.rev
				} else if errors.Is(out.err, store.ErrNotFound) {
					known[op.key] = 0
				}
				if errors.Is(out.err, store.ErrUnknownOutcome) {
					end = math.MaxInt64 // it may still be applied
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: client, Input: op, Output: out, Call: call, Return: end})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if res := porcupine.CheckOperationsTimeout(model.ToModel(), history, 60*time.Second); res != porcupine.Ok {
		for _, h := range history {
			k.Logf("%d [%d %d] %+v -> %+v (%v)", h.ClientId, h.Call, h.Return, h.Input, h.Output, h.Output.(outcome).err)
		}
		k.Fatalf("history of %d operations is not linearizable: %s", len(history), res)
	}
}

func (k *kit) operate(op operation) outcome {
	if op.read {
		e, _, err := k.Get(k.ctx, op.key)
		return outcome{value: string(e.Value), rev: e.ModRevision, err: err}
	}
	w := store.Write{Key: op.key, Expect: op.expect}
	if op.value != "" {
		w.Value = []byte(op.value)
		w.Settled = func(found []byte) bool { return string(found) == op.value }
	}
	v, err := k.Commit(k.ctx, []store.Write{w})
	if err != nil {
		return outcome{err: err}
	}
	return outcome{rev: v[0].Revision, err: v[0].Err}
}
