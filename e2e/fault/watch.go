package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
)

// watcher watches a kind on one member, is cut at random events, and resumes.
type watcher[T object] struct {
	kindOf[T]
	client *client.Client
	now    func() time.Duration
	rng    *rand.Rand

	mu   sync.Mutex
	seen Watched
	last int64
	why  map[string]int // errors, by text
}

var errCut = errors.New("cut")

// againWithin bounds how many events back a watch is resumed at the end, because servers
// keep a bounded history.
const againWithin = 1500

// run watches until ctx ends.
func (w *watcher[T]) run(ctx context.Context) {
	w.last = w.seen.From
	w.why = map[string]int{}
	for ctx.Err() == nil {
		err := w.stream(ctx, w.last, 1+w.rng.IntN(120), w.event)
		w.mu.Lock()
		w.seen.Resumed++
		if err != nil && !errors.Is(err, errCut) && len(w.why) < 20 {
			w.why[words(err.Error())]++
		}
		w.mu.Unlock()
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			w.relist(ctx)
			continue
		}
		if err != nil && !errors.Is(err, errCut) {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// event records one event.
func (w *watcher[T]) event(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Events = append(w.seen.Events, e)
	w.last = e.RV
}

// relist lists again, as a client does if its watch cannot be resumed. It does not see the events in
// between.
func (w *watcher[T]) relist(ctx context.Context) {
	list, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rv, _, err := grpcAPI[T]{w.kindOf, w.client}.list(list)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Gaps = append(w.seen.Gaps, [2]int64{w.last, rv})
	w.last = rv
}

// stream watches after a revision for so many events.
func (w *watcher[T]) stream(ctx context.Context, after int64, events int, tell func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for ev, err := range client.For[T](w.client).Watch(ctx, client.WatchOptions{Namespace: namespace, ResourceVersion: strconv.FormatInt(after, 10)}) {
		if err != nil {
			return err
		}
		if ev.Type == client.Bookmark {
			continue
		}
		rv, err := strconv.ParseInt(ev.ResourceVersion, 10, 64)
		if err != nil {
			return err
		}
		if own := revision(ev.Object); own != rv {
			return fmt.Errorf("event %d carries an object of revision %d", rv, own)
		}
		tell(Event{RV: rv, Type: ev.Type.String(), Name: ev.Object.GetName(), Value: w.value(ev.Object), Seen: w.now(), Deleted: ev.Type == client.Deleted})
		if events--; events == 0 {
			return errCut
		}
	}
	return nil
}

// reached reports whether the watch has seen a revision.
func (w *watcher[T]) reached(rv int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last >= rv
}

func (w *watcher[T]) watched() *Watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	return &seen
}

// again watches once more from revisions that were seen before, up to the last event, and compares
// the events with all. It returns the problems, and how often the server replied that a revision
// was too old.
func (w *watcher[T]) again(ctx context.Context, all []Event, times int) (wrong []string, expired int) {
	for range times {
		at := len(all) - 2 - w.rng.IntN(min(len(all)-1, againWithin))
		rest := all[at+1:]
		var got []Event
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := w.stream(ctx, all[at].RV, len(rest), func(e Event) { got = append(got, e) })
		cancel()
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			expired++
			continue
		}
		if !errors.Is(err, errCut) {
			wrong = append(wrong, fmt.Sprintf("%s: watching again after %d returned %d of %d events: %v", w.seen.Name, all[at].RV, len(got), len(rest), err))
			continue
		}
		for i := range rest {
			if !rest[i].same(got[i]) {
				wrong = append(wrong, fmt.Sprintf("%s: watching again after %d returned %+v, want %+v", w.seen.Name, all[at].RV, got[i], rest[i]))
				break
			}
		}
	}
	return wrong, expired
}

// reasons returns the number of errors of the watch, by text.
func (w *watcher[T]) reasons() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.why)
}
