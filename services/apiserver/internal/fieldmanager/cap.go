package fieldmanager

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxUpdaters is how many entries of updates are kept: apimachinery's
	// DefaultMaxUpdateManagers.
	maxUpdaters = 10
	// ancient is the manager that the oldest entries are merged into.
	ancient = "ancient-changes"
)

// capped merges the oldest update entries of a version into one entry while there are more than
// maxUpdaters.
func capped(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	var updaters []int
	for i := range entries {
		if entries[i].Operation == metav1.ManagedFieldsOperationUpdate {
			updaters = append(updaters, i)
		}
	}
	if len(updaters) <= maxUpdaters {
		return entries
	}
	slices.SortFunc(updaters, func(i, j int) int {
		a, b := &entries[i], &entries[j]
		return cmp.Or(cmp.Compare(seconds(a.Time), seconds(b.Time)), cmp.Compare(identifier(a), identifier(b)))
	})
	gone := make([]bool, len(entries))
	buckets := map[string]*metav1.ManagedFieldsEntry{} // by version
	first := map[string]int{}
	count := len(updaters)
	for _, i := range updaters {
		if count <= maxUpdaters {
			break
		}
		e := &entries[i]
		oldest, ok := first[e.APIVersion]
		if !ok {
			first[e.APIVersion] = i
			continue
		}
		b := buckets[e.APIVersion]
		if b == nil {
			b = &metav1.ManagedFieldsEntry{
				Manager: ancient, Operation: metav1.ManagedFieldsOperationUpdate,
				APIVersion: e.APIVersion, FieldsType: fieldsV1, FieldsV1: entries[oldest].FieldsV1,
			}
			for j := range entries { // an earlier bucket is continued
				if sameOwner(&entries[j], b) {
					b.FieldsV1 = joined(b.FieldsV1, entries[j].FieldsV1)
					gone[j] = true
				}
			}
			gone[oldest] = true
			buckets[e.APIVersion] = b
		}
		if !gone[i] {
			b.FieldsV1 = joined(b.FieldsV1, e.FieldsV1)
			gone[i] = true
		}
		b.Time = e.Time
		count--
	}
	out := make([]metav1.ManagedFieldsEntry, 0, len(entries))
	for i := range entries {
		if !gone[i] {
			out = append(out, entries[i])
		}
	}
	for _, b := range buckets {
		out = append(out, *b)
	}
	return out
}

// identifier orders entries of the same second as apimachinery's identifiers do.
func identifier(e *metav1.ManagedFieldsEntry) string {
	return e.Manager + "\x00" + string(e.Operation) + "\x00" + e.APIVersion + "\x00" + e.Subresource
}

func joined(a, b *metav1.FieldsV1) *metav1.FieldsV1 {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	x, y := newTree(), newTree()
	defer x.release()
	defer y.release()
	x.parse(a.GetRawString())
	y.parse(b.GetRawString())
	x.union(0, y, 0, member)
	return encode(x, member)
}
