// Package controller is the level-based runtime of every control loop: events of
// caches become keys in a bounded queue that holds each key once; workers call
// Reconcile, which reads caches and writes the difference.
//
// A reconcile that a traced write caused is one span: a child of that write, linked to
// the other writes that were coalesced with it. A reconcile without such a cause (the
// initial state, a periodic check) has no span, and neither has one that writes nothing.
//
// It must never run Reconcile twice at once for one key, lose a key, or retry
// without a growing delay.
package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"keelson.dev/proto/client"
)

// Key names the object to reconcile.
type Key = client.Key

// Result is what a successful reconcile returns.
type Result struct {
	// RequeueAfter, if not 0, is the time after which the key is reconciled again, unless
	// an event causes that earlier.
	RequeueAfter time.Duration
}

// Controller is one control loop.
type Controller struct {
	// Name is unique within the process.
	Name string
	// Workers is the largest number of keys reconciled at once; 0 means 2.
	Workers int
	// Reconcile brings the state of one object closer to the desired one. Its context
	// carries the trace, and ends after Timeout. After an error the key is retried with
	// a growing delay.
	Reconcile func(ctx context.Context, key Key) (Result, error)
	// Fresh, if set, is called before each reconcile and returns an error while the caches
	// do not contain the controller's own last writes for the key. The key then waits,
	// without a span. See Writes.
	Fresh func(key Key) error
	// Extend, if set, is called when the time of a Result.RequeueAfter has passed without
	// an event for the key. The key waits for the time that Extend returns, without a
	// reconcile; 0 reconciles it. It is for deadlines that move all the time. It is called
	// on a timer's goroutine and must return quickly.
	Extend func(key Key) time.Duration
	// Sources are where keys come from.
	Sources []Source
	// Synced are closed when further caches have synced, which Reconcile reads but which
	// enqueue nothing. Reconciles begin after that.
	Synced []<-chan struct{}
	// Started, if set, is called once every source has enqueued its initial keys.
	Started func()
	// Timeout bounds one reconcile; 0 means one minute.
	Timeout time.Duration
	// MaxBackoff bounds the delay after failures; 0 means 30 s.
	MaxBackoff time.Duration
	// MaxQueue bounds the keys that wait; 0 means 100,000. When it is reached, caches that
	// have more events block. Their servers then end the watch, and the caches list again:
	// no event is lost.
	MaxQueue int
}

// Source enqueues keys.
type Source struct {
	synced    <-chan struct{}
	subscribe func(enqueue func(key Key, traceparent string)) (unsubscribe func())
}

// From returns the source of a cache's events; keys maps an event to the keys to
// reconcile. It is called on the cache's goroutine and must return quickly.
func From[T client.Object](cache *client.Cache[T], keys func(client.Event[T]) []Key) Source {
	return Source{
		synced: cache.Synced(),
		subscribe: func(enqueue func(Key, string)) func() {
			return cache.Subscribe(func(ev client.Event[T]) {
				for _, key := range keys(ev) {
					enqueue(key, ev.Traceparent)
				}
			})
		},
	}
}

// Objects returns a source that enqueues the key of each object of the cache that changes.
func Objects[T client.Object](cache *client.Cache[T]) Source {
	return From(cache, func(ev client.Event[T]) []Key { return []Key{client.KeyOf(ev.Object)} })
}

// Channel returns a source that enqueues the keys sent to a channel, for reconciles that no
// event causes. The channel is read until the controller ends.
func Channel(keys <-chan Key) Source {
	return Source{
		subscribe: func(enqueue func(Key, string)) func() {
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					case key, ok := <-keys:
						if !ok {
							return
						}
						enqueue(key, "")
					}
				}
			}()
			return func() { close(stop); <-done }
		},
	}
}

// Run runs controllers until ctx ends. It then waits for their reconciles, whose contexts
// end too, and returns nil. It does not run the caches: the caller does, so that they stay
// warm while another process leads.
func Run(ctx context.Context, controllers ...Controller) error {
	names := map[string]bool{}
	loops := make([]*loop, 0, len(controllers))
	for _, c := range controllers {
		if c.Name == "" || c.Reconcile == nil {
			return errors.New("a controller needs a name and a Reconcile")
		}
		if names[c.Name] {
			return fmt.Errorf("two controllers are called %q", c.Name)
		}
		names[c.Name] = true
		loops = append(loops, newLoop(c))
	}
	done := make(chan struct{}, len(loops))
	for _, l := range loops {
		go func() {
			l.run(ctx)
			done <- struct{}{}
		}()
	}
	for range loops {
		<-done
	}
	return nil
}
