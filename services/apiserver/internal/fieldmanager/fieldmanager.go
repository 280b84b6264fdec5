// Package fieldmanager maintains metadata.managedFields: which manager owns which field of an
// object (KEP-555).
//
// For creates, updates and patches, a walker that is compiled once for each Go type compares the
// old state with the new one and edits the managers' sets. Its results equal those of
// apimachinery's updater, which the tests compare it with, at a small fraction of the cost. Only
// apply uses the structured-merge machinery, which the first apply loads.
//
// The package must never modify an object other than the new one, and never fail a create, update
// or patch.
package fieldmanager

import (
	"cmp"
	"reflect"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// Write describes a write to the field manager.
type Write struct {
	Kind        *resource.Kind
	Subresource string
	// Old is the current state (nil for a create), which is not modified, and Object the new one.
	Old, Object resource.Object
	Manager     string
	Now         time.Time
}

// fieldsV1 is the only type of field set that there is.
const fieldsV1 = "FieldsV1"

// Fields tracks and applies. The zero value is not usable; call New.
type Fields struct {
	machinery machinery
}

// New returns a Fields for the kinds of a table.
func New(table *resource.Table) *Fields {
	f := &Fields{}
	f.machinery.table = table
	return f
}

// Track records in w.Object which fields w.Manager changed from w.Old.
func (f *Fields) Track(w Write) {
	entries := managed(w)
	w.Object.SetManagedFields(nil)
	// Objects without managed fields, created before they were tracked, remain untracked until
	// the first apply.
	if len(entries) == 0 && w.Old != nil && w.Old.GetUID() != "" {
		return
	}
	w.Object.SetManagedFields(track(w, entries))
}

// managed returns the entries to start from: those of the new object or, if it has none, has
// invalid ones or requests a reset, those of the old object.
func managed(w Write) []metav1.ManagedFieldsEntry {
	var live []metav1.ManagedFieldsEntry
	if w.Old != nil {
		if live = w.Old.GetManagedFields(); !valid(live) {
			live = nil
		}
	}
	if w.Subresource != "" {
		return live
	}
	own := w.Object.GetManagedFields()
	if isReset(own) {
		return nil
	}
	if len(own) == 0 || !valid(own) {
		return live
	}
	return own
}

// isReset reports whether entries is an explicitly empty list, or has one empty entry.
func isReset(entries []metav1.ManagedFieldsEntry) bool {
	if len(entries) == 0 {
		return entries != nil
	}
	return len(entries) == 1 && reflect.DeepEqual(entries[0], metav1.ManagedFieldsEntry{})
}

// valid reports whether the entries can be parsed.
func valid(entries []metav1.ManagedFieldsEntry) bool {
	for i := range entries {
		e := &entries[i]
		if e.Operation != metav1.ManagedFieldsOperationApply && e.Operation != metav1.ManagedFieldsOperationUpdate ||
			e.APIVersion == "" || e.FieldsType != fieldsV1 {
			return false
		}
	}
	return true
}

// track returns the entries with the changes of w.
func track(w Write, entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	p := planOf(w.Kind, w.Object)
	diff := newTree()
	defer diff.release()
	v := walker{tree: diff, skip: resetFields(w.Kind, w.Subresource)}
	old := p.empty
	if w.Old != nil {
		old = reflect.ValueOf(w.Old).Elem()
	}
	v.root(p, old, reflect.ValueOf(w.Object).Elem())
	if owned := ownedOnly(w.Kind, w.Subresource); owned != nil {
		diff.keep(owned)
	}
	if diff.nodes[0].first == 0 {
		return sorted(entries)
	}
	mine := metav1.ManagedFieldsEntry{
		Manager: w.Manager, Operation: metav1.ManagedFieldsOperationUpdate,
		APIVersion: w.Kind.GVK.GroupVersion().String(), Subresource: w.Subresource, FieldsType: fieldsV1,
	}
	if mine.Manager == "" {
		mine.Manager = "unknown"
	}
	out := make([]metav1.ManagedFieldsEntry, 0, len(entries)+1)
	var previous *metav1.ManagedFieldsEntry
	for i := range entries {
		e := &entries[i]
		own := sameOwner(e, &mine)
		fields := e.FieldsV1
		if own {
			fields = merged(fields, diff)
		} else {
			fields = without(fields, diff)
		}
		switch {
		case own:
			if fields != nil {
				mine.FieldsV1, previous = fields, e
			}
		case fields != nil:
			out = append(out, *e)
			out[len(out)-1].FieldsV1 = fields
		}
	}
	if diff.has(0, added|modified) {
		if mine.FieldsV1 == nil {
			mine.FieldsV1 = encode(diff, added|modified)
		}
		now := metav1.NewTime(w.Now.UTC().Truncate(time.Second))
		mine.Time = &now
		out = append(out, mine)
	} else if previous != nil {
		out = append(out, *previous)
		out[len(out)-1].FieldsV1 = mine.FieldsV1
	}
	if len(out) == 0 {
		return nil
	}
	return sorted(capped(out))
}

func sameOwner(a, b *metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.Subresource == b.Subresource &&
		(a.APIVersion == b.APIVersion || a.Operation == metav1.ManagedFieldsOperationApply)
}

// without returns a set less the changed fields, or nil if nothing is left.
func without(fields *metav1.FieldsV1, diff *tree) *metav1.FieldsV1 {
	return edit(fields, func(set *tree) bool { return set.subtract(0, diff, 0) })
}

// merged returns the writer's own set less the fields that it removed, and with those that it added
// or modified, or nil if nothing is left.
func merged(fields *metav1.FieldsV1, diff *tree) *metav1.FieldsV1 {
	return edit(fields, func(set *tree) bool {
		if set.holds(0, diff, 0) {
			return false
		}
		changed := set.subtract(0, diff, 0)
		if diff.has(0, added|modified) {
			set.union(0, diff, 0, added|modified)
			return true
		}
		return changed
	})
}

// edit returns a set that change has changed, the same one if change returns false, or nil if it
// is not valid or nothing is left of it.
func edit(fields *metav1.FieldsV1, change func(*tree) bool) *metav1.FieldsV1 {
	if fields == nil {
		return nil
	}
	set := newTree()
	defer set.release()
	if !set.parse(fields.GetRawString()) {
		return nil
	}
	changed := change(set)
	if set.nodes[0].first == 0 {
		return nil
	}
	if !changed {
		return fields
	}
	return encode(set, member)
}

// texts holds buffers in which sets are encoded before they are copied to their final size.
var texts = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

func encode(t *tree, flags uint8) *metav1.FieldsV1 {
	buf := texts.Get().(*[]byte)
	*buf = t.appendJSON((*buf)[:0], flags)
	f := &metav1.FieldsV1{}
	f.SetRawBytes(*buf) // copies
	if cap(*buf) <= 64<<10 {
		texts.Put(buf)
	}
	return f
}

// sorted returns the entries in the order in which Kubernetes stores them.
func sorted(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	if slices.IsSortedFunc(entries, order) {
		return entries
	}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, order)
	return entries
}

func order(a, b metav1.ManagedFieldsEntry) int {
	return cmp.Or(
		cmp.Compare(a.Operation, b.Operation),
		cmp.Compare(seconds(a.Time), seconds(b.Time)),
		cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion),
		cmp.Compare(a.Subresource, b.Subresource),
	)
}

func seconds(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}
