package authz

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	"keelson.dev/services/apiserver/internal/request"
)

func words(s string) []string { return strings.Split(s, " ") }

func rule(groups, resources, verbs string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: words(groups), Resources: words(resources), Verbs: words(verbs), ResourceNames: names}
}

func paths(verbs, urls string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: words(verbs), NonResourceURLs: words(urls)}
}

func ask(user, verb, target string) *request.Attributes {
	a := &request.Attributes{User: request.User{Name: user, Groups: []string{"system:authenticated"}}, Verb: verb}
	if strings.HasPrefix(target, "/") {
		a.Path = target
		return a
	}
	// target is [namespace:]resource[/subresource][.group][=name]
	if namespace, rest, ok := strings.Cut(target, ":"); ok {
		a.Namespace, target = namespace, rest
	}
	target, a.Name, _ = strings.Cut(target, "=")
	target, group, _ := strings.Cut(target, ".")
	a.Resource = schema.GroupVersionResource{Group: group, Version: "v1"}
	a.Resource.Resource, a.Subresource, _ = strings.Cut(target, "/")
	return a
}

func clusterRole(name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
}

func localRole(name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}
}

func user(name string) rbacv1.Subject  { return rbacv1.Subject{Kind: "User", Name: name} }
func group(name string) rbacv1.Subject { return rbacv1.Subject{Kind: "Group", Name: name} }
func account(namespace, name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "ServiceAccount", Namespace: namespace, Name: name}
}

func TestRBAC(t *testing.T) {
	z := New()
	r := z.RBAC
	r.SetRole("", "reader", []rbacv1.PolicyRule{rule("", "pods pods/log", "get list watch")})
	r.SetRole("", "scaler", []rbacv1.PolicyRule{rule("*", "*/scale", "get update")})
	r.SetRole("", "root", []rbacv1.PolicyRule{rule("*", "*", "*"), paths("*", "*")})
	r.SetRole("", "discovery", []rbacv1.PolicyRule{paths("get", "/api /apis/* /version")})
	r.SetRole("", "one", []rbacv1.PolicyRule{rule("", "secrets", "get watch", "a", "b")})
	r.SetRole("", "impersonator", []rbacv1.PolicyRule{rule("", "users", "impersonate", "bob")})
	r.SetRole("dev", "writer", []rbacv1.PolicyRule{rule("apps", "deployments", "create update")})

	r.SetBinding("", "all-discovery", clusterRole("discovery"), []rbacv1.Subject{group("system:authenticated")})
	r.SetBinding("", "reader", clusterRole("reader"), []rbacv1.Subject{user("cara")})
	r.SetBinding("dev", "reader", clusterRole("reader"), []rbacv1.Subject{user("dan"), account("", "bot"), account("other", "bot")})
	r.SetBinding("dev", "writer", localRole("writer"), []rbacv1.Subject{user("dan")})
	r.SetBinding("", "scaler", clusterRole("scaler"), []rbacv1.Subject{user("sam")})
	r.SetBinding("", "one", clusterRole("one"), []rbacv1.Subject{user("ora")})
	r.SetBinding("", "root", clusterRole("root"), []rbacv1.Subject{user("root")})
	r.SetBinding("", "gone", clusterRole("gone"), []rbacv1.Subject{user("lost")})
	r.SetBinding("", "odd", localRole("writer"), []rbacv1.Subject{user("odd"), {Kind: "Robot", Name: "odd"}, account("", "x")})
	r.SetBinding("", "imp", clusterRole("impersonator"), []rbacv1.Subject{user("ivy")})

	tests := []struct {
		user, verb, target string
		want               bool
		reason             string
	}{
		{"cara", "get", "any:pods=x", true, `RBAC: allowed by ClusterRoleBinding "reader" of ClusterRole "reader" to User "cara"`},
		{"cara", "list", "pods", true, ""},
		{"cara", "get", "any:pods/log=x", true, ""},
		{"cara", "get", "any:pods/exec=x", false, ""},
		{"cara", "delete", "any:pods=x", false, ""},
		{"cara", "get", "any:pods.other=x", false, ""},
		{"dan", "get", "dev:pods=x", true, `RBAC: allowed by RoleBinding "reader/dev" of ClusterRole "reader" to User "dan"`},
		{"dan", "get", "prod:pods=x", false, ""},
		{"dan", "list", "pods", false, ""},
		{"dan", "update", "dev:deployments.apps=x", true, ""},
		{"dan", "patch", "dev:deployments.apps=x", false, ""},
		{"dan", "get", "/apis/apps/v1", true, ""},
		{"dan", "get", "/api", true, ""},
		{"dan", "get", "/api/v1", false, ""},
		{"dan", "post", "/version", false, ""},
		{"system:serviceaccount:dev:bot", "get", "dev:pods=x", true, `RBAC: allowed by RoleBinding "reader/dev" of ClusterRole "reader" to ServiceAccount "bot/dev"`},
		{"system:serviceaccount:other:bot", "get", "dev:pods=x", true, ""},
		{"system:serviceaccount:third:bot", "get", "dev:pods=x", false, ""},
		{"sam", "update", "a:deployments/scale.apps=x", true, ""},
		{"sam", "update", "a:deployments.apps=x", false, ""},
		{"sam", "update", "a:deployments/status.apps=x", false, ""},
		{"ora", "get", "n:secrets=b", true, ""},
		{"ora", "get", "n:secrets=c", false, ""},
		{"ora", "list", "n:secrets", false, ""},
		{"root", "frobnicate", "n:things/sub.example.com=x", true, ""},
		{"root", "delete", "/anything", true, ""},
		{"lost", "get", "pods", false, `RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found`},
		{"odd", "create", "dev:deployments.apps", false, `RBAC: role.rbac.authorization.k8s.io "writer" not found`},
		{"ivy", "impersonate", "users=bob", true, ""},
		{"ivy", "impersonate", "users=eve", false, ""},
		{"ivy", "get", "users=bob", false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.user+" "+tt.verb+" "+tt.target, func(t *testing.T) {
			got, reason, err := z.Authorize(context.Background(), ask(tt.user, tt.verb, tt.target))
			if err != nil || got != tt.want || tt.reason != "" && reason != tt.reason {
				t.Fatalf("%v %q %v; want %v %q", got, reason, err, tt.want, tt.reason)
			}
		})
	}

	watch := ask("ora", "watch", "n:secrets")
	watch.FieldSelector = "metadata.name=a"
	if ok, _, _ := z.Authorize(context.Background(), watch); !ok {
		t.Error("watching one object by name was refused")
	}
	watch.FieldSelector = "metadata.name!=a"
	if ok, _, _ := z.Authorize(context.Background(), watch); ok {
		t.Error("watching all but one object was allowed")
	}
	masters := &request.Attributes{User: request.User{Name: "x", Groups: []string{MastersGroup}}, Verb: "delete", Path: "/"}
	if ok, _, _ := z.Authorize(context.Background(), masters); !ok {
		t.Error("system:masters was refused")
	}

	r.RemoveBinding("dev", "reader")
	r.SetRole("", "reader", nil)
	for _, user := range []string{"dan", "cara", "system:serviceaccount:dev:bot"} {
		if ok, _, _ := z.Authorize(context.Background(), ask(user, "get", "dev:pods=x")); ok {
			t.Errorf("%s kept a right that was removed", user)
		}
	}
}

// naive implements the definition of RBAC literally, over the objects.
type naive struct {
	roles    map[objectKey][]rbacv1.PolicyRule
	bindings []rbacv1.RoleBinding // the namespace of a cluster-wide one is empty
}

func (n *naive) allow(a *request.Attributes) bool {
	for _, b := range n.bindings {
		if b.Namespace != "" && b.Namespace != a.Namespace {
			continue
		}
		if !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool {
			switch s.Kind {
			case "User":
				return a.User.Name == s.Name
			case "Group":
				return slices.Contains(a.User.Groups, s.Name)
			}
			namespace := s.Namespace
			if namespace == "" {
				namespace = b.Namespace
			}
			return namespace != "" && a.User.Name == "system:serviceaccount:"+namespace+":"+s.Name
		}) {
			continue
		}
		key := objectKey{name: b.RoleRef.Name}
		if b.RoleRef.Kind == "Role" {
			if b.Namespace == "" {
				continue
			}
			key.namespace = b.Namespace
		}
		for _, r := range n.roles[key] {
			if covers(r, a) {
				return true
			}
		}
	}
	return false
}

func covers(r rbacv1.PolicyRule, a *request.Attributes) bool {
	has := func(list []string, s string) bool { return slices.Contains(list, "*") || slices.Contains(list, s) }
	if !has(r.Verbs, a.Verb) {
		return false
	}
	if a.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, func(p string) bool {
			return p == a.Path || strings.HasSuffix(p, "*") && strings.HasPrefix(a.Path, p[:len(p)-1])
		})
	}
	full := a.Resource.Resource
	if a.Subresource != "" {
		full += "/" + a.Subresource
	}
	return has(r.APIGroups, a.Resource.Group) &&
		(has(r.Resources, full) || a.Subresource != "" && slices.Contains(r.Resources, "*/"+a.Subresource)) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name))
}

func TestRBACMatchesTheDefinition(t *testing.T) {
	some := func(t *rapid.T, label string, min int, from ...string) []string {
		return rapid.SliceOfN(rapid.SampledFrom(from), min, 3).Draw(t, label)
	}
	var (
		names      = []string{"a", "b"}
		namespaces = []string{"", "n", "m"}
		groups     = []string{"", "apps", "*"}
		resources  = []string{"pods", "pods/log", "*/log", "deployments", "*"}
		verbs      = []string{"get", "create", "bind", "*"}
		urls       = []string{"/api", "/api/*", "*", "/x"}
	)
	rapid.Check(t, func(t *rapid.T) {
		r, n := NewRBAC(), &naive{roles: map[objectKey][]rbacv1.PolicyRule{}}
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			key := objectKey{rapid.SampledFrom(namespaces).Draw(t, "namespace"), rapid.SampledFrom(names).Draw(t, "name")}
			sameBinding := func(b rbacv1.RoleBinding) bool { return b.Namespace == key.namespace && b.Name == key.name }
			switch rapid.IntRange(0, 5).Draw(t, "change") {
			case 0:
				delete(n.roles, key)
				r.RemoveRole(key.namespace, key.name)
			case 1, 2:
				var list []rbacv1.PolicyRule
				for range rapid.IntRange(0, 3).Draw(t, "rules") {
					if rapid.Bool().Draw(t, "path") {
						list = append(list, rbacv1.PolicyRule{Verbs: some(t, "verbs", 1, verbs...), NonResourceURLs: some(t, "urls", 1, urls...)})
						continue
					}
					list = append(list, rbacv1.PolicyRule{
						Verbs: some(t, "verbs", 1, verbs...), APIGroups: some(t, "groups", 1, groups...),
						Resources: some(t, "resources", 1, resources...), ResourceNames: some(t, "names", 0, names...),
					})
				}
				n.roles[key] = list
				r.SetRole(key.namespace, key.name, list)
			case 3:
				n.bindings = slices.DeleteFunc(n.bindings, sameBinding)
				r.RemoveBinding(key.namespace, key.name)
			default:
				b := rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: key.namespace, Name: key.name}}
				b.RoleRef = rbacv1.RoleRef{Kind: rapid.SampledFrom([]string{"Role", "ClusterRole"}).Draw(t, "kind"), Name: rapid.SampledFrom(names).Draw(t, "role")}
				for range rapid.IntRange(0, 3).Draw(t, "subjects") {
					b.Subjects = append(b.Subjects, rbacv1.Subject{
						Kind:      rapid.SampledFrom([]string{"User", "Group", "ServiceAccount"}).Draw(t, "subject"),
						Name:      rapid.SampledFrom(names).Draw(t, "who"),
						Namespace: rapid.SampledFrom(namespaces).Draw(t, "whose"),
					})
				}
				n.bindings = append(slices.DeleteFunc(n.bindings, sameBinding), b)
				r.SetBinding(b.Namespace, b.Name, b.RoleRef, b.Subjects)
			}
		}
		for range 20 {
			a := &request.Attributes{
				User: request.User{
					Name:   rapid.SampledFrom([]string{"a", "b", "system:serviceaccount:n:a", "system:serviceaccount:m:b"}).Draw(t, "user"),
					Groups: some(t, "groups", 0, names...),
				},
				Verb: rapid.SampledFrom([]string{"get", "create", "bind", "list"}).Draw(t, "verb"),
			}
			if rapid.Bool().Draw(t, "path") {
				a.Path = rapid.SampledFrom([]string{"/api", "/api/v1", "/x", "/xy"}).Draw(t, "url")
			} else {
				a.Resource = schema.GroupVersionResource{Group: rapid.SampledFrom([]string{"", "apps"}).Draw(t, "group"), Resource: rapid.SampledFrom([]string{"pods", "deployments"}).Draw(t, "resource")}
				a.Subresource = rapid.SampledFrom([]string{"", "log", "scale"}).Draw(t, "subresource")
				a.Namespace = rapid.SampledFrom(namespaces).Draw(t, "namespace")
				a.Name = rapid.SampledFrom([]string{"", "a", "c"}).Draw(t, "object")
			}
			got, _, err := r.Authorize(context.Background(), a)
			if want := n.allow(a); got != want || err != nil {
				t.Fatalf("%+v: %v (%v), want %v", a, got, err, want)
			}
		}
		// After everything is removed, the index is empty.
		for _, namespace := range namespaces {
			for _, name := range names {
				r.RemoveBinding(namespace, name)
			}
		}
		if len(r.subjects) != 0 || len(r.bindings) != 0 {
			t.Fatalf("left in the index: %v", r.subjects)
		}
	})
}

func TestForbidden(t *testing.T) {
	tests := []struct {
		verb, target, reason, want string
	}{
		{"get", "y:pods=p", "", `pods "p" is forbidden: User "x" cannot get resource "pods" in API group "" in the namespace "y"`},
		{"list", "nodes", "", `nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope`},
		{"create", "y:pods/exec=p", "because", `pods "p" is forbidden: User "x" cannot create resource "pods/exec" in API group "" in the namespace "y": because`},
		{"update", "y:deployments.apps=d", "", `deployments.apps "d" is forbidden: User "x" cannot update resource "deployments" in API group "apps" in the namespace "y"`},
		{"get", "/metrics", "", `forbidden: User "x" cannot get path "/metrics"`},
		{"get", "/<b>", "", `forbidden: User "x" cannot get path "/&lt;b&gt;"`},
	}
	for _, tt := range tests {
		if got := Forbidden(ask("x", tt.verb, tt.target), tt.reason).Error(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestRulesFor(t *testing.T) {
	r := NewRBAC()
	r.SetRole("", "a", []rbacv1.PolicyRule{rule("", "pods", "get")})
	r.SetRole("n", "b", []rbacv1.PolicyRule{rule("", "secrets", "get")})
	r.SetBinding("", "a", clusterRole("a"), []rbacv1.Subject{group("g")})
	r.SetBinding("n", "b", localRole("b"), []rbacv1.Subject{user("u")})
	r.SetBinding("n", "c", localRole("missing"), []rbacv1.Subject{user("u")})
	u := request.User{Name: "u", Groups: []string{"g"}}
	if rules, err := r.RulesFor(u, "other"); err != nil || len(rules) != 1 {
		t.Fatal(rules, err)
	}
	rules, err := r.RulesFor(u, "n")
	if len(rules) != 2 || err == nil || !strings.Contains(err.Error(), `"missing" not found`) {
		t.Fatal(rules, err)
	}
}

// crowd returns a cluster with many bindings, three of which are the user's.
func crowd() (*Authorizers, *request.Attributes) {
	z := New()
	for i := range 100 {
		var list []rbacv1.PolicyRule
		for j := range 20 {
			list = append(list, rule(fmt.Sprintf("g%d.example.com", j), "a b c d e f g h", "get list watch create update patch delete"))
		}
		z.RBAC.SetRole("", fmt.Sprintf("role-%d", i), list)
	}
	for i := range 5000 {
		z.RBAC.SetBinding(fmt.Sprintf("n%d", i%500), fmt.Sprintf("b%d", i), clusterRole(fmt.Sprintf("role-%d", rand.IntN(100))), []rbacv1.Subject{user(fmt.Sprintf("user-%d", i))})
	}
	for i := range 3 {
		z.RBAC.SetBinding("n1", fmt.Sprintf("mine-%d", i), clusterRole(fmt.Sprintf("role-%d", i)), []rbacv1.Subject{user("me")})
	}
	z.RBAC.SetRole("", "mine", []rbacv1.PolicyRule{rule("apps", "deployments/status", "update")})
	z.RBAC.SetBinding("", "mine", clusterRole("mine"), []rbacv1.Subject{group("system:authenticated")})
	return z, ask("me", "update", "n1:deployments/status.apps=x")
}

func BenchmarkAuthorize(b *testing.B) {
	z, a := crowd()
	masters := *a
	masters.User.Groups = []string{"system:authenticated", MastersGroup}
	b.Run("masters", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			z.Authorize(context.Background(), &masters)
		}
	})
	b.Run("user", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if ok, _, _ := z.Authorize(context.Background(), a); !ok {
				b.Fatal("refused")
			}
		}
	})
}
