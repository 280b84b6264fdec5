// Package controller is the level-based runtime of every control loop: caches'
// events become keys in a bounded queue that holds each key once; workers call
// Reconcile, which reads caches and writes the difference.
//
// A reconcile that answers a traced write is one span, child of that write and
// linked to the others that were coalesced with it; what nobody caused (the
// initial state, a periodic look) has none, nor has one that found nothing to do.
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

// Result is what a successful reconcile asks for.
type Result struct {
	// RequeueAfter, if not 0, reconciles the key again after this time, or
	// earlier if an event comes.
	RequeueAfter time.Duration
}

// Controller is one control loop.
type Controller struct {
	// Name is unique within the process.
	Name string
	// Workers is the largest number of keys reconciled at once; 0 means 2.
	Workers int
	// Reconcile brings one object closer to what it should be. Its context
	// carries the trace, and ends after Timeout.
	Reconcile func(ctx context.Context, key Key) (Result, error)
	// Fresh, if set, is asked before each reconcile whether the caches show the
	// controller's own last writes for the key; while it returns an error, the
	// key waits, without a span.
	Fresh func(key Key) error
	// Extend, if set, is asked once the time of a Result.RequeueAfter has passed
	// and nothing else has happened to the key: the key waits as much longer as it
	// returns, without a reconcile; 0 reconciles. It is for deadlines that move all
	// the time. It is called on a timer's goroutine and must be quick.
	Extend func(key Key) time.Duration
	// Sources are where keys come from.
	Sources []Source
	// Synced are further caches to wait for, which Reconcile reads but which
	// enqueue nothing.
	Synced []<-chan struct{}
	// Started, if set, is called once every source has brought what it had.
	Started func()
	// Timeout bounds one reconcile; 0 means one minute.
	Timeout time.Duration
	// MaxBackoff bounds the delay after failures; 0 means 30 s.
	MaxBackoff time.Duration
	// MaxQueue bounds the keys that wait; 0 means 100,000. When it is reached,
	// the caches that bring more are held up, which their servers answer by
	// cutting the watch off: nothing is lost.
	MaxQueue int
}

// Source brings keys.
type Source struct {
	synced    <-chan struct{}
	subscribe func(enqueue func(key Key, traceparent string)) (unsubscribe func())
}

// From makes a source of a cache: keys maps an event to the keys to reconcile.
// It is called on the cache's goroutine and must be quick.
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

// Objects is a source whose keys are those of the cache's objects.
func Objects[T client.Object](cache *client.Cache[T]) Source {
	return From(cache, func(ev client.Event[T]) []Key { return []Key{client.KeyOf(ev.Object)} })
}

// Channel is a source that others feed, for keys that no event brings. The
// channel is read until the controller ends.
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

// Run runs controllers until ctx ends, then waits for their reconciles, which
// see ctx end, and returns nil. The caches are run by somebody else: they stay
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
