package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
)

// RBAC authorizes by roles and bindings. Bindings are indexed by subject, so that a request only
// considers those of its user and the user's groups.
type RBAC struct {
	mu       sync.RWMutex
	roles    map[objectKey]*rules // the namespace of a cluster role is empty
	bindings map[objectKey]binding
	subjects map[subject]*grants
	changed  chan struct{} // closed and replaced at each change
}

// objectKey identifies a role or binding; the namespace of a cluster-wide one is empty.
type objectKey struct{ namespace, name string }

// subject is a subject of a binding. A service account is represented by its user name.
type subject struct {
	group bool
	name  string
}

// grants are the bindings of one subject.
type grants struct {
	cluster    []grant
	namespaced map[string][]grant
}

// grant is one binding, as seen from one of its subjects.
type grant struct {
	binding objectKey
	role    objectKey
	reason  string // for the requests that it allows
}

// binding is what must be removed from the index when the binding changes.
type binding struct {
	roleRef  rbacv1.RoleRef
	subjects []subject
}

// NewRBAC returns an authorizer without roles, which allows nothing.
func NewRBAC() *RBAC {
	return &RBAC{
		roles:    make(map[objectKey]*rules),
		bindings: make(map[objectKey]binding),
		subjects: make(map[subject]*grants),
		changed:  make(chan struct{}),
	}
}

// Changed returns a channel that is closed at the next change of a rule or a binding.
func (r *RBAC) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// change wakes the callers that wait for Changed. The lock must be held.
func (r *RBAC) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	q := newQuestion(a)
	var missing []objectKey
	allowed, reason := false, ""
	r.mu.RLock()
	r.visit(a.User, a.Namespace, func(g *grant) bool {
		role := r.roles[g.role]
		switch {
		case role == nil:
			missing = append(missing, g.role)
		case role.allow(&q):
			allowed, reason = true, g.reason
		}
		return !allowed
	})
	r.mu.RUnlock()
	if !allowed && len(missing) > 0 {
		reason = "RBAC: " + notFound(missing).Error()
	}
	return allowed, reason, nil
}

// RulesFor returns all rules that apply to the user in the namespace and cluster-wide. The error
// lists bound roles that do not exist; the rules are those of the other roles.
func (r *RBAC) RulesFor(u request.User, namespace string) ([]rbacv1.PolicyRule, error) {
	var list []rbacv1.PolicyRule
	var missing []objectKey
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.visit(u, namespace, func(g *grant) bool {
		if role := r.roles[g.role]; role != nil {
			list = append(list, role.source...)
		} else {
			missing = append(missing, g.role)
		}
		return true
	})
	return list, notFound(missing)
}

// RulesOf returns the rules of the role that a binding in the namespace refers to.
func (r *RBAC) RulesOf(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	key := roleOf(ref, namespace)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if role := r.roles[key]; role != nil {
		return role.source, nil
	}
	return nil, notFound([]objectKey{key})
}

// visit calls f for each grant that applies to the user in the namespace until f returns false.
// The lock must be held.
func (r *RBAC) visit(u request.User, namespace string, f func(*grant) bool) {
	if !r.visitSubject(subject{name: u.Name}, namespace, f) {
		return
	}
	for _, group := range u.Groups {
		if !r.visitSubject(subject{group: true, name: group}, namespace, f) {
			return
		}
	}
}

func (r *RBAC) visitSubject(s subject, namespace string, f func(*grant) bool) bool {
	g := r.subjects[s]
	if g == nil {
		return true
	}
	for i := range g.cluster {
		if !f(&g.cluster[i]) {
			return false
		}
	}
	if namespace == "" {
		return true
	}
	local := g.namespaced[namespace]
	for i := range local {
		if !f(&local[i]) {
			return false
		}
	}
	return true
}

// SetRole adds or replaces a role (namespace "" for a cluster role). The rules must not be
// modified afterwards.
func (r *RBAC) SetRole(namespace, name string, list []rbacv1.PolicyRule) {
	compiled := newRules(list)
	r.mu.Lock()
	defer r.mu.Unlock()
	key := objectKey{namespace, name}
	if was := r.roles[key]; was == nil || !equality.Semantic.DeepEqual(was.source, list) {
		r.change()
	}
	r.roles[key] = compiled
}

// RemoveRole removes a role.
func (r *RBAC) RemoveRole(namespace, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.roles, objectKey{namespace, name})
	r.change()
}

// SetBinding adds or replaces a binding (namespace "" for a cluster-wide one).
func (r *RBAC) SetBinding(namespace, name string, ref rbacv1.RoleRef, to []rbacv1.Subject) {
	key := objectKey{namespace, name}
	b := binding{roleRef: ref}
	reasons := make([]string, 0, len(to))
	for _, s := range to {
		named, ok := subjectOf(s, namespace)
		if !ok || slices.Contains(b.subjects, named) {
			continue
		}
		b.subjects = append(b.subjects, named)
		reasons = append(reasons, reasonOf(key, ref, s))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.bindings[key]; !ok || was.roleRef != ref || !slices.Equal(was.subjects, b.subjects) {
		r.change()
	}
	r.remove(key)
	r.bindings[key] = b
	for i, s := range b.subjects {
		g := r.subjects[s]
		if g == nil {
			g = &grants{namespaced: make(map[string][]grant)}
			r.subjects[s] = g
		}
		entry := grant{binding: key, role: roleOf(ref, namespace), reason: reasons[i]}
		if namespace == "" {
			g.cluster = append(g.cluster, entry)
		} else {
			g.namespaced[namespace] = append(g.namespaced[namespace], entry)
		}
	}
}

// RemoveBinding removes a binding.
func (r *RBAC) RemoveBinding(namespace, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(objectKey{namespace, name})
	r.change()
}

func (r *RBAC) remove(key objectKey) {
	isIt := func(g grant) bool { return g.binding == key }
	for _, s := range r.bindings[key].subjects {
		g := r.subjects[s]
		if key.namespace == "" {
			g.cluster = slices.DeleteFunc(g.cluster, isIt)
		} else if left := slices.DeleteFunc(g.namespaced[key.namespace], isIt); len(left) > 0 {
			g.namespaced[key.namespace] = left
		} else {
			delete(g.namespaced, key.namespace)
		}
		if len(g.cluster) == 0 && len(g.namespaced) == 0 {
			delete(r.subjects, s)
		}
	}
	delete(r.bindings, key)
}

// subjectOf returns the subject that a binding in the namespace refers to. It returns false if
// the subject is invalid and never matches.
func subjectOf(s rbacv1.Subject, namespace string) (subject, bool) {
	switch s.Kind {
	case rbacv1.UserKind:
		return subject{name: s.Name}, true
	case rbacv1.GroupKind:
		return subject{group: true, name: s.Name}, true
	case rbacv1.ServiceAccountKind:
		if s.Namespace != "" {
			namespace = s.Namespace
		}
		if namespace == "" {
			return subject{}, false
		}
		return subject{name: request.ServiceAccountUser(namespace, s.Name)}, true
	}
	return subject{}, false
}

// roleOf returns the key of the role that a binding in the namespace refers to. A cluster-wide
// binding can only refer to a cluster role: for a Role, the key matches no role.
func roleOf(ref rbacv1.RoleRef, namespace string) objectKey {
	switch {
	case ref.Kind == "ClusterRole":
		return objectKey{name: ref.Name}
	case namespace == "":
		return objectKey{namespace: noNamespace, name: ref.Name}
	}
	return objectKey{namespace: namespace, name: ref.Name}
}

// noNamespace is not a valid namespace name.
const noNamespace = "*"

// reasonOf describes what a binding allows, in the words of Kubernetes' audit annotations.
func reasonOf(key objectKey, ref rbacv1.RoleRef, s rbacv1.Subject) string {
	name := fmt.Sprintf("%s %q", s.Kind, s.Name)
	if s.Kind == rbacv1.ServiceAccountKind {
		namespace := s.Namespace
		if namespace == "" {
			namespace = key.namespace
		}
		name = fmt.Sprintf("%s %q", s.Kind, s.Name+"/"+namespace)
	}
	if key.namespace == "" {
		return fmt.Sprintf("RBAC: allowed by ClusterRoleBinding %q of %s %q to %s", key.name, ref.Kind, ref.Name, name)
	}
	return fmt.Sprintf("RBAC: allowed by RoleBinding %q of %s %q to %s", key.name+"/"+key.namespace, ref.Kind, ref.Name, name)
}

// notFound returns Kubernetes' error for missing roles, or nil if there are none.
func notFound(missing []objectKey) error {
	if len(missing) == 0 {
		return nil
	}
	texts := make([]string, 0, len(missing))
	for _, key := range missing {
		singular := "role"
		if key.namespace == "" {
			singular = "clusterrole"
		}
		texts = append(texts, apierrors.NewNotFound(rbacv1.Resource(singular), key.name).Error())
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	if len(texts) == 1 {
		return errors.New(texts[0])
	}
	return fmt.Errorf("[%s]", strings.Join(texts, ", "))
}

// HasRole reports whether the role (namespace "" for a cluster role) is known.
func (r *RBAC) HasRole(namespace, name string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.roles[objectKey{namespace, name}] != nil
}

// HasBinding reports whether the binding (namespace "" for a cluster-wide one) is known.
func (r *RBAC) HasBinding(namespace, name string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.bindings[objectKey{namespace, name}]
	return ok
}
