// Package fieldmanager keeps metadata.managedFields: who owns which field of an
// object (KEP-555).
//
// For creates, updates and patches a walker, compiled once for each Go type,
// compares the old state with the new one and edits the owners' sets; it comes to
// the same result as apimachinery's updater, which its tests hold it to, at a
// small part of the cost. Apply alone runs the structured-merge machinery, which
// the first apply loads.
//
// It must never change an object other than the new one, nor fail a create,
// update or patch.
package fieldmanager

import (
	"bytes"
	"cmp"
	"reflect"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// Write is a write as the field manager sees it.
type Write struct {
	Kind        *resource.Kind
	Subresource string
	// Old is the present state, nil on create; it is not changed. Object is the
	// new one.
	Old, Object resource.Object
	Manager     string
	Now         time.Time
}

// fieldsV1 is the only type of field sets.
const fieldsV1 = "FieldsV1"

// Fields tracks and applies. The zero value is not usable; see New.
type Fields struct {
	machinery machinery
}

// New makes a Fields for the kinds of a table.
func New(table *resource.Table) *Fields {
	f := &Fields{}
	f.machinery.table = table
	return f
}

// Track records in w.Object what w.Manager changed from w.Old.
func (f *Fields) Track(w Write) {
	entries := managed(w)
	w.Object.SetManagedFields(nil)
	// Objects that nobody has tracked since their creation stay so until the
	// first apply.
	if len(entries) == 0 && w.Old != nil && w.Old.GetUID() != "" {
		return
	}
	w.Object.SetManagedFields(track(w, entries))
}

// managed are the entries to start from: those of the new object, unless it has
// none, cannot be trusted, or asks for a reset.
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

// isReset tells an explicit empty list, or one with one empty entry.
func isReset(entries []metav1.ManagedFieldsEntry) bool {
	if len(entries) == 0 {
		return entries != nil
	}
	return len(entries) == 1 && reflect.DeepEqual(entries[0], metav1.ManagedFieldsEntry{})
}

// valid tells whether the entries can be read.
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

// track edits the entries.
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
	var previous *metav1.FieldsV1
	for i := range entries {
		e := entries[i]
		rest, ok := without(e.FieldsV1, diff)
		if !ok {
			continue
		}
		e.FieldsV1 = rest
		if sameOwner(&e, &mine) {
			previous = rest
			continue // it comes back below, or as it was if nothing was taken
		}
		out = append(out, e)
	}
	if fields, any := taken(previous, diff); any {
		now := metav1.NewTime(w.Now.UTC().Truncate(time.Second))
		mine.Time, mine.FieldsV1 = &now, fields
		out = append(out, mine)
	} else if previous != nil {
		for i := range entries {
			if sameOwner(&entries[i], &mine) {
				e := entries[i]
				e.FieldsV1 = previous
				out = append(out, e)
				break
			}
		}
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

// without is a set less what changed; false if nothing is left.
func without(fields *metav1.FieldsV1, diff *tree) (*metav1.FieldsV1, bool) {
	if fields == nil {
		return nil, false
	}
	set := newTree()
	defer set.release()
	if !set.parse(fields.GetRawBytes()) {
		return nil, false
	}
	changed := set.subtract(0, diff, 0)
	if set.nodes[0].first == 0 {
		return nil, false
	}
	if !changed {
		return fields, true
	}
	return encode(set, member), true
}

// taken is the writer's new set: what it had and what it added or modified. any
// is false if it took nothing.
func taken(previous *metav1.FieldsV1, diff *tree) (fields *metav1.FieldsV1, any bool) {
	if !diff.has(0, added|modified) {
		return nil, false
	}
	if previous == nil {
		return encode(diff, added|modified), true
	}
	set := newTree()
	defer set.release()
	set.parse(previous.GetRawBytes())
	set.union(0, diff, 0, added|modified)
	return encode(set, member), true
}

// texts are buffers in which sets are written before they are copied to their
// size.
var texts = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

func encode(t *tree, flags uint8) *metav1.FieldsV1 {
	buf := texts.Get().(*[]byte)
	*buf = t.appendJSON((*buf)[:0], flags)
	f := &metav1.FieldsV1{}
	f.SetRawBytes(bytes.Clone(*buf))
	if cap(*buf) <= 64<<10 {
		texts.Put(buf)
	}
	return f
}

// sorted puts entries into the order that Kubernetes stores them in.
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
