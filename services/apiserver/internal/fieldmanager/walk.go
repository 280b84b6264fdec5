package fieldmanager

import (
	"reflect"
	"slices"
)

// walker compares two objects of the same type into a tree, like structured-merge-diff's Compare.
// An invalid reflect.Value stands for an absent value, and a nil pointer, slice or map for null.
type walker struct {
	tree *tree
	// skip lists the paths that the door resets ("status", "metadata.labels").
	skip []string
}

// root compares entire objects.
func (w *walker) root(p *plan, old, obj reflect.Value) {
	for i := range p.fields {
		f := &p.fields[i]
		if slices.Contains(w.skip, f.name) {
			continue
		}
		if f.name == "metadata" {
			w.metadata(f, old, obj)
			continue
		}
		w.field(f, old, obj, 0)
	}
}

// metadata compares the metadata, which is always present and is not owned as a whole.
func (w *walker) metadata(f *fieldPlan, old, obj reflect.Value) {
	before := w.tree.nodes[0].last
	i := w.tree.push(0, f.elem)
	l, r := old.FieldByIndex(f.index), obj.FieldByIndex(f.index)
	for j := range f.plan.fields {
		inner := &f.plan.fields[j]
		if untracked[inner.name] || len(w.skip) > 0 && slices.Contains(w.skip, "metadata."+inner.name) {
			continue
		}
		w.field(inner, l, r, i)
	}
	if w.tree.nodes[i].first == 0 {
		w.tree.drop(0, before)
	}
}

// field compares one field of two structs, either of which may be absent.
func (w *walker) field(f *fieldPlan, old, obj reflect.Value, parent int32) {
	l, r := f.get(old), f.get(obj)
	if l.IsValid() || r.IsValid() {
		w.visit(f.plan, l, r, parent, f.elem)
	}
}

// get returns the field's value. It is invalid if JSON omits the field.
func (f *fieldPlan) get(v reflect.Value) reflect.Value {
	if !v.IsValid() {
		return v
	}
	if len(f.index) == 1 {
		v = v.Field(f.index[0])
	} else {
		v = v.FieldByIndex(f.index)
	}
	if f.omitEmpty && isEmpty(v) || f.omitZero != nil && f.omitZero(v) {
		return reflect.Value{}
	}
	return v
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Pointer, reflect.Interface:
		return v.IsNil()
	case reflect.Bool:
		return !v.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int() == 0
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return v.Uint() == 0
	case reflect.Float32, reflect.Float64:
		return v.Float() == 0
	}
	return false
}

// isNull reports whether JSON encodes v as null. Types with their own encoding are handled by
// their comparison.
func isNull(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return v.IsNil()
	}
	return false
}

func deref(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return v.Elem()
	}
	return v
}

// visit compares two values, either of which may be absent, and adds the differences below
// parent.
func (w *walker) visit(p *plan, l, r reflect.Value, parent int32, elem string) {
	l, r = deref(l), deref(r)
	before := w.tree.nodes[parent].last
	if w.leaf(p, l, r) {
		switch {
		case !l.IsValid():
			w.tree.nodes[w.tree.push(parent, elem)].flags = added
		case !r.IsValid():
			w.tree.nodes[w.tree.push(parent, elem)].flags = removed
		case !same(p, l, r):
			w.tree.nodes[w.tree.push(parent, elem)].flags = modified
		}
		return
	}
	i := w.tree.push(parent, elem)
	switch p.form {
	case structForm:
		l, r := container(l), container(r)
		for j := range p.fields {
			w.field(&p.fields[j], l, r, i)
		}
	case mapForm:
		w.mapItems(p, container(l), container(r), i)
	case listForm:
		w.listItems(p, container(l), container(r), i)
	}
	switch {
	case !l.IsValid():
		w.tree.nodes[i].flags |= added
	case !r.IsValid():
		w.tree.nodes[i].flags |= removed
	}
	if n := &w.tree.nodes[i]; n.flags == 0 && n.first == 0 {
		w.tree.drop(parent, before)
	}
}

// container returns v with null replaced by an absent value, since neither has any contents.
func container(v reflect.Value) reflect.Value {
	if v.IsValid() && isNull(v) {
		return reflect.Value{}
	}
	return v
}

// leaf reports whether two values are compared as a whole: scalars, atomic lists and maps, and
// values that are empty on both sides.
func (w *walker) leaf(p *plan, l, r reflect.Value) bool {
	if p.form == scalarForm || p.form == customForm || p.atomic {
		return true
	}
	return hollow(p, l) && hollow(p, r)
}

// hollow reports whether a value is absent, null or empty.
func hollow(p *plan, v reflect.Value) bool {
	if !v.IsValid() || isNull(v) {
		return true
	}
	if p.form != structForm {
		return v.Len() == 0
	}
	for i := range p.fields {
		if p.fields[i].get(v).IsValid() {
			return false
		}
	}
	return true
}

// same reports whether two present values are equal as JSON values.
func same(p *plan, a, b reflect.Value) bool {
	a, b = deref(a), deref(b)
	if na, nb := isNull(a), isNull(b); na || nb {
		return na == nb
	}
	switch p.form {
	case customForm:
		return p.equal(a, b)
	case structForm:
		for i := range p.fields {
			f := &p.fields[i]
			x, y := f.get(a), f.get(b)
			if x.IsValid() != y.IsValid() || x.IsValid() && !same(f.plan, x, y) {
				return false
			}
		}
		return true
	case mapForm:
		if a.Len() != b.Len() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			y := b.MapIndex(it.Key())
			if !y.IsValid() || !same(p.elem, it.Value(), y) {
				return false
			}
		}
		return true
	case listForm:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(p.elem, a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	}
	return sameScalar(a, b)
}

func sameScalar(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.String:
		return a.String() == b.String()
	case reflect.Bool:
		return a.Bool() == b.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return a.Int() == b.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return a.Uint() == b.Uint()
	case reflect.Float32, reflect.Float64:
		return a.Float() == b.Float()
	case reflect.Slice:
		return string(a.Bytes()) == string(b.Bytes())
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// mapItems compares the entries of two maps in the order of their keys.
func (w *walker) mapItems(p *plan, l, r reflect.Value, parent int32) {
	if p.typ == stringMapType {
		w.stringItems(asStrings(l), asStrings(r), parent)
		return
	}
	var buf [16]string
	keys := buf[:0]
	if l.IsValid() {
		for it := l.MapRange(); it.Next(); {
			keys = append(keys, it.Key().String())
		}
	}
	if r.IsValid() {
		for it := r.MapRange(); it.Next(); {
			if k := it.Key(); !l.IsValid() || !l.MapIndex(k).IsValid() {
				keys = append(keys, k.String())
			}
		}
	}
	slices.Sort(keys)
	kt := p.typ.Key()
	for _, key := range keys {
		k := reflect.ValueOf(key).Convert(kt)
		var x, y reflect.Value
		if l.IsValid() {
			x = l.MapIndex(k)
		}
		if r.IsValid() {
			y = r.MapIndex(k)
		}
		w.visit(p.elem, x, y, parent, "f:"+key)
	}
}

var stringMapType = reflect.TypeFor[map[string]string]()

func asStrings(v reflect.Value) map[string]string {
	if !v.IsValid() {
		return nil
	}
	m, _ := v.Interface().(map[string]string)
	return m
}

// stringItems is mapItems for map[string]string, such as labels, annotations and data.
func (w *walker) stringItems(l, r map[string]string, parent int32) {
	var buf [16]string
	keys := buf[:0]
	for k := range l {
		keys = append(keys, k)
	}
	for k := range r {
		if _, ok := l[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		x, was := l[k]
		y, is := r[k]
		var flags uint8
		switch {
		case !was:
			flags = added
		case !is:
			flags = removed
		case x != y:
			flags = modified
		default:
			continue
		}
		w.tree.nodes[w.tree.push(parent, "f:"+k)].flags = flags
	}
}

// item holds the values that two lists have under the same path element. There are several in a
// list if keys are duplicated.
type item struct {
	elem         string
	l, r         reflect.Value
	moreL, moreR []reflect.Value
}

// listItems compares the elements of two associative lists by their keys.
func (w *walker) listItems(p *plan, l, r reflect.Value, parent int32) {
	if l.IsValid() && r.IsValid() && same(p, l, r) {
		return
	}
	var buf [8]item
	items := p.items(p.items(buf[:0], l, false), r, true)
	slices.SortFunc(items, func(a, b item) int { return compareElements(a.elem, b.elem) })
	for i := range items {
		w.listItem(p, &items[i], parent)
	}
}

// items adds a list's elements to the items with the same path elements.
func (p *plan) items(items []item, list reflect.Value, right bool) []item {
	if !list.IsValid() {
		return items
	}
	for i := range list.Len() {
		v := list.Index(i)
		elem, ok := p.element(v)
		if !ok {
			continue
		}
		at := slices.IndexFunc(items, func(it item) bool { return it.elem == elem })
		if at < 0 {
			items = append(items, item{elem: elem})
			at = len(items) - 1
		}
		switch it := &items[at]; {
		case right && !it.r.IsValid():
			it.r = v
		case right:
			it.moreR = append(it.moreR, v)
		case !it.l.IsValid():
			it.l = v
		default:
			it.moreL = append(it.moreL, v)
		}
	}
	return items
}

// listItem compares the values that both lists have under one key. Duplicates are compared as a
// whole.
func (w *walker) listItem(p *plan, it *item, parent int32) {
	flag := func(flags uint8) {
		if last := w.tree.nodes[parent].last; last != 0 && w.tree.nodes[last].elem == it.elem {
			w.tree.nodes[last].flags |= flags
			return
		}
		w.tree.nodes[w.tree.push(parent, it.elem)].flags = flags
	}
	switch twiceL, twiceR := len(it.moreL) > 0, len(it.moreR) > 0; {
	case !twiceL && !twiceR:
		w.visit(p.elem, it.l, it.r, parent, it.elem)
	case twiceL && twiceR:
		equal := func(a, b reflect.Value) bool { return same(p.elem, a, b) }
		if !equal(it.l, it.r) || !slices.EqualFunc(it.moreL, it.moreR, equal) {
			flag(modified)
		}
	case twiceL:
		if it.r.IsValid() {
			w.visit(p.elem, reflect.Value{}, it.r, parent, it.elem)
		}
		flag(removed)
	default:
		if it.l.IsValid() {
			w.visit(p.elem, it.l, reflect.Value{}, parent, it.elem)
		}
		flag(added)
	}
}

// element returns the path element of an associative list's item. It returns false if no key is
// set.
func (p *plan) element(v reflect.Value) (string, bool) {
	v = deref(v)
	var buf [128]byte
	if p.set {
		if isNull(v) {
			return "", false
		}
		return string(appendValue(append(buf[:0], "v:"...), v)), true
	}
	b := append(buf[:0], "k:{"...)
	any := false
	for i := range p.keys {
		k := &p.keys[i]
		f := deref(k.field.get(v))
		if !f.IsValid() {
			if k.def == nil {
				continue
			}
			f = reflect.ValueOf(k.def)
		}
		if any {
			b = append(b, ',')
		}
		any = true
		b = append(append(append(b, '"'), k.name...), `":`...)
		b = appendValue(b, f)
	}
	return string(append(b, '}')), any
}
