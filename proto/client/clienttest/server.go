package clienttest

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"keelson.dev/proto/apistatus"
	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Server is the in-memory cluster. [StartServer] or [NewServer] makes it. Its methods are safe
// for concurrent use.
type Server struct {
	resourcev1.UnimplementedResourceServiceServer

	mu       sync.Mutex
	revision uint64
	kinds    map[schema.GroupVersionResource]*collection
	cut      chan struct{} // closed by Cut and then replaced
	fail     func(method string, ref *resourcev1.Ref) error
	admit    func(verb string, obj client.Object) error
	noStream bool
	// epochs are the revisions of the fences that were taken, by Lease.
	epochs map[client.Key]uint64
	wrote  func(Written)
	// requests are the keys of the objects, and their uids, of writes with request ids.
	requests map[string]requested
}

// requested is the object of a write with a request id.
type requested struct {
	key client.Key
	uid types.UID
}

// performed returns the object of an earlier attempt of a write, or nil; s.mu is held.
func (s *Server) performed(c *collection, key string) client.Object {
	r := s.requests[key]
	if obj := c.objects[r.key]; obj != nil && obj.GetUID() == r.uid {
		return obj
	}
	return nil
}

// requestKey returns the key of a write's request, or "" if it has no id. It ignores users, of which
// the server knows none.
func requestKey(verb, namespace, name string, c *collection, o *resourcev1.WriteOptions) string {
	if o.GetRequestId() == "" || o.GetDryRun() {
		return ""
	}
	return fmt.Sprintf("%s %v %q %q %q", verb, c.kind.GVR(), namespace, name, o.GetRequestId())
}

// perform records the object of a write; s.mu is held.
func (s *Server) perform(key string, obj client.Object) {
	if key != "" {
		s.requests[key] = requested{client.KeyOf(obj), obj.GetUID()}
	}
}

// collection holds all objects of a kind and their history.
type collection struct {
	kind    *client.Kind
	objects map[client.Key]client.Object
	// log holds the changes in order; those up to compacted are forgotten.
	log       []change
	compacted uint64
	// grown is closed when the log grows, and then replaced.
	grown chan struct{}
}

// change is one write; exactly one of obj and old may be nil.
type change struct {
	revision    uint64
	obj, old    client.Object
	traceparent string
}

// NewServer returns an empty cluster, which [Server.Serve] serves.
func NewServer() *Server {
	return &Server{
		revision: 1, kinds: map[schema.GroupVersionResource]*collection{}, cut: make(chan struct{}),
		epochs: map[client.Key]uint64{}, requests: map[string]requested{},
	}
}

// Cut breaks every running watch, in the middle of its stream.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Compact forgets every change so far: a watch that resumes from an earlier revision fails
// with 410 Expired.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.kinds {
		c.compact(s.revision)
	}
}

// RefuseStreamingLists makes the server answer send_initial_events with BadRequest, as an old
// server would.
func (s *Server) RefuseStreamingLists() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noStream = true
}

// Fail sets a function that is called before each RPC and before each write of a Commit; an
// error that it returns is the answer. A *apierrors.StatusError arrives as such at the
// client. method is the RPC's name, for instance "Create". A nil f ends it.
func (s *Server) Fail(f func(method string, ref *resourcev1.Ref) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Admit sets a function that may change or refuse an object before it is stored. verb is
// "create", "update" or "delete", or the verb and a subresource, for instance
// "update/status". f must not call the server.
func (s *Server) Admit(f func(verb string, obj client.Object) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.admit = f
}

// Written describes an RPC that writes.
type Written struct {
	// Method is its name, for instance "Commit".
	Method string
	// UserAgent and Fence are the client's user agent and fence token, or empty.
	UserAgent, Fence string
	// Request is the message, for instance a *resourcev1.CommitRequest.
	Request any
}

// Wrote sets a function that is called with each RPC that writes, before it is performed. A
// nil f ends it.
func (s *Server) Wrote(f func(Written)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote = f
}

// Revision returns the revision of the last write.
func (s *Server) Revision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// Objects returns the stored objects, in no particular order. They are shared and must not be
// changed.
func (s *Server) Objects() []client.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []client.Object
	for _, c := range s.kinds {
		for _, obj := range c.objects {
			out = append(out, obj)
		}
	}
	return out
}

func (s *Server) failure(method string, ref *resourcev1.Ref) error {
	s.mu.Lock()
	f := s.fail
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(method, ref)
}

// collection finds or makes the collection; s.mu is held.
func (s *Server) collection(ref *resourcev1.Ref) (*collection, error) {
	gvr := schema.GroupVersionResource{Group: ref.GetGroup(), Version: ref.GetVersion(), Resource: ref.GetResource()}
	if c := s.kinds[gvr]; c != nil {
		return c, nil
	}
	k := client.KindForResource(gvr)
	if k == nil {
		return nil, apierrors.NewGenericServerResponse(404, "get", gvr.GroupResource(), ref.GetName(),
			"the server could not find the requested resource", 0, true)
	}
	c := &collection{kind: k, objects: map[client.Key]client.Object{}, grown: make(chan struct{})}
	s.kinds[gvr] = c
	return c, nil
}

func (c *collection) resource() schema.GroupResource { return c.kind.GVR().GroupResource() }

// maxLog bounds the changes that a collection remembers.
const maxLog = 100_000

func (c *collection) compact(revision uint64) {
	i := sort.Search(len(c.log), func(i int) bool { return c.log[i].revision > revision })
	c.log = append([]change(nil), c.log[i:]...)
	c.compacted = max(c.compacted, revision)
}

// record stores obj (nil deletes) under the next revision; s.mu is held.
func (s *Server) record(ctx context.Context, c *collection, old, obj client.Object) {
	s.revision++
	rv := strconv.FormatUint(s.revision, 10)
	ch := change{revision: s.revision, old: old, obj: obj}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if tp := md.Get("traceparent"); len(tp) > 0 {
			ch.traceparent = tp[0]
		}
	}
	if obj != nil {
		obj.SetResourceVersion(rv)
		c.objects[client.KeyOf(obj)] = obj
	} else {
		delete(c.objects, client.KeyOf(old))
	}
	c.log = append(c.log, ch)
	if len(c.log) > maxLog {
		c.compact(c.log[len(c.log)/2].revision)
	}
	close(c.grown)
	c.grown = make(chan struct{})
}

func (s *Server) get(c *collection, ref *resourcev1.Ref) (client.Object, error) {
	obj := c.objects[client.Key{Namespace: ref.GetNamespace(), Name: ref.GetName()}]
	if obj == nil {
		return nil, apierrors.NewNotFound(c.resource(), ref.GetName())
	}
	return obj, nil
}

func clone(obj client.Object) client.Object { return obj.DeepCopyObject().(client.Object) }

// encode returns the Any of an object that is no longer changed.
func encode(obj client.Object) (*anypb.Any, error) { return client.Encode(obj) }

// decode returns the object in an Any, which must hold the kind.
func decode(k *client.Kind, a *anypb.Any) (client.Object, error) {
	if want := "type.googleapis.com/" + k.ProtoName; a.GetTypeUrl() != want {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the body is a %q, want a %q", a.GetTypeUrl(), want))
	}
	obj := k.New()
	if err := obj.Unmarshal(a.GetValue()); err != nil {
		return nil, apierrors.NewBadRequest("the body does not decode: " + err.Error())
	}
	return obj, nil
}

// part returns a field of an object's Go struct, for instance "Status"; the zero Value if the
// kind has none.
func part(obj client.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

// rpcError converts an error into the one that is sent.
func rpcError(err error) error {
	if se, ok := err.(apierrors.APIStatus); ok { //nolint:errorlint // statuses are made here and never wrapped.
		s := se.Status()
		return apistatus.ToGRPC(&s)
	}
	return err
}
