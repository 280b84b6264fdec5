package authn

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
)

// recorded is a request that a user made as another, and the response of a Kubernetes 1.37 API
// server.
type recorded struct {
	Name string
	// Rules are the rights of the user, each as "VERB GROUP RESOURCE [NAME]" or "VERB path PATH".
	Rules []string
	// Headers are those that ask for the identity, and Path that of the request, a GET.
	Headers []string
	Path    string
	Code    int
	Message string
}

func (r recorded) rules() []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, text := range r.Rules {
		part := strings.Split(text, " ")
		rule := rbacv1.PolicyRule{Verbs: part[:1]}
		if part[1] == "path" {
			rule.NonResourceURLs = part[2:]
		} else {
			rule.APIGroups, rule.Resources, rule.ResourceNames = []string{strings.ReplaceAll(part[1], "core", "")}, part[2:3], part[3:]
		}
		rules = append(rules, rule)
	}
	return rules
}

func (r recorded) attributes() *request.Attributes {
	name, ok := strings.CutPrefix(r.Path, "/api/v1/namespaces/default/pods")
	if !ok {
		return &request.Attributes{Verb: "get", Path: r.Path}
	}
	a := &request.Attributes{Verb: "list", Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: "default"}
	if name != "" {
		a.Verb, a.Name = "get", name[1:]
	}
	return a
}

// TestConstrainedImpersonation compares the decisions about requests with those of Kubernetes, both
// when the request is known from the start and when it is authorized later.
func TestConstrainedImpersonation(t *testing.T) {
	data, err := os.ReadFile("testdata/impersonation.json")
	if err != nil {
		t.Fatal(err)
	}
	var requests []recorded
	if err := json.Unmarshal(data, &requests); err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		t.Run(r.Name, func(t *testing.T) {
			z := authz.New()
			z.RBAC.SetRole("", "me", r.rules())
			z.RBAC.SetBinding("", "me", rbacv1.RoleRef{Kind: "ClusterRole", Name: "me"}, []rbacv1.Subject{{Kind: "User", Name: "me"}})
			z.RBAC.SetRole("", "public", []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/version"}}})
			z.RBAC.SetBinding("", "public", rbacv1.RoleRef{Kind: "ClusterRole", Name: "public"}, []rbacv1.Subject{{Kind: "Group", Name: AuthenticatedGroup}})
			headers := http.Header{}
			for _, h := range r.Headers {
				name, value, _ := strings.Cut(h, ": ")
				headers.Add(name, value)
			}
			me := request.User{Name: "me", Groups: []string{AuthenticatedGroup}}
			serve := func(asked func() *request.Attributes) (bool, error) {
				as, err := Impersonate(t.Context(), z, me, headers, asked, true)
				if err != nil {
					return false, err
				}
				a := r.attributes()
				a.User = as
				return true, authorize(t.Context(), z, a)
			}
			_, err := serve(r.attributes)
			if (err == nil) != (r.Code == http.StatusOK) || err != nil && !strings.HasPrefix(err.Error(), r.Message) { // the node authorizer adds a reason
				t.Errorf("got %v\nwant %d %s", err, r.Code, r.Message)
			}
			if _, late := serve(nil); (late == nil) != (err == nil) {
				t.Errorf("authorized later: %v, at once: %v", late, err)
			}
			as, err := Impersonate(t.Context(), z, me, headers, nil, false)
			if err == nil && as.Constraint != nil {
				t.Error("a constrained permission counts where constraints are not checked")
			}
		})
	}
}

// TestAssociatedNode checks that the account of a pod can act as the pod's node, and as no other,
// by a permission for the nodes of its pods.
func TestAssociatedNode(t *testing.T) {
	z := permits{"impersonate:associated-node nodes *", "impersonate-on:associated-node:get pods default/x"}
	agent := request.User{Name: "system:serviceaccount:kube-system:agent", Extra: map[string][]string{nodeNameKey: {"n"}}}
	ask := func(u request.User, node string) (request.User, error) {
		return Impersonate(t.Context(), z, u, map[string][]string{"Impersonate-User": {"system:node:" + node}},
			recorded{Path: "/api/v1/namespaces/default/pods/x"}.attributes, true)
	}
	as, err := ask(agent, "n")
	if err != nil || strings.Join(as.Groups, " ") != "system:nodes system:authenticated" || as.Constraint == nil {
		t.Errorf("the own node: %+v, %v", as, err)
	}
	if _, err := ask(agent, "m"); !apierrors.IsForbidden(err) {
		t.Errorf("another node: %v", err)
	}
	if _, err := ask(request.User{Name: "ann", Extra: agent.Extra}, "n"); !apierrors.IsForbidden(err) {
		t.Errorf("a user that is no account: %v", err)
	}
	if !as.Impersonation.Valid(context.Background()) {
		t.Error("the permission is not valid")
	}
	if err := as.Constraint.Permits(t.Context(), &request.Attributes{Verb: "delete", Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: "default", Name: "x"}); !apierrors.IsForbidden(err) {
		t.Errorf("another verb: %v", err)
	}
}
