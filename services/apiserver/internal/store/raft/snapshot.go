package raft

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"

	"github.com/google/btree"
	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// A snapshot is a sequence of parts. Each has a length of four bytes, a CRC-32C of four bytes
// over what follows, and a raftv1.Snapshot. The last part has the numbers of records and
// changes, so that a snapshot that was cut off between parts is detected too.

const (
	// partBytes is the approximate size of a part.
	partBytes = 256 << 10
	// maxPart is the size of the largest part that is read. A part with one large record is
	// larger than partBytes.
	maxPart = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// snapshot is the state at one moment. The trees are shared with the machine, which copies
// nodes before it changes them.
type snapshot struct {
	head    *raftv1.Snapshot_State
	keys    *btree.BTreeG[*record]
	changes []event
	done    func()
}

// Snapshot implements the library's FSM.
func (m *machine) Snapshot() (hraft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.bytes
	head := m.head()
	head.ChangesAfter = int64(m.history.compacted)
	return &snapshot{head: head, keys: m.keys.Clone(), changes: m.history.all(), done: func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.bytes -= at
	}}, nil
}

func (s *state) head() *raftv1.Snapshot_State {
	h := &raftv1.Snapshot_State{
		Format: format, Revision: int64(s.rev), Applied: s.applied, NowMs: s.now, ClockTerm: s.term, ClockMs: s.clock,
		Cancelled: slices.Clone(s.cancelled), Bounds: &raftv1.Bounds{},
	}
	for _, key := range slices.Sorted(maps.Keys(s.epochs)) {
		h.Epochs = append(h.Epochs, &raftv1.Epoch{Key: key, ModRevision: int64(s.epochs[key])})
	}
	for _, b := range s.bounds {
		h.Bounds.Bounds = append(h.Bounds.Bounds, b.Bound)
	}
	return h
}

// Persist implements the library's FSMSnapshot.
func (s *snapshot) Persist(sink hraft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	s.done()
	return nil
}

// Release implements the library's FSMSnapshot.
func (s *snapshot) Release() {}

func (s *snapshot) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 64<<10)
	if err := writePart(w, &raftv1.Snapshot{State: s.head}); err != nil {
		return err
	}
	part, size, n := &raftv1.Snapshot{}, int64(0), int64(0)
	var err error
	s.keys.Ascend(func(r *record) bool {
		part.Records = append(part.Records, r.proto())
		size += r.size()
		n++
		if size >= partBytes {
			err = writePart(w, part)
			part.Records, size = part.Records[:0], 0
		}
		return err == nil
	})
	if err == nil && len(part.Records) > 0 {
		err = writePart(w, part)
	}
	part, size = &raftv1.Snapshot{}, 0
	for i := 0; i < len(s.changes) && err == nil; i++ {
		part.Changes = append(part.Changes, s.changes[i].proto())
		if size += s.changes[i].size(); size >= partBytes || i == len(s.changes)-1 {
			err = writePart(w, part)
			part.Changes, size = part.Changes[:0], 0
		}
	}
	if err == nil {
		err = writePart(w, &raftv1.Snapshot{End: &raftv1.Snapshot_End{Records: n, Changes: int64(len(s.changes))}})
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

func (r *record) proto() *raftv1.Record {
	return &raftv1.Record{Key: r.key, Value: r.value, ModRevision: int64(r.mod), CreateRevision: int64(r.created), DeadlineMs: r.deadline}
}

func (e event) proto() *raftv1.Snapshot_Change {
	c := &raftv1.Snapshot_Change{Revision: int64(e.rev)}
	if e.put != nil {
		c.Put = e.put.proto()
	}
	if e.before != nil {
		c.Before = e.before.proto()
	}
	return c
}

func writePart(w io.Writer, p *raftv1.Snapshot) error {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return err
	}
	var head [8]byte
	binary.BigEndian.PutUint32(head[:4], uint32(len(data)))
	binary.BigEndian.PutUint32(head[4:], crc32.Checksum(data, castagnoli))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func readPart(r io.Reader) (*raftv1.Snapshot, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("the snapshot was cut off: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n > maxPart {
		return nil, fmt.Errorf("the snapshot has a part of %d bytes, but at most %d are allowed", n, maxPart)
	}
	// Let the buffer grow with the data: the length may be wrong.
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, err
	}
	if uint32(len(data)) != n {
		return nil, errors.New("the snapshot was cut off")
	}
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, errors.New("the snapshot is damaged")
	}
	p := &raftv1.Snapshot{}
	if err := proto.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return p, nil
}

// Restore implements the library's FSM. If it fails, the state does not change.
func (m *machine) Restore(from io.ReadCloser) error {
	defer func() { _ = from.Close() }()
	s, changes, after, err := readSnapshot(from)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = s
	m.history.reset(after)
	for _, e := range changes {
		m.history.append(e)
	}
	m.bytes = 0
	if !m.closed {
		m.signal()
	}
	return nil
}

// readSnapshot reads a state, the changes that led to it, and the revision before the first of
// them.
func readSnapshot(from io.Reader) (s *state, changes []event, after store.Revision, err error) {
	r := bufio.NewReaderSize(from, 64<<10)
	first, err := readPart(r)
	if err != nil {
		return nil, nil, 0, err
	}
	h := first.State
	if h == nil || h.Format != format {
		return nil, nil, 0, fmt.Errorf("snapshot of format %d, expected %d", h.GetFormat(), format)
	}
	if h.Revision < 1 {
		return nil, nil, 0, fmt.Errorf("snapshot of revision %d", h.Revision)
	}
	if err := checkBounds(h.Bounds.GetBounds()); err != nil {
		return nil, nil, 0, fmt.Errorf("snapshot: %w", err)
	}
	s = newState()
	s.rev, s.applied = store.Revision(h.Revision), h.Applied
	s.now, s.term, s.clock = h.NowMs, h.ClockTerm, h.ClockMs
	s.cancelled = h.Cancelled
	after = store.Revision(h.ChangesAfter)
	for _, e := range h.Epochs {
		s.epochs[e.Key] = store.Revision(e.ModRevision)
	}
	var n int64
	for last := ""; ; {
		p, err := readPart(r)
		if err != nil {
			return nil, nil, 0, err
		}
		for _, in := range p.Records {
			rec := fromProto(in)
			if rec.key <= last || rec.mod < 1 || rec.mod > s.rev || rec.created < 1 || rec.created > rec.mod {
				return nil, nil, 0, fmt.Errorf("snapshot: record %q of revision %d, created at %d, after %q", rec.key, rec.mod, rec.created, last)
			}
			last = rec.key
			s.add(rec)
			n++
		}
		for _, in := range p.Changes {
			e := event{rev: store.Revision(in.Revision), put: fromProto(in.Put), before: fromProto(in.Before)}
			newest := after
			if len(changes) > 0 {
				newest = changes[len(changes)-1].rev
			}
			if after < 1 || e.rev <= newest || e.rev > s.rev || e.put == nil && e.before == nil {
				return nil, nil, 0, fmt.Errorf("snapshot: change %d after %d", e.rev, newest)
			}
			changes = append(changes, e)
		}
		if p.End != nil {
			if p.End.Records != n {
				return nil, nil, 0, fmt.Errorf("the snapshot has %d of %d records", n, p.End.Records)
			}
			if p.End.Changes != int64(len(changes)) {
				return nil, nil, 0, fmt.Errorf("the snapshot has %d of %d changes", len(changes), p.End.Changes)
			}
			break
		}
	}
	s.index(h.Bounds.GetBounds())
	if after == 0 { // written without a history
		after = s.rev
	}
	return s, changes, after, nil
}

func fromProto(in *raftv1.Record) *record {
	if in == nil {
		return nil
	}
	r := &record{key: in.Key, value: in.Value, mod: store.Revision(in.ModRevision), created: store.Revision(in.CreateRevision), deadline: in.DeadlineMs}
	if r.value == nil {
		r.value = []byte{}
	}
	return r
}
