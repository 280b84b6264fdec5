package raft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// drawCommand draws any command that a leader may write.
func drawCommand(t *rapid.T, clock int64) *raftv1.Command {
	c := &raftv1.Command{Format: format, ClockMs: clock}
	for range rapid.IntRange(0, 4).Draw(t, "operations") {
		key := rapid.SampledFrom([]string{"/a", "/b/1", "/b/2", "/b/3", "/b/4", "/c/1", "/c/2"}).Draw(t, "key")
		var op *raftv1.Operation
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			op = &raftv1.Operation{Kind: &raftv1.Operation_Cancel{Cancel: &raftv1.Cancel{
				Session: rapid.Uint64Range(1, 3).Draw(t, "session"), Sequence: rapid.Uint64Range(1, 20).Draw(t, "sequence")}}}
		case 1:
			op = &raftv1.Operation{Kind: &raftv1.Operation_Compact{Compact: &raftv1.Compact{Revision: rapid.Int64Range(0, 40).Draw(t, "revision")}}}
		case 2:
			op = &raftv1.Operation{Kind: &raftv1.Operation_Epoch{Epoch: &raftv1.Epoch{Key: "/fence", ModRevision: rapid.Int64Range(1, 20).Draw(t, "epoch")}}}
		case 3:
			op = &raftv1.Operation{Kind: &raftv1.Operation_Bounds{Bounds: &raftv1.Bounds{Bounds: []*raftv1.Bound{
				{Prefix: "/b/", Entries: rapid.Int64Range(0, 3).Draw(t, "entries")}, {Prefix: "/c/", Bytes: rapid.Int64Range(0, 30).Draw(t, "bytes")}}}}}
		default:
			w := &raftv1.Write{
				Key: key, Value: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value"), Delete: rapid.IntRange(0, 4).Draw(t, "delete") == 0,
				Expect: rapid.Int64Range(-1, 30).Draw(t, "expect"), TtlSeconds: rapid.Int64Range(0, 5).Draw(t, "ttl"),
				Session: rapid.Uint64Range(1, 3).Draw(t, "session"), Sequence: rapid.Uint64Range(1, 30).Draw(t, "sequence"),
			}
			if rapid.IntRange(0, 3).Draw(t, "fenced") == 0 {
				w.Fence = &raftv1.Fence{Key: "/fence", ModRevision: rapid.Int64Range(0, 20).Draw(t, "epoch"), Elsewhere: rapid.Bool().Draw(t, "elsewhere")}
			}
			if rapid.Bool().Draw(t, "any") {
				w.Expect = -1
			}
			op = &raftv1.Operation{Kind: &raftv1.Operation_Write{Write: w}}
		}
		c.Operations = append(c.Operations, op)
	}
	return c
}

// sink is a snapshot in memory.
type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "test" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

func snapshotOf(t interface{ Fatal(...any) }, m *machine) []byte {
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var out sink
	if err := s.Persist(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// apply passes a command to a machine as the library does.
func apply(t interface{ Fatal(...any) }, m *machine, c *raftv1.Command, index, term uint64) []outcome {
	data, err := proto.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return m.Apply(&hraft.Log{Index: index, Term: term, Type: hraft.LogCommand, Data: data}).(result).outcomes
}

// plain returns outcomes without pointers.
func plain(in []outcome) (out []string) {
	for _, o := range in {
		s := fmt.Sprint(o.code, o.rev)
		if o.current != nil {
			s += fmt.Sprint(*o.current)
		}
		out = append(out, s)
	}
	return out
}

// TestASnapshotIsTheState repeatedly restores one machine from snapshots of another: they must
// return the same results and have the same state.
func TestASnapshotIsTheState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newMachine(100, 1<<20), newMachine(100, 1<<20)
		clock, term := int64(1000), uint64(1)
		for index := range uint64(rapid.IntRange(1, 40).Draw(t, "commands")) {
			clock += rapid.Int64Range(0, 4000).Draw(t, "pause")
			if rapid.IntRange(0, 9).Draw(t, "elect") == 0 {
				term++
				clock = rapid.Int64Range(0, 100_000).Draw(t, "clock")
			}
			if rapid.IntRange(0, 4).Draw(t, "restore") == 0 {
				before := b.rev
				if err := b.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, a)))); err != nil {
					t.Fatal(err)
				}
				if b.rev < before {
					t.Fatalf("the revision decreased from %d to %d", before, b.rev)
				}
			}
			c := drawCommand(t, clock)
			before := a.rev
			got, want := plain(apply(t, b, c, index+1, term)), plain(apply(t, a, c, index+1, term))
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("command %d\n got %v\nwant %v", index+1, got, want)
			}
			if a.rev < before {
				t.Fatalf("the revision decreased from %d to %d", before, a.rev)
			}
			if !bytes.Equal(snapshotOf(t, a), snapshotOf(t, b)) {
				t.Fatalf("after command %d the machines differ", index+1)
			}
			a.check(t)
			b.check(t)
		}
	})
}

// check checks that the machine's indexes match its records.
func (m *machine) check(t interface{ Fatalf(string, ...any) }) {
	size, expiring := int64(0), 0
	m.keys.Ascend(func(r *record) bool {
		size += r.size()
		if r.deadline > 0 {
			expiring++
			if _, ok := m.expiring.Get(r); !ok {
				t.Fatalf("%s is missing from the expiry index", r.key)
			}
		}
		return true
	})
	if size != m.size || expiring != m.expiring.Len() {
		t.Fatalf("counted %d bytes and %d entries that expire, but the machine has %d and %d", size, expiring, m.size, m.expiring.Len())
	}
	for _, b := range m.bounds {
		n, bytes := 0, int64(0)
		m.keys.Ascend(func(r *record) bool {
			if m.boundOf(r.key) == b {
				n++
				bytes += r.size()
			}
			return true
		})
		if n != b.byRev.Len() || bytes != b.bytes || n > 1 && (b.Entries > 0 && int64(n) > b.Entries || b.Bytes > 0 && bytes > b.Bytes) {
			t.Fatalf("%s: counted %d entries and %d bytes, but the index has %d and %d; the bounds are %d and %d", b.Prefix, n, bytes, b.byRev.Len(), b.bytes, b.Entries, b.Bytes)
		}
	}
}

func TestADamagedSnapshotChangesNothing(t *testing.T) {
	from := newMachine(100, 1<<20)
	for i := range uint64(3000) {
		apply(t, from, &raftv1.Command{Format: format, Operations: []*raftv1.Operation{write(fmt.Sprint("/", i), fmt.Sprintf("%0200d", i), 0)}}, i+1, 1)
	}
	good := snapshotOf(t, from)
	to := newMachine(100, 1<<20)
	apply(t, to, &raftv1.Command{Format: format, Operations: []*raftv1.Operation{write("/kept", "x", 0)}}, 1, 1)
	before := snapshotOf(t, to)
	restore := func(what string, data []byte) {
		t.Helper()
		if err := to.Restore(io.NopCloser(bytes.NewReader(data))); err == nil {
			t.Fatalf("%s was restored", what)
		}
		if !bytes.Equal(snapshotOf(t, to), before) {
			t.Fatalf("%s changed the state", what)
		}
	}
	for _, at := range []int{0, 1, 5, 9, 30, len(good) / 2, len(good) - 20, len(good) - 1} {
		restore(fmt.Sprint("a snapshot cut off at ", at), good[:at])
		bad := bytes.Clone(good)
		bad[at] ^= 4
		restore(fmt.Sprint("a snapshot damaged at ", at), bad)
	}
	// Remove a whole part: the remaining parts are valid.
	var parts [][]byte
	for rest := good; len(rest) > 0; {
		n := 8 + int(binary.BigEndian.Uint32(rest))
		parts, rest = append(parts, rest[:n]), rest[n:]
	}
	if len(parts) < 4 {
		t.Fatalf("a snapshot of %d parts", len(parts))
	}
	restore("a snapshot without its second part", bytes.Join(append(append([][]byte{}, parts[0]), parts[2:]...), nil))
	restore("a snapshot without its end", bytes.Join(parts[:len(parts)-1], nil))
	if err := to.Restore(io.NopCloser(bytes.NewReader(good))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshotOf(t, to), good) {
		t.Fatal("the restored state differs")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	for _, c := range []struct {
		events int
		bytes  int64
	}{{10, 1 << 20}, {1000, 5000}} {
		s := single(t, Config{HistoryEvents: c.events, HistoryBytes: c.bytes})
		for i := range 100 {
			put(t, s, "/a", fmt.Sprint(i))
		}
		h := &s.machine.history
		if h.length > c.events || h.bytes > c.bytes || h.length < 5 {
			t.Fatalf("%d events and %d bytes", h.length, h.bytes)
		}
		ctx := context.Background()
		if _, err := s.List(ctx, "/", store.ListOptions{Revision: 5}); !errors.Is(err, store.ErrCompacted) {
			t.Fatal(err)
		}
		w, err := s.Watch(ctx, "/", 5)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Next(ctx); !errors.Is(err, store.ErrCompacted) {
			t.Fatal(err)
		}
	}
}

func TestFencesOfAnotherStore(t *testing.T) {
	s := single(t, Config{FencesElsewhere: "/keelson/fence/"})
	ctx := context.Background()
	commit := func(epoch store.Revision) error {
		v, err := s.Commit(ctx, []store.Write{{Key: "/a", Value: []byte("x"), Expect: store.Any, Fence: &store.Fence{Key: "/keelson/fence/l", ModRevision: epoch}}})
		if err != nil {
			t.Fatal(err)
		}
		return v[0].Err
	}
	if err := commit(7); err != nil {
		t.Fatal(err)
	}
	if err := s.Granted(ctx, "/keelson/fence/l", 9); err != nil {
		t.Fatal(err)
	}
	if err := commit(7); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("write with an ended epoch: %v", err)
	}
	if err := commit(9); err != nil {
		t.Fatal(err)
	}
	if err := commit(12); err != nil { // a new epoch
		t.Fatal(err)
	}
	if err := commit(9); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("write with an ended epoch: %v", err)
	}
	if err := s.Granted(ctx, "/keelson/fence/l", 9); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("grant of an ended epoch: %v", err)
	}
}

func TestRaiseContinuesTheRevisionsOfAnotherStore(t *testing.T) {
	dir := t.TempDir()
	s := single(t, Config{Dir: dir})
	ctx := context.Background()
	put(t, s, "/a", "x")
	for range 2 { // repeating it changes nothing
		if err := s.Raise(ctx, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if rev, err := s.Revision(ctx); err != nil || rev != 1000 {
		t.Fatal(rev, err)
	}
	w, err := s.Watch(ctx, "/", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(ctx); !errors.Is(err, store.ErrCompacted) {
		t.Fatal(err)
	}
	if rev := put(t, s, "/b", "x"); rev != 1001 {
		t.Fatal(rev)
	}
	s.Close()
	s = single(t, Config{Dir: dir})
	if rev, err := s.Revision(ctx); err != nil || rev != 1001 {
		t.Fatal(rev, err)
	}
}

func FuzzCommand(f *testing.F) {
	for _, c := range []*raftv1.Command{
		{Format: format, ClockMs: 5, Operations: []*raftv1.Operation{write("/a", "x", 0), {Kind: &raftv1.Operation_Tick{Tick: &raftv1.Tick{}}}}},
		{Format: format, Operations: []*raftv1.Operation{
			{Kind: &raftv1.Operation_Cancel{Cancel: &raftv1.Cancel{Session: 1, Sequence: 2}}},
			{Kind: &raftv1.Operation_Compact{Compact: &raftv1.Compact{Revision: 1}}},
			{Kind: &raftv1.Operation_Raise{Raise: &raftv1.Raise{Revision: 9}}},
			{Kind: &raftv1.Operation_Bounds{Bounds: &raftv1.Bounds{Bounds: []*raftv1.Bound{{Prefix: "/", Entries: 1}}}}},
			{Kind: &raftv1.Operation_Epoch{Epoch: &raftv1.Epoch{Key: "/f", ModRevision: 3}}},
			write("/a", "y", -1, func(w *raftv1.Write) { w.TtlSeconds = 1; w.Fence = &raftv1.Fence{Key: "/f", Elsewhere: true} }),
		}},
		{Format: 2},
	} {
		data, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decode(data)
		if err != nil {
			return
		}
		m := newMachine(10, 1000)
		m.command(c, 1, 1)
		m.command(c, 2, 1)
		m.check(t)
		if m.rev < 1 {
			t.Fatalf("revision %d", m.rev)
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	m := newMachine(10, 1000)
	f.Add(snapshotOf(f, m))
	apply(f, m, &raftv1.Command{Format: format, Operations: []*raftv1.Operation{write("/a", "x", 0, func(w *raftv1.Write) { w.TtlSeconds = 7 })}}, 1, 1)
	f.Add(snapshotOf(f, m))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _, _, err := readSnapshot(bytes.NewReader(data))
		if err != nil {
			return
		}
		n := newMachine(10, 1000)
		n.state = s
		n.check(t)
	})
}

func TestACancelledAttemptIsNeverApplied(t *testing.T) {
	m := newMachine(100, 1<<20)
	attempt := func(session, sequence uint64) raftv1.Outcome_Code {
		return m.operation(write("/a", "x", store.Any, func(w *raftv1.Write) { w.Session, w.Sequence = session, sequence })).code
	}
	cancel := func(session, sequence uint64) {
		m.operation(&raftv1.Operation{Kind: &raftv1.Operation_Cancel{Cancel: &raftv1.Cancel{Session: session, Sequence: sequence}}})
	}
	expect := func(session, sequence uint64, want raftv1.Outcome_Code) {
		t.Helper()
		before := m.rev
		if got := attempt(session, sequence); got != want || (m.rev > before) != (got == raftv1.Outcome_CODE_DONE) {
			t.Fatalf("attempt %d of session %d: %s, want %s; revision %d, before it %d", sequence, session, got, want, m.rev, before)
		}
	}
	const done, cancelled = raftv1.Outcome_CODE_DONE, raftv1.Outcome_CODE_CANCELLED
	expect(7, 5, done)
	cancel(7, 5)
	expect(7, 5, cancelled)
	expect(7, 4, cancelled)
	expect(7, 6, done)
	expect(8, 1, done)
	cancel(7, 3) // arrives late
	expect(7, 5, cancelled)
	for session := range uint64(2 * maxCancelled) {
		cancel(100+session, 9)
	}
	if len(m.cancelled) > maxCancelled {
		t.Fatalf("%d sessions are remembered", len(m.cancelled))
	}
	expect(100+2*maxCancelled-1, 9, cancelled)
	expect(100+maxCancelled, 9, cancelled)
}

func TestCommandsOfNewerVersionsAreRefused(t *testing.T) {
	newer := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "?")
	encode := func(m proto.Message) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := &raftv1.Command{Format: format, Operations: []*raftv1.Operation{write("/a", "x", 0)}}
	if _, err := decode(encode(good)); err != nil {
		t.Fatal(err)
	}
	field := func(number protowire.Number, inner []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), inner)
	}
	head := encode(&raftv1.Command{Format: format})
	for what, data := range map[string][]byte{
		"another format version":               encode(&raftv1.Command{Format: format + 1}),
		"an unknown field of the command":      append(encode(good), newer...),
		"an operation of an unknown kind":      append(bytes.Clone(head), field(3, newer)...),
		"an operation without a kind":          append(bytes.Clone(head), field(3, nil)...),
		"an unknown field of a write":          append(bytes.Clone(head), field(3, field(1, append(encode(good.Operations[0].GetWrite()), newer...)))...),
		"a write without a key":                encode(&raftv1.Command{Format: format, Operations: []*raftv1.Operation{write("", "x", 0)}}),
		"a command that is cut off":            encode(good)[:len(encode(good))-1],
		"overlapping bounds":                   encode(&raftv1.Command{Format: format, Operations: []*raftv1.Operation{{Kind: &raftv1.Operation_Bounds{Bounds: &raftv1.Bounds{Bounds: []*raftv1.Bound{{Prefix: "/a/"}, {Prefix: "/a/b"}}}}}}}),
		"a write with too long a time to live": encode(&raftv1.Command{Format: format, Operations: []*raftv1.Operation{write("/a", "x", 0, func(w *raftv1.Write) { w.TtlSeconds = maxTTL + 1 })}}),
	} {
		if _, err := decode(data); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

// TestASnapshotTakesTheHistoryAlong watches a machine that was restored from a snapshot, from
// every revision that the original knows.
func TestASnapshotTakesTheHistoryAlong(t *testing.T) {
	a := newMachine(20, 1<<20)
	for i := range uint64(30) {
		op := write(fmt.Sprint("/", i%3), fmt.Sprint(i), store.Any)
		if i%5 == 4 {
			op = write(fmt.Sprint("/", (i-1)%3), "", store.Any, func(w *raftv1.Write) { w.Value, w.Delete = nil, true })
		}
		apply(t, a, &raftv1.Command{Format: format, Operations: []*raftv1.Operation{op}}, i+1, 1)
	}
	b := newMachine(20, 1<<20)
	if err := b.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, a)))); err != nil {
		t.Fatal(err)
	}
	for after := a.history.compacted - 1; after < a.rev; after++ {
		seen := func(m *machine) string {
			w := &watch{m: m, seen: after}
			got, _, err := w.read(false)
			return fmt.Sprint(got, err)
		}
		if seen(b) != seen(a) {
			t.Errorf("after %d:\n got %s\nwant %s", after, seen(b), seen(a))
		}
	}
	if a.history.length < 15 {
		t.Errorf("the history has only %d events", a.history.length)
	}
}
