package cluster_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// releaseOf runs helm in a namespace.
func releaseOf(t *testing.T, ns string) func(args ...string) string {
	return func(args ...string) string {
		t.Helper()
		began := time.Now()
		out := shared.Must(t, "helm", append(args, "--namespace", ns)...)
		t.Logf("helm %s took %s", args[0], time.Since(began).Round(time.Millisecond))
		return out
	}
}

// chartKinds are the kinds of the chart in testdata/chart, each as a resource: the ones that
// templates of public charts use most. Pods are its test and those of its workloads.
var chartKinds = []string{
	"configmap", "secret", "service", "serviceaccount", "persistentvolumeclaim", "limitrange", "resourcequota", "pod",
	"role", "rolebinding", "clusterrole", "clusterrolebinding", "deployment", "statefulset", "daemonset", "job", "cronjob",
	"horizontalpodautoscaler", "poddisruptionbudget", "priorityclass", "storageclass", "networkpolicy", "ingress",
}

// TestHelm: a chart with hooks and an object of each kind that charts use most is installed,
// tested, upgraded, rolled back by hand and after a failure, and uninstalled, each waiting
// for what it made.
func TestHelm(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	helm := releaseOf(t, ns)
	get := func(args ...string) string {
		t.Helper()
		return shared.Kubectl(t, append([]string{"-n", ns, "get"}, args...)...)
	}
	check := func(when, want string) {
		t.Helper()
		helm("test", "page")
		if text := get("configmap", "page", "-o", `jsonpath={.data.index\.html}`); text != want {
			t.Errorf("%s: the page says %q, want %q", when, text, want)
		}
	}
	cleanup(t, "helm", "uninstall", "page", "--namespace", ns, "--ignore-not-found")

	if out, err := shared.Run(t.Context(), "helm", "install", "page", "testdata/chart", "--namespace", ns, "--set", "ungated=true"); err == nil ||
		!strings.Contains(err.Error(), `no matches for kind "HTTPRoute" in version "gateway.networking.k8s.io/v1"`) {
		t.Errorf("a chart with an HTTPRoute: %v, %s; want a refusal that names it", err, out)
	}
	helm("install", "page", "testdata/chart", "--wait", "--wait-for-jobs", "--timeout", "60s")
	check("installed", "first")
	owned := get(strings.Join(chartKinds, ","), "-o", `jsonpath={range .items[?(@.metadata.annotations.meta\.helm\.sh/release-namespace=="`+ns+`")]}{.kind}{"\n"}{end}`)
	kinds := strings.Fields(owned + get("pod", "page-test", "-o", "jsonpath={.kind}"))
	for _, k := range chartKinds {
		if !slices.ContainsFunc(kinds, func(have string) bool { return strings.EqualFold(have, k) }) {
			t.Errorf("the release has no %s: %q", k, kinds)
		}
	}
	for object, want := range map[string]string{
		"deployment/page {.status.readyReplicas}":               "2",
		"statefulset/page-db {.status.readyReplicas}":           "1",
		"daemonset/page-agent {.status.numberReady}":            "3",
		"job/page-once {.status.succeeded}":                     "1",
		"pvc/page {.status.phase}":                              "Bound",
		"pvc/data-page-db-0 {.status.phase}":                    "Bound",
		"pod/page-db-0 {.spec.containers[0].resources}":         `{"limits":{"cpu":"500m","memory":"64Mi"},"requests":{"cpu":"10m","memory":"8Mi"}}`,
		"pod/page-db-0 {.spec.priority}":                        "0",
		"pod -l app=page {.items[0].spec.priority}":             "1000",
		"configmap/page-before {.metadata.name}":                "page-before",
		"jobs {.items[*].metadata.name}":                        "page-once", // the hook's job is deleted
		"poddisruptionbudget/page {.status.disruptionsAllowed}": "1",
	} {
		args, path, _ := strings.Cut(object, " {")
		if got := get(append(strings.Fields(args), "-o", "jsonpath={"+path)...); got != want {
			t.Errorf("%s: %q, want %q", object, got, want)
		}
	}
	if out := shared.Kubectl(t, "-n", ns, "auth", "can-i", "list", "configmaps", "--as=system:serviceaccount:"+ns+":page"); out != "yes\n" {
		t.Errorf("the Role and its binding: %s", out)
	}
	if out := shared.Kubectl(t, "auth", "can-i", "list", "nodes", "--as=system:serviceaccount:"+ns+":page"); out != "yes\n" {
		t.Errorf("the ClusterRole and its binding: %s", out)
	}
	password := get("secret", "page", "-o", "jsonpath={.data.password}")

	helm("upgrade", "page", "testdata/chart", "--set", "text=second,replicas=3", "--wait", "--timeout", "60s")
	check("upgraded", "second")
	if kept := get("secret", "page", "-o", "jsonpath={.data.password}"); kept != password {
		t.Errorf("the upgrade made another password: lookup found no secret")
	}
	shared.Kubectl(t, "-n", ns, "wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/page", "--timeout=60s") // by the autoscaler

	began := time.Now()
	if out, err := shared.Run(t.Context(), "helm", "upgrade", "page", "testdata/chart", "--namespace", ns, "--set", "text=third,broken=true", "--rollback-on-failure", "--timeout", "60s"); err == nil {
		t.Errorf("an upgrade whose hook fails: %s", out)
	}
	t.Logf("a failed helm upgrade took %s", time.Since(began).Round(time.Millisecond))
	check("rolled back after a failure", "second")
	helm("rollback", "page", "1", "--wait", "--timeout", "60s")
	check("rolled back", "first")
	if out := helm("history", "page", "-o", "json"); strings.Count(out, `"revision"`) != 5 {
		t.Errorf("history: %s", out)
	}
	helm("uninstall", "page", "--wait", "--timeout", "60s")
	const except = "pod,secret,configmap,persistentvolumeclaim" // those of hooks, tests and claim templates stay
	var rest []string
	for _, k := range chartKinds {
		if !strings.Contains(except, k) {
			rest = append(rest, k)
		}
	}
	left := get(strings.Join(rest, ","), "-o", `jsonpath={range .items[?(@.metadata.annotations.meta\.helm\.sh/release-namespace=="`+ns+`")]}{.kind}/{.metadata.name}{"\n"}{end}`)
	left += get("secret/page", "configmap/page", "pvc/page", "--ignore-not-found", "-o", "name")
	if left != "" {
		t.Errorf("helm uninstall --wait left %s", left)
	}
	if name := get("configmap", "page-deleted", "-o", "name"); name != "configmap/page-deleted\n" {
		t.Errorf("the hook after the deletion made %q", name)
	}
}

// TestHelmCreate: the chart that `helm create` makes works with everything switched on but its
// HTTPRoute.
func TestHelmCreate(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	helm := releaseOf(t, ns)
	chart := filepath.Join(t.TempDir(), "web")
	helm("create", chart)
	// The test's image is the one thing that values cannot replace.
	test := filepath.Join(chart, "templates/tests/test-connection.yaml")
	text, err := os.ReadFile(test)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(test, []byte(strings.Replace(string(text), "image: busybox", "image: keelson.dev/demo/busybox:1", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	values := []string{"--values", "testdata/helm-create.yaml", "--wait", "--timeout", "60s"}
	helm(append([]string{"install", "web", chart}, values...)...)
	helm("test", "web")
	get := func(args ...string) string {
		t.Helper()
		return shared.Kubectl(t, append([]string{"-n", ns, "get"}, args...)...)
	}
	if out := get("ingress", "web", "--no-headers"); !strings.HasPrefix(strings.Join(strings.Fields(out), " "), "web <none> chart-example.local 80 ") {
		t.Errorf("the Ingress is %q", out)
	}
	if n := get("hpa", "web", "-o", "jsonpath={.spec.minReplicas} {.spec.metrics[*].resource.name}"); n != "2 cpu memory" {
		t.Errorf("the autoscaler has %q", n)
	}
	shared.Kubectl(t, "-n", ns, "wait", "--for=jsonpath={.status.readyReplicas}=2", "deployment/web", "--timeout=60s")
	if mounted := shared.Kubectl(t, "-n", ns, "exec", "deployment/web", "--", "ls", "/scratch/account"); !strings.Contains(mounted, "token") {
		t.Errorf("the volume has %q", mounted)
	}
	helm(append([]string{"upgrade", "web", chart, "--set", "podLabels.color=blue,service.type=NodePort"}, values...)...)
	if pods := get("pods", "-l", "color=blue", "-o", "name"); strings.Count(pods, "pod/web-") < 1 {
		t.Errorf("upgraded: the pods are %q", pods)
	}
	helm("test", "web")
	helm("rollback", "web", "1", "--wait", "--timeout", "60s")
	if kind := get("service", "web", "-o", "jsonpath={.spec.type}"); kind != "ClusterIP" {
		t.Errorf("rolled back: the service is a %s", kind)
	}
	helm("uninstall", "web", "--wait", "--timeout", "60s")
	if left := get("deployments,services,serviceaccounts,hpa,ingresses", "-l", "app.kubernetes.io/instance=web", "-o", "name"); left != "" {
		t.Errorf("helm uninstall --wait left %s", left)
	}
}
