package rest

import (
	"context"
	"crypto/x509"
	"errors"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// fake is a pipeline without rules that stores what it is given. It records its calls, so that
// tests can check them.
type fake struct {
	table *resource.Table

	mu       sync.Mutex
	rev      store.Revision
	items    map[string]*watchcache.Item
	watchers map[*fakeWatch]bool
	calls    []call

	// held contains the functions that end held contexts.
	held []context.CancelFunc

	// deny, if set, is called by Authorize and by every other method.
	deny func(verb string, t pipeline.Target, user request.User) error
	// fail, if set, is returned by every call.
	fail error
	// outcome, if set, is returned by every write and get, and by a write in addition to fail.
	outcome *pipeline.Outcome
}

// call is a recorded call.
type call struct {
	Verb    string
	Target  pipeline.Target
	Options any
	Type    pipeline.MediaType
	Patch   types.PatchType
	User    string
}

func newFake(kinds ...*resource.Kind) *fake {
	return &fake{table: resource.NewTable(kinds...), items: map[string]*watchcache.Item{}, watchers: map[*fakeWatch]bool{}}
}

func (f *fake) Table() *resource.Table { return f.table }

// enter records a call and returns the error that it should fail with.
func (f *fake) enter(ctx context.Context, c call) error {
	c.User = request.UserFrom(ctx).Name
	f.mu.Lock()
	f.calls = append(f.calls, c)
	deny, fail := f.deny, f.fail
	f.mu.Unlock()
	if deny != nil {
		if err := deny(c.Verb, c.Target, request.UserFrom(ctx)); err != nil {
			return err
		}
	}
	return fail
}

func (f *fake) last() call {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return call{}
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) kind(t pipeline.Target) *resource.Kind { return f.table.ByResource(t.Resource) }

func (f *fake) key(t pipeline.Target) string {
	return f.kind(t).GVR().String() + " " + f.kind(t).Key(t.Namespace, t.Name)
}

// put stores an object and sends the event.
func (f *fake) put(kind *resource.Kind, obj resource.Object) *watchcache.Item {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	obj.SetResourceVersion(strconv.FormatInt(int64(f.rev), 10))
	raw, err := obj.Marshal()
	if err != nil {
		panic(err)
	}
	item := watchcache.NewItem(kind, kind.Key(obj.GetNamespace(), obj.GetName()), obj, raw)
	item.Revision = f.rev
	key := kind.GVR().String() + " " + item.Key
	t := watchcache.Added
	if f.items[key] != nil {
		t = watchcache.Modified
	}
	f.items[key] = item
	f.tell(&watchcache.Event{Type: t, Item: item, Revision: f.rev, Frames: &watchcache.Frames{}})
	return item
}

func (f *fake) tell(ev *watchcache.Event) {
	for w := range f.watchers {
		if ev.Item == nil || w.kind == ev.Item.Kind && strings.HasPrefix(ev.Item.Key, w.prefix) {
			w.events <- ev
		}
	}
}

func (f *fake) Get(ctx context.Context, t pipeline.Target, o pipeline.GetOptions) (*pipeline.Outcome, error) {
	if err := f.enter(ctx, call{Verb: "get", Target: t, Options: o}); err != nil {
		return nil, err
	}
	if f.outcome != nil {
		return f.outcome, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if it := f.items[f.key(t)]; it != nil {
		return &pipeline.Outcome{Item: it}, nil
	}
	return nil, apierrors.NewNotFound(t.Resource.GroupResource(), t.Name)
}

func (f *fake) selected(t pipeline.Target, o pipeline.ListOptions) []*watchcache.Item {
	selector, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		selector = fields.Everything()
	}
	prefix := f.kind(t).GVR().String() + " " + f.kind(t).Prefix(t.Namespace)
	var out []*watchcache.Item
	for key, it := range f.items {
		if strings.HasPrefix(key, prefix) && selector.Matches(fields.Set{"metadata.name": it.Object().GetName()}) {
			out = append(out, it)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

func (f *fake) List(ctx context.Context, t pipeline.Target, o pipeline.ListOptions) (*pipeline.List, error) {
	if err := f.enter(ctx, call{Verb: "list", Target: t, Options: o}); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pipeline.List{Kind: f.kind(t), Items: f.selected(t, o), Revision: f.rev}, nil
}

type fakeWatch struct {
	f      *fake
	kind   *resource.Kind
	prefix string
	events chan *watchcache.Event
	end    chan error
}

func (f *fake) Watch(ctx context.Context, t pipeline.Target, o pipeline.WatchOptions) (pipeline.Watch, error) {
	if err := f.enter(ctx, call{Verb: "watch", Target: t, Options: o}); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &fakeWatch{f: f, kind: f.kind(t), prefix: f.kind(t).Prefix(t.Namespace), events: make(chan *watchcache.Event, 10000), end: make(chan error, 1)}
	if o.ResourceVersion == "" || o.ResourceVersion == "0" || o.SendInitialEvents {
		for _, it := range f.selected(t, pipeline.ListOptions{FieldSelector: o.FieldSelector}) {
			w.events <- &watchcache.Event{Type: watchcache.Added, Item: it, Revision: it.Revision, Frames: &watchcache.Frames{}}
		}
		if o.SendInitialEvents && o.AllowBookmarks {
			w.events <- &watchcache.Event{Type: watchcache.Bookmark, Revision: f.rev, InitialEnd: true}
		}
	}
	f.watchers[w] = true
	return w, nil
}

func (w *fakeWatch) Next(ctx context.Context) ([]*watchcache.Event, error) {
	select {
	case ev := <-w.events:
		out := []*watchcache.Event{ev}
		for len(w.events) > 0 && len(out) < 100 {
			out = append(out, <-w.events)
		}
		return out, nil
	case err := <-w.end:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *fakeWatch) Poll(ctx context.Context, _ int) ([]*watchcache.Event, error) {
	return w.Next(ctx) // the REST front does not poll
}

func (w *fakeWatch) Close() {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	delete(w.f.watchers, w)
}

func (f *fake) decode(t pipeline.Target, b pipeline.Body) (resource.Object, error) {
	k := f.kind(t)
	obj, _, err := codec.Decode(codec.Input{Data: b.Data, Type: b.Type, Want: k.GVK, New: k.New, Validation: codec.Strict})
	if err != nil {
		return nil, err
	}
	obj.SetNamespace(t.Namespace)
	return obj, nil
}

func (f *fake) Create(ctx context.Context, t pipeline.Target, b pipeline.Body, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
	if err := f.enter(ctx, call{Verb: "create", Target: t, Options: o, Type: b.Type}); err != nil {
		return f.outcome, err
	}
	if f.outcome != nil {
		return f.outcome, nil
	}
	obj, err := f.decode(t, b)
	if err != nil {
		return nil, err
	}
	obj.SetCreationTimestamp(metav1.NewTime(time.Unix(1700000000, 0)))
	obj.SetUID(types.UID("uid-" + obj.GetName()))
	return &pipeline.Outcome{Item: f.put(f.kind(t), obj)}, nil
}

func (f *fake) Update(ctx context.Context, t pipeline.Target, b pipeline.Body, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
	if err := f.enter(ctx, call{Verb: "update", Target: t, Options: o, Type: b.Type}); err != nil {
		return f.outcome, err
	}
	if f.outcome != nil {
		return f.outcome, nil
	}
	obj, err := f.decode(t, b)
	if err != nil {
		return nil, err
	}
	return &pipeline.Outcome{Item: f.put(f.kind(t), obj)}, nil
}

func (f *fake) Patch(ctx context.Context, t pipeline.Target, kind types.PatchType, b pipeline.Body, o pipeline.WriteOptions) (*pipeline.Outcome, error) {
	if err := f.enter(ctx, call{Verb: "patch", Target: t, Options: o, Type: b.Type, Patch: kind}); err != nil {
		return f.outcome, err
	}
	if f.outcome != nil {
		return f.outcome, nil
	}
	f.mu.Lock()
	old := f.items[f.key(t)]
	f.mu.Unlock()
	if old == nil {
		return nil, apierrors.NewNotFound(t.Resource.GroupResource(), t.Name)
	}
	before, err := codec.AppendObject(nil, codec.JSON, old.Kind.GVK, old.Object())
	if err != nil {
		return nil, err
	}
	patch, err := yaml.YAMLToJSON(b.Data)
	if err != nil {
		return nil, err
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, old.Object)
	if err != nil {
		return nil, err
	}
	obj, err := f.decode(t, pipeline.Body{Data: after, Type: codec.JSON})
	if err != nil {
		return nil, err
	}
	return &pipeline.Outcome{Item: f.put(f.kind(t), obj)}, nil
}

func (f *fake) Delete(ctx context.Context, t pipeline.Target, o pipeline.DeleteOptions) (*pipeline.Outcome, error) {
	if err := f.enter(ctx, call{Verb: "delete", Target: t, Options: o}); err != nil {
		return f.outcome, err
	}
	if f.outcome != nil {
		return f.outcome, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	it := f.items[f.key(t)]
	if it == nil {
		return nil, apierrors.NewNotFound(t.Resource.GroupResource(), t.Name)
	}
	delete(f.items, f.key(t))
	f.rev++
	f.tell(&watchcache.Event{Type: watchcache.Deleted, Item: it.At(f.rev), Revision: f.rev, Frames: &watchcache.Frames{}})
	return &pipeline.Outcome{Item: it, Gone: true, Status: &metav1.Status{
		Status: metav1.StatusSuccess, Details: &metav1.StatusDetails{Name: t.Name, Kind: t.Resource.Resource, UID: it.Object().GetUID()},
	}}, nil
}

func (f *fake) DeleteCollection(ctx context.Context, t pipeline.Target, l pipeline.ListOptions, o pipeline.DeleteOptions) (*pipeline.List, error) {
	if err := f.enter(ctx, call{Verb: "deletecollection", Target: t, Options: []any{l, o}}); err != nil {
		return nil, err
	}
	return &pipeline.List{Kind: f.kind(t), Revision: f.rev}, nil
}

func (f *fake) Commit(context.Context, []pipeline.Write) []pipeline.Result {
	panic("the front does not commit batches")
}

func (f *fake) Authorize(ctx context.Context, verb string, t pipeline.Target) error {
	if f.deny == nil {
		return nil
	}
	return f.deny(verb, t, request.UserFrom(ctx))
}

func (f *fake) Hold(ctx context.Context, _ pipeline.Target, _ ...string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = append(f.held, cancel)
	return ctx, cancel
}

func (f *fake) AuthorizePath(ctx context.Context, verb, path string) error {
	if f.deny == nil {
		return nil
	}
	return f.deny(verb+" "+path, pipeline.Target{}, request.UserFrom(ctx))
}

// fakeAuthn accepts the token "admin" or a certificate. Other clients are anonymous.
type fakeAuthn struct{}

func (fakeAuthn) Authenticate(_ context.Context, certs []*x509.Certificate, token string) (request.User, error) {
	switch {
	case token == "bad":
		return request.User{}, errors.New("invalid bearer token")
	case token != "":
		return request.User{Name: token, Groups: []string{"system:authenticated"}}, nil
	case len(certs) > 0:
		return request.User{Name: certs[0].Subject.CommonName, Groups: append(certs[0].Subject.Organization, "system:authenticated")}, nil
	}
	return request.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, nil
}
