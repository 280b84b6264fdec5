package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// kubectls are the clients with which every row runs.
var kubectls = []string{"kubectl", "kubectl-1.32"}

// step is one kubectl call of a row, with all that it prints.
type step struct {
	args  string // split at spaces, % is a space; {ns} is the row's namespace
	stdin string
	// prints is all that kubectl prints, as against Kubernetes: on standard output, or, if
	// fails, on both. In it * stands for any text within a line and ** for any text.
	prints string
	// has are texts within an output that is too long for prints.
	has    []string
	silent bool // it prints nothing
	fails  bool // it exits with another code than 0
	// soon is true if what it prints may come a moment later: events, log lines, and what a
	// cache of the apiserver shows.
	soon bool
}

// check returns an error that names what differs from what the step should print.
func (s step) check(ns, out string) error {
	want := strings.ReplaceAll(s.prints, "{ns}", ns)
	switch {
	case s.prints == "" && !s.silent && len(s.has) == 0:
		return wait.Stop(errors.New("the step does not state what it prints"))
	case s.silent && out != "":
		return fmt.Errorf("want no output, got:\n%s", out)
	case s.prints != "" && !matches(want, out):
		return fmt.Errorf("want:\n%s\ngot:\n%s", want, out)
	}
	for _, h := range s.has {
		if !strings.Contains(out, h) {
			return fmt.Errorf("want %q in:\n%s", h, out)
		}
	}
	return nil
}

// matches reports whether a text is as stated, with * and ** as in step.prints.
func matches(stated, text string) bool {
	pattern := regexp.QuoteMeta(stated)
	pattern = strings.ReplaceAll(pattern, `\*\*`, `(?s:.*)`)
	pattern = strings.ReplaceAll(pattern, `\*`, `[^\n]*`)
	return regexp.MustCompile(`\A` + pattern + `\z`).MatchString(text)
}

// rolledOut is what `kubectl rollout status` ends with.
const rolledOut = "**deployment \"web\" successfully rolled out\n"

const webManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: nginx, image: "keelson.dev/demo/nginx:1", ports: [{containerPort: 80}], readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
`

const boxManifest = `
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: box, image: "keelson.dev/demo/busybox:1", stdin: true, tty: false, command: [sh, -c, "echo started; i=0; while true; do echo tick $i; i=$((i+1)); sleep 1; done"]}
`

// row is what one namespace sees.
type row struct {
	name  string
	steps []step
	// needs is what Kubernetes without kubelets lacks. With -kubernetes the rows that need
	// nothing run too, which shows that what they state is what Kubernetes prints.
	needs string
}

const runningPods = "pods that run"

var rows = []row{
	{"ApplyClientSide", []step{
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"},
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web unchanged\n"},
		{args: "apply -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 2", 1), prints: "deployment.apps/web configured\n"},
		{args: "get deployment web -o jsonpath={.spec.replicas}", prints: "2"},
	}, ""},
	{"ApplyServerSide", []step{
		{args: "apply --server-side -f -", stdin: webManifest, prints: "deployment.apps/web serverside-applied\n"},
		{args: "scale deployment web --replicas=3", prints: "deployment.apps/web scaled\n"},
		{args: "apply --server-side -f -", stdin: webManifest, fails: true, prints: "error: Apply failed with 1 conflict: conflict with \"kubectl*\" with subresource \"scale\" using apps/v1: .spec.replicas\n" +
			"Please review the fields above--they currently have other managers. Here\nare the ways you can resolve this warning:\n**"},
		{args: "apply --server-side --force-conflicts -f -", stdin: webManifest, prints: "deployment.apps/web serverside-applied\n"},
		{args: "get deployment web -o jsonpath={.spec.replicas}", prints: "1"},
	}, ""},
	{"GetOutputs", []step{
		{args: "create configmap c --from-literal=key=value", prints: "configmap/c created\n"},
		{args: "get configmaps", prints: "NAME * DATA   AGE\nc * 1      *s\nkube-root-ca.crt   1      *s\n"},
		{args: "get configmap c -o wide", prints: "NAME   DATA   AGE\nc      1      *s\n"},
		{args: "get configmap c -o yaml", prints: "apiVersion: v1\ndata:\n  key: value\nkind: ConfigMap\nmetadata:\n  creationTimestamp: \"*Z\"\n" +
			"  name: c\n  namespace: {ns}\n  resourceVersion: \"*\"\n  uid: *-*-*-*-*\n"},
		{args: "get configmap c -o json", prints: "{\n    \"apiVersion\": \"v1\",\n    \"data\": {\n        \"key\": \"value\"\n    },\n    \"kind\": \"ConfigMap\",\n" +
			"    \"metadata\": {\n        \"creationTimestamp\": \"*Z\",\n        \"name\": \"c\",\n        \"namespace\": \"{ns}\",\n        \"resourceVersion\": \"*\",\n        \"uid\": \"*\"\n    }\n}\n"},
		{args: "get configmap c -o name", prints: "configmap/c\n"},
		{args: "get configmap c -o jsonpath={.data.key}", prints: "value"},
		{args: "get configmap c -o custom-columns=N:.metadata.name", prints: "N\nc\n"},
		{args: "get configmap c -o go-template={{.data.key}}", prints: "value"},
		{args: "get configmap absent", fails: true, prints: "Error from server (NotFound): configmaps \"absent\" not found\n"},
		{args: "get teapots", fails: true, prints: "error: the server doesn't have a resource type \"teapots\"\n"},
	}, ""},
	{"Nodes", []step{
		{args: "get nodes -o wide", prints: "NAME *STATUS *ROLES *AGE *VERSION *INTERNAL-IP *EXTERNAL-IP *OS-IMAGE *KERNEL-VERSION *CONTAINER-RUNTIME*\n" +
			"node-0 *Ready * v1.37* <none> *containerd://*\nnode-1 *\nnode-2 *\n"},
	}, "nodes that report"},
	{"DescribeExplain", []step{
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "describe deployment web", has: []string{"Replicas:", "StrategyType:", "RollingUpdate", "ScalingReplicaSet"}, soon: true},
		{args: "describe pods -l app=web", has: []string{"Node:", "Container ID:", "Conditions:", "Scheduled"}, soon: true},
		{args: "describe node node-0", has: []string{"Allocatable:", "Conditions:", "Non-terminated Pods"}},
		{args: "explain deployment.spec.strategy", prints: "GROUP:      apps\nKIND:       Deployment\nVERSION:    v1\n\nFIELD: strategy <DeploymentStrategy>\n**  rollingUpdate\t<RollingUpdateDeployment>\n**"},
		{args: "explain pod.spec.containers --recursive", prints: "KIND:       Pod\nVERSION:    v1\n\nFIELD: containers <[]Container>\n**  livenessProbe\t<Probe>\n**"},
	}, runningPods},
	{"LabelAnnotate", []step{
		{args: "create configmap c", prints: "configmap/c created\n"},
		{args: "label configmap c color=red", prints: "configmap/c labeled\n"},
		{args: "label configmap c color=blue", fails: true, prints: "error: 'color' already has a value (red), and --overwrite is false\n"},
		{args: "label configmap c color=blue --overwrite", prints: "configmap/c labeled\n"},
		{args: "get configmaps -l color=blue -o name", prints: "configmap/c\n"},
		{args: "annotate configmap c note=yes", prints: "configmap/c annotated\n"},
		{args: "patch configmap c --type=json -p [{\"op\":\"add\",\"path\":\"/data\",\"value\":{\"a\":\"b\"}}]", prints: "configmap/c patched\n"},
		{args: "patch configmap c --type=merge -p {\"data\":{\"a\":null}}", prints: "configmap/c patched\n"},
	}, ""},
	{"Rollout", []step{
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "set env deployment/web COLOR=green", prints: "deployment.apps/web env updated\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "rollout history deployment/web", prints: "deployment.apps/web *\nREVISION  CHANGE-CAUSE\n1         <none>\n2         <none>\n\n"},
		{args: "rollout undo deployment/web", prints: "deployment.apps/web rolled back\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "get deployment web -o jsonpath={.spec.template.spec.containers[0].env}", silent: true},
		{args: "rollout restart deployment/web", prints: "deployment.apps/web restarted\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "rollout pause deployment/web", prints: "deployment.apps/web paused\n"},
		{args: "rollout resume deployment/web", prints: "deployment.apps/web resumed\n"},
		{args: "scale deployment web --replicas=0", prints: "deployment.apps/web scaled\n"},
		{args: "wait --for=jsonpath={.status.observedGeneration} deployment/web --timeout=20s", prints: "deployment.apps/web condition met\n"},
	}, runningPods},
	{"ExecLogsCopy", []step{
		{args: "apply -f -", stdin: boxManifest, prints: "pod/box created\n"},
		{args: "wait --for=condition=Ready pod/box --timeout=60s", prints: "pod/box condition met\n"},
		{args: "logs box", prints: "started\n**", soon: true},
		{args: "logs box --tail=1 --timestamps", prints: "20*T*:*:*.*tick *\n", soon: true},
		{args: "exec box -- echo hello", prints: "hello\n"},
		{args: "exec -i box -- cat", stdin: "from outside", prints: "from outside"},
		{args: "exec box -- sh -c exit%7", fails: true, prints: "command terminated with exit code 7\n"},
		{args: "cp testdata/file.txt box:/tmp/file.txt", silent: true},
		{args: "exec box -- cat /tmp/file.txt", prints: "a file to copy\n"},
		{args: "get events --field-selector involvedObject.name=box", prints: "LAST SEEN   TYPE     REASON      OBJECT    MESSAGE\n** Normal   Scheduled   pod/box   Successfully assigned {ns}/box to node-*\n**", soon: true},
		{args: "get events --field-selector involvedObject.name=box,reason=Started", prints: "LAST SEEN   TYPE     REASON    OBJECT    MESSAGE\n*s * Normal   Started   pod/box   *tarted*\n", soon: true},
		{args: "events --for pod/box", prints: "LAST SEEN * TYPE     REASON      OBJECT    MESSAGE\n** Normal   Started     Pod/box   *tarted*\n", soon: true},
		{args: "delete pod box --now", prints: "pod \"box\" deleted*\n"},
	}, runningPods},
	{"DeleteCascades", []step{
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "delete deployment web --cascade=orphan", prints: "deployment.apps \"web\" deleted*\n"},
		{args: "get replicasets -l app=web -o name", prints: "replicaset.apps/web-*\n"},
		{args: "delete replicaset -l app=web --cascade=background", prints: "replicaset.apps \"web-*\" deleted*\n"},
		{args: "wait --for=delete pod -l app=web --timeout=60s", prints: "pod/web-* condition met\n"},
		{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"},
		{args: "rollout status deployment/web --timeout=60s", prints: rolledOut},
		{args: "delete deployment web --cascade=foreground --timeout=60s", prints: "deployment.apps \"web\" deleted*\n"},
		{args: "get replicasets,pods -l app=web -o name", silent: true},
	}, runningPods},
	{"AuthAndDiscovery", []step{
		{args: "auth can-i create pods", prints: "yes\n"},
		{args: "auth can-i create pods --as=system:anonymous", fails: true, prints: "Error from server (Forbidden): selfsubjectaccessreviews.authorization.k8s.io is forbidden: " +
			"User \"system:anonymous\" cannot create resource \"selfsubjectaccessreviews\" in API group \"authorization.k8s.io\" at the cluster scope\n"},
		{args: "auth can-i create pods --as=system:serviceaccount:{ns}:default", fails: true, prints: "no\n"},
		{args: "auth can-i --list --as=system:serviceaccount:{ns}:default", prints: "Resources *Non-Resource URLs *Resource Names *Verbs\n**selfsubjectaccessreviews.authorization.k8s.io *[] *[] *[create]\n**"},
		{args: "auth whoami", prints: "ATTRIBUTE *VALUE\nUsername *kubernetes-admin\nGroups *[*system:authenticated]\n**"},
		{args: "api-resources", prints: "NAME *SHORTNAMES *APIVERSION *NAMESPACED *KIND\n**\ndeployments *deploy *apps/v1 *true *Deployment\n**"},
		{args: "api-versions", prints: "**apps/v1\n**batch/v1\n**\nv1\n"},
		{args: "version", prints: "Client Version: v1.*\nKustomize Version: v*\nServer Version: v1.37*\n"},
		{args: "create token default", prints: "eyJ*.*.**"},
		{args: "cluster-info", prints: "*Kubernetes control plane* is running at *https://*\n**To further debug and diagnose cluster problems, use 'kubectl cluster-info dump'.\n"},
		{args: "get --raw /readyz?verbose", prints: "[+]*ok\n**readyz check passed\n"},
	}, ""},
	{"RBAC", []step{
		{args: "create role reader --verb=get,list --resource=configmaps", prints: "role.rbac.authorization.k8s.io/reader created\n"},
		{args: "create rolebinding reader --role=reader --serviceaccount={ns}:default", prints: "rolebinding.rbac.authorization.k8s.io/reader created\n"},
		{args: "auth can-i list configmaps --as=system:serviceaccount:{ns}:default", prints: "yes\n", soon: true},
		{args: "auth can-i list secrets --as=system:serviceaccount:{ns}:default", fails: true, prints: "no\n"},
		{args: "get secrets --as=system:serviceaccount:{ns}:default", fails: true, prints: "Error from server (Forbidden): secrets is forbidden: User \"system:serviceaccount:{ns}:default\" " +
			"cannot list resource \"secrets\" in API group \"\" in the namespace \"{ns}\"\n"},
	}, ""},
	{"BadInput", []step{
		{args: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatum: {}\n", fails: true,
			prints: "Error from server (BadRequest): error when creating \"STDIN\": ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datum\"\n"},
		{args: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n", fails: true,
			prints: "The ConfigMap \"Not_A_Name\" is invalid: metadata.name: Invalid value: \"Not_A_Name\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, " +
				"'-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '*')\n"},
		{args: "apply -f - --validate=false", stdin: "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, resources: {requests: {cpu: many}}}]}\n", fails: true,
			prints: "Error from server (BadRequest): error when creating \"STDIN\": Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '*'\n"},
		{args: "create configmap c", prints: "configmap/c created\n"},
		{args: "create configmap c", fails: true, prints: "error: failed to create configmap: configmaps \"c\" already exists\n"},
		{args: "replace -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: \"1\"}\n", fails: true,
			prints: "Error from server (Conflict): error when replacing \"STDIN\": Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again\n"},
	}, ""},
}

func TestKubectl(t *testing.T) {
	for _, k := range kubectls {
		for _, row := range rows {
			if *kubernetesDir != "" && row.needs != "" {
				continue
			}
			t.Run(k+"/"+row.name, func(t *testing.T) {
				ns := namespace(t)
				for _, s := range row.steps {
					runStep(t, k, ns, s)
				}
			})
		}
	}
}

func runStep(t *testing.T, kubectl, ns string, s step) {
	t.Helper()
	args := arguments(ns, strings.ReplaceAll(s.args, "{ns}", ns))
	call := func(ctx context.Context) error {
		out, err := shared.Feed(ctx, s.stdin, kubectl, args...)
		if (err != nil) != s.fails {
			return fmt.Errorf("failed %t, want %t: %s, %w", err != nil, s.fails, out, err)
		}
		if err != nil {
			_, out, _ = strings.Cut(err.Error(), "\n") // after the command line
		}
		return s.check(ns, out)
	}
	if s.soon {
		wait.For(t, time.Minute, kubectl+" "+s.args, call)
	} else if err := call(t.Context()); err != nil {
		t.Fatalf("%s %s: %v", kubectl, s.args, err)
	}
}

// TestMatches checks what the rows' outputs are compared by.
func TestMatches(t *testing.T) {
	for _, row := range []struct {
		stated, text string
		want         bool
	}{
		{"a\n", "a\n", true}, {"a\n", "a", false}, {"a\n", "a\nb\n", false}, {"a", "ba", false},
		{"a*c\n", "abc\n", true}, {"a*c\n", "a\nc\n", false}, {"**c\n", "a\nb\nc\n", true}, {"**c\n", "a\nb\n", false},
		{"[.]", "[.]", true}, {"[.]", ".", false},
	} {
		if got := matches(row.stated, row.text); got != row.want {
			t.Errorf("%q matches %q: %t, want %t", row.text, row.stated, got, row.want)
		}
	}
}

// TestKubectlDiff: diff prints the change and exits with 1.
func TestKubectlDiff(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"})
			runStep(t, k, ns, step{args: "diff -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 4", 1), fails: true,
				prints: "diff -u -N *LIVE-*/apps.v1.Deployment.{ns}.web *MERGED-*/apps.v1.Deployment.{ns}.web\n--- *\n+++ *\n@@ *\n**-  replicas: 1\n+  replicas: 4\n**"})
		})
	}
}

// TestKubectlEdit: an editor that changes the file changes the object.
func TestKubectlEdit(t *testing.T) {
	editor := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(editor, []byte("#!/bin/sh\nsed -i 's/before/after/' \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBE_EDITOR", editor)
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "create configmap c --from-literal=key=before", prints: "configmap/c created\n"})
			runStep(t, k, ns, step{args: "edit configmap c", prints: "configmap/c edited\n"})
			runStep(t, k, ns, step{args: "get configmap c -o jsonpath={.data.key}", prints: "after"})
		})
	}
}

// TestKubectlStreams: commands that last until they are ended: logs -f, port-forward,
// attach, and exec with a terminal.
func TestKubectlStreams(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: boxManifest, prints: "pod/box created\n"})
			runStep(t, k, ns, step{args: "apply -f -", stdin: webManifest, prints: "deployment.apps/web created\n"})
			runStep(t, k, ns, step{args: "wait --for=condition=Ready pod/box --timeout=60s", prints: "pod/box condition met\n"})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s", prints: rolledOut})
			t.Run("LogsFollow", func(t *testing.T) { streamUntil(t, k, ns, "tick", 3, "logs", "-f", "box") })
			t.Run("Attach", func(t *testing.T) { streamUntil(t, k, ns, "tick", 2, "attach", "box") })
			t.Run("ExecTerminal", func(t *testing.T) {
				// script(1) gives kubectl a terminal.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := shared.Command(ctx, k)
				inner := fmt.Sprintf("%s -n %s exec -it box -- sh -c 'test -t 0 && echo a-terminal; exit 3'", cmd.Path, ns)
				run := exec.CommandContext(ctx, "script", "-qec", inner, "/dev/null")
				run.Env = cmd.Env
				out, err := run.CombinedOutput()
				if run.ProcessState.ExitCode() != 3 || !bytes.Contains(out, []byte("a-terminal")) {
					t.Errorf("exec -it: %v: %s; want a terminal and exit code 3", err, out)
				}
			})
			t.Run("PortForward", func(t *testing.T) { portForward(t, k, ns) })
		})
	}
}

// streamUntil runs kubectl until n lines of its output have a word.
func streamUntil(t *testing.T, k, ns, word string, n int, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.Command(ctx, k, append([]string{"-n", ns}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems bytes.Buffer
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	lines := bufio.NewScanner(out)
	for seen < n && lines.Scan() {
		if strings.Contains(lines.Text(), word) {
			seen++
		}
	}
	cancel()
	_ = cmd.Wait()
	if seen < n {
		t.Errorf("%s %v: %d lines have %q, want %d: %s", k, args, seen, word, n, problems.String())
	}
}

func portForward(t *testing.T, k, ns string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.Command(ctx, k, "-n", ns, "port-forward", "deployment/web", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var problems bytes.Buffer
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("port-forward: %v: %s", err, problems.String())
	}
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("port-forward printed %q", line)
	}
	for range 3 {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !bytes.Contains(body, []byte("nginx")) {
			t.Errorf("port-forward: %s", body)
		}
	}
}

// TestKubectlNodes: cordon, drain and uncordon a node; its pods move.
func TestKubectlNodes(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1), prints: "deployment.apps/web created\n"})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s", prints: rolledOut})
			cleanup(t, k, "uncordon", "node-1")
			runStep(t, k, ns, step{args: "cordon node-1", prints: "node/node-1 cordoned\n"})
			runStep(t, k, ns, step{args: "get node node-1", prints: "NAME *STATUS *ROLES *AGE *VERSION\nnode-1   Ready,SchedulingDisabled *\n"})
			runStep(t, k, ns, step{args: "drain node-1 --ignore-daemonsets --delete-emptydir-data --pod-selector=app=web --timeout=60s", prints: "**node/node-1 drained\n"})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s", prints: rolledOut})
			runStep(t, k, ns, step{args: "get pods -l app=web --field-selector spec.nodeName=node-1,status.phase=Running -o name", silent: true})
			runStep(t, k, ns, step{args: "uncordon node-1", prints: "node/node-1 uncordoned\n"})
		})
	}
}

// TestKubectlCertificate: a request is approved and signed, and the certificate is
// accepted.
func TestKubectlCertificate(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			dir := t.TempDir()
			name := "e2e-" + strings.NewReplacer(".", "-").Replace(k)
			script := fmt.Sprintf(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout %[1]s/key -subj /O=e2e-group/CN=e2e-user -out %[1]s/csr 2>/dev/null && base64 -w0 %[1]s/csr`, dir)
			csr, err := exec.Command("sh", "-c", script).Output()
			if err != nil {
				t.Fatal(err)
			}
			cleanup(t, k, "delete", "csr", name)
			runStep(t, k, "default", step{args: "apply -f -", stdin: fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: %s}\nspec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: %s}\n", name, csr), prints: "certificatesigningrequest.certificates.k8s.io/" + name + " created\n"})
			runStep(t, k, "default", step{args: "get csr " + name, prints: "NAME *AGE *SIGNERNAME *REQUESTOR *REQUESTEDDURATION *CONDITION\n" + name + " *kubernetes.io/kube-apiserver-client *kubernetes-admin *<none> *Pending\n"})
			runStep(t, k, "default", step{args: "certificate approve " + name, prints: "certificatesigningrequest.certificates.k8s.io/" + name + " approved\n"})
			wait.For(t, time.Minute, "the certificate is issued", func(ctx context.Context) error {
				out, err := shared.Run(ctx, k, "get", "csr", name, "-o", "jsonpath={.status.certificate}")
				if err == nil && out == "" {
					err = errors.New("it has none")
				}
				if err != nil {
					return err
				}
				pem, err := base64.StdEncoding.DecodeString(out)
				if err != nil {
					return wait.Stop(err)
				}
				return os.WriteFile(filepath.Join(dir, "crt"), pem, 0o600)
			})
			config, err := os.ReadFile(filepath.Join(shared.Home, "kubeconfig"))
			if err != nil {
				t.Fatal(err)
			}
			kubeconfig := filepath.Join(dir, "kubeconfig")
			if err := os.WriteFile(kubeconfig, config, 0o600); err != nil {
				t.Fatal(err)
			}
			shared.Must(t, k, "--kubeconfig", kubeconfig, "config", "set-credentials", "e2e", "--client-certificate="+dir+"/crt", "--client-key="+dir+"/key")
			shared.Must(t, k, "--kubeconfig", kubeconfig, "config", "set-context", "--current", "--user=e2e")
			if out := shared.Must(t, k, "--kubeconfig", kubeconfig, "auth", "whoami"); !strings.Contains(out, "e2e-user") {
				t.Errorf("whoami with the certificate: %s", out)
			}
		})
	}
}
