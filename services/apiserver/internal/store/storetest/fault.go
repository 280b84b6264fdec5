package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"keelson.dev/services/apiserver/internal/store"
)

// faults makes attempts to write fail in every way. It does nothing if the store is not Faulty.
func faults(k *kit) {
	f, ok := k.Store.(Faulty)
	if !ok {
		return
	}
	mine := func(value string) func([]byte) bool {
		return func(b []byte) bool { return string(b) == value }
	}
	first := func(fault Fault) func(*store.Write, int) Fault {
		return func(_ *store.Write, attempt int) Fault {
			if attempt == 0 {
				return fault
			}
			return None
		}
	}
	always := func(fault Fault) func(*store.Write, int) Fault {
		return func(*store.Write, int) Fault { return fault }
	}
	defer f.Inject(nil)

	f.Inject(first(Refuse))
	if v := k.commit(store.Write{Key: "/refused", Value: []byte("x")})[0]; v.Err == nil || errors.Is(v.Err, store.ErrUnknownOutcome) || errors.Is(v.Err, store.ErrConflict) {
		k.Fatalf("refused: %+v", v)
	}
	f.Inject(first(LoseRequest))
	rev := k.must(store.Write{Key: "/a", Value: []byte("1"), Settled: mine("1")})
	f.Inject(first(LoseAnswer))
	before := k.revision()
	rev = k.must(store.Write{Key: "/a", Value: []byte("2"), Expect: rev, Settled: mine("2")})
	if rev != before+1 || k.revision() != rev {
		k.Fatalf("one write took revisions %d to %d", before, k.revision())
	}
	// Without Settled, the outcome stays unknown.
	k.refuse(store.Write{Key: "/a", Value: []byte("3"), Expect: rev}, store.ErrUnknownOutcome)
	e, _, err := k.Get(k.ctx, "/a")
	if err != nil || string(e.Value) != "3" {
		k.Fatalf("%+v %v", e, err)
	}
	// A conflict after an unknown outcome must not be reported as a conflict: another write may
	// have replaced what this one had written.
	f.Inject(func(w *store.Write, attempt int) Fault {
		if string(w.Value) != "4" || attempt > 0 {
			return None
		}
		return LoseAnswer
	})
	overwritten := make(chan struct{})
	go func() {
		defer close(overwritten)
		k.until("the write is there", func() bool {
			v, err := k.Commit(k.ctx, []store.Write{{Key: "/a", Value: []byte("5"), Expect: e.ModRevision + 1}})
			return err == nil && v[0].Err == nil
		})
	}()
	v := k.commit(store.Write{Key: "/a", Value: []byte("4"), Expect: e.ModRevision, Settled: mine("4")})[0]
	<-overwritten
	if v.Err != nil && !errors.Is(v.Err, store.ErrUnknownOutcome) {
		k.Fatalf("overwritten: %+v", v)
	}
	// A conflict of the first attempt is reported as one.
	f.Inject(first(None))
	k.refuse(store.Write{Key: "/a", Value: []byte("6"), Expect: e.ModRevision, Settled: mine("6")}, store.ErrConflict)
	f.Inject(first(LoseRequest))
	v = k.refuse(store.Write{Key: "/a", Expect: e.ModRevision}, store.ErrConflict) // the key was not deleted in between, so the outcome is known
	f.Inject(first(LoseAnswer))
	k.refuse(store.Write{Key: "/a", Expect: v.Current.ModRevision}, store.ErrUnknownOutcome)
	if _, _, err := k.Get(k.ctx, "/a"); !errors.Is(err, store.ErrNotFound) {
		k.Fatal(err)
	}
	// A write with store.Any is applied once.
	before = k.revision()
	created := k.must(store.Write{Key: "/b", Value: []byte("1"), Expect: store.Any, Settled: mine("1")})
	updated := k.must(store.Write{Key: "/b", Value: []byte("2"), Expect: store.Any, Settled: mine("2")})
	f.Inject(nil)
	deleted := k.del("/b")
	var at []store.Revision
	for _, e := range k.events(k.watch("/b", before), 3) {
		at = append(at, e.Entry.ModRevision)
	}
	k.equal("events", at, []store.Revision{created, updated, deleted})
	// A write that keeps failing is given up eventually.
	f.Hurry(true)
	for _, fault := range []Fault{LoseRequest, LoseAnswer} {
		f.Inject(always(fault))
		k.refuse(store.Write{Key: "/c" + fmt.Sprint(fault), Value: []byte("1"), Settled: mine("x")}, store.ErrUnknownOutcome)
	}
	f.Hurry(false)
	f.Inject(nil)
	k.equal("entries", keys(k.list("/c", store.ListOptions{})), []string{"/c3=1"})

	f.Inject(func(_ *store.Write, attempt int) Fault {
		if attempt < 3 {
			return []Fault{None, LoseRequest, LoseAnswer}[rand.IntN(3)]
		}
		return None
	})
	history(k, func(done int) bool { return done < 20 }) // few, because each unknown outcome doubles the number of possible states
}
