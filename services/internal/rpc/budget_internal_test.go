package rpc

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

func TestBudget(t *testing.T) {
	const kib = 1 << 10
	b := newBudget(100 * kib)
	take := func(user string, n int64, want codes.Code) {
		t.Helper()
		if err := b.take(user, 60*kib, n); status.Code(err) != want {
			t.Errorf("%s takes %d: %v, want %s", user, n, err, want)
		}
	}
	take("a", 50*kib, codes.OK)
	take("a", 20*kib, codes.ResourceExhausted) // more than a may have
	take("a", 2*kib, codes.OK)                 // small ones count for the server only
	take("b", 50*kib, codes.ResourceExhausted) // more than the server has
	take("b", 40*kib, codes.OK)
	b.give("a", 50*kib)
	take("a", 20*kib, codes.OK)
	b.give("a", 20*kib)
	b.give("a", 2*kib)
	b.give("b", 40*kib)
	if b.total.Load() != 0 || len(b.users) != 0 {
		t.Errorf("%d bytes of %d users are left", b.total.Load(), len(b.users))
	}
}

func TestElements(t *testing.T) {
	m := &resourcev1.CommitRequest{Writes: []*resourcev1.Write{
		{Write: &resourcev1.Write_Create{Create: &resourcev1.CreateRequest{Ref: &resourcev1.Ref{Name: "a"}}}},
		{}, {Traceparent: "x"},
	}}
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	md := m.ProtoReflect().Descriptor()
	if n := elements(md, data, 100); n != 5 {
		t.Errorf("%d elements, want 5", n)
	}
	if n := elements(md, data, 2); n != 3 {
		t.Errorf("%d elements, want it to stop at 3", n)
	}
	for end := range data { // cut anywhere: no panic, and no more than there are
		if n := elements(md, data[:end], 100); n > 5 {
			t.Errorf("%d elements in the first %d bytes", n, end)
		}
	}
}

func FuzzElements(f *testing.F) {
	f.Add([]byte{10, 4, 10, 2, 10, 0})
	md := (&resourcev1.CommitRequest{}).ProtoReflect().Descriptor()
	f.Fuzz(func(t *testing.T, data []byte) {
		if n := elements(md, data, 1000); n > 1001 || n > len(data)/2 {
			t.Errorf("%d elements in %d bytes", n, len(data))
		}
	})
}

// A goroutine that outlives its handler cannot reserve memory that is never released.
func TestEndedCallsTakeNothing(t *testing.T) {
	g := newGuard(ServerConfig{}, nil)
	c := &call{guard: g, caller: Caller{Name: "u", Class: User}, limits: &classLimits[User]}
	if err := c.reserve(2 * smallMessage); err != nil {
		t.Fatal(err)
	}
	c.end()
	if err := c.reserve(2 * smallMessage); status.Code(err) != codes.Canceled {
		t.Errorf("a call that has ended reserves: %v", err)
	}
	if n := g.budget.total.Load(); n != 0 || len(g.budget.users) != 0 {
		t.Errorf("%d bytes of %d users are reserved without a call", n, len(g.budget.users))
	}
}
