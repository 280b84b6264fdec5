package proxy

import (
	"cmp"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// claim is the value that one Service wants for an element.
type claim struct {
	service types.NamespacedName
	value   string
}

// conflict records that two Services want different values for the same element.
type conflict struct {
	loser, holder types.NamespacedName
	key           string
}

// state is the desired table: the fragments of all Services, and the claims on each
// element. If two Services claim the same element, for example an external IP, the older
// Service gets it.
type state struct {
	fragments map[types.NamespacedName]*fragment
	claims    map[element][]claim
	// hairpins are the keys of the set of that name. Keys are only added: a packet may have
	// its destination translated before a transaction and its source rewritten after it,
	// and would reach the pod with the pod's own address if the key had been removed in
	// between. A key that is kept too long is harmless, because a pod that reaches itself
	// through a translated address always needs the rewriting.
	hairpins map[string]struct{}
}

// maxHairpins is the number of hairpins above which the table is rebuilt to drop old ones.
const maxHairpins = 4096

func newState() *state {
	return &state{
		fragments: map[types.NamespacedName]*fragment{},
		claims:    map[element][]claim{},
		hairpins:  map[string]struct{}{},
	}
}

// delta is the content of a transaction.
type delta struct {
	newSets, oldSets     map[string]*knftables.Set
	newChains, oldChains map[string][]string
	changedChains        map[string][]string
	newElements          map[element]string
	changedElements      map[element]string
	oldElements          map[element]string
	conflicts            []conflict
}

func newDelta() *delta {
	return &delta{
		newSets: map[string]*knftables.Set{}, oldSets: map[string]*knftables.Set{},
		newChains: map[string][]string{}, oldChains: map[string][]string{}, changedChains: map[string][]string{},
		newElements: map[element]string{}, changedElements: map[element]string{}, oldElements: map[element]string{},
	}
}

// put replaces a Service's fragment and adds the difference to d. A nil fragment removes
// the Service.
func (s *state) put(key types.NamespacedName, f *fragment, d *delta) {
	old := s.fragments[key]
	if old == nil {
		old = &fragment{}
	}
	next := f
	if next == nil {
		next = &fragment{}
		delete(s.fragments, key)
	} else {
		s.fragments[key] = f
	}
	for name, timeout := range next.affinity {
		if _, had := old.affinity[name]; !had {
			d.newSets[name] = affinitySet(name, timeout)
		}
	}
	for name, timeout := range old.affinity {
		if _, has := next.affinity[name]; !has {
			d.oldSets[name] = affinitySet(name, timeout)
		}
	}
	for name, rules := range next.chains {
		before, had := old.chains[name]
		switch {
		case !had:
			d.newChains[name] = rules
		case !slices.Equal(before, rules):
			d.changedChains[name] = rules
		}
	}
	for name, rules := range old.chains {
		if _, has := next.chains[name]; !has {
			d.oldChains[name] = rules
		}
	}
	for _, key := range next.hairpins {
		if _, had := s.hairpins[key]; !had {
			s.hairpins[key] = struct{}{}
			d.newElements[element{setHairpin, key}] = ""
		}
	}
	for e := range old.elements {
		if _, has := next.elements[e]; !has {
			s.reclaim(e, key, nil, d)
		}
	}
	for e, value := range next.elements {
		if before, had := old.elements[e]; !had || before != value {
			s.reclaim(e, key, &value, d)
		}
	}
}

// reclaim replaces a Service's claim on an element and records the resulting change of the
// element in d.
func (s *state) reclaim(e element, key types.NamespacedName, value *string, d *delta) {
	list := s.claims[e]
	before, had := winner(list)
	list = slices.DeleteFunc(list, func(c claim) bool { return c.service == key })
	if value != nil {
		list = append(list, claim{key, *value})
		slices.SortFunc(list, s.older)
	}
	if len(list) == 0 {
		delete(s.claims, e)
	} else {
		s.claims[e] = list
	}
	after, has := winner(list)
	for _, c := range list[min(1, len(list)):] {
		if c.value != after {
			d.conflicts = append(d.conflicts, conflict{loser: c.service, holder: list[0].service, key: e.key})
		}
	}
	s.note(e, before, had, after, has, d)
}

// note merges the change of one element into d, which may already contain a change of it:
// an address may move from one Service to another in the same sync.
func (s *state) note(e element, before string, had bool, after string, has bool, d *delta) {
	if was, ok := d.oldElements[e]; ok {
		before, had = was, true
	}
	_, isNew := d.newElements[e]
	_, isChanged := d.changedElements[e]
	delete(d.oldElements, e)
	delete(d.newElements, e)
	delete(d.changedElements, e)
	switch {
	case isNew && has, !isNew && !had && has:
		d.newElements[e] = after
	case isNew:
	case !had:
	case !has:
		d.oldElements[e] = before
	case isChanged || before != after:
		d.changedElements[e] = after
	}
}

func winner(list []claim) (string, bool) {
	if len(list) == 0 {
		return "", false
	}
	return list[0].value, true
}

func (s *state) older(a, b claim) int {
	fa, fb := s.fragments[a.service], s.fragments[b.service]
	if fa != nil && fb != nil {
		if c := fa.created.Compare(fb.created); c != 0 {
			return c
		}
	}
	return cmp.Compare(a.service.String(), b.service.String())
}

// empty reports whether there is nothing to change.
func (d *delta) empty() bool {
	return len(d.newSets)+len(d.oldSets)+len(d.newChains)+len(d.oldChains)+len(d.changedChains)+
		len(d.newElements)+len(d.changedElements)+len(d.oldElements) == 0
}

// into writes the delta as one transaction: first objects that others refer to, last those
// that are no longer referred to.
func (d *delta) into(tx *knftables.Transaction) {
	for _, name := range sorted(d.newSets) {
		tx.Add(d.newSets[name])
	}
	for _, name := range sorted(d.newChains) {
		tx.Add(&knftables.Chain{Name: name})
	}
	for _, name := range sorted(d.newChains) {
		addRules(tx, name, d.newChains[name])
	}
	for _, name := range sorted(d.changedChains) {
		tx.Flush(&knftables.Chain{Name: name})
		addRules(tx, name, d.changedChains[name])
	}
	for _, e := range sortedElements(d.oldElements) {
		tx.Delete(e.object(d.oldElements[e]))
	}
	for _, e := range sortedElements(d.changedElements) {
		tx.Delete(e.object(d.changedElements[e]))
		tx.Add(e.object(d.changedElements[e]))
	}
	for _, e := range sortedElements(d.newElements) {
		tx.Add(e.object(d.newElements[e]))
	}
	for _, name := range sorted(d.oldChains) {
		tx.Flush(&knftables.Chain{Name: name})
	}
	for _, name := range sorted(d.oldChains) {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range sorted(d.oldSets) {
		tx.Delete(d.oldSets[name])
	}
}

func addRules(tx *knftables.Transaction, chain string, rules []string) {
	for _, r := range rules {
		tx.Add(&knftables.Rule{Chain: chain, Rule: r})
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedElements(m map[element]string) []element {
	return slices.SortedFunc(maps.Keys(m), func(a, b element) int {
		return cmp.Or(cmp.Compare(a.container, b.container), cmp.Compare(a.key, b.key))
	})
}
