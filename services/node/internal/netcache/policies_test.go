package netcache_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/node/internal/netcache"
)

// TestPolicies checks that pods are read only once somebody asks for them, that CatchUp waits for
// policies that were acknowledged before, and that changes are reported.
func TestPolicies(t *testing.T) {
	t.Parallel()
	c := clienttest.Start(t)
	set := netcache.New(c)
	p := netcache.NewPolicies(c, set.Nodes())
	var urgent, other atomic.Int64
	p.Subscribe(func(u bool) {
		if u {
			urgent.Add(1)
		} else {
			other.Add(1)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- set.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done; <-done }()
	for _, name := range []string{"shop", "other"} {
		create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}})
	}
	create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}}})
	create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}, Spec: corev1.PodSpec{NodeName: "node-1"}, Status: corev1.PodStatus{PodIP: "10.244.1.2"}})
	eventually(t, "policies and namespaces are known", func() error {
		if _, known := p.Policies(); !known || p.Namespaces()["shop"]["team"] != "shop" || len(p.Ranges()["node-1"]) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	for i := range 20 {
		policy := create(t, c, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}})
		bounded, stop := context.WithTimeout(ctx, time.Minute)
		if err := p.CatchUp(bounded, "shop"); err != nil {
			t.Fatal(err)
		}
		stop()
		if list, _ := p.Policies(); len(list) != 1 || list[0].UID != policy.UID {
			t.Fatalf("round %d: %d policies after CatchUp", i, len(list))
		}
		if err := client.For[*networkingv1.NetworkPolicy](c).Delete(ctx, "shop", "p"); err != nil {
			t.Fatal(err)
		}
		if err := p.CatchUp(ctx, "other"); err != nil { // another namespace has nothing to wait for
			t.Fatal(err)
		}
	}
	before := other.Load()
	eventually(t, "pods are known", func() error {
		pods, known := p.Pods()
		if !known || len(pods) != 1 || pods[0].Addr.String() != "10.244.1.2" || pods[0].Node != "node-1" {
			return errors.New("not yet")
		}
		return nil
	})
	if urgent.Load() < 20 || other.Load() == before {
		t.Errorf("%d changes of policies and %d others were reported", urgent.Load(), other.Load())
	}
}
