package perturb

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// tap is the connection of one process to the server.
type tap struct {
	grpc.ClientConnInterface

	run *run
	// revision, if not 0, is the state that watches begin with.
	revision uint64
	// limit is the number of the run's writes after which the process is killed; -1 means
	// never.
	limit int
	// turn is held by a write, so that writes have an order.
	turn sync.Mutex

	mu     sync.Mutex
	killed bool
	// open is closed while watches deliver. epoch counts the breaks of watches.
	open  chan struct{}
	epoch int
}

func newTap(r *run, revision uint64, limit int) *tap {
	t := &tap{ClientConnInterface: r.conn, run: r, revision: revision, limit: limit, open: make(chan struct{})}
	if revision == 0 {
		close(t.open)
	}
	return t
}

// hold keeps the events of watches back.
func (t *tap) hold() {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.open:
		t.open = make(chan struct{})
	default:
	}
}

// release ends hold. If broken, the watches end instead of delivering what was held back.
func (t *tap) release(broken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if broken {
		t.epoch++
	}
	select {
	case <-t.open:
	default:
		close(t.open)
	}
}

func (t *tap) state() (open chan struct{}, epoch int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open, t.epoch
}

func (t *tap) dead() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.killed
}

func (t *tap) kill() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.killed = true
	return status.Error(codes.Canceled, "the process was killed")
}

// Invoke implements grpc.ClientConnInterface. It performs the writes that are left until
// the process is to be killed, and kills it.
func (t *tap) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	writes := described(method, args)
	if t.dead() {
		return t.kill()
	}
	if len(writes) == 0 {
		return t.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	t.turn.Lock()
	defer t.turn.Unlock()
	if t.dead() {
		return t.kill()
	}
	left := len(writes)
	if t.limit >= 0 {
		left = max(min(left, t.limit-t.run.count()), 0)
	}
	for _, w := range writes[:left] {
		if strings.Contains(w, "/"+Bystander) {
			t.run.problem("a write to the object of another: " + w)
		}
	}
	before := t.run.Server.Revision()
	switch {
	case left == 0:
		return t.kill()
	case left < len(writes):
		part := proto.Clone(args.(proto.Message)).(*resourcev1.CommitRequest)
		part.Writes = part.Writes[:left]
		args, reply = part, &resourcev1.CommitResponse{}
	}
	err := t.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	for _, w := range writes[:left] {
		t.run.wrote(w, before)
	}
	t.run.check(t.run.Server.Revision() != before)
	if left < len(writes) {
		return t.kill()
	}
	return err
}

// described returns the writes that a call makes.
func described(method string, args any) []string {
	name := method[strings.LastIndexByte(method, '/')+1:]
	switch req := args.(type) {
	case *resourcev1.CommitRequest:
		out := make([]string, len(req.GetWrites()))
		for i, w := range req.GetWrites() {
			switch v := w.GetWrite().(type) {
			case *resourcev1.Write_Create:
				out[i] = describe("Create", v.Create.GetRef())
			case *resourcev1.Write_Update:
				out[i] = describe("Update", v.Update.GetRef())
			case *resourcev1.Write_Patch:
				out[i] = describe("Patch", v.Patch.GetRef())
			case *resourcev1.Write_Apply:
				out[i] = describe("Apply", v.Apply.GetRef())
			case *resourcev1.Write_Delete:
				out[i] = describe("Delete", v.Delete.GetRef())
			}
		}
		return out
	case *resourcev1.CreateRequest:
		if strings.HasPrefix(req.GetRef().GetGroup(), "auth") {
			return nil // a review stores nothing
		}
		return []string{describe(name, req.GetRef())}
	case *resourcev1.GetRequest:
		return nil
	case interface{ GetRef() *resourcev1.Ref }:
		return []string{describe(name, req.GetRef())}
	}
	return nil
}

func describe(verb string, ref *resourcev1.Ref) string {
	out := verb + " " + ref.GetResource() + " " + ref.GetNamespace() + "/" + ref.GetName()
	if sub := ref.GetSubresource(); sub != "" {
		out += " (" + sub + ")"
	}
	return out
}

// NewStream implements grpc.ClientConnInterface. A watch can be held, broken and begun
// with an old state.
func (t *tap) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := t.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil || !strings.HasSuffix(method, "/Watch") {
		return stream, err
	}
	_, epoch := t.state()
	return &watch{ClientStream: stream, tap: t, epoch: epoch}, nil
}

// watch is a watch of the process.
type watch struct {
	grpc.ClientStream

	tap   *tap
	epoch int
	// first are the events of the old state.
	first []*resourcev1.WatchResponse
}

// SendMsg replaces a request for the present state by one for what follows the old state.
func (w *watch) SendMsg(m any) error {
	req, ok := m.(*resourcev1.WatchRequest)
	if ok && req.GetSendInitialEvents() && w.tap.revision > 0 {
		var err error
		if w.first, err = w.tap.run.Server.InitialState(req, w.tap.revision); err != nil {
			return err
		}
		req = proto.Clone(req).(*resourcev1.WatchRequest)
		req.SendInitialEvents, req.ResourceVersion = false, strconv.FormatUint(w.tap.revision, 10)
		m = req
	}
	return w.ClientStream.SendMsg(m)
}

// RecvMsg delivers the next event when the tap is open.
func (w *watch) RecvMsg(m any) error {
	if len(w.first) > 0 {
		proto.Merge(m.(proto.Message), w.first[0])
		w.first = w.first[1:]
		return nil
	}
	err := w.ClientStream.RecvMsg(m)
	open, _ := w.tap.state()
	select {
	case <-open:
	case <-w.Context().Done():
		return status.FromContextError(w.Context().Err()).Err()
	}
	if _, epoch := w.tap.state(); epoch != w.epoch {
		return status.Error(codes.Unavailable, "the watch was broken")
	}
	return err
}

// void is a connection to a server that accepts events and keeps none.
type void struct{}

// Invoke implements grpc.ClientConnInterface.
func (void) Invoke(_ context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	if resp, ok := reply.(*resourcev1.CommitResponse); ok {
		for range args.(*resourcev1.CommitRequest).GetWrites() {
			resp.Results = append(resp.Results, &resourcev1.WriteResult{ResourceVersion: "1"})
		}
	}
	return nil
}

// NewStream implements grpc.ClientConnInterface.
func (void) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "events are not read")
}
