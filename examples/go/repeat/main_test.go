package main

import (
	"errors"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

func TestCreate(t *testing.T) {
	s, c := clienttest.StartServer(t)
	var calls atomic.Int32
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Create" && calls.Add(1) < 3 {
			return apierrors.NewTimeoutError("the outcome is unknown", 0)
		}
		return nil
	})
	made, err := create(t.Context(), c, "shop")
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := client.For[*corev1.ConfigMap](c).List(t.Context(), client.ListOptions{})
	if err != nil || len(all) != 1 || all[0].Name != made.Name || calls.Load() != 3 {
		t.Error(errors.Join(err), len(all), calls.Load())
	}
}
