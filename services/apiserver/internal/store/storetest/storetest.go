// Package storetest is the conformance suite of store.Store, also for stores over gRPC. It must
// not depend on any implementation.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

// Fault is a failure of one attempt of a write.
type Fault int

// Faults.
const (
	// None lets the attempt succeed.
	None Fault = iota
	// Refuse fails the attempt with a definite error, before anything is written.
	Refuse
	// LoseRequest fails the attempt before anything is written, and leaves its outcome unknown.
	LoseRequest
	// LoseAnswer fails the attempt after the write was applied, and leaves its outcome unknown.
	LoseAnswer
)

// Faulty is a Store whose attempts to write can be made to fail. It is optional.
type Faulty interface {
	// Inject calls plan for each attempt. Attempts of each write are counted from 0. A nil plan
	// ends the injection.
	Inject(plan func(w *store.Write, attempt int) Fault)
	// Hurry makes the store give up a write that keeps failing within a few seconds. Otherwise
	// it must be as patient as in production, however busy the machine is.
	Hurry(bool)
}

// Run runs the suite. start returns an empty store, which it closes when the test ends.
func Run(t *testing.T, start func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*kit)
	}{
		{"Preconditions", preconditions},
		{"EachWriteHasItsOwnRevision", revisions},
		{"SameKeyInOrder", sameKeyInOrder},
		{"ValuesAreBytes", values},
		{"ListPages", listPages},
		{"ListAtARevision", listAtRevision},
		{"Fences", fences},
		{"Expiry", expiry},
		{"WatchFromNow", watchFromNow},
		{"WatchResumesAtEveryRevision", watchResumes},
		{"WatchProgress", watchProgress},
		{"WatchEnds", watchEnds},
		{"Compaction", compaction},
		{"ContextsEnd", contexts},
		{"Linearizable", linearizable},
		{"WatchIsTheHistory", watchIsHistory},
		{"Faults", faults},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			c.test(&kit{T: t, Store: start(t), ctx: ctx})
		})
	}
}

type kit struct {
	*testing.T
	store.Store
	ctx context.Context
}

func (k *kit) commit(writes ...store.Write) []store.Verdict {
	k.Helper()
	v, err := k.Commit(k.ctx, writes)
	if err != nil || len(v) != len(writes) {
		k.Fatalf("commit: %d verdicts, %v", len(v), err)
	}
	return v
}

// must commits one write, which must succeed.
func (k *kit) must(w store.Write) store.Revision {
	k.Helper()
	v := k.commit(w)[0]
	if v.Err != nil || v.Revision == 0 {
		k.Fatalf("write %s: %+v", w.Key, v)
	}
	return v.Revision
}

func (k *kit) put(key, value string) store.Revision {
	k.Helper()
	return k.must(store.Write{Key: key, Value: []byte(value), Expect: store.Any})
}

func (k *kit) del(key string) store.Revision {
	k.Helper()
	return k.must(store.Write{Key: key, Expect: store.Any})
}

// refuse commits one write, which must fail with want.
func (k *kit) refuse(w store.Write, want error) store.Verdict {
	k.Helper()
	v := k.commit(w)[0]
	if !errors.Is(v.Err, want) || v.Revision != 0 {
		k.Fatalf("write %s: got %+v, want %v", w.Key, v, want)
	}
	return v
}

func (k *kit) revision() store.Revision {
	k.Helper()
	rev, err := k.Revision(k.ctx)
	if err != nil {
		k.Fatal(err)
	}
	return rev
}

func (k *kit) list(prefix string, o store.ListOptions) store.Page {
	k.Helper()
	p, err := k.List(k.ctx, prefix, o)
	if err != nil {
		k.Fatalf("list %s %+v: %v", prefix, o, err)
	}
	return p
}

func (k *kit) watch(prefix string, after store.Revision) store.Watch {
	k.Helper()
	w, err := k.Watch(k.ctx, prefix, after)
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(w.Close)
	return w
}

// events reads n events, and checks that their revisions increase.
func (k *kit) events(w store.Watch, n int) []store.Event {
	k.Helper()
	var out []store.Event
	var last store.Revision
	for len(out) < n {
		b, err := w.Next(k.ctx)
		if err != nil {
			k.Fatalf("next: %v after %d of %d events", err, len(out), n)
		}
		for _, e := range b.Events {
			if e.Entry.ModRevision <= last || e.Entry.ModRevision > b.Revision {
				k.Fatalf("event at %d after %d, in a batch of %d", e.Entry.ModRevision, last, b.Revision)
			}
			last = e.Entry.ModRevision
		}
		out = append(out, b.Events...)
	}
	return out
}

// keys formats the entries of a page as key=value.
func keys(p store.Page) []string {
	out := []string{}
	for _, e := range p.Entries {
		out = append(out, e.Key+"="+string(e.Value))
	}
	return out
}

func (k *kit) equal(what string, got, want any) {
	k.Helper()
	if !reflect.DeepEqual(got, want) {
		k.Fatalf("%s\n got %v\nwant %v", what, got, want)
	}
}

// until polls a condition until the test's context ends.
func (k *kit) until(what string, f func() bool) {
	k.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-k.ctx.Done():
			k.Fatal("timed out waiting until " + what)
		}
	}
}

func preconditions(k *kit) {
	if _, rev, err := k.Get(k.ctx, "/a"); !errors.Is(err, store.ErrNotFound) || rev == 0 {
		k.Fatalf("get: %d, %v", rev, err)
	}
	k.refuse(store.Write{Key: "/a", Value: []byte("x"), Expect: 7}, store.ErrNotFound)
	k.refuse(store.Write{Key: "/a", Expect: 7}, store.ErrNotFound)
	k.refuse(store.Write{Key: "/a", Expect: store.Any}, store.ErrNotFound)
	k.refuse(store.Write{Key: "/a", Expect: store.MustNotExist}, store.ErrNotFound)
	created := k.must(store.Write{Key: "/a", Value: []byte("1")})
	v := k.refuse(store.Write{Key: "/a", Value: []byte("2")}, store.ErrExists)
	if c := v.Current; c == nil || string(c.Value) != "1" || c.ModRevision != created || c.Key != "/a" {
		k.Fatalf("current: %+v", v.Current)
	}
	updated := k.must(store.Write{Key: "/a", Value: []byte("2"), Expect: created})
	v = k.refuse(store.Write{Key: "/a", Value: []byte("3"), Expect: created}, store.ErrConflict)
	if c := v.Current; c == nil || string(c.Value) != "2" || c.ModRevision != updated || c.CreateRevision != created {
		k.Fatalf("current: %+v", v.Current)
	}
	k.refuse(store.Write{Key: "/a", Expect: store.MustNotExist}, store.ErrExists)
	v = k.refuse(store.Write{Key: "/a", Expect: created}, store.ErrConflict)
	if v.Current == nil || string(v.Current.Value) != "2" {
		k.Fatalf("current: %+v", v.Current)
	}
	e, rev, err := k.Get(k.ctx, "/a")
	if err != nil || rev < updated {
		k.Fatal(rev, err)
	}
	k.equal("entry", e, store.Entry{Key: "/a", Value: []byte("2"), ModRevision: updated, CreateRevision: created})
	any := k.put("/a", "4")
	k.must(store.Write{Key: "/a", Expect: any})
	k.refuse(store.Write{Key: "/a", Value: []byte("5"), Expect: any}, store.ErrNotFound)
	again := k.put("/a", "6")
	if e, _, err := k.Get(k.ctx, "/a"); err != nil || e.CreateRevision != again || e.ModRevision != again {
		k.Fatalf("created again: %+v, %v", e, err)
	}
	k.del("/a")
}

func revisions(k *kit) {
	before := k.revision()
	var writes []store.Write
	const n = 200
	for i := range n {
		writes = append(writes, store.Write{Key: fmt.Sprintf("/k/%03d", i), Value: []byte("x")})
	}
	k.put("/k/007", "in the way")
	seen := map[store.Revision]bool{}
	for i, v := range k.commit(writes...) {
		if i == 7 {
			if !errors.Is(v.Err, store.ErrExists) {
				k.Fatalf("write 7: %+v", v)
			}
			continue
		}
		if v.Err != nil || v.Revision <= before || seen[v.Revision] {
			k.Fatalf("write %d: %+v (before %d, seen %v)", i, v, before, seen[v.Revision])
		}
		seen[v.Revision] = true
		if e, _, err := k.Get(k.ctx, writes[i].Key); err != nil || e.ModRevision != v.Revision {
			k.Fatalf("entry %d: %+v, %v; verdict %d", i, e, err, v.Revision)
		}
	}
	if rev := k.revision(); rev != before+n {
		k.Fatalf("revision %d, want %d", rev, before+n)
	}
	if len(k.commit()) != 0 {
		k.Fatal("verdicts without writes")
	}
}

func sameKeyInOrder(k *kit) {
	var writes []store.Write
	for i := range 20 {
		for _, key := range []string{"/a", "/b", "/c"} {
			writes = append(writes, store.Write{Key: key, Value: []byte(fmt.Sprint(i)), Expect: store.Any})
		}
	}
	writes = append(writes, store.Write{Key: "/a", Expect: store.Any}, store.Write{Key: "/a", Value: []byte("new")})
	last := map[string]store.Revision{}
	for i, v := range k.commit(writes...) {
		if v.Err != nil || v.Revision <= last[writes[i].Key] {
			k.Fatalf("write %d of %s: %+v after %d", i, writes[i].Key, v, last[writes[i].Key])
		}
		last[writes[i].Key] = v.Revision
	}
	k.equal("entries", keys(k.list("/", store.ListOptions{})), []string{"/a=new", "/b=19", "/c=19"})
}

func values(k *kit) {
	value := []byte{0, 1, 0xff, 0}
	k.must(store.Write{Key: "/v", Value: value})
	value[0] = 9 // the store must have copied it
	if e, _, err := k.Get(k.ctx, "/v"); err != nil || string(e.Value) != "\x00\x01\xff\x00" {
		k.Fatalf("%q, %v", e.Value, err)
	}
	k.must(store.Write{Key: "/empty", Value: []byte{}})
	if e, _, err := k.Get(k.ctx, "/empty"); err != nil || e.Value == nil || len(e.Value) != 0 {
		k.Fatalf("%v, %v", e.Value, err)
	}
	large := make([]byte, 1<<20)
	k.must(store.Write{Key: "/large", Value: large})
	if e, _, err := k.Get(k.ctx, "/large"); err != nil || len(e.Value) != len(large) {
		k.Fatal(len(e.Value), err)
	}
}

func listPages(k *kit) {
	for i := range 10 {
		k.put(fmt.Sprintf("/p/%d", i), "x")
	}
	k.put("/o", "before")
	k.put("/p", "not inside")
	k.put("/q", "behind")
	all := k.list("/p/", store.ListOptions{})
	if len(all.Entries) != 10 || all.Count != 10 || all.More || all.Revision != k.revision() {
		k.Fatalf("%d entries, count %d, more %v, revision %d", len(all.Entries), all.Count, all.More, all.Revision)
	}
	// All pages show one revision, whatever is written in between.
	var got []store.Entry
	o := store.ListOptions{Limit: 3}
	for range 10 {
		p := k.list("/p/", o)
		if p.Count != 10 || p.Revision != all.Revision || int64(len(p.Entries)) > o.Limit {
			k.Fatalf("page: count %d, revision %d, %d entries", p.Count, p.Revision, len(p.Entries))
		}
		got = append(got, p.Entries...)
		if p.More != (len(got) < 10) {
			k.Fatalf("more is %v after %d", p.More, len(got))
		}
		if !p.More {
			break
		}
		k.put(fmt.Sprintf("/p/%d", len(got)), "later")
		k.put(fmt.Sprintf("/p/%dx", len(got)), "later")
		k.del(fmt.Sprintf("/p/%d", (len(got)+1)%10))
		k.put(fmt.Sprintf("/p/%d", (len(got)+1)%10), "later")
		o.After, o.Revision = p.Entries[len(p.Entries)-1].Key, p.Revision
	}
	k.equal("pages", got, all.Entries)
	for _, c := range []struct {
		prefix, after string
		want          int
	}{{"/p/", "/p/9", 0}, {"/p/", "/z", 0}, {"/p/", "/a", 10}, {"/p/", "/p/4x", 5}, {"/none/", "", 0}, {"", "", 13}, {"/p/9", "", 1}} {
		p := k.list(c.prefix, store.ListOptions{After: c.after, Revision: all.Revision})
		if len(p.Entries) != c.want || p.More {
			k.Fatalf("list %q after %q: %v, more %v", c.prefix, c.after, keys(p), p.More)
		}
	}
}

func listAtRevision(k *kit) {
	var revs []store.Revision
	var want [][]string
	state := func() {
		revs = append(revs, k.revision())
		want = append(want, keys(k.list("/", store.ListOptions{})))
	}
	state()
	k.put("/a", "1")
	state()
	k.put("/b", "1")
	state()
	k.put("/a", "2")
	state()
	k.del("/b")
	state()
	k.put("/b", "3")
	for i, rev := range revs {
		p := k.list("/", store.ListOptions{Revision: rev})
		k.equal(fmt.Sprintf("state at %d", rev), keys(p), want[i])
		if p.Revision != rev || p.Count != int64(len(want[i])) {
			k.Fatalf("revision %d count %d", p.Revision, p.Count)
		}
	}
	if _, err := k.List(k.ctx, "/", store.ListOptions{Revision: k.revision() + 5}); !errors.Is(err, store.ErrFutureRevision) {
		k.Fatalf("list at a future revision: %v", err)
	}
}

func fences(k *kit) {
	first := k.put("/fence", "1")
	old := &store.Fence{Key: "/fence", ModRevision: first}
	rev := k.must(store.Write{Key: "/a", Value: []byte("1"), Fence: old})
	second := k.put("/fence", "2")
	k.refuse(store.Write{Key: "/a", Value: []byte("2"), Expect: rev, Fence: old}, store.ErrFenced)
	k.refuse(store.Write{Key: "/a", Value: []byte("2"), Expect: rev + 99, Fence: old}, store.ErrFenced)
	k.refuse(store.Write{Key: "/a", Expect: rev, Fence: old}, store.ErrFenced)
	k.refuse(store.Write{Key: "/b", Value: []byte("2"), Expect: store.Any, Fence: old}, store.ErrFenced)
	now := &store.Fence{Key: "/fence", ModRevision: second}
	k.refuse(store.Write{Key: "/a", Value: []byte("2"), Expect: rev + 99, Fence: now}, store.ErrConflict)
	k.must(store.Write{Key: "/a", Value: []byte("2"), Expect: rev, Fence: now})
	k.del("/fence")
	k.refuse(store.Write{Key: "/c", Value: []byte("2"), Fence: now}, store.ErrFenced)
	k.must(store.Write{Key: "/c", Value: []byte("2"), Fence: &store.Fence{Key: "/fence"}})
	k.equal("entries", keys(k.list("/", store.ListOptions{})), []string{"/a=2", "/c=2"})
	// A period is a second condition of the same kind.
	third := k.put("/fence", "3")
	now = &store.Fence{Key: "/fence", ModRevision: third}
	none := &store.Fence{Key: "/period"}
	k.must(store.Write{Key: "/d", Value: []byte("1"), Fence: now, Period: none})
	period := &store.Fence{Key: "/period", ModRevision: k.put("/period", "1")}
	for _, w := range []store.Write{{Period: none}, {Fence: now, Period: none}, {Fence: old, Period: period}} {
		w.Key, w.Value, w.Expect = "/d", []byte("2"), store.Any
		k.refuse(w, store.ErrFenced)
	}
	k.refuse(store.Write{Key: "/d", Value: []byte("2"), Fence: now, Period: period}, store.ErrExists)
	k.must(store.Write{Key: "/d", Value: []byte("2"), Expect: store.Any, Fence: now, Period: period})
	k.must(store.Write{Key: "/d", Expect: store.Any, Period: period})
}

func expiry(k *kit) {
	w := k.watch("/t/", k.revision())
	k.put("/t/stays", "x")
	var renewed store.Revision
	k.until("an entry was renewed before it expired", func() bool {
		rev := k.must(store.Write{Key: "/t/renewed", Value: []byte("1"), Expect: store.Any, TTLSeconds: 1})
		v := k.commit(store.Write{Key: "/t/renewed", Value: []byte("forever"), Expect: rev})[0]
		if v.Err != nil && !errors.Is(v.Err, store.ErrNotFound) {
			k.Fatalf("renewal: %+v", v)
		}
		renewed = v.Revision
		return v.Err == nil
	})
	gone := k.must(store.Write{Key: "/t/gone", Value: []byte("1"), TTLSeconds: 1})
	k.until("the entry has expired", func() bool {
		_, _, err := k.Get(k.ctx, "/t/gone")
		return errors.Is(err, store.ErrNotFound)
	})
	k.equal("entries", keys(k.list("/t/", store.ListOptions{})), []string{"/t/renewed=forever", "/t/stays=x"})
	var seen []store.Event // since the renewal; entries not renewed in time expired earlier
	for len(seen) < 3 {
		for _, e := range k.events(w, 1) {
			if e.Entry.ModRevision >= renewed {
				seen = append(seen, e)
			}
		}
	}
	if seen[0].Entry.ModRevision != renewed || seen[1].Entry.ModRevision != gone || seen[2].Type != store.Deleted || seen[2].Entry.Key != "/t/gone" {
		k.Fatalf("events since the renewal at %d, with a write at %d: %+v", renewed, gone, seen)
	}
}

func contexts(k *kit) {
	ctx, cancel := context.WithCancel(k.ctx)
	cancel()
	if _, _, err := k.Get(ctx, "/a"); !errors.Is(err, context.Canceled) {
		k.Fatalf("get: %v", err)
	}
	if _, err := k.List(ctx, "/a", store.ListOptions{}); !errors.Is(err, context.Canceled) {
		k.Fatalf("list: %v", err)
	}
	if _, err := k.Commit(ctx, []store.Write{{Key: "/a", Value: []byte("x")}}); !errors.Is(err, context.Canceled) {
		k.Fatalf("commit: %v", err)
	}
	if _, _, err := k.Get(k.ctx, "/a"); !errors.Is(err, store.ErrNotFound) {
		k.Fatalf("a write with an ended context was applied: %v", err)
	}
}
