package grpc

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// sink is a stream that records the ids of the responses that it was sent.
type sink struct {
	grpc.ServerStream
	t   *testing.T
	ids []uint32
}

func (s *sink) SendMsg(m any) error {
	var r resourcev1.WatchManyResponse
	if err := proto.Unmarshal(m.(encoded).bytes(), &r); err != nil {
		s.t.Fatal(err)
	}
	s.ids = append(s.ids, r.GetId())
	return nil
}

func (e encoded) bytes() (out []byte) {
	for _, b := range e {
		out = append(out, b.ReadOnlyData()...)
	}
	return out
}

// waiting is a watch with a number of bookmarks that wait.
type waiting int

func (w *waiting) Next(context.Context) ([]*watchcache.Event, error) { panic("not used") }

func (w *waiting) Poll(_ context.Context, n int) (out []*watchcache.Event, _ error) {
	for ; n > 0 && *w > 0; n-- {
		out = append(out, &watchcache.Event{Type: watchcache.Bookmark, Revision: 1})
		*w--
	}
	return out, nil
}

func (w *waiting) Close() {}

// TestWatchesTakeTurns checks that a watch with many events does not hold up another, that a turn
// is bounded by the credits, and that none is sent without.
func TestWatchesTakeTurns(t *testing.T) {
	out := &sink{t: t}
	m := &many{
		s: &Service{}, ctx: t.Context(), wake: make(chan struct{}, 1), watches: map[uint32]*streamed{},
		stream: &grpc.GenericServerStream[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]{ServerStream: out},
	}
	for i, w := range []struct {
		events  waiting
		credits uint32
	}{{10 * turn, unlimited}, {3, 2}, {5, 0}, {2 * turn, unlimited}} {
		s := &streamed{id: uint32(i + 1), credits: w.credits, leave: func() {}}
		m.watches[s.id] = s
		m.opened(s, &w.events, nil)
	}
	drain := func() map[uint32]int {
		sent, first := map[uint32]int{}, len(out.ids)
		for w := m.next(); w != nil; w = m.next() {
			if err := m.send(w); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range out.ids[first:] {
			sent[id]++
		}
		return sent
	}
	sent := drain()
	if sent[1] != 10*turn || sent[2] != 2 || sent[3] != 0 || sent[4] != 2*turn {
		t.Errorf("sent %v", sent)
	}
	if out.ids[turn] != 2 || out.ids[turn+2] != 4 || out.ids[2*turn+2] != 1 {
		t.Errorf("not in turns: %v", out.ids[:3*turn])
	}
	m.grant(2, 5)
	m.grant(3, unlimited)
	m.grant(3, unlimited) // stays at the bound
	if sent := drain(); sent[2] != 1 || sent[3] != 5 || len(sent) != 2 {
		t.Errorf("after a grant, sent %v", sent)
	}
}
