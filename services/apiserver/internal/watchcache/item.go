package watchcache

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/util/json"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Decode returns the Item of an entry of the store.
func Decode(kind *resource.Kind, e store.Entry) (*Item, error) {
	v, err := envelope.Decode(e.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	return decode(kind, e, v)
}

func decode(kind *resource.Kind, e store.Entry, v envelope.Value) (it *Item, err error) {
	obj := kind.New()
	it = &Item{
		Kind:        kind,
		Key:         e.Key,
		Revision:    e.ModRevision,
		Traceparent: v.Traceparent,
		WriteID:     v.WriteID,
	}
	raw := v.Raw
	if v.JSON {
		if err := json.Unmarshal(v.Raw, obj); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", e.Key, envelope.ErrMalformed, err)
		}
		if raw, err = obj.Marshal(); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
		obj = kind.New()
	} else if v.Kind != kind.GVK.Kind {
		return nil, fmt.Errorf("%s: %w: is a %s, expected a %s", e.Key, envelope.ErrMalformed, v.Kind, kind.GVK.Kind)
	}
	if it.Raw, err = envelope.WithResourceVersion(raw, int64(e.ModRevision)); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	if err := obj.Unmarshal(it.Raw); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", e.Key, envelope.ErrMalformed, err)
	}
	if kind.Decoded != nil {
		kind.Decoded(obj)
	}
	if v.Defaults == 0 || v.Defaults != resource.DefaultsVersion {
		if err := it.complete(obj); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
	}
	it.object.Store(&obj)
	return it, nil
}

// complete applies the kind's defaults. No one else may have seen the item yet.
func (it *Item) complete(obj resource.Object) (err error) {
	if it.Kind.Rules.Default == nil {
		return nil
	}
	// The object may be invalid, and the defaults are written for valid ones.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: defaults: %v", envelope.ErrMalformed, r)
		}
	}()
	it.Kind.Rules.Default(obj)
	raw, err := obj.Marshal()
	if err != nil {
		return err
	}
	if !bytes.Equal(raw, it.Raw) {
		it.Raw, it.Completed = raw, true
	}
	return nil
}

// At returns the item with another resourceVersion, that of its deletion.
func (it *Item) At(rev store.Revision) *Item {
	raw, err := envelope.WithResourceVersion(it.Raw, int64(rev))
	if err != nil { // cannot happen: WithResourceVersion made Raw
		raw = it.Raw
	}
	// Objects of k8s.io/api are plain structs: a copy has its own ObjectMeta and shares what
	// the original points to, which must not be changed.
	held := it.object.Load()
	if held == nil {
		return &Item{
			Kind: it.Kind, recent: it.recent, Raw: raw, Key: it.Key, Revision: rev,
			Traceparent: it.Traceparent, WriteID: it.WriteID, Completed: it.Completed,
		}
	}
	last := reflect.ValueOf(*held).Elem()
	dup := reflect.New(last.Type())
	dup.Elem().Set(last)
	obj := dup.Interface().(resource.Object)
	obj.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
	out := it.As(it.Kind, obj, raw)
	out.Revision = rev
	return out
}

// Frames holds encodings of one event. Each is made once, when it is first needed, and is
// shared by all watchers. They live as long as the event.
type Frames struct {
	head        atomic.Pointer[frame]
	projections atomic.Pointer[projection]
}

// projection is the event with a part of its object.
type projection struct {
	part  *resource.Projection
	kind  EventType
	event *Event
	next  *projection
}

type frame struct {
	format string
	next   *frame
	once   sync.Once
	data   []byte
	err    error
}

// Get returns the encoding called format, which encode creates on the first call. Concurrent
// calls wait for it. The result must not be changed.
func (f *Frames) Get(format string, encode func() ([]byte, error)) ([]byte, error) {
	fr := f.frame(format)
	fr.once.Do(func() { fr.data, fr.err = encode() })
	return fr.data, fr.err
}

// Projected returns the event with an item that shows a part of its object, and without the previous
// state; nil if project returns no item, because the event changes nothing of the part. part identifies
// the part; project is called once for each part, and the result is shared by all watchers. Events of different types share the frames of a change, but not their projections.
func (ev *Event) Projected(part *resource.Projection, project func(*Item) (*Item, error)) (*Event, error) {
	if ev.Frames == nil {
		return ev.projected(project)
	}
	for p := ev.Frames.projections.Load(); p != nil; p = p.next {
		if p.part == part && p.kind == ev.Type {
			return p.event, nil
		}
	}
	out, err := ev.projected(project)
	if err != nil {
		return nil, err
	}
	mine := &projection{part: part, kind: ev.Type, event: out}
	for {
		head := ev.Frames.projections.Load()
		for p := head; p != nil; p = p.next {
			if p.part == part && p.kind == ev.Type {
				return p.event, nil // another watcher was quicker
			}
		}
		mine.next = head
		if ev.Frames.projections.CompareAndSwap(head, mine) {
			return out, nil
		}
	}
}

func (ev *Event) projected(project func(*Item) (*Item, error)) (*Event, error) {
	item, err := project(ev.Item)
	if err != nil || item == nil {
		return nil, err
	}
	out := *ev
	out.Item, out.Old = item, nil
	if ev.Frames != nil {
		out.Frames = &Frames{}
	}
	return &out, nil
}

func (f *Frames) frame(format string) *frame {
	var mine *frame
	for {
		head := f.head.Load()
		for fr := head; fr != nil; fr = fr.next {
			if fr.format == format {
				return fr
			}
		}
		if mine == nil {
			mine = &frame{format: format}
		}
		mine.next = head
		if f.head.CompareAndSwap(head, mine) {
			return mine
		}
	}
}
