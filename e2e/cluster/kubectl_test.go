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
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// kubectls are the clients that every row runs with.
var kubectls = []string{"kubectl", "kubectl-1.32"}

// step is one kubectl call of a row.
type step struct {
	args string // split at spaces, % is a space; {ns} is the row's namespace
	// stdin is given to it.
	stdin string
	// want must all be in the output; fails says that the call must fail.
	want  []string
	fails bool
	// soon says that what it looks at may come a moment later: events, log lines, and
	// what a cache of the apiserver knows.
	soon bool
}

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

var rows = []struct {
	name  string
	steps []step
}{
	{"ApplyClientSide", []step{
		{args: "apply -f -", stdin: webManifest, want: []string{"deployment.apps/web created"}},
		{args: "apply -f -", stdin: webManifest, want: []string{"deployment.apps/web unchanged"}},
		{args: "apply -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 2", 1), want: []string{"deployment.apps/web configured"}},
		{args: "get deployment web -o jsonpath={.spec.replicas}", want: []string{"2"}},
	}},
	{"ApplyServerSide", []step{
		{args: "apply --server-side -f -", stdin: webManifest, want: []string{"serverside-applied"}},
		{args: "scale deployment web --replicas=3", want: []string{"scaled"}},
		{args: "apply --server-side -f -", stdin: webManifest, fails: true, want: []string{"conflict", ".spec.replicas"}},
		{args: "apply --server-side --force-conflicts -f -", stdin: webManifest, want: []string{"serverside-applied"}},
		{args: "get deployment web -o jsonpath={.spec.replicas}", want: []string{"1"}},
	}},
	{"GetOutputs", []step{
		{args: "create configmap c --from-literal=key=value"},
		{args: "get configmaps", want: []string{"NAME", "DATA", "AGE", "c "}},
		{args: "get configmap c -o wide", want: []string{"DATA"}},
		{args: "get configmap c -o yaml", want: []string{"apiVersion: v1", "key: value", "uid:"}},
		{args: "get configmap c -o json", want: []string{`"key": "value"`}},
		{args: "get configmap c -o name", want: []string{"configmap/c"}},
		{args: "get configmap c -o jsonpath={.data.key}", want: []string{"value"}},
		{args: "get configmap c -o custom-columns=N:.metadata.name", want: []string{"N", "c"}},
		{args: "get configmap c -o go-template={{.data.key}}", want: []string{"value"}},
		{args: "get configmap absent", fails: true, want: []string{`configmaps "absent" not found`}},
		{args: "get nodes -o wide", want: []string{"STATUS", "INTERNAL-IP", "containerd://"}},
		{args: "get teapots", fails: true, want: []string{`the server doesn't have a resource type "teapots"`}},
	}},
	{"DescribeExplain", []step{
		{args: "apply -f -", stdin: webManifest},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "describe deployment web", want: []string{"Replicas:", "StrategyType:", "RollingUpdate", "ScalingReplicaSet"}, soon: true},
		{args: "describe pods -l app=web", want: []string{"Node:", "Container ID:", "Conditions:", "Scheduled"}, soon: true},
		{args: "describe node node-0", want: []string{"Allocatable:", "Conditions:", "Non-terminated Pods"}},
		{args: "explain deployment.spec.strategy", want: []string{"RollingUpdate", "FIELD"}},
		{args: "explain pod.spec.containers --recursive", want: []string{"livenessProbe"}},
	}},
	{"LabelAnnotate", []step{
		{args: "create configmap c"},
		{args: "label configmap c color=red", want: []string{"labeled"}},
		{args: "label configmap c color=blue", fails: true, want: []string{"already has a value"}},
		{args: "label configmap c color=blue --overwrite", want: []string{"labeled"}},
		{args: "get configmaps -l color=blue -o name", want: []string{"configmap/c"}},
		{args: "annotate configmap c note=yes", want: []string{"annotated"}},
		{args: "patch configmap c --type=json -p [{\"op\":\"add\",\"path\":\"/data\",\"value\":{\"a\":\"b\"}}]", want: []string{"patched"}},
		{args: "patch configmap c --type=merge -p {\"data\":{\"a\":null}}", want: []string{"patched"}},
	}},
	{"Rollout", []step{
		{args: "apply -f -", stdin: webManifest},
		{args: "rollout status deployment/web --timeout=60s", want: []string{"successfully rolled out"}},
		{args: "set env deployment/web COLOR=green", want: []string{"env updated"}},
		{args: "rollout status deployment/web --timeout=60s", want: []string{"successfully rolled out"}},
		{args: "rollout history deployment/web", want: []string{"REVISION", "1", "2"}},
		{args: "rollout undo deployment/web", want: []string{"rolled back"}},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "get deployment web -o jsonpath={.spec.template.spec.containers[0].env}", want: []string{""}},
		{args: "rollout restart deployment/web", want: []string{"restarted"}},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "rollout pause deployment/web", want: []string{"paused"}},
		{args: "rollout resume deployment/web", want: []string{"resumed"}},
		{args: "scale deployment web --replicas=0", want: []string{"scaled"}},
		{args: "wait --for=jsonpath={.status.observedGeneration} deployment/web --timeout=20s"},
	}},
	{"ExecLogsCopy", []step{
		{args: "apply -f -", stdin: boxManifest},
		{args: "wait --for=condition=Ready pod/box --timeout=60s", want: []string{"condition met"}},
		{args: "logs box", want: []string{"started"}, soon: true},
		{args: "logs box --tail=1 --timestamps", want: []string{"tick"}, soon: true},
		{args: "exec box -- echo hello", want: []string{"hello"}},
		{args: "exec -i box -- cat", stdin: "from outside", want: []string{"from outside"}},
		{args: "exec box -- sh -c exit%7", fails: true, want: []string{"exit code 7"}},
		{args: "cp testdata/file.txt box:/tmp/file.txt"},
		{args: "exec box -- cat /tmp/file.txt", want: []string{"a file to copy"}},
		{args: "get events --field-selector involvedObject.name=box", want: []string{"Scheduled", "Started"}, soon: true},
		{args: "events --for pod/box", want: []string{"Started"}, soon: true},
		{args: "delete pod box --now", want: []string{"deleted"}},
	}},
	{"DeleteCascades", []step{
		{args: "apply -f -", stdin: webManifest},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "delete deployment web --cascade=orphan", want: []string{"deleted"}},
		{args: "get replicasets -l app=web -o name", want: []string{"replicaset.apps/web-"}},
		{args: "delete replicaset -l app=web --cascade=background", want: []string{"deleted"}},
		{args: "wait --for=delete pod -l app=web --timeout=60s"},
		{args: "apply -f -", stdin: webManifest},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "delete deployment web --cascade=foreground --timeout=60s", want: []string{"deleted"}},
		{args: "get replicasets,pods -l app=web -o name", want: []string{""}},
	}},
	{"AuthAndDiscovery", []step{
		{args: "auth can-i create pods", want: []string{"yes"}},
		{args: "auth can-i create pods --as=system:anonymous", fails: true, want: []string{"no"}},
		{args: "auth can-i --list --as=system:serviceaccount:{ns}:default", want: []string{"selfsubjectaccessreviews"}},
		{args: "auth whoami", want: []string{"kubernetes-admin"}},
		{args: "api-resources", want: []string{"deployments", "deploy", "apps/v1", "true"}},
		{args: "api-versions", want: []string{"apps/v1", "batch/v1"}},
		{args: "version", want: []string{"Server Version: v1.37"}},
		{args: "create token default", want: []string{"eyJ"}},
		{args: "cluster-info", want: []string{"is running at"}},
		{args: "get --raw /readyz?verbose", want: []string{"readyz check passed"}},
	}},
	{"RBAC", []step{
		{args: "create role reader --verb=get,list --resource=configmaps"},
		{args: "create rolebinding reader --role=reader --serviceaccount={ns}:default"},
		{args: "auth can-i list configmaps --as=system:serviceaccount:{ns}:default", want: []string{"yes"}, soon: true},
		{args: "auth can-i list secrets --as=system:serviceaccount:{ns}:default", fails: true, want: []string{"no"}},
		{args: "get secrets --as=system:serviceaccount:{ns}:default", fails: true, want: []string{`cannot list resource "secrets"`}},
	}},
	{"BadInput", []step{
		{args: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatum: {}\n", fails: true, want: []string{`unknown field "datum"`}},
		{args: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n", fails: true, want: []string{"metadata.name", "RFC 1123"}},
		{args: "apply -f - --validate=false", stdin: "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, resources: {requests: {cpu: many}}}]}\n", fails: true, want: []string{"quantities must match"}},
		{args: "create configmap c"},
		{args: "create configmap c", fails: true, want: []string{"already exists"}},
		{args: "replace -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: \"1\"}\n", fails: true, want: []string{"the object has been modified"}},
	}},
}

func TestKubectl(t *testing.T) {
	for _, k := range kubectls {
		for _, row := range rows {
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
	args := []string{"-n", ns}
	for _, a := range strings.Fields(strings.ReplaceAll(s.args, "{ns}", ns)) {
		args = append(args, strings.ReplaceAll(a, "%", " "))
	}
	call := func(ctx context.Context) (string, error) {
		out, err := shared.Feed(ctx, s.stdin, kubectl, args...)
		if err != nil {
			out = err.Error()
		}
		return out, err
	}
	if s.soon {
		wait.For(t, time.Minute, kubectl+" "+s.args, func(ctx context.Context) error {
			out, err := call(ctx)
			for _, w := range s.want {
				if err == nil && !strings.Contains(out, w) {
					err = fmt.Errorf("want %q in:\n%s", w, out)
				}
			}
			return err
		})
		return
	}
	out, err := call(t.Context())
	if (err != nil) != s.fails {
		t.Fatalf("%s %s: failed %t, want %t:\n%s", kubectl, s.args, err != nil, s.fails, out)
	}
	for _, w := range s.want {
		if !strings.Contains(out, w) {
			t.Errorf("%s %s: want %q in:\n%s", kubectl, s.args, w, out)
		}
	}
}

// TestKubectlDiff: diff shows the change and exits with 1.
func TestKubectlDiff(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: webManifest})
			runStep(t, k, ns, step{args: "diff -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 4", 1), fails: true, want: []string{"-  replicas: 1", "+  replicas: 4"}})
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
			runStep(t, k, ns, step{args: "create configmap c --from-literal=key=before"})
			runStep(t, k, ns, step{args: "edit configmap c", want: []string{"edited"}})
			runStep(t, k, ns, step{args: "get configmap c -o jsonpath={.data.key}", want: []string{"after"}})
		})
	}
}

// TestKubectlStreams: what lasts until it is ended: logs -f, port-forward,
// attach, exec with a terminal.
func TestKubectlStreams(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: boxManifest})
			runStep(t, k, ns, step{args: "apply -f -", stdin: webManifest})
			runStep(t, k, ns, step{args: "wait --for=condition=Ready pod/box --timeout=60s"})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s"})
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

// streamUntil runs kubectl until its output has held a word n times.
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
		t.Errorf("%s %v: %q came %d times, want %d: %s", k, args, word, seen, n, problems.String())
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
		t.Fatalf("port-forward said %q", line)
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

// TestKubectlNodes: drain and cordon, with pods that move.
func TestKubectlNodes(t *testing.T) {
	for _, k := range kubectls {
		t.Run(k, func(t *testing.T) {
			ns := namespace(t)
			runStep(t, k, ns, step{args: "apply -f -", stdin: strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1)})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s"})
			cleanup(t, k, "uncordon", "node-1")
			runStep(t, k, ns, step{args: "cordon node-1", want: []string{"cordoned"}})
			runStep(t, k, ns, step{args: "get node node-1", want: []string{"SchedulingDisabled"}})
			runStep(t, k, ns, step{args: "drain node-1 --ignore-daemonsets --delete-emptydir-data --pod-selector=app=web --timeout=60s", want: []string{"drained"}})
			runStep(t, k, ns, step{args: "rollout status deployment/web --timeout=60s"})
			runStep(t, k, ns, step{args: "get pods -l app=web --field-selector spec.nodeName=node-1,status.phase=Running -o name"})
			runStep(t, k, ns, step{args: "uncordon node-1", want: []string{"uncordoned"}})
		})
	}
}

// TestKubectlCertificate: a request is approved, signed, and the certificate
// works.
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
			runStep(t, k, "default", step{args: "apply -f -", stdin: fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: %s}\nspec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: %s}\n", name, csr)})
			runStep(t, k, "default", step{args: "get csr " + name, want: []string{"Pending"}})
			runStep(t, k, "default", step{args: "certificate approve " + name, want: []string{"approved"}})
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
