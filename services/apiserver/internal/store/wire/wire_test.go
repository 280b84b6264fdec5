package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a cluster whose members share one store.
type site struct {
	testing.TB
	store   store.Store
	members *Members
	mu      sync.Mutex
	servers map[string]*grpc.Server
	where   map[string]string
	// lose decides about a commit: whether it is done, and whether its reply arrives.
	lose func() (request, answer bool)
}

func newSite(t testing.TB, s store.Store, names ...string) *site {
	t.Helper()
	v := &site{TB: t, store: s, servers: map[string]*grpc.Server{}, where: map[string]string{}}
	for _, name := range names {
		v.start(name, s)
	}
	v.members = &Members{
		Names: func() []string { return names },
		Dial: func(name string) (grpc.ClientConnInterface, error) {
			return grpc.NewClient(v.where[name], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		},
	}
	t.Cleanup(func() {
		v.members.Close()
		for _, s := range v.servers {
			s.Stop()
		}
	})
	return v
}

func (v *site) start(name string, s store.Store) {
	v.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		v.Fatal(err)
	}
	service := NewService(func(context.Context) error { return nil })
	service.Serve(storev1.Place_PLACE_TRANSIENT, s)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		v.mu.Lock()
		lose := v.lose
		v.mu.Unlock()
		if info.FullMethod != storev1.StoreService_Commit_FullMethodName || lose == nil {
			return next(ctx, req)
		}
		request, answer := lose()
		if request {
			return nil, status.Error(codes.Unavailable, "lost")
		}
		out, err := next(ctx, req)
		if answer {
			return nil, status.Error(codes.Unavailable, "lost")
		}
		return out, err
	}))
	service.Register(server)
	v.servers[name], v.where[name] = server, l.Addr().String()
	go func() { _ = server.Serve(l) }()
}

func (v *site) client() *Client {
	c := NewClient(v.members, storev1.Place_PLACE_TRANSIENT)
	v.Cleanup(c.Close)
	return c
}

// losing makes the next n commits lose their request or reply, and no later ones.
func (v *site) losing(n int, request, answer bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lose = func() (bool, bool) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if n--; n < 0 {
			return false, false
		}
		return request, answer
	}
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		m := memory.New()
		t.Cleanup(m.Close)
		return newSite(t, m, "a", "b").client()
	})
}

func TestHistoryWithLostAnswers(t *testing.T) {
	m := memory.New()
	defer m.Close()
	v := newSite(t, m, "a", "b")
	// Few, because each unknown outcome doubles the number of possible states.
	lost, enough := atomic.Int32{}, make(chan struct{})
	v.lose = func() (request, answer bool) {
		n := rand.IntN(20)
		if n > 1 {
			return false, false
		}
		switch l := lost.Add(1); {
		case l == 12:
			close(enough)
		case l > 12:
			return false, false
		}
		return n == 0, n == 1
	}
	storetest.Linearizable(t, v.client(), func() { <-enough })
}

func one(t *testing.T, s store.Store, w store.Write) store.Verdict {
	t.Helper()
	v, err := s.Commit(context.Background(), []store.Write{w})
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

// TestDoubt loses the requests and replies of each kind of write.
func TestDoubt(t *testing.T) {
	mine := func(b []byte) bool { return string(b) == "mine" }
	for _, row := range []struct {
		name            string
		there           bool
		write           func(at store.Revision) store.Write
		request, answer bool
		want            error
		value           string // afterwards; empty if the key does not exist
	}{
		{"update, answer lost", true, func(at store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Expect: at, Settled: mine}
		}, false, true, nil, "mine"},
		{"update, request lost", true, func(at store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Expect: at, Settled: mine}
		}, true, false, nil, "mine"},
		{"update without Settled, answer lost", true, func(at store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Expect: at}
		}, false, true, store.ErrUnknownOutcome, "mine"},
		{"create, answer lost", false, func(store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Settled: mine}
		}, false, true, nil, "mine"},
		{"create, request lost", false, func(store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Settled: mine}
		}, true, false, store.ErrUnknownOutcome, ""},
		{"create of an existing key, answer lost", true, func(store.Revision) store.Write {
			return store.Write{Value: []byte("mine"), Settled: mine}
		}, false, true, store.ErrUnknownOutcome, "before"},
		{"delete, answer lost", true, func(at store.Revision) store.Write {
			return store.Write{Expect: at}
		}, false, true, store.ErrUnknownOutcome, ""},
		{"delete, request lost", true, func(at store.Revision) store.Write {
			return store.Write{Expect: at}
		}, true, false, nil, ""},
		{"delete of any, answer lost", true, func(store.Revision) store.Write {
			return store.Write{Expect: store.Any}
		}, false, true, store.ErrUnknownOutcome, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := memory.New()
			t.Cleanup(m.Close)
			v := newSite(t, m, "a", "b")
			c := v.client()
			var at store.Revision
			if row.there {
				at = one(t, c, store.Write{Key: "/k", Value: []byte("before")}).Revision
			}
			v.losing(1, row.request, row.answer)
			w := row.write(at)
			w.Key = "/k"
			got := one(t, c, w)
			if !errors.Is(got.Err, row.want) || row.want == nil && got.Revision <= at {
				t.Errorf("verdict %+v, want %v", got, row.want)
			}
			e, _, err := c.Get(context.Background(), "/k")
			if row.value == "" && !errors.Is(err, store.ErrNotFound) || row.value != "" && string(e.Value) != row.value {
				t.Errorf("value afterwards: %q, %v", e.Value, err)
			}
			if rev, _ := c.Revision(context.Background()); got.Err == nil && rev != got.Revision {
				t.Errorf("the store is at revision %d, but the verdict says %d", rev, got.Revision)
			}
		})
	}
}

func TestClientContinuesAtAnotherMember(t *testing.T) {
	m := memory.New()
	defer m.Close()
	v := newSite(t, m, "a", "b")
	c := v.client()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w, err := c.Watch(ctx, "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	first := one(t, c, store.Write{Key: "/k", Value: []byte("1")}).Revision
	b, err := w.Next(ctx)
	if err != nil || len(b.Events) != 1 || b.Revision != first {
		t.Fatalf("%+v %v", b, err)
	}
	v.servers[v.members.current].Stop()
	if _, err := w.Next(ctx); err == nil || errors.Is(err, store.ErrClosed) || ctx.Err() != nil {
		t.Fatalf("watch of a stopped member: %v", err)
	}
	if _, err := c.Revision(ctx); err != nil { // finds the other member
		t.Fatal(err)
	}
	// Nothing is in doubt, not even a create without Settled.
	second := one(t, c, store.Write{Key: "/l", Value: []byte("2")})
	if second.Err != nil {
		t.Fatal(second.Err)
	}
	again, err := c.Watch(ctx, "/", b.Revision)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if b, err = again.Next(ctx); err != nil || len(b.Events) != 1 || b.Events[0].Entry.Key != "/l" {
		t.Fatalf("%+v %v", b, err)
	}
	for _, s := range v.servers {
		s.Stop()
	}
	c.settleTime = 200 * time.Millisecond
	if _, err := c.Revision(ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("read without members: %v", err)
	}
	if got := one(t, c, store.Write{Key: "/m", Value: []byte("3")}); !errors.Is(got.Err, store.ErrUnavailable) {
		t.Errorf("write without members: %+v", got)
	}
}

// full is the store of a member that has reached its quota.
type full struct{ store.Store }

func (full) Commit(_ context.Context, writes []store.Write) ([]store.Verdict, error) {
	out := make([]store.Verdict, len(writes))
	for i := range out {
		out[i].Err = fmt.Errorf("commit: %w", store.ErrNoSpace)
	}
	return out, nil
}

func TestFullStore(t *testing.T) {
	m := memory.New()
	defer m.Close()
	c := newSite(t, full{m}, "a").client()
	if got := one(t, c, store.Write{Key: "/a", Value: []byte("1")}); !errors.Is(got.Err, store.ErrNoSpace) {
		t.Errorf("a write to a full store: %v", got.Err)
	}
}

// cutOff is the store of a member that cannot reach the others.
type cutOff struct{ store.Store }

func (cutOff) Revision(context.Context) (store.Revision, error) { return 0, store.ErrUnavailable }

func TestWatchEndsWhenItsMemberIsCutOff(t *testing.T) {
	m := memory.New()
	defer m.Close()
	c := newSite(t, cutOff{m}, "a").client()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w, err := c.Watch(ctx, "/", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("the watch ended with %v", err)
	}
}

func TestLargePagesAndBatches(t *testing.T) {
	m := memory.New()
	defer m.Close()
	c := newSite(t, m, "a").client()
	ctx := context.Background()
	value := make([]byte, 300<<10)
	var writes []store.Write
	var want []string
	for i := range 40 { // 12 MB: more than fits in one message
		key := fmt.Sprintf("/%02d", i)
		want = append(want, key)
		writes = append(writes, store.Write{Key: key, Value: value})
	}
	verdicts, err := c.Commit(ctx, writes)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range verdicts {
		if v.Err != nil {
			t.Fatal(i, v.Err)
		}
	}
	page, err := c.List(ctx, "/", store.ListOptions{})
	if err != nil || page.Count != 40 {
		t.Fatal(page.Count, err)
	}
	var got []string
	for _, e := range page.Entries {
		got = append(got, e.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v", got)
	}
	w, err := c.Watch(ctx, "/", verdicts[0].Revision)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last := verdicts[0].Revision
	for seen := 1; seen < 40; {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			if e.Entry.ModRevision <= last || e.Entry.ModRevision > b.Revision {
				t.Fatalf("event of revision %d after %d, in a batch up to %d", e.Entry.ModRevision, last, b.Revision)
			}
			last = e.Entry.ModRevision
			seen++
		}
	}
}

func TestOnlyApiserversAreServed(t *testing.T) {
	service := NewService(func(context.Context) error { return status.Error(codes.PermissionDenied, "no") })
	ctx := context.Background()
	for name, err := range map[string]error{
		"Get":      second(service.Get(ctx, &storev1.GetRequest{})),
		"Commit":   second(service.Commit(ctx, &storev1.CommitRequest{})),
		"Revision": second(service.Revision(ctx, &storev1.RevisionRequest{})),
		"Compact":  second(service.Compact(ctx, &storev1.CompactRequest{})),
	} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
