package fieldmanager

import (
	"encoding/json"
	"sync"
)

// Flags of a node. A set of fields uses member; a comparison of two objects uses the other three.
const (
	member uint8 = 1 << iota
	added
	modified
	removed
)

// tree is a set of fields, or a comparison: a trie of path elements in their serialized form
// ("f:spec", `k:{"name":"a"}`, `v:"x"`), in order.
type tree struct {
	nodes []node // nodes[0] is the root
}

type node struct {
	elem  string
	flags uint8
	// Indexes of the first and last child and of the next sibling; 0 means that there is none.
	first, last, next int32
}

var trees = sync.Pool{New: func() any { return &tree{nodes: make([]node, 0, 256)} }}

func newTree() *tree {
	t := trees.Get().(*tree)
	t.nodes = append(t.nodes[:0], node{})
	return t
}

func (t *tree) release() {
	clear(t.nodes) // releases the strings
	if cap(t.nodes) < 1<<14 {
		trees.Put(t)
	}
}

// push appends a child.
func (t *tree) push(parent int32, elem string) int32 {
	i := int32(len(t.nodes))
	t.nodes = append(t.nodes, node{elem: elem})
	p := &t.nodes[parent]
	if p.last == 0 {
		p.first = i
	} else {
		t.nodes[p.last].next = i
	}
	p.last = i
	return i
}

// drop removes the last child, whose preceding sibling is before.
func (t *tree) drop(parent, before int32) {
	p := &t.nodes[parent]
	p.last = before
	if before == 0 {
		p.first = 0
	} else {
		t.nodes[before].next = 0
	}
}

// has reports whether a node below i has any of the flags.
func (t *tree) has(i int32, flags uint8) bool {
	for c := t.nodes[i].first; c != 0; c = t.nodes[c].next {
		if t.nodes[c].flags&flags != 0 || t.has(c, flags) {
			return true
		}
	}
	return false
}

// subtract removes from the set below i every member that the comparison below j contains, and
// reports whether there was any.
func (t *tree) subtract(i int32, diff *tree, j int32) (changed bool) {
	var before int32
	d := diff.nodes[j].first
	for c := t.nodes[i].first; c != 0; c = t.nodes[c].next {
		for d != 0 && compareElements(diff.nodes[d].elem, t.nodes[c].elem) < 0 {
			d = diff.nodes[d].next
		}
		if d != 0 && compareElements(diff.nodes[d].elem, t.nodes[c].elem) == 0 {
			if diff.nodes[d].flags != 0 && t.nodes[c].flags != 0 {
				t.nodes[c].flags = 0
				changed = true
			}
			changed = t.subtract(c, diff, d) || changed
			if t.nodes[c].flags == 0 && t.nodes[c].first == 0 {
				t.unlink(i, before, c)
				continue
			}
		}
		before = c
	}
	return changed
}

// holds reports whether the comparison below j adds and modifies members of the set below i alone,
// so that a writer that owns the set owns the same fields afterwards.
func (t *tree) holds(i int32, diff *tree, j int32) bool {
	c := t.nodes[i].first
	for d := diff.nodes[j].first; d != 0; d = diff.nodes[d].next {
		n := &diff.nodes[d]
		for c != 0 && compareElements(t.nodes[c].elem, n.elem) < 0 {
			c = t.nodes[c].next
		}
		if c == 0 || compareElements(t.nodes[c].elem, n.elem) != 0 || n.flags&removed != 0 ||
			n.flags != 0 && t.nodes[c].flags == 0 || !t.holds(c, diff, d) {
			return false
		}
	}
	return true
}

// unlink removes the child c, whose preceding sibling is before.
func (t *tree) unlink(parent, before, c int32) {
	next := t.nodes[c].next
	if before == 0 {
		t.nodes[parent].first = next
	} else {
		t.nodes[before].next = next
	}
	if t.nodes[parent].last == c {
		t.nodes[parent].last = before
	}
}

// union adds to the set below i the nodes of o below j that have any of the flags.
func (t *tree) union(i int32, o *tree, j int32, flags uint8) {
	var before int32
	c := t.nodes[i].first
	for d := o.nodes[j].first; d != 0; d = o.nodes[d].next {
		if o.nodes[d].flags&flags == 0 && !o.has(d, flags) {
			continue
		}
		for c != 0 && compareElements(t.nodes[c].elem, o.nodes[d].elem) < 0 {
			before, c = c, t.nodes[c].next
		}
		at := c
		if c == 0 || compareElements(t.nodes[c].elem, o.nodes[d].elem) != 0 {
			at = t.insert(i, before, o.nodes[d].elem)
			before = at
		}
		if o.nodes[d].flags&flags != 0 {
			t.nodes[at].flags |= member
		}
		t.union(at, o, d, flags)
	}
}

// insert adds a child after the sibling before, or as the first child if before is 0.
func (t *tree) insert(parent, before int32, elem string) int32 {
	i := int32(len(t.nodes))
	n := node{elem: elem}
	if before == 0 {
		n.next = t.nodes[parent].first
	} else {
		n.next = t.nodes[before].next
	}
	t.nodes = append(t.nodes, n)
	if before == 0 {
		t.nodes[parent].first = i
	} else {
		t.nodes[before].next = i
	}
	if n.next == 0 {
		t.nodes[parent].last = i
	}
	return i
}

// appendJSON appends the nodes that have any of the flags, as FieldsV1.
func (t *tree) appendJSON(b []byte, flags uint8) []byte {
	return append(t.appendChildren(append(b, '{'), 0, flags), '}')
}

func (t *tree) appendChildren(b []byte, i int32, flags uint8) []byte {
	first := b[len(b)-1] == '{'
	for c := t.nodes[i].first; c != 0; c = t.nodes[c].next {
		n := &t.nodes[c]
		start := len(b)
		if !first {
			b = append(b, ',')
		}
		b = appendString(b, n.elem)
		b = append(b, ':', '{')
		self := n.flags&flags != 0
		open := len(b)
		if n.first != 0 {
			if self {
				b = append(b, `".":{}`...)
			}
			before := len(b)
			b = t.appendChildren(b, c, flags)
			if len(b) == before {
				b = b[:open]
			}
		}
		if len(b) == open && !self {
			b = b[:start]
			continue
		}
		b = append(b, '}')
		first = false
	}
	return b
}

// appendString appends a string as jsoniter's stream does: only quotes, backslashes and control
// characters are escaped.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		start = i + 1
	}
	return append(append(b, s[start:]...), '"')
}

// maxDepth bounds the nesting of a set that is parsed.
const maxDepth = 100

// parse parses FieldsV1 into an empty tree, whose elements share the memory of data. It returns
// false if data is not valid FieldsV1.
func (t *tree) parse(data string) bool {
	p := parser{tree: t, data: data}
	return p.space() && p.object(0, 0) && !p.space()
}

type parser struct {
	tree *tree
	data string
	pos  int
}

// space skips white space and reports whether there is more input.
func (p *parser) space() bool {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return true
		}
	}
	return false
}

func (p *parser) take(c byte) bool {
	if p.space() && p.data[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

// object parses the children of node i. An element without children is a member.
func (p *parser) object(i int32, depth int) bool {
	if depth > maxDepth || !p.take('{') {
		return false
	}
	empty := true
	for !p.take('}') {
		if !empty && !p.take(',') {
			return false
		}
		empty = false
		elem, ok := p.str()
		if !ok || !p.take(':') {
			return false
		}
		if elem == "." {
			if !p.take('{') || !p.take('}') {
				return false
			}
			p.tree.nodes[i].flags |= member
			continue
		}
		if len(elem) < 2 || elem[1] != ':' {
			return false
		}
		c := p.child(i, elem)
		if !p.object(c, depth+1) {
			return false
		}
	}
	if p.tree.nodes[i].first == 0 && i != 0 {
		p.tree.nodes[i].flags |= member
	}
	return true
}

// child appends a child, or inserts it in order if the input is not sorted.
func (p *parser) child(i int32, elem string) int32 {
	t := p.tree
	last := t.nodes[i].last
	if last == 0 || compareElements(t.nodes[last].elem, elem) < 0 {
		return t.push(i, elem)
	}
	var before int32
	for c := t.nodes[i].first; c != 0; before, c = c, t.nodes[c].next {
		switch d := compareElements(t.nodes[c].elem, elem); {
		case d == 0:
			return c
		case d > 0:
			return t.insert(i, before, elem)
		}
	}
	return t.insert(i, before, elem)
}

func (p *parser) str() (string, bool) {
	if !p.take('"') {
		return "", false
	}
	start := p.pos
	plain, simple := true, true
	for ; p.pos < len(p.data) && p.data[p.pos] != '"'; p.pos++ {
		if p.data[p.pos] == '\\' {
			plain = false
			p.pos++
			if p.pos < len(p.data) && p.data[p.pos] != '"' && p.data[p.pos] != '\\' {
				simple = false
			}
		}
	}
	if p.pos >= len(p.data) {
		return "", false
	}
	raw := p.data[start:p.pos]
	p.pos++
	switch {
	case plain:
		return raw, true
	case simple:
		out := make([]byte, 0, len(raw))
		for i := 0; i < len(raw); i++ {
			if raw[i] == '\\' {
				i++
			}
			out = append(out, raw[i])
		}
		return string(out), true
	}
	var out string
	err := json.Unmarshal([]byte(p.data[start-1:p.pos]), &out)
	return out, err == nil
}
