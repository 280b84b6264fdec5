package main

import (
	"bufio"
	"context"
	"io"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

func TestRun(t *testing.T) {
	c := clienttest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, c, "shop", out) }()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
	if _, err := client.For[*corev1.Pod](c).Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(in).ReadString('\n'); err != nil || line != "Added web Pending\n" {
		t.Errorf("got %q %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
