package rest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unsafe"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
)

// TestARefusalEndsSoon checks that a Kubernetes client soon fails if no apiserver can serve its
// request. Otherwise it would retry ten times, a second after each refusal.
func TestARefusalEndsSoon(t *testing.T) {
	outOfReach := apierrors.NewServiceUnavailable("out of reach")
	outOfReach.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
	f := newFake(smallTable()...)
	f.fail = outOfReach
	asked := 0
	h := New(Config{API: f, Authn: fakeAuthn{}})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		h.ServeHTTP(w, r)
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&restclient.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.CoreV1().Pods("ns").Get(context.Background(), "p", metav1.GetOptions{})
	if !apierrors.IsServiceUnavailable(err) || asked != maxRefused+1 {
		t.Errorf("asked %d times, want %d: %v", asked, maxRefused+1, err)
	}
}

func TestRefusalsAreForgotten(t *testing.T) {
	var s refusals
	now := time.Now()
	r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
	for n := range maxRefused + 1 {
		if got := s.mayRepeat(r, now); got != (n < maxRefused) {
			t.Errorf("refusal %d: mayRepeat is %t", n, got)
		}
	}
	if other := httptest.NewRequest(http.MethodPost, "/api/v1/pods", nil); !s.mayRepeat(other, now) {
		t.Error("another request must be repeatable")
	}
	if !s.mayRepeat(r, now.Add(refusedFor+time.Second)) {
		t.Error("the refusals were not forgotten")
	}
	for i := range 3 * maxRefusals {
		s.mayRepeat(httptest.NewRequest(http.MethodGet, fmt.Sprintf("/api/v1/pods/%d", i), nil), now)
	}
	if len(s.seen) > maxRefusals {
		t.Errorf("%d requests are remembered", len(s.seen))
	}
}

// TestRefusalsKeepNoHeaders checks that the remembered requests keep no long header in memory.
func TestRefusalsKeepNoHeaders(t *testing.T) {
	var s refusals
	r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
	agent := strings.Repeat("x", maxHeaderBytes)
	r.Header.Set("User-Agent", agent)
	s.mayRepeat(r, time.Now())
	for key := range s.seen {
		if unsafe.StringData(key.agent) == unsafe.StringData(agent) {
			t.Errorf("the first %d bytes share the memory of the %d byte header", len(key.agent), len(agent))
		}
	}
}
