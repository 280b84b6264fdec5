package testkit

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// write creates the nth ConfigMap.
func write(w *World, n int) {
	Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("map-", n)}})
}

// The hundredth of a hundred writes, one after the other, makes the condition true. That is
// later than rest, but no write comes as long as rest after the one before it.
func TestNeverFailsWhenAWriteHappens(t *testing.T) {
	w := Start(t)
	began, n := time.Now(), 0
	err := w.never(func() bool {
		write(w, n)
		n++
		return n == 100
	})
	if err == nil || !strings.HasPrefix(err.Error(), "happened after 99 writes") {
		t.Errorf("the hundredth write was not noticed: %v", err)
	}
	if took := time.Since(began); took < rest {
		t.Errorf("the writes took %s, want longer than %s", took, rest)
	}
}

func TestNeverReturnsAtRest(t *testing.T) {
	w := Start(t)
	var last time.Time
	n := 0
	if err := w.never(func() bool {
		if n < 50 {
			write(w, n)
			n, last = n+1, time.Now()
		}
		return false
	}); err != nil {
		t.Error(err)
	}
	if quiet := time.Since(last); n != 50 || quiet < rest {
		t.Errorf("it returned %s after %d writes, want 50 writes and then %s without", quiet, n, rest)
	}
}
