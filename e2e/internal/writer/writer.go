// Package writer keeps writing to a cluster while a test hurts it, and remembers which
// writes were acknowledged, and when: so a test measures for how long nothing could be
// written, and finds what was lost.
package writer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// Writer writes one object after the other. Its methods may be called while it runs.
type Writer struct {
	mu    sync.Mutex
	names []string
	times []time.Time
	last  error
}

// Run calls write with one name after the other, PREFIX-0, PREFIX-1 and so on, until ctx
// ends. A name is used once, whether the write succeeds or not.
func (w *Writer) Run(ctx context.Context, prefix string, write func(name string) error) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("%s-%d", prefix, n)
		err := write(name)
		w.mu.Lock()
		if err == nil {
			w.names, w.times = append(w.names, name), append(w.times, time.Now())
		} else {
			w.last = err
		}
		w.mu.Unlock()
	}
}

// Names are the acknowledged writes, in order.
func (w *Writer) Names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.names[:len(w.names):len(w.names)]
}

// Count is the number of acknowledged writes.
func (w *Writer) Count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.names)
}

// Gap is the longest time between two consecutive acknowledged writes of which the later
// one came after from; zero if there are none.
func (w *Writer) Gap(from time.Time) time.Duration {
	return w.GapBy(from, func(a, b time.Time) time.Duration { return b.Sub(a) })
}

// GapBy is Gap with another measure of the time between two moments.
func (w *Writer) GapBy(from time.Time, between func(a, b time.Time) time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var most time.Duration
	for i := 1; i < len(w.times); i++ {
		if w.times[i].After(from) {
			most = max(most, between(w.times[i-1], w.times[i]))
		}
	}
	return most
}

// Reaches is a condition for package wait: nil when n writes are acknowledged.
func (w *Writer) Reaches(n int) func(context.Context) error {
	return func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.names) < n {
			return errors.Join(fmt.Errorf("%d of %d writes are acknowledged", len(w.names), n), w.last)
		}
		return nil
	}
}

// ConfigMap creates a ConfigMap of a name in the namespace default.
func ConfigMap(ctx context.Context, api *client.Client, name string) error {
	_, err := client.For[*corev1.ConfigMap](api).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
	})
	return err
}

// Lost returns those names of which there is no ConfigMap in the namespace default.
func Lost(ctx context.Context, api *client.Client, names ...string) (lost []string, err error) {
	list, _, err := client.For[*corev1.ConfigMap](api).List(ctx, client.ListOptions{Namespace: metav1.NamespaceDefault})
	there := map[string]bool{}
	for _, m := range list {
		there[m.Name] = true
	}
	for _, name := range names {
		if !there[name] {
			lost = append(lost, name)
		}
	}
	return lost, err
}
