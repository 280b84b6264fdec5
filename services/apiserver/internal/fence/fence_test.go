package fence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
)

// allowAll is an Authorizer that allows everything, unless refuse is set.
type allowAll struct{ refuse error }

func (e *allowAll) Authorize(_ context.Context, verb string, t pipeline.Target) error {
	if e.refuse != nil && verb == "update" && t.Resource == leases {
		return e.refuse
	}
	return nil
}

// hooked is a store that runs a function before one of the calls to it.
type hooked struct {
	store.Store
	*steps
}

// steps counts the calls to the stores.
type steps struct {
	left   int
	before func()
}

func (h *steps) step() {
	if f := h.before; f != nil {
		if h.left--; h.left < 0 {
			h.before = nil
			f()
		}
	}
}

func (h *hooked) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	h.step()
	return h.Store.Get(ctx, key)
}

func (h *hooked) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	h.step()
	return h.Store.Commit(ctx, writes)
}

type world struct {
	*testing.T
	rights             allowAll
	lasting, transient *hooked
	*steps
	*Fences
}

// newWorld returns a world with two stores, or with one if together is true.
func newWorld(t *testing.T, together bool) *world {
	w := &world{T: t}
	one := memory.New()
	t.Cleanup(one.Close)
	w.steps = &steps{}
	w.lasting = &hooked{Store: one, steps: w.steps}
	w.transient = w.lasting
	if !together {
		other := memory.New()
		t.Cleanup(other.Close)
		w.transient = &hooked{Store: other, steps: w.steps}
	}
	w.Fences = New(&w.rights, resource.NewTable(kind.All()...), w.lasting, w.transient)
	return w
}

// hold writes the Lease as acquired by holder.
func (w *world) hold(holder string, transitions int32) Acquisition {
	w.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "s", UID: types.UID("u")}}
	l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &holder, &transitions
	value, err := envelope.EncodeObject(envelope.Value{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}, l)
	if err != nil {
		w.Fatal(err)
	}
	v, err := w.transient.Commit(w.Context(), []store.Write{{Key: w.lease.Key("kube-system", "s"), Value: value, Expect: store.Any}})
	if err != nil || v[0].Err != nil {
		w.Fatal(err, v)
	}
	return Acquisition{Namespace: "kube-system", Name: "s", UID: "u", Holder: holder, Transitions: transitions}
}

// accepted reports in which of the stores a write with the token is accepted.
func (w *world) accepted(token string) (lasting, transient bool) {
	w.Helper()
	f, err := Parse(token)
	if err != nil {
		w.Fatal(err)
	}
	write := func(s store.Store, rev int64) bool {
		v, err := s.Commit(w.Context(), []store.Write{{
			Key: "/x", Value: []byte("x"), Expect: store.Any, Fence: &store.Fence{Key: f.Key, ModRevision: store.Revision(rev)},
		}})
		if err != nil {
			w.Fatal(err)
		}
		if v[0].Err != nil && !errors.Is(v[0].Err, store.ErrFenced) {
			w.Fatal(v[0].Err)
		}
		return v[0].Err == nil
	}
	return write(w.lasting.Store, f.Lasting), write(w.transient.Store, f.Transient)
}

func (w *world) take(a Acquisition) string {
	w.Helper()
	token, err := w.Take(w.Context(), a)
	if err != nil {
		w.Fatal(err)
	}
	return token
}

func both(t *testing.T, run func(*testing.T, *world)) {
	for name, together := range map[string]bool{"two stores": false, "one store": true} {
		t.Run(name, func(t *testing.T) { run(t, newWorld(t, together)) })
	}
}

func TestSuccessiveEpochs(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		var old []string
		for i := range int32(5) {
			token := w.take(w.hold(fmt.Sprint("leader", i), i))
			if l, tr := w.accepted(token); !l || !tr {
				t.Errorf("epoch %d: its writes were refused: lasting %t, transient %t", i, l, tr)
			}
			for _, o := range old {
				if l, tr := w.accepted(o); l || tr {
					t.Errorf("%q is accepted together with %q: lasting %t, transient %t", o, token, l, tr)
				}
			}
			old = append(old, token)
		}
	})
}

// TestLateTaker lets the new leader acquire the Lease and take between any two steps of the old
// leader's attempt, with and without a Lease and keys from before.
func TestLateTaker(t *testing.T) {
	for _, taken := range []bool{false, true} {
		both(t, func(t *testing.T, w *world) {
			for n, ended := 0, false; !ended; n++ {
				a := w.hold("a", int32(2*n))
				if taken {
					w.take(a)
				}
				var token string
				w.left, w.before = n, func() { token = w.take(w.hold("b", int32(2*n+1))) }
				late, err := w.Take(t.Context(), a)
				if ended = w.before != nil; ended { // n exceeds the number of steps
					w.before = nil
					if n < 3 {
						t.Errorf("the attempt took only %d steps", n)
					}
					continue
				}
				if err == nil || !client.IsFenced(err) {
					t.Errorf("step %d: got %q, %v", n, late, err)
				}
				if l, tr := w.accepted(token); !l || !tr {
					t.Errorf("step %d: the old leader's attempt ended the new leader's epoch: lasting %t, transient %t", n, l, tr)
				}
			}
		})
	}
}

// TestTogether takes one acquisition twice at once, as a repeated call does: exactly one of the
// tokens is accepted in the end.
func TestTogether(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a := w.hold("a", 0)
		tokens := make([]string, 8)
		var wg sync.WaitGroup
		for i := range tokens {
			wg.Go(func() {
				token, err := w.Take(t.Context(), a)
				if err != nil {
					t.Error(err)
				}
				tokens[i] = token
			})
		}
		wg.Wait()
		holds := 0
		for _, token := range tokens {
			if l, tr := w.accepted(token); l && tr {
				holds++
			}
		}
		if holds != 1 {
			t.Errorf("%d tokens are accepted, want 1", holds)
		}
	})
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, false)
	a := w.hold("a", 3)
	for what, change := range map[string]func(*Acquisition){
		"another holder":         func(a *Acquisition) { a.Holder = "b" },
		"an earlier acquisition": func(a *Acquisition) { a.Transitions = 2 },
		"a deleted Lease":        func(a *Acquisition) { a.UID = "v" },
		"no such Lease":          func(a *Acquisition) { a.Name = "none" },
	} {
		b := a
		change(&b)
		if _, err := w.Take(t.Context(), b); !client.IsFenced(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(*Acquisition){
		"no name":        func(a *Acquisition) { a.Name = "" },
		"no uid":         func(a *Acquisition) { a.UID = "" },
		"no holder":      func(a *Acquisition) { a.Holder = "" },
		"slashes":        func(a *Acquisition) { a.Name = "a/b" },
		"a node's Lease": func(a *Acquisition) { a.Namespace = "kube-node-lease" },
	} {
		b := a
		change(&b)
		if _, err := w.Take(t.Context(), b); !apierrors.IsBadRequest(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.rights.refuse = apierrors.NewForbidden(leases.GroupResource(), "s", errors.New("no"))
	if _, err := w.Take(t.Context(), a); !apierrors.IsForbidden(err) {
		t.Errorf("without the right: %v", err)
	}
}

func TestStoreThatFails(t *testing.T) {
	w := newWorld(t, false)
	a := w.hold("a", 0)
	w.lasting.Store.(*memory.Store).Close()
	if _, err := w.Take(t.Context(), a); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("got %v", err)
	}
}

func TestParse(t *testing.T) {
	f := request.Fence{Key: prefix + "ns/l", Lasting: 7, Transient: 8}
	if got, err := Parse(format(f)); err != nil || got != f {
		t.Errorf("%+v, %v", got, err)
	}
	for _, token := range []string{"", " ", "a", "a 1", "a 1 0", "a 0 1", "a 1 -1", "a 1 2 3", " 1 2", "a x 1", strings.Repeat("a", maxToken) + " 1 2"} {
		if _, err := Parse(token); !apierrors.IsBadRequest(err) {
			t.Errorf("%q: %v", token, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ns/l 1 2")
	f.Fuzz(func(t *testing.T, token string) {
		if got, err := Parse(token); err == nil {
			if again, err := Parse(format(got)); err != nil || again != got {
				t.Errorf("%q is %+v and then %+v, %v", token, got, again, err)
			}
		}
	})
}
