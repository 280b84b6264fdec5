package authn

import (
	"context"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
)

// permits is an Authorizer that allows each "verb resource[/subresource] [namespace/]name".
type permits []string

func (p permits) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	what := a.Resource.Resource
	if a.Subresource != "" {
		what += "/" + a.Subresource
	}
	name := a.Name
	if a.Namespace != "" {
		name = a.Namespace + "/" + name
	}
	return slices.Contains(p, a.Verb+" "+what+" "+name), "", nil
}

func TestImpersonate(t *testing.T) {
	me := request.User{Name: "me", UID: "mine", Groups: []string{"system:authenticated"}}
	z := permits{
		"impersonate users bob", "impersonate groups dev", "impersonate groups system:unauthenticated", "impersonate serviceaccounts n/sa",
		"impersonate uids 7", "impersonate userextras/acme.com/scope a", "impersonate userextras/acme.com/scope b", "impersonate users system:anonymous",
	}
	h := func(pairs ...string) map[string][]string {
		m := map[string][]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = append(m[pairs[i]], pairs[i+1])
		}
		return m
	}
	tests := []struct {
		name    string
		headers map[string][]string
		want    string // user, uid and groups
		refused func(error) bool
		text    string
	}{
		{"no headers", h("Accept", "x"), "me mine [system:authenticated]", nil, ""},
		{"user", h("Impersonate-User", "bob"), "bob  [system:authenticated]", nil, ""},
		{"user in gRPC metadata", h("impersonate-user", "bob", "impersonate-group", "dev"), "bob  [dev system:authenticated]", nil, ""},
		{"unauthenticated group is kept", h("Impersonate-User", "bob", "Impersonate-Group", "system:unauthenticated"), "bob  [system:unauthenticated]", nil, ""},
		{"anonymous", h("Impersonate-User", "system:anonymous"), "system:anonymous  [system:unauthenticated]", nil, ""},
		{"service account", h("Impersonate-User", "system:serviceaccount:n:sa"), "system:serviceaccount:n:sa  [system:serviceaccounts system:serviceaccounts:n system:authenticated]", nil, ""},
		{"uid and extra", h("Impersonate-User", "bob", "Impersonate-Uid", "7", "Impersonate-Extra-Acme.com%2fscope", "a", "Impersonate-Extra-Acme.com%2fscope", "b"), "bob 7 [system:authenticated]", nil, ""},
		{"group alone", h("Impersonate-Group", "dev"), "", apierrors.IsBadRequest, "without impersonating a user"},
		{"another user", h("Impersonate-User", "eve"), "", apierrors.IsForbidden, `users "eve" is forbidden: User "me" cannot impersonate resource "users" in API group "" at the cluster scope`},
		{"another group", h("Impersonate-User", "bob", "Impersonate-Group", "system:masters"), "", apierrors.IsForbidden, `cannot impersonate resource "groups"`},
		{"another service account", h("Impersonate-User", "system:serviceaccount:m:sa"), "", apierrors.IsForbidden, `in the namespace "m"`},
		{"another uid", h("Impersonate-User", "bob", "Impersonate-Uid", "8"), "", apierrors.IsForbidden, `resource "uids" in API group "authentication.k8s.io"`},
		{"another extra", h("Impersonate-User", "bob", "Impersonate-Extra-Scope", "a"), "", apierrors.IsForbidden, `resource "userextras/scope"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := Impersonate(context.Background(), z, me, tt.headers, nil, false)
			if tt.refused != nil {
				if !tt.refused(err) || !strings.Contains(err.Error(), tt.text) || u.Name != "" {
					t.Fatalf("%+v %v", u, err)
				}
				return
			}
			if got := u.Name + " " + u.UID + " [" + strings.Join(u.Groups, " ") + "]"; err != nil || got != tt.want {
				t.Fatalf("%s %v\nwant %s", got, err, tt.want)
			}
			if tt.name == "uid and extra" && !slices.Equal(u.Extra["acme.com/scope"], []string{"a", "b"}) {
				t.Fatalf("extra %v", u.Extra)
			}
		})
	}
}

func TestImpersonationRevoked(t *testing.T) {
	z := permits{"impersonate users bob", "impersonate groups dev"}
	u, err := Impersonate(context.Background(), &z, request.User{Name: "me"}, map[string][]string{"Impersonate-User": {"bob"}, "Impersonate-Group": {"dev"}}, nil, false)
	if err != nil || !u.Impersonation.Valid(context.Background()) {
		t.Fatal(u, err)
	}
	z = permits{"impersonate users bob"}
	if u.Impersonation.Valid(context.Background()) {
		t.Fatal("the impersonation is valid without the right to impersonate the group")
	}
}
