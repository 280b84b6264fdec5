package client_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// outOfReach is the answer of an apiserver that did nothing.
func outOfReach() error {
	err := apierrors.NewServiceUnavailable("out of reach")
	err.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
	return err
}

func TestRefusedCallsAreMadeAgain(t *testing.T) {
	s, c := clienttest.StartServer(t)
	var calls atomic.Int32
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Create" && calls.Add(1) < 4 {
			return outOfReach()
		}
		return nil
	})
	create(t, c, "a")
	if n := calls.Load(); n != 4 {
		t.Errorf("%d calls", n)
	}
}

// An answer that leaves the outcome of a write open is returned to the caller.
func TestOtherRefusalsAreAnswers(t *testing.T) {
	for name, answer := range map[string]error{
		"no time to try again": apierrors.NewServiceUnavailable("stopping"),
		"unknown outcome":      apierrors.NewTimeoutError("unknown", 1),
		"too many requests":    apierrors.NewTooManyRequests("busy", 1),
	} {
		t.Run(name, func(t *testing.T) {
			s, c := clienttest.StartServer(t)
			var calls atomic.Int32
			s.Fail(func(string, *resourcev1.Ref) error { calls.Add(1); return answer })
			_, err := client.For[*corev1.ConfigMap](c).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}})
			if apierrors.ReasonForError(err) != apierrors.ReasonForError(answer) {
				t.Error(err)
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("%d calls", n)
			}
		})
	}
}

// A call is not repeated without end, nor past the end of its context.
func TestRefusedCallsEnd(t *testing.T) {
	s, c := clienttest.StartServer(t)
	s.Fail(func(string, *resourcev1.Ref) error { return outOfReach() })
	maps := client.For[*corev1.ConfigMap](c)
	obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}
	began := time.Now()
	if _, err := maps.Create(t.Context(), obj); !apierrors.IsServiceUnavailable(err) {
		t.Error(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("given up after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var calls atomic.Int32
	s.Fail(func(string, *resourcev1.Ref) error {
		if calls.Add(1) == 3 {
			cancel()
		}
		return outOfReach()
	})
	if _, err := maps.Create(ctx, obj); err == nil {
		t.Error("created")
	}
	if n := calls.Load(); n != 3 {
		t.Errorf("%d calls", n)
	}
}
