package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/watchcache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a pipeline over an in-memory store.
type cluster struct {
	*pipeline.Pipeline
	cache *watchcache.Cache
	table *resource.Table
	ctx   context.Context // with the apiserver's own user
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s := memory.New()
	t.Cleanup(s.Close)
	table := resource.NewTable(kind.All()...)
	var stored []*resource.Kind
	for _, k := range table.Kinds() {
		if k.StorePrefix != "" && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	discard := slog.New(slog.DiscardHandler)
	cache := watchcache.New(watchcache.Config{Store: s, Kinds: stored, Log: discard})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-cache.Ready()
	return &cluster{
		Pipeline: pipeline.New(pipeline.Config{Table: table, Lasting: pipeline.Place{Store: s, Cache: cache}, Log: discard}),
		cache:    cache, table: table, ctx: request.WithUser(ctx, User),
	}
}

func get[T resource.Object](t *testing.T, c *cluster, gvr schema.GroupVersionResource, namespace, name string) (T, string) {
	t.Helper()
	out, err := c.Get(c.ctx, pipeline.Target{Resource: gvr, Namespace: namespace, Name: name}, pipeline.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := out.Item.Object().DeepCopyObject().(T)
	return o, versionOf(out.Item)
}

func put(t *testing.T, c *cluster, o resource.Object, version string) {
	t.Helper()
	k, err := kindOf(c.table, o)
	if err != nil {
		t.Fatal(err)
	}
	o.SetResourceVersion(version)
	w, err := write("update", k, o)
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Commit(c.ctx, []pipeline.Write{w})[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
}

var (
	clusterRoles = rbacv1.SchemeGroupVersion.WithResource("clusterroles")
	bindings     = rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings")
	namespaceGVR = corev1.SchemeGroupVersion.WithResource("namespaces")
	configMaps   = corev1.SchemeGroupVersion.WithResource("configmaps")
)

func TestRun(t *testing.T) {
	c := newCluster(t)
	cfg := Config{API: c, ClientCA: []byte("PEM")}
	if err := Run(c.ctx, cfg); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		get[*corev1.Namespace](t, c, namespaceGVR, "", name)
	}
	critical, _ := get[*schedulingv1.PriorityClass](t, c, schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"), "", "system-node-critical")
	if critical.Value != 2000001000 {
		t.Errorf("the value of system-node-critical is %d", critical.Value)
	}
	config, _ := get[*corev1.ConfigMap](t, c, configMaps, "kube-system", "extension-apiserver-authentication")
	if config.Data["client-ca-file"] != "PEM" {
		t.Errorf("%v", config.Data)
	}

	// A second start writes nothing.
	before := c.cache.Revision()
	if err := Run(c.ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if after := c.cache.Revision(); after != before {
		t.Errorf("a second start wrote: revision %d, was %d", after, before)
	}

	// Removed rules are added again, added rules are kept, and objects that opt out are not
	// changed.
	view, version := get[*rbacv1.ClusterRole](t, c, clusterRoles, "", "system:aggregate-to-view")
	kept := len(view.Rules)
	mine := rbacv1.PolicyRule{APIGroups: []string{"acme.com"}, Resources: []string{"anvils"}, Verbs: []string{"get"}}
	view.Rules = append(view.Rules[1:], mine)
	delete(view.Labels, "rbac.authorization.k8s.io/aggregate-to-view")
	put(t, c, view, version)
	discovery, version := get[*rbacv1.ClusterRoleBinding](t, c, bindings, "", "system:discovery")
	discovery.Subjects = []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "me"}}
	put(t, c, discovery, version)
	basic, version := get[*rbacv1.ClusterRoleBinding](t, c, bindings, "", "system:basic-user")
	basic.Subjects = nil
	basic.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
	put(t, c, basic, version)
	config, version = get[*corev1.ConfigMap](t, c, configMaps, "kube-system", "extension-apiserver-authentication")
	config.Data = map[string]string{"client-ca-file": "old", "requestheader-client-ca-file": "x"}
	put(t, c, config, version)
	if err := Run(c.ctx, cfg); err != nil {
		t.Fatal(err)
	}
	view, _ = get[*rbacv1.ClusterRole](t, c, clusterRoles, "", "system:aggregate-to-view")
	if len(view.Rules) != kept+1 || view.Labels["rbac.authorization.k8s.io/aggregate-to-view"] != "true" {
		t.Errorf("%d rules, labels %v", len(view.Rules), view.Labels)
	}
	discovery, _ = get[*rbacv1.ClusterRoleBinding](t, c, bindings, "", "system:discovery")
	if len(discovery.Subjects) != 2 {
		t.Errorf("subjects %v", discovery.Subjects)
	}
	if basic, _ = get[*rbacv1.ClusterRoleBinding](t, c, bindings, "", "system:basic-user"); len(basic.Subjects) != 0 {
		t.Errorf("autoupdate=false was not respected: %v", basic.Subjects)
	}
	config, _ = get[*corev1.ConfigMap](t, c, configMaps, "kube-system", "extension-apiserver-authentication")
	if config.Data["client-ca-file"] != "PEM" || config.Data["requestheader-client-ca-file"] != "x" {
		t.Errorf("%v", config.Data)
	}
}

func TestTwoApiserversStartTogether(t *testing.T) {
	c := newCluster(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- Run(c.ctx, Config{API: c}) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestRights checks the rights in the default policy that users of Kubernetes and Keelson rely
// on.
func TestRights(t *testing.T) {
	c := newCluster(t)
	if err := Run(c.ctx, Config{API: c}); err != nil {
		t.Fatal(err)
	}
	z := authz.New()
	ctx, cancel := context.WithCancel(c.ctx)
	followed := make(chan error, 1)
	go func() { followed <- z.Follow(ctx, c.table, c.cache, func() {}) }()
	if err := Await(ctx, z); err != nil {
		t.Fatal(err)
	}
	z.RBAC.SetBinding("dev", "1", rbacv1.RoleRef{Kind: "ClusterRole", Name: "admin"}, []rbacv1.Subject{{Kind: "User", Name: "admin"}})
	z.RBAC.SetBinding("dev", "2", rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"}, []rbacv1.Subject{{Kind: "User", Name: "edit"}})
	z.RBAC.SetBinding("dev", "3", rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"}, []rbacv1.Subject{{Kind: "User", Name: "view"}})

	tests := []struct {
		user, groups, verb, what string // what is [namespace:]resource[.group][=name] or a path
		want                     bool
	}{
		{"system:anonymous", "system:unauthenticated", "get", "/version", true},
		{"system:anonymous", "system:unauthenticated", "get", "/livez", true},
		{"system:anonymous", "system:unauthenticated", "get", "/api", false},
		{"system:anonymous", "system:unauthenticated", "list", "pods", false},
		{"jane", "system:authenticated", "get", "/apis/apps/v1", true},
		{"jane", "system:authenticated", "get", "/openapi/v3", true},
		{"jane", "system:authenticated", "get", "/metrics", false},
		{"jane", "system:authenticated", "create", "selfsubjectaccessreviews.authorization.k8s.io", true},
		{"jane", "system:authenticated", "create", "subjectaccessreviews.authorization.k8s.io", false},
		{"sa", "system:serviceaccounts", "get", "/openid/v1/jwks", true},
		{"view", "", "get", "dev:pods/log", true},
		{"view", "", "list", "dev:deployments.apps", true},
		{"view", "", "get", "dev:secrets", false},
		{"view", "", "get", "prod:pods", false},
		{"edit", "", "get", "dev:secrets", true},
		{"edit", "", "create", "dev:pods/exec", true},
		{"edit", "", "get", "dev:configmaps", true},
		{"edit", "", "create", "dev:rolebindings.rbac.authorization.k8s.io", false},
		{"admin", "", "create", "dev:rolebindings.rbac.authorization.k8s.io", true},
		{"admin", "", "delete", "dev:deployments.apps", true},
		{"admin", "", "get", "dev:pods/log", true},
		{"admin", "", "list", "nodes", false},
		{"system:kube-scheduler", "", "create", "dev:pods/binding", true},
		{"system:kube-scheduler", "", "update", "kube-system:leases.coordination.k8s.io=scheduler", true},
		{"system:kube-scheduler", "", "get", "dev:secrets", false},
		{"system:kube-scheduler", "", "list", "storageclasses.storage.k8s.io", true},
		{"system:kube-scheduler", "", "update", "nodes", false},
		{"system:kube-controller-manager", "", "create", "dev:replicasets.apps", true},
		{"system:kube-controller-manager", "", "patch", "dev:deployments/status.apps", true},
		{"system:kube-controller-manager", "", "update", "namespaces/finalize", true},
		{"system:kube-controller-manager", "", "deletecollection", "dev:configmaps", true},
		{"system:kube-controller-manager", "", "escalate", "clusterroles.rbac.authorization.k8s.io", true},
		{"system:kube-controller-manager", "", "get", "dev:statefulsets/scale.apps", true},
		{"system:kube-controller-manager", "", "update", "dev:replicationcontrollers/scale", true},
		{"system:kube-controller-manager", "", "list", "dev:pods.metrics.k8s.io", true},
		{"system:kube-controller-manager", "", "update", "dev:horizontalpodautoscalers/status.autoscaling", true},
		{"view", "", "list", "dev:pods.metrics.k8s.io", true},
		{"view", "", "list", "nodes.metrics.k8s.io", false},
		{"scraper", "system:monitoring", "get", "nodes/metrics=n", true},
		{"scraper", "system:monitoring", "get", "nodes/proxy=n", false},
		{"system:kube-controller-manager", "", "create", "dev:pods/exec", false},
		{"system:kube-controller-manager", "", "create", "clusterrolebindings.rbac.authorization.k8s.io", false},
		{"system:serviceaccount:kube-system:job-controller", "", "update", "dev:jobs/status.batch", true},
		{"system:cloud-controller-manager", "", "patch", "nodes/status", true},
		{"system:cloud-controller-manager", "", "delete", "nodes", true},
		{"system:cloud-controller-manager", "", "patch", "dev:services/status", true},
		{"system:cloud-controller-manager", "", "get", "dev:secrets", false},
		{"system:bootstrap:nodes1", "system:bootstrappers:keelson:default-node-token", "create", "certificatesigningrequests.certificates.k8s.io", true},
		{"system:bootstrap:nodes1", "system:bootstrappers:keelson:default-node-token", "create", "certificatesigningrequests/nodeclient.certificates.k8s.io", true},
		{"system:bootstrap:nodes1", "system:bootstrappers:keelson:default-node-token", "create", "members.keelson.dev", false},
		{"system:bootstrap:member", "system:bootstrappers:keelson:apiserver", "create", "members.keelson.dev", true},
		{"system:bootstrap:member", "system:bootstrappers:keelson:apiserver", "create", "certificatesigningrequests.certificates.k8s.io", false},
		{"system:bootstrap:member", "system:bootstrappers:keelson:apiserver", "create", "certificatesigningrequests/nodeclient.certificates.k8s.io", false},
		{"system:bootstrap:abcdef", "system:bootstrappers", "create", "certificatesigningrequests.certificates.k8s.io", false},
		{"system:bootstrap:abcdef", "system:bootstrappers", "create", "certificatesigningrequests/nodeclient.certificates.k8s.io", false},
		{"system:bootstrap:abcdef", "system:bootstrappers", "create", "members.keelson.dev", false},
		{"system:bootstrap:abcdef", "system:bootstrappers", "list", "pods", false},
		{"system:node:n", "system:nodes", "create", "certificatesigningrequests/selfnodeclient.certificates.k8s.io", true},
		{"system:node:n", "system:nodes", "list", "dev:secrets", false},
		{"system:node:n", "system:nodes", "post", "/debug/traces", true},
		{"system:node:n", "system:nodes", "get", "/debug/traces", false},
		{"system:kube-scheduler", "", "post", "/debug/traces", true},
	}
	for _, tt := range tests {
		a := &request.Attributes{User: request.User{Name: tt.user, Groups: strings.Fields(tt.groups)}, Verb: tt.verb}
		if what := tt.what; strings.HasPrefix(what, "/") {
			a.Path = what
		} else {
			if namespace, rest, ok := strings.Cut(what, ":"); ok {
				a.Namespace, what = namespace, rest
			}
			what, a.Name, _ = strings.Cut(what, "=")
			what, a.Resource.Group, _ = strings.Cut(what, ".")
			a.Resource.Resource, a.Subresource, _ = strings.Cut(what, "/")
		}
		if got, _, err := z.Authorize(ctx, a); got != tt.want || err != nil {
			t.Errorf("%s may %s %s: %v, want %v (%v)", tt.user, tt.verb, tt.what, got, tt.want, err)
		}
	}
	cancel()
	if err := <-followed; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPolicyErrors(t *testing.T) {
	for _, text := range []string{
		"get core pods",                       // a rule without a role
		"  get core pods",                     // a rule without a role
		"clusterrole x\n  get core",           // no resources
		"clusterrole x\n  get core a b c",     // too many words
		"bind x to robot:r2",                  // invalid subject
		"bind x for user:y",                   // not a binding
		"aggregate x to-x",                    // "from" is missing
		"aggregate x from y\n  get core pods", // an aggregated role has no rules of its own
	} {
		if _, err := parsePolicy(text); err == nil || !strings.Contains(err.Error(), "policy.txt: line") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestEveryBindingHasARole(t *testing.T) {
	p, err := defaults()
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]bool{}
	for _, r := range p.clusterRoles {
		if roles[r.Name] {
			t.Errorf("%s is defined twice", r.Name)
		}
		roles[r.Name] = true
	}
	for _, r := range p.roles {
		roles[r.Namespace+"/"+r.Name] = true
	}
	for _, b := range p.clusterRoleBindings {
		if !roles[b.RoleRef.Name] {
			t.Errorf("%s binds %s, which does not exist", b.Name, b.RoleRef.Name)
		}
	}
	for _, b := range p.roleBindings {
		if !roles[b.Namespace+"/"+b.RoleRef.Name] {
			t.Errorf("%s binds %s, which does not exist", b.Name, b.RoleRef.Name)
		}
	}
}

func TestReconcileReplacesAnotherRole(t *testing.T) {
	want := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "new"}}
	have := want.DeepCopy()
	have.RoleRef.Name = "old"
	if next, a := reconcile(want, have); a != replace || next.(*rbacv1.ClusterRoleBinding).RoleRef.Name != "new" {
		t.Fatal(next, a)
	}
}

// TestBootstrappersAreWithdrawn checks that the subject which earlier versions bound is removed
// from the default bindings, and from no others.
func TestBootstrappersAreWithdrawn(t *testing.T) {
	p, err := defaults()
	if err != nil {
		t.Fatal(err)
	}
	mine := rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "mine"}
	seen := 0
	for _, want := range p.clusterRoleBindings {
		have := want.DeepCopy()
		have.Subjects = []rbacv1.Subject{mine, allBootstrappers}
		next, a := reconcile(want, have)
		if a != change && len(want.Subjects) > 0 {
			t.Fatalf("%s: action %d", want.Name, a)
		}
		if next == nil {
			continue
		}
		got := next.(*rbacv1.ClusterRoleBinding).Subjects
		gone := !slices.Contains(got, allBootstrappers)
		if gone {
			seen++
		}
		if gone != (withdrawn[want.Name] != nil) || !slices.Contains(got, mine) {
			t.Errorf("%s: %v", want.Name, got)
		}
		if len(have.Subjects) != 2 || have.Subjects[1] != allBootstrappers {
			t.Errorf("%s: the input was modified: %v", want.Name, have.Subjects)
		}
		have.Annotations["rbac.authorization.kubernetes.io/autoupdate"] = "false"
		if _, a := reconcile(want, have); a != keep {
			t.Errorf("%s: changed although it opts out", want.Name)
		}
	}
	if seen != len(withdrawn) {
		t.Errorf("removed from %d bindings, want %d", seen, len(withdrawn))
	}
}
