package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

func TestALateMemberGetsASnapshotAndLargeEntries(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Timing.Election = 2 * time.Second })
	leader, followers := c.leader()
	late := followers[0].cfg.Name
	c.stop(late)
	want := map[string]string{}
	large := strings.Repeat("x", 2<<20)
	for i := range 400 {
		key := fmt.Sprint("/", i)
		want[key] = key
		if i%100 == 99 {
			want[key] = large + key
		}
		c.put(leader, key, want[key])
	}
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := leader.disk.FirstIndex(); err != nil || first < 100 {
		t.Fatalf("the log still starts at %d, %v", first, err)
	}
	// It receives these as entries, which need more than one message.
	for i := range 5 {
		key := fmt.Sprint("/large/", i)
		want[key] = large + key
		c.put(leader, key, want[key])
	}
	c.start(late)
	holds(t, c.members[late], want)
	w, err := c.members[late].Watch(context.Background(), "/", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch from before the snapshot: %v", err)
	}
}

func TestRequestsForAnotherMemberAreRefused(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {})
	m := c.members["a"]
	id := c.ca.Source(t, "kube-apiserver")
	conn, err := grpc.NewClient(m.addr, grpc.WithTransportCredentials(id.ClientCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := raftv1.NewRaftServiceClient(conn)
	ctx := context.Background()
	another := &raftv1.Header{Target: "a/another-disk", ProtocolVersion: 3, Id: []byte("b/1"), Address: []byte("b/1")}
	requests := map[string]func() error{
		"AppendEntries": func() error {
			_, err := client.AppendEntries(ctx, &raftv1.AppendEntriesRequest{Header: another, Term: 99})
			return err
		},
		"AppendEntriesPipeline": func() error {
			s, err := client.AppendEntriesPipeline(ctx)
			if err == nil {
				_ = s.Send(&raftv1.AppendEntriesPipelineRequest{Request: &raftv1.AppendEntriesRequest{Header: another, Term: 99}})
				_, err = s.Recv()
			}
			return err
		},
		"RequestVote": func() error {
			_, err := client.RequestVote(ctx, &raftv1.RequestVoteRequest{Header: another, Term: 99})
			return err
		},
		"RequestPreVote": func() error {
			_, err := client.RequestPreVote(ctx, &raftv1.RequestPreVoteRequest{Header: another, Term: 99})
			return err
		},
		"TimeoutNow": func() error {
			_, err := client.TimeoutNow(ctx, &raftv1.TimeoutNowRequest{Header: another})
			return err
		},
		"InstallSnapshot": func() error {
			s, err := client.InstallSnapshot(ctx)
			if err == nil {
				_ = s.Send(&raftv1.InstallSnapshotRequest{Header: another, Term: 99})
				_, err = s.CloseAndRecv()
			}
			return err
		},
		"ConfirmTerm": func() error {
			_, err := client.ConfirmTerm(ctx, &raftv1.ConfirmTermRequest{Target: another.Target})
			return err
		},
		"ReadIndex": func() error {
			_, err := client.ReadIndex(ctx, &raftv1.ReadIndexRequest{Target: another.Target})
			return err
		},
		"Propose": func() error {
			_, err := client.Propose(ctx, &raftv1.ProposeRequest{Target: another.Target, Operations: []*raftv1.Operation{{Kind: &raftv1.Operation_Tick{Tick: &raftv1.Tick{}}}}})
			return err
		},
	}
	if n := len(raftv1.RaftService_ServiceDesc.Methods) + len(raftv1.RaftService_ServiceDesc.Streams); len(requests) != n-1 {
		t.Fatalf("%d of %d methods were called, want all but Identify, which has no target", len(requests), n)
	}
	for name, f := range requests {
		if err := f(); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	term := m.raft.CurrentTerm()
	if term >= 99 {
		t.Fatalf("the term is %d", term)
	}
	// All requests of callers that are not members are refused.
	m.service.allow = func(context.Context) error { return status.Error(codes.PermissionDenied, "no") }
	another.Target = string(m.id)
	requests["Identify"] = func() error {
		_, err := client.Identify(ctx, &raftv1.IdentifyRequest{})
		return err
	}
	for name, f := range requests {
		if err := f(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain, err := grpc.NewClient(m.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if _, err := raftv1.NewRaftServiceClient(plain).Identify(ctx, &raftv1.IdentifyRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
}

// TestQueueIsBounded queues requests while an entry is in flight.
func TestQueueIsBounded(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	var submitted [][]*raftv1.Operation
	p := newProposals(1, func(ops []*raftv1.Operation) func() (result, error) {
		mu.Lock()
		submitted = append(submitted, ops)
		mu.Unlock()
		return func() (result, error) {
			<-release
			res := result{index: uint64(len(ops))}
			for _, op := range ops {
				res.outcomes = append(res.outcomes, outcome{rev: store.Revision(op.GetWrite().Sequence)})
			}
			return res, nil
		}
	})
	const requests = 40
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			var ops []*raftv1.Operation
			for j := range 1 + i%5*100 {
				ops = append(ops, write("/a", strings.Repeat("x", 700), 0, func(w *raftv1.Write) { w.Sequence = uint64(1000*i + j) }))
			}
			res, err := p.do(context.Background(), ops)
			if err != nil || len(res.outcomes) != len(ops) {
				t.Errorf("request %d: %d outcomes, %v", i, len(res.outcomes), err)
				return
			}
			for j, o := range res.outcomes {
				if o.rev != store.Revision(1000*i+j) {
					t.Errorf("request %d got the outcome of %d", i, o.rev)
				}
			}
		})
	}
	eventually(t, "all requests are queued", func() bool {
		p.mu.Lock()
		n := len(p.queue)
		p.mu.Unlock()
		mu.Lock()
		defer mu.Unlock()
		return len(submitted) > 0 && n == requests-together(submitted[0])
	})
	close(release)
	wg.Wait()
	p.close()
	for i, ops := range submitted {
		size := 0
		for _, op := range ops {
			size += proto.Size(op)
		}
		if len(ops) > entryOperations || size > entryBytes {
			t.Errorf("entry %d has %d operations, %d bytes", i, len(ops), size)
		}
	}
	if len(submitted) < 5 || len(submitted) > 20 {
		t.Errorf("%d requests made %d entries", requests, len(submitted))
	}
}

// together returns the number of requests in an entry.
func together(ops []*raftv1.Operation) int {
	requests := map[uint64]bool{}
	for _, op := range ops {
		requests[op.GetWrite().Sequence/1000] = true
	}
	return len(requests)
}

func TestFullQueueReturnsErrTooMany(t *testing.T) {
	s := single(t, Config{})
	s.proposals.mu.Lock()
	s.proposals.bytes = queueBytes
	s.proposals.queue = make([]*proposal, queueRequests)
	s.proposals.mu.Unlock()
	v, err := s.Commit(context.Background(), []store.Write{{Key: "/a", Value: []byte("x")}})
	_, wire := s.cfg.Service.Propose(context.Background(), &raftv1.ProposeRequest{Target: string(s.id), Operations: []*raftv1.Operation{write("/a", "x", 0)}})
	s.proposals.mu.Lock()
	s.proposals.bytes, s.proposals.queue = 0, nil
	s.proposals.mu.Unlock()
	if err != nil || !errors.Is(v[0].Err, store.ErrTooMany) {
		t.Fatalf("%+v %v", v, err)
	}
	if status.Code(wire) != codes.Aborted || !refused(wire) {
		t.Fatal(wire)
	}
	put(t, s, "/a", fmt.Sprint(rand.Uint64()))
}

func TestLargeValuesAndLargeBatchesThroughAFollower(t *testing.T) {
	// This is about sizes: avoid elections on a busy machine.
	c := newCluster(t, 3, func(cfg *Config) { cfg.Timing.Election = 2 * time.Second })
	_, followers := c.leader()
	s := followers[0]
	ctx := context.Background()
	var writes []store.Write
	create := func(key string, size int) store.Write {
		value := make([]byte, size)
		copy(value, key)
		return store.Write{Key: key, Value: value, Settled: func(found []byte) bool { return bytes.Equal(found, value) }}
	}
	for i := range 5000 {
		writes = append(writes, create(fmt.Sprint("/small/", i), 1000))
	}
	for i := range 3 {
		writes = append(writes, create(fmt.Sprint("/large/", i), maxValue))
	}
	v, err := s.Commit(ctx, writes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if v[i].Err != nil {
			t.Fatalf("write %d: %v", i, v[i].Err)
		}
	}
	// Write all of them again: all fail, and some verdicts lack Current, because the response
	// is bounded.
	if v, err = s.Commit(ctx, writes); err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if !errors.Is(v[i].Err, store.ErrExists) {
			t.Fatalf("write %d again: %v", i, v[i].Err)
		}
	}
	if cur := v[len(v)-1].Current; cur == nil || len(cur.Value) != maxValue {
		t.Fatal("the last verdict has no Current")
	}
	v, err = s.Commit(ctx, []store.Write{create("/too-large", maxValue+1), create("/fits", maxValue)})
	if err != nil || v[0].Err == nil || errors.Is(v[0].Err, store.ErrUnknownOutcome) || v[1].Err != nil {
		t.Fatalf("%v %v", v[0].Err, v[1].Err)
	}
	for _, other := range followers {
		page, err := other.List(ctx, "/", store.ListOptions{})
		if err != nil || page.Count != 5004 {
			t.Fatalf("%d entries, %v", page.Count, err)
		}
	}
}
