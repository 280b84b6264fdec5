package review

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/token"
)

// oneAccount is a Lookup that has only the service account n/sa.
type oneAccount struct{}

func (oneAccount) GetFresh(_ context.Context, _, plural, namespace, name string) (resource.Object, bool, error) {
	if plural+"/"+namespace+"/"+name != "serviceaccounts/n/sa" {
		return nil, false, nil
	}
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "sa", UID: "u"}}, true, nil
}

func (oneAccount) Get(string, string, string, string) (resource.Object, bool) { return nil, false }

func setUp(t *testing.T) (map[resource.Action]pipeline.Action, *token.Issuer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := token.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	issuer := token.NewIssuer("https://issuer", []string{"api"}, keys)
	z := authz.New()
	z.RBAC.SetRole("", "reader", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"list"}, ResourceNames: []string{"one"}},
		{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}},
	})
	z.RBAC.SetBinding("", "b", rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"}, []rbacv1.Subject{{Kind: "User", Name: "ann"}, {Kind: "Group", Name: "readers"}})
	n := authn.New(authn.Config{Roots: x509.NewCertPool, Tokens: issuer, Lookup: oneAccount{}})
	return Actions(n, z), issuer
}

func as(name string, groups ...string) context.Context {
	return request.WithUser(context.Background(), request.User{Name: name, Groups: groups})
}

func TestActions(t *testing.T) {
	actions, _ := setUp(t)
	if len(actions) != 6 {
		t.Fatalf("got %d actions, want 6", len(actions))
	}
	if _, err := actions[resource.ReviewToken](as("x"), pipeline.Target{}, &corev1.Pod{}, pipeline.WriteOptions{}); !apierrors.IsInternalError(err) {
		t.Fatal(err)
	}
}

func TestAccessReviews(t *testing.T) {
	actions, _ := setUp(t)
	on := func(verb, plural, namespace string) *authorizationv1.ResourceAttributes {
		return &authorizationv1.ResourceAttributes{Verb: verb, Resource: plural, Namespace: namespace}
	}
	path := func(p string) *authorizationv1.NonResourceAttributes {
		return &authorizationv1.NonResourceAttributes{Verb: "get", Path: p}
	}
	selecting := on("list", "secrets", "n")
	selecting.FieldSelector = &authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{
		{Key: "metadata.name", Operator: metav1.FieldSelectorOpIn, Values: []string{"one"}},
	}}
	raw := on("list", "secrets", "n")
	raw.FieldSelector = &authorizationv1.FieldSelectorAttributes{RawSelector: "metadata.name=one"}
	unreadable := on("get", "pods", "n")
	unreadable.LabelSelector = &authorizationv1.LabelSelectorAttributes{RawSelector: "a b c"}
	tests := []struct {
		name     string
		resource *authorizationv1.ResourceAttributes
		path     *authorizationv1.NonResourceAttributes
		want     bool
		refused  string // the error, or a part of the evaluation error
	}{
		{"allowed", on("get", "pods", "n"), nil, true, ""},
		{"not allowed", on("delete", "pods", "n"), nil, false, ""},
		{"path", nil, path("/metrics"), true, ""},
		{"another path", nil, path("/logs"), false, ""},
		{"by field selector", selecting, nil, true, ""},
		{"by raw field selector", raw, nil, true, ""},
		{"without a selector", on("list", "secrets", "n"), nil, false, ""},
		{"neither", nil, nil, false, "exactly one of"},
		{"both", on("get", "pods", "n"), path("/metrics"), false, "exactly one of"},
		{"invalid selector", unreadable, nil, true, "label selector"},
	}
	for _, tt := range tests {
		check := func(t *testing.T, status authorizationv1.SubjectAccessReviewStatus, err error) {
			t.Helper()
			if apierrors.IsInvalid(err) && tt.refused != "" && strings.Contains(err.Error(), tt.refused) {
				return
			}
			if err != nil || status.Allowed != tt.want || !strings.Contains(status.EvaluationError, tt.refused) {
				t.Fatalf("%+v %v", status, err)
			}
		}
		t.Run("self "+tt.name, func(t *testing.T) {
			o := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: tt.resource, NonResourceAttributes: tt.path}}
			_, err := actions[resource.ReviewSelfAccess](as("ann"), pipeline.Target{}, o, pipeline.WriteOptions{})
			check(t, o.Status, err)
		})
		t.Run("other "+tt.name, func(t *testing.T) {
			o := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User: "jane", Groups: []string{"readers"}, ResourceAttributes: tt.resource, NonResourceAttributes: tt.path,
			}}
			_, err := actions[resource.ReviewAccess](as("boss"), pipeline.Target{}, o, pipeline.WriteOptions{})
			check(t, o.Status, err)
		})
	}
	local := func(namespace string) error {
		o := &authorizationv1.LocalSubjectAccessReview{
			ObjectMeta: metav1.ObjectMeta{Namespace: "n"},
			Spec:       authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: on("get", "pods", namespace)},
		}
		_, err := actions[resource.ReviewLocalAccess](as("boss"), pipeline.Target{Namespace: "n"}, o, pipeline.WriteOptions{})
		if err == nil && !o.Status.Allowed {
			t.Error("the local review was not allowed")
		}
		return err
	}
	if err := local("n"); err != nil {
		t.Error(err)
	}
	if err := local("m"); !apierrors.IsInvalid(err) {
		t.Errorf("another namespace: %v", err)
	}
	nobody := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: on("get", "pods", "")}}
	if _, err := actions[resource.ReviewAccess](as("boss"), pipeline.Target{}, nobody, pipeline.WriteOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("no user or group: %v", err)
	}
}

func TestRulesReview(t *testing.T) {
	actions, _ := setUp(t)
	ask := func(ctx context.Context, namespace string) (*authorizationv1.SelfSubjectRulesReview, error) {
		o := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
		_, err := actions[resource.ReviewSelfRules](ctx, pipeline.Target{}, o, pipeline.WriteOptions{})
		return o, err
	}
	o, err := ask(as("ann"), "n")
	if err != nil || len(o.Status.ResourceRules) != 2 || len(o.Status.NonResourceRules) != 1 || o.Status.Incomplete {
		t.Fatalf("%+v %v", o.Status, err)
	}
	if o, err := ask(as("system:node:a", "system:nodes"), "n"); err != nil || !o.Status.Incomplete {
		t.Fatalf("%+v %v", o.Status, err)
	}
	if _, err := ask(as("ann"), ""); !apierrors.IsBadRequest(err) {
		t.Fatal(err)
	}
}

func TestTokenAndSelfReview(t *testing.T) {
	actions, issuer := setUp(t)
	now := time.Now()
	raw, err := issuer.Sign(&token.Claims{
		Audience: []string{"api", "vault"}, Namespace: "n", ServiceAccount: token.Ref{Name: "sa", UID: "u"}, IssuedAt: now, Expiry: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, token string
		audiences   []string
		ok          bool
		want        []string
	}{
		{"own audience", raw, nil, true, []string{"api"}},
		{"another of its audiences", raw, []string{"vault", "x"}, true, []string{"vault"}},
		{"not its audience", raw, []string{"x"}, false, nil},
		{"rubbish", "rubbish", nil, false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tt.token, Audiences: tt.audiences}}
			if _, err := actions[resource.ReviewToken](as("vault"), pipeline.Target{}, o, pipeline.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if o.Status.Authenticated != tt.ok || (o.Status.Error == "") != tt.ok || !slices.Equal(o.Status.Audiences, tt.want) {
				t.Fatalf("%+v", o.Status)
			}
			if tt.ok && (o.Status.User.Username != "system:serviceaccount:n:sa" || !slices.Contains(o.Status.User.Groups, "system:authenticated")) {
				t.Fatalf("%+v", o.Status.User)
			}
		})
	}
	if _, err := actions[resource.ReviewToken](as("x"), pipeline.Target{}, &authenticationv1.TokenReview{}, pipeline.WriteOptions{}); !apierrors.IsBadRequest(err) {
		t.Errorf("no token: %v", err)
	}
	o := &authenticationv1.SelfSubjectReview{}
	if _, err := actions[resource.ReviewSelf](as("me", "g"), pipeline.Target{}, o, pipeline.WriteOptions{}); err != nil ||
		o.Status.UserInfo.Username != "me" || !slices.Equal(o.Status.UserInfo.Groups, []string{"g"}) {
		t.Errorf("%+v %v", o.Status, err)
	}
}
