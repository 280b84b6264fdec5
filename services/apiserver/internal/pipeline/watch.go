package pipeline

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Watch follows a collection or a single object.
func (p *Pipeline) Watch(ctx context.Context, t Target, o WatchOptions) (Watch, error) {
	k, sub, err := p.enter(ctx, "watch", t, o.LabelSelector, o.FieldSelector)
	if err != nil {
		return nil, err
	}
	part, err := projectionOf(sub, o.FieldSelector)
	if err != nil {
		return nil, err
	}
	w, err := p.watch(ctx, k, t, o)
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	w.part = part
	if w.Watcher != nil {
		w.hold(ctx, func(ctx context.Context) error {
			return p.authorize(ctx, "watch", t, o.LabelSelector, o.FieldSelector)
		})
	}
	return w, nil
}

func (p *Pipeline) watch(ctx context.Context, k *resource.Kind, t Target, o WatchOptions) (*watch, error) {
	sel, err := newSelection(k, t, o.LabelSelector, o.FieldSelector, checkWatchOptions(o))
	if err != nil {
		return nil, err
	}
	rev, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &watch{p: p, kind: k, gr: t.Resource.GroupResource()}
	wo := watchcache.WatchOptions{
		Prefix:     sel.prefix,
		Key:        sel.key,
		Field:      sel.field,
		Value:      sel.value,
		Filter:     sel.match,
		After:      rev,
		Initial:    rev == 0 || o.SendInitialEvents,
		InitialEnd: o.SendInitialEvents,
		Bookmarks:  o.AllowBookmarks,
		Current:    true,
		Ready:      o.Ready,
	}
	if k.StoredAs != nil && sel.match != nil {
		wo.Filter = func(it *watchcache.Item) bool {
			it, err := shown(k, it)
			return err == nil && sel.match(it)
		}
	}
	if o.NoInitialEvents {
		if wo.Initial = false; o.ResourceVersion == "0" {
			wo.After = p.place(k).Cache.Revision()
		} else if rev == 0 {
			if wo.After, err = p.place(k).Cache.Fresh(ctx); err != nil {
				return nil, err
			}
		}
	}
	if wo.Initial && o.ResourceVersion != "0" {
		if err := p.wait(ctx, k, rev); err != nil {
			return nil, err
		}
	}
	w.Watcher, err = p.place(k).Cache.Kind(k).Watch(wo)
	var expired *watchcache.ExpiredError
	if errors.As(err, &expired) {
		w.err = apierrors.NewResourceExpired(expired.Error())
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

func checkWatchOptions(o WatchOptions) error {
	var errs field.ErrorList
	path := field.NewPath("resourceVersionMatch")
	match := metav1.ResourceVersionMatch(o.ResourceVersionMatch)
	switch {
	case match == "":
	case !o.SendInitialEvents:
		errs = append(errs, field.Forbidden(path, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
	case match != metav1.ResourceVersionMatchNotOlderThan:
		errs = append(errs, field.NotSupported(path, match, []metav1.ResourceVersionMatch{metav1.ResourceVersionMatchNotOlderThan}))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", errs)
	}
	return nil
}

// watch converts a watcher's errors to a Status, and its items to the requested kind.
type watch struct {
	*watchcache.Watcher
	p    *Pipeline
	kind *resource.Kind
	// part is what the watch shows of each object; nil shows all of it.
	part *resource.Projection
	gr   schema.GroupResource
	err  error

	over    atomic.Bool
	release func()
	expiry  *time.Timer
}

// Next implements Watch.
func (w *watch) Next(ctx context.Context) ([]*watchcache.Event, error) {
	if w.err != nil {
		return nil, w.err
	}
	for {
		events, err := w.Watcher.Next(ctx)
		if w.over.Load() {
			return nil, errWatchOver
		}
		if err != nil {
			return nil, w.p.statusOf(ctx, w.gr, "", err)
		}
		if events, err = w.shown(ctx, events); err != nil || len(events) > 0 {
			return events, err
		}
	}
}

// Poll implements Watch.
func (w *watch) Poll(ctx context.Context, n int) ([]*watchcache.Event, error) {
	if w.err != nil {
		return nil, w.err
	}
	var out []*watchcache.Event
	for {
		want := n - len(out)
		events, end := w.Watcher.Poll(want)
		if w.over.Load() {
			return nil, errWatchOver
		}
		last := len(events) < want || end != nil
		events, err := w.shown(ctx, events)
		if err == nil && end != nil {
			err = w.p.statusOf(ctx, w.gr, "", end)
		}
		if out == nil {
			out = events
		} else {
			out = append(out, events...)
		}
		// A projection may leave out some of the events that were asked for.
		if err != nil || last || len(out) >= n {
			return out, err
		}
	}
}

// shown converts the items of events to the requested kind, or to the part that the watch shows.
func (w *watch) shown(ctx context.Context, events []*watchcache.Event) (_ []*watchcache.Event, err error) {
	if w.part != nil {
		if events, err = projectEvents(w.part, events); err != nil {
			return nil, w.p.statusOf(ctx, w.gr, "", err)
		}
		return events, nil
	}
	if w.kind.StoredAs == nil {
		return events, nil
	}
	out := make([]*watchcache.Event, len(events))
	for i, ev := range events {
		dup := *ev
		if dup.Item, err = shown(w.kind, ev.Item); err != nil {
			return nil, w.p.statusOf(ctx, w.gr, "", err)
		}
		if dup.Old, err = shown(w.kind, ev.Old); err != nil {
			return nil, w.p.statusOf(ctx, w.gr, "", err)
		}
		if ev.Frames != nil {
			dup.Frames = &watchcache.Frames{}
		}
		out[i] = &dup
	}
	return out, nil
}

// Close ends the watch.
func (w *watch) Close() {
	if w.Watcher == nil {
		return
	}
	w.release()
	if w.expiry != nil {
		w.expiry.Stop()
	}
	w.Watcher.Close()
}
