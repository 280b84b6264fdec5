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

// Decode makes an Item of an entry of the store.
func Decode(kind *resource.Kind, e store.Entry) (*Item, error) {
	v, err := envelope.Decode(e.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	return decode(kind, e, v)
}

func decode(kind *resource.Kind, e store.Entry, v envelope.Value) (it *Item, err error) {
	it = &Item{
		Kind:        kind,
		Object:      kind.New(),
		Key:         e.Key,
		Revision:    e.ModRevision,
		Traceparent: v.Traceparent,
		WriteID:     v.WriteID,
	}
	raw := v.Raw
	if v.JSON {
		if err := json.Unmarshal(v.Raw, it.Object); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", e.Key, envelope.ErrMalformed, err)
		}
		if raw, err = it.Object.Marshal(); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
		it.Object = kind.New()
	} else if v.Kind != kind.GVK.Kind {
		return nil, fmt.Errorf("%s: %w: holds a %s, not a %s", e.Key, envelope.ErrMalformed, v.Kind, kind.GVK.Kind)
	}
	if it.Raw, err = envelope.WithResourceVersion(raw, int64(e.ModRevision)); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	if err := it.Object.Unmarshal(it.Raw); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", e.Key, envelope.ErrMalformed, err)
	}
	if v.Defaults == 0 || v.Defaults != resource.DefaultsVersion() {
		if err := it.complete(); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
	}
	return it, nil
}

// complete gives an item that nobody has seen yet its kind's defaults.
func (it *Item) complete() (err error) {
	if it.Kind.Rules.Default == nil {
		return nil
	}
	// The defaults meet what somebody else stored.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: defaults: %v", envelope.ErrMalformed, r)
		}
	}()
	it.Kind.Rules.Default(it.Object)
	raw, err := it.Object.Marshal()
	if err != nil {
		return err
	}
	if !bytes.Equal(raw, it.Raw) {
		it.Raw, it.Completed = raw, true
	}
	return nil
}

// At is the item with another resourceVersion: that of its deletion. The object
// is a shallow copy.
func (it *Item) At(rev store.Revision) *Item {
	raw, err := envelope.WithResourceVersion(it.Raw, int64(rev))
	if err != nil { // Raw was made by WithResourceVersion, so it can be read
		raw = it.Raw
	}
	// Objects of k8s.io/api are plain structs: copying one shares what it points
	// to, which nobody may change, and has its own ObjectMeta.
	dup := reflect.New(reflect.TypeOf(it.Object).Elem())
	dup.Elem().Set(reflect.ValueOf(it.Object).Elem())
	obj := dup.Interface().(resource.Object)
	obj.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
	out := *it
	out.Object, out.Raw, out.Revision = obj, raw, rev
	return &out
}

// Frames are encodings of one event, each made once, by the first who needs it,
// and shared by all. They live as long as the event.
type Frames struct {
	head atomic.Pointer[frame]
}

type frame struct {
	format string
	next   *frame
	once   sync.Once
	data   []byte
	err    error
}

// Get returns the encoding named format, which encode makes. Others who ask for
// the same one meanwhile wait for it. Nobody may change the result.
func (f *Frames) Get(format string, encode func() ([]byte, error)) ([]byte, error) {
	fr := f.frame(format)
	fr.once.Do(func() { fr.data, fr.err = encode() })
	return fr.data, fr.err
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
