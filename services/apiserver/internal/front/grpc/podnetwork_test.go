package grpc_test

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// TestPodNetworks checks that pods/network shows nothing but what network policies depend on, in
// lists, initial states, later events and watches that share a stream, and that changes of the rest
// of a pod are not reported.
func TestPodNetworks(t *testing.T) {
	address := serve(t)
	c := dial(t, address)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pods := client.For[*corev1.Pod](c)
	whole := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", Labels: map[string]string{"app": "a"}, Annotations: map[string]string{"secret": "annotation"}},
		Spec: corev1.PodSpec{NodeName: "node-1", ServiceAccountName: "secret-account", Containers: []corev1.Container{{
			Name: "secret-name", Image: "secret-image", Args: []string{"secret-arg"}, Env: []corev1.EnvVar{{Name: "E", Value: "secret-env"}},
			Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80, Protocol: corev1.ProtocolTCP, HostIP: "192.0.2.1"}, {ContainerPort: 81}},
		}}},
	}
	if _, err := pods.Create(ctx, whole); err != nil {
		t.Fatal(err)
	}
	want := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", Labels: map[string]string{"app": "a"}},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	check := func(what string, p *corev1.Pod) {
		t.Helper()
		want.UID, want.ResourceVersion, want.CreationTimestamp = p.UID, p.ResourceVersion, p.CreationTimestamp
		got, err1 := p.Marshal()
		expected, err2 := want.Marshal()
		if err1 != nil || err2 != nil || string(got) != string(expected) || p.UID == "" || p.ResourceVersion == "" {
			t.Errorf("%s: %v, want %v", what, p, &want)
		}
	}
	parts := client.PodNetworks(c, func() *corev1.Pod { return &corev1.Pod{} })
	list, _, err := parts.List(ctx, client.ListOptions{})
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	check("list", list[0])
	if _, _, err := parts.List(ctx, client.ListOptions{FieldSelector: "spec.serviceAccountName=secret-account"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field selector: %v, want it to be refused", err)
	}
	if _, err := pods.Get(ctx, "ns", "a"); err != nil {
		t.Error(err)
	}

	shared := client.NewWatches(c)
	defer shared.Close()
	for what, r := range map[string]client.Resource[*corev1.Pod]{"watch": parts, "shared stream": parts.Over(shared)} {
		want.Labels, want.Status.PodIP = map[string]string{"app": "a"}, ""
		events := make(chan client.Event[*corev1.Pod])
		watching, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for ev, err := range r.Watch(watching, client.WatchOptions{SendInitialEvents: true}) {
				if err != nil {
					return
				}
				select {
				case events <- ev:
				case <-watching.Done():
					return
				}
			}
		}()
		next := func() client.Event[*corev1.Pod] {
			t.Helper()
			select {
			case ev := <-events:
				return ev
			case <-ctx.Done():
				t.Fatalf("%s: no event", what)
				return client.Event[*corev1.Pod]{}
			}
		}
		check(what, next().Object)
		if ev := next(); !ev.InitialEnd {
			t.Fatalf("%s: %v", what, ev)
		}
		// Many changes that the part does not show, and then one that it shows.
		change := func(patch string, options ...client.WriteOption) {
			t.Helper()
			if _, err := pods.Patch(ctx, "ns", "a", "application/merge-patch+json", []byte(patch), options...); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			change(`{"metadata":{"annotations":{"secret":"` + string(rune('a'+i%26)) + what + `"}}}`)
		}
		change(`{"metadata":{"labels":{"app":"b"}}}`)
		want.Labels = map[string]string{"app": "b"}
		check(what, next().Object)
		change(`{"metadata":{"labels":{"app":"a"}}}`)
		want.Labels = map[string]string{"app": "a"}
		check(what, next().Object)
		stop()
		<-ended
	}
}
