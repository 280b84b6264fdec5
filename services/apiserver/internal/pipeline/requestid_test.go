package pipeline_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/store"
)

// lossy is a store whose answers get lost: before a commit is performed, or after it.
type lossy struct {
	store.Store
	lose func() (before, after bool)
}

func (l *lossy) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	before, after := l.lose()
	if before {
		return nil, store.ErrUnavailable
	}
	verdicts, err := l.Store.Commit(ctx, writes)
	if after {
		return nil, store.ErrUnknownOutcome
	}
	return verdicts, err
}

// withRequest returns the options of a write with a request id.
func withRequest(id string) pipeline.WriteOptions { return pipeline.WriteOptions{RequestID: id} }

// twoServers returns a fixture, and a second pipeline on the same store.
func twoServers(tb testing.TB, change ...func(*pipeline.Config)) (*fixture, *pipeline.Pipeline) {
	var cfg pipeline.Config
	f := newFixture(tb, append(change, func(c *pipeline.Config) { cfg = *c })...)
	return f, pipeline.New(cfg)
}

func generated() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", GenerateName: "g-"}}
}

// TestRepeatedWrites checks that a write whose answer was lost is answered when it is repeated at
// another server, and performed once.
func TestRepeatedWrites(t *testing.T) {
	var lost atomic.Bool
	f, other := twoServers(t, func(c *pipeline.Config) {
		c.Lasting.Store = &lossy{c.Lasting.Store, func() (bool, bool) { return false, lost.Swap(false) }}
	})
	// twice performs a write whose answer is lost, and repeats it.
	twice := func(write func(p *pipeline.Pipeline) (*pipeline.Outcome, error)) *pipeline.Outcome {
		t.Helper()
		lost.Store(true)
		if _, err := write(f.Pipeline); !apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err) {
			t.Fatalf("got %v; want an unknown outcome", err)
		}
		out, err := write(other)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	collection := f.target(configMap(""))
	target := collection
	target.Name = "m"
	create := func(obj *corev1.ConfigMap, id string) func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
		return func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
			return p.Create(f.ctx, collection, f.body(obj), withRequest(id))
		}
	}
	made := twice(create(configMap("m", "n", "0"), "one"))
	if !made.Created || made.Item.Object().GetName() != "m" {
		t.Errorf("create: %+v", made)
	}
	if _, err := create(configMap("m"), "two")(other); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a create by another request: %v", err)
	}
	stranger := request.WithUser(f.ctx, request.User{Name: "stranger", Groups: []string{"system:masters"}})
	if _, err := other.Create(stranger, collection, f.body(configMap("m")), withRequest("one")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a create by another user: %v", err)
	}
	first := twice(create(generated(), "three"))
	second := twice(create(generated(), "four"))
	if list, err := f.List(f.ctx, collection, pipeline.ListOptions{}); err != nil || len(list.Items) != 3 || first.Item.Key == second.Item.Key {
		t.Errorf("%d objects, %v", len(list.Items), err)
	}

	obj := made.Item.Object().DeepCopyObject().(*corev1.ConfigMap)
	obj.Data["n"] = "1"
	updated := twice(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
		return p.Update(f.ctx, target, f.body(obj), withRequest("five"))
	})
	if got := updated.Item.Object().(*corev1.ConfigMap); got.Data["n"] != "1" || got.UID != obj.UID {
		t.Errorf("update: %v", got)
	}
	if _, err := f.update(obj, "", withRequest("six")); !apierrors.IsConflict(err) {
		t.Errorf("an update by another request: %v", err)
	}
	// A write without an id keeps the keys.
	if _, err := f.patch(obj, types.MergePatchType, `{"data":{"by":"another"}}`); err != nil {
		t.Fatal(err)
	}
	if out, err := f.update(obj, "", withRequest("five")); err != nil || out.Item.Object().(*corev1.ConfigMap).Data["by"] != "another" {
		t.Errorf("an update repeated after another: %v", err)
	}
	if out, err := create(configMap("m"), "one")(other); err != nil || out.Item.Object().GetUID() != obj.UID {
		t.Errorf("a create repeated after updates: %v", err)
	}
	patched := twice(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
		return p.Patch(f.ctx, target, types.JSONPatchType, pipeline.Body{Data: []byte(`[{"op":"move","from":"/data/n","path":"/data/moved"}]`), Type: pipeline.JSON}, withRequest("seven"))
	})
	if got := patched.Item.Object().(*corev1.ConfigMap); got.Data["moved"] != "1" {
		t.Errorf("patch: %v", got)
	}
	uid := obj.UID
	remove := pipeline.DeleteOptions{WriteOptions: withRequest("eight"), Preconditions: &metav1.Preconditions{UID: &uid}}
	if out := twice(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) { return p.Delete(f.ctx, target, remove) }); !out.Gone {
		t.Errorf("delete: %+v", out)
	}
	f.mustCreate(configMap("m"))
	if out, err := f.delete(configMap("m"), remove); err != nil || !out.Gone {
		t.Errorf("a delete repeated after another object got the name: %v", err)
	}
	if get(f, configMap("m")) == nil {
		t.Error("the repeated delete removed the other object")
	}
	// All writes of a batch can be repeated.
	batch := []pipeline.Write{
		{Verb: "create", Target: collection, Body: f.body(generated()), Options: withRequest("nine")},
		{Verb: "create", Target: collection, Body: f.body(generated()), Options: withRequest("ten")},
	}
	lost.Store(true)
	f.Commit(f.ctx, batch)
	once, again := other.Commit(f.ctx, batch), f.Commit(f.ctx, batch)
	for i := range batch {
		if once[i].Err != nil || again[i].Err != nil || once[i].Outcome.Item.Object().GetUID() != again[i].Outcome.Item.Object().GetUID() {
			t.Errorf("write %d of a batch: %v %v", i, once[i].Err, again[i].Err)
		}
	}
}

// TestRepeatedCreateKeepsSecrets checks that a repeated create shows a user who may not get the
// object what its first answer would have shown, and nothing that others wrote since.
func TestRepeatedCreateKeepsSecrets(t *testing.T) {
	f := newFixture(t, func(c *pipeline.Config) { c.Authorizer = createOnly{c.Authorizer} })
	ctx := request.WithUser(f.ctx, request.User{Name: "creator", Groups: []string{"system:authenticated"}})
	collection := f.target(configMap(""))
	create := func() *corev1.ConfigMap {
		t.Helper()
		out, err := f.Create(ctx, collection, f.body(configMap("m", "own", "1")), withRequest("one"))
		if err != nil {
			t.Fatal(err)
		}
		return out.Item.Object().(*corev1.ConfigMap)
	}
	made := create()
	if again := create(); again.Data["own"] != "1" || again.ResourceVersion != made.ResourceVersion {
		t.Errorf("unchanged: %v", again)
	}
	if _, err := f.patch(made, types.MergePatchType, `{"metadata":{"labels":{"l":"secret"}},"data":{"secret":"2"}}`); err != nil {
		t.Fatal(err)
	}
	again := create()
	if again.UID != made.UID || again.Name != "m" || !again.CreationTimestamp.Equal(&made.CreationTimestamp) {
		t.Errorf("changed: %v", again)
	}
	if len(again.Data) > 0 || len(again.Labels) > 0 || len(again.ManagedFields) > 0 || again.ResourceVersion != "" {
		t.Errorf("the answer shows what another wrote: %v", again)
	}
}

// createOnly lets the user creator create, and nothing else.
type createOnly struct{ authz.Authorizer }

func (a createOnly) Authorize(ctx context.Context, r *request.Attributes) (bool, string, error) {
	if r.User.Name == "creator" {
		return r.Verb == "create", "", nil
	}
	return a.Authorizer.Authorize(ctx, r)
}

func TestRequestIDsRefused(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(pod("p"))
	uid := types.UID("u")
	eviction := f.target(pod("p"))
	eviction.Subresource = "eviction"
	for name, err := range map[string]error{
		"too long":      second(f.create(configMap("m"), withRequest(strings.Repeat("x", 65)))),
		"not printable": second(f.update(configMap("m"), "", withRequest("a\nb"))),
		"not ASCII":     second(f.patch(configMap("m"), types.MergePatchType, `{}`, withRequest("ä"))),
		"a delete":      second(f.delete(configMap("m"), pipeline.DeleteOptions{WriteOptions: withRequest("x")})),
		"eviction":      second(f.Create(f.ctx, eviction, f.body(pod("p")), withRequest("x"))),
		"collection": second(f.DeleteCollection(f.ctx, f.target(configMap("")), pipeline.ListOptions{}, pipeline.DeleteOptions{
			WriteOptions: withRequest("x"), Preconditions: &metav1.Preconditions{UID: &uid},
		})),
	} {
		if !apierrors.IsBadRequest(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestNothingIsWrittenTwice lets clients create objects and increment a counter through two
// servers that lose requests and answers at random, and that receive repetitions while the first
// attempt is still in progress.
func TestNothingIsWrittenTwice(t *testing.T) {
	var on atomic.Bool
	lose := func() (bool, bool) { n := rand.IntN(4); return on.Load() && n == 0, on.Load() && n == 1 }
	f, other := twoServers(t, func(c *pipeline.Config) { c.Lasting.Store = &lossy{c.Lasting.Store, lose} })
	on.Store(true)
	servers := []*pipeline.Pipeline{f.Pipeline, other}
	collection := f.target(configMap(""))
	// until repeats a write, two attempts at once, until one is answered.
	until := func(write func(p *pipeline.Pipeline) (*pipeline.Outcome, error)) (*pipeline.Outcome, error) {
		for f.ctx.Err() == nil {
			var outs [2]*pipeline.Outcome
			var errs [2]error
			var wg sync.WaitGroup
			for i := range outs {
				wg.Go(func() { outs[i], errs[i] = write(servers[rand.IntN(2)]) })
			}
			wg.Wait()
			for i, err := range errs {
				if err == nil || apierrors.IsConflict(err) && errs[1-i] != nil && apierrors.IsConflict(errs[1-i]) {
					return outs[i], err
				}
			}
		}
		return nil, f.ctx.Err()
	}
	out, err := until(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
		return p.Create(f.ctx, collection, f.body(configMap("counter", "n", "0")), withRequest("counter"))
	})
	if err != nil {
		t.Fatal(err)
	}
	counter := f.target(out.Item.Object())
	const clients, writes = 4, 15
	var mu sync.Mutex
	uids := map[types.UID]bool{}
	incremented := 0
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for j := range writes {
				id := withRequest(fmt.Sprint(i, "-", j))
				out, err := until(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
					return p.Create(f.ctx, collection, f.body(generated()), id)
				})
				if err != nil {
					t.Error(err)
					return
				}
				now, err := f.Get(f.ctx, counter, pipeline.GetOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				next := now.Item.Object().DeepCopyObject().(*corev1.ConfigMap)
				n, _ := strconv.Atoi(next.Data["n"])
				next.Data["n"] = strconv.Itoa(n + 1)
				_, err = until(func(p *pipeline.Pipeline) (*pipeline.Outcome, error) {
					return p.Update(f.ctx, counter, f.body(next), id)
				})
				mu.Lock()
				uids[out.Item.Object().GetUID()] = true
				if err == nil {
					incremented++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	list, err := f.List(f.ctx, collection, pipeline.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(uids) != clients*writes || len(list.Items) != clients*writes+1 {
		t.Errorf("%d answers and %d objects; want %d and the counter", len(uids), len(list.Items), clients*writes)
	}
	// A conflict may hide a success that another client's write has followed, so that the counter
	// may be ahead of what clients know, but never of what was written, nor behind.
	n, _ := strconv.Atoi(get(f, configMap("counter")).Data["n"])
	if n < incremented || n > clients*writes {
		t.Errorf("the counter is %d after %d increments that were answered, of %d", n, incremented, clients*writes)
	}
}

// TestWritesWithoutRequestIDStayAsSmall checks that nothing is stored for requests without an id.
func TestWritesWithoutRequestIDStayAsSmall(t *testing.T) {
	f := newFixture(t)
	f.mustCreate(configMap("m"))
	item, ok := f.cache.Kind(f.Table().ByResource(f.target(configMap("m")).Resource)).Get("/registry/configmaps/ns/m")
	if !ok {
		if _, err := f.cache.Fresh(f.ctx); err != nil {
			t.Fatal(err)
		}
		item, _ = f.cache.Kind(f.Table().ByResource(f.target(configMap("m")).Resource)).Get("/registry/configmaps/ns/m")
	}
	if strings.ContainsAny(item.WriteID, "~!") || len(item.WriteID) > 20 {
		t.Errorf("the id of a write is %q", item.WriteID)
	}
}
