package clientconformance

import (
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

// held is a Lease as a candidate would write it.
func held(l *coordinationv1.Lease, holder string, transitions int32) *coordinationv1.Lease {
	l = l.DeepCopy()
	l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &holder, &transitions
	return l
}

// testFence lets a second leader follow the first: from then on, no write of the first is
// accepted, of any form.
func testFence(t *testing.T, s *suite) {
	leases := client.For[*coordinationv1.Lease](s.Client)
	name := s.prefix + "lease"
	t.Cleanup(func() { _ = leases.Delete(s.ctx, s.Namespace, name) })
	_ = leases.Delete(s.ctx, s.Namespace, name)
	first := must(leases.Create(s.ctx, held(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name}}, "a", 0)))(t)

	none := first.DeepCopy()
	none.Name += "-none"
	_, err := client.TakeFence(s.ctx, s.Client, none)
	wants(t, "the fence of a Lease that is not there", client.IsFenced, err)
	_, err = client.TakeFence(s.ctx, s.Client, held(first, "b", 0))
	wants(t, "the fence of another's Lease", client.IsFenced, err)
	replaced := first.DeepCopy()
	replaced.UID = "another"
	_, err = client.TakeFence(s.ctx, s.Client, replaced)
	wants(t, "the fence of an earlier Lease of that name", client.IsFenced, err)

	lost := 0
	a := &client.Fence{Lost: func() { lost++ }}
	asA := client.WithFence(s.ctx, a)
	if _, err := s.maps.Create(asA, s.configMap("early")); err == nil {
		t.Error("a write without a token was sent")
	}
	a.Token = must(client.TakeFence(s.ctx, s.Client, first))(t)
	obj := must(s.maps.Create(asA, s.configMap("a", "k", "1")))(t)
	// A renewal is no acquisition, and what another does without a fence is not
	// touched by it.
	second := int32(2)
	renewed := first.DeepCopy()
	renewed.Spec.LeaseDurationSeconds = &second
	renewed = must(leases.Update(s.ctx, renewed))(t)
	again := must(client.TakeFence(s.ctx, s.Client, first))(t)
	_, err = s.maps.Create(asA, s.configMap("between"))
	wants(t, "a write with the token before the last", client.IsFenced, err)
	equal(t, "how often the loss was reported", lost, 1)
	a.Token = again
	obj = s.setAs(t, asA, obj, "k", "2")

	// The second leader.
	taken := must(leases.Update(s.ctx, held(renewed, "b", 1)))(t)
	obj = s.setAs(t, asA, obj, "k", "3") // its epoch has not begun yet
	b := &client.Fence{Token: must(client.TakeFence(s.ctx, s.Client, taken))(t)}
	asB := client.WithFence(s.ctx, b)
	lost = 0
	event := func() *corev1.Event {
		return &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: s.Namespace, Name: s.prefix + "event"},
			InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: s.Namespace, Name: obj.Name},
		}
	}
	update := obj.DeepCopy()
	update.Data["k"] = "old"
	for what, write := range map[string]func() error{
		"create": func() error { _, err := s.maps.Create(asA, s.configMap("new")); return err },
		"update": func() error { _, err := s.maps.Update(asA, update); return err },
		"patch": func() error {
			_, err := s.maps.Patch(asA, s.Namespace, obj.Name, types.MergePatchType, []byte(`{"data":{"k":"old"}}`))
			return err
		},
		"apply":    func() error { _, err := s.maps.Apply(asA, s.configMap("applied", "k", "old"), "m"); return err },
		"delete":   func() error { return s.maps.Delete(asA, s.Namespace, obj.Name) },
		"a lease":  func() error { _, err := leases.Update(asA, held(taken, "a", 2)); return err },
		"an event": func() error { _, err := client.For[*corev1.Event](s.Client).Create(asA, event()); return err },
		"collection": func() error {
			_, err := s.maps.DeleteCollection(asA, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector()})
			return err
		},
		"commit": func() error {
			results, err := s.Client.Commit(asA, client.CreateWrite(s.configMap("c1")), client.UpdateWrite(update), client.CreateWrite(event()))
			for _, r := range results {
				if !client.IsFenced(r.Err) {
					t.Errorf("a write of a batch of the old leader: %v", r.Err)
				}
				err = r.Err
			}
			return err
		},
	} {
		before := lost
		err := write()
		wants(t, what+" of the old leader", client.IsFenced, err)
		wants(t, what+" of the old leader", apierrors.IsConflict, err)
		if lost == before {
			t.Errorf("%s: Fence.Lost was not called", what)
		}
	}
	_, err = client.TakeFence(s.ctx, s.Client, first)
	wants(t, "the old leader takes again", client.IsFenced, err)
	got := must(s.maps.Get(s.ctx, s.Namespace, obj.Name))(t)
	equal(t, "data", got.Data["k"], "3")
	list, _, err := s.maps.List(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector()})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "what the first leader wrote", len(list), 1)
	obj = s.setAs(t, asB, obj, "k", "4")
	_ = must(leases.Update(asB, held(taken, "b", 1)))(t)
	s.set(t, obj, "k", "5")
	_, err = s.maps.Create(client.WithFence(s.ctx, &client.Fence{Token: "nonsense"}), s.configMap("x"))
	if err == nil {
		t.Error("a malformed token was accepted")
	}
}
