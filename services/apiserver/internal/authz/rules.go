package authz

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"

	"keelson.dev/services/apiserver/internal/request"
)

// rules holds the rules of a role, indexed so that a decision takes a few map lookups, however
// many rules the role has.
type rules struct {
	source    []rbacv1.PolicyRule
	resources map[resourceKey][]permission
	paths     []pathPermission
	// anyGroup, anyResource and anyParent are true if a rule uses that form of wildcard.
	anyGroup, anyResource, anyParent bool
}

// resourceKey is a group and a resource in the form that rules use: "pods", "pods/log", "*",
// "*/scale".
type resourceKey struct{ group, resource string }

type permission struct {
	verbs verbs
	names []string // empty matches all
}

type pathPermission struct {
	verbs verbs
	paths []string
}

// verbs is a set of verbs. The common ones are bits.
type verbs struct {
	bits  uint16
	other []string
}

// allVerbs is the bit of the wildcard "*".
const allVerbs uint16 = 1

var verbBits = map[string]uint16{
	rbacv1.VerbAll: allVerbs,
	"get":          1 << 1, "list": 1 << 2, "watch": 1 << 3, "create": 1 << 4, "update": 1 << 5,
	"patch": 1 << 6, "delete": 1 << 7, "deletecollection": 1 << 8,
}

func newVerbs(list []string) (v verbs) {
	for _, s := range list {
		if bit := verbBits[s]; bit != 0 {
			v.bits |= bit
		} else {
			v.other = append(v.other, s)
		}
	}
	return v
}

// has reports whether the set contains verb. bit is the verb's entry in verbBits, or 0.
func (v verbs) has(verb string, bit uint16) bool {
	return v.bits&(bit|allVerbs) != 0 || (bit == 0 && slices.Contains(v.other, verb))
}

func newRules(source []rbacv1.PolicyRule) *rules {
	r := &rules{source: source, resources: make(map[resourceKey][]permission)}
	for i := range source {
		rule := &source[i]
		v := newVerbs(rule.Verbs)
		for _, group := range rule.APIGroups {
			r.anyGroup = r.anyGroup || group == rbacv1.APIGroupAll
			for _, name := range rule.Resources {
				r.anyResource = r.anyResource || name == rbacv1.ResourceAll
				r.anyParent = r.anyParent || strings.HasPrefix(name, "*/")
				key := resourceKey{group, name}
				r.resources[key] = append(r.resources[key], permission{v, rule.ResourceNames})
			}
		}
		if len(rule.NonResourceURLs) > 0 {
			r.paths = append(r.paths, pathPermission{v, rule.NonResourceURLs})
		}
	}
	return r
}

// question is a request in the form that rules match, prepared once for all roles.
type question struct {
	*request.Attributes
	bit      uint16
	combined string
	parent   string // "*/" and the subresource, or empty
}

func newQuestion(a *request.Attributes) question {
	q := question{Attributes: a, bit: verbBits[a.Verb] &^ allVerbs, combined: combined(a)}
	if a.Subresource != "" {
		q.parent = "*/" + a.Subresource
	}
	return q
}

func (r *rules) allow(q *question) bool {
	if !q.IsResource() {
		return r.allowPath(q)
	}
	if r.allowIn(q, q.Resource.Group) {
		return true
	}
	return r.anyGroup && r.allowIn(q, rbacv1.APIGroupAll)
}

func (r *rules) allowIn(q *question, group string) bool {
	return r.allowKey(q, resourceKey{group, q.combined}) ||
		r.anyResource && r.allowKey(q, resourceKey{group, rbacv1.ResourceAll}) ||
		r.anyParent && q.parent != "" && r.allowKey(q, resourceKey{group, q.parent})
}

func (r *rules) allowKey(q *question, key resourceKey) bool {
	list := r.resources[key]
	for i := range list {
		if list[i].verbs.has(q.Verb, q.bit) && (len(list[i].names) == 0 || slices.Contains(list[i].names, q.Name)) {
			return true
		}
	}
	return false
}

func (r *rules) allowPath(q *question) bool {
	for i := range r.paths {
		if r.paths[i].verbs.has(q.Verb, q.bit) && slices.ContainsFunc(r.paths[i].paths, func(p string) bool { return pathMatches(p, q.Path) }) {
			return true
		}
	}
	return false
}

// pathMatches reports whether a rule's path covers a request's path. A "*" at the end matches any
// suffix.
func pathMatches(rule, path string) bool {
	if rule == path {
		return true
	}
	return strings.HasSuffix(rule, "*") && strings.HasPrefix(path, strings.TrimRight(rule, "*"))
}
