package cluster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// build builds a Go program outside of the workspace, whose only module of Keelson's is
// proto, from a file of testdata.
func build(t *testing.T, source string) (program string) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	proto, err := filepath.Abs("../../proto")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(proto, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	mod := fmt.Sprintf("module example.org/outside\n\ngo 1.26.0\n\nrequire keelson.dev/proto v0.0.0\n\nreplace keelson.dev/proto => %s\n", proto)
	for name, data := range map[string][]byte{"main.go": text, "go.mod": []byte(mod), "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-o", "program", "."}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	return filepath.Join(dir, "program")
}

// TestOutsideProgram has a program outside of the cluster create and watch a pod over gRPC.
func TestOutsideProgram(t *testing.T) {
	program, ns := build(t, "testdata/outside/main.go.txt"), namespace(t)
	out, err := exec.Command(program, shared.Endpoints(t)[0], filepath.Join(shared.Home, "pki", "admin"), ns).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Succeeded") {
		t.Errorf("the program: %v\n%s", err, out)
	}
}

// TestInsideProgram has a program in a pod, with the token of the pod's service account,
// find the port grpc of the Service kubernetes by name and list pods there.
func TestInsideProgram(t *testing.T) {
	program, ns := build(t, "testdata/inside/main.go.txt"), namespace(t)
	shared.Kubectl(t, "-n", ns, "create", "role", "lists-pods", "--verb=list", "--resource=pods")
	shared.Kubectl(t, "-n", ns, "create", "rolebinding", "lists-pods", "--role=lists-pods", "--serviceaccount="+ns+":default")
	// All nodes share the files of this machine.
	shared.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: inside}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [/program/program], volumeMounts: [{name: program, mountPath: /program, readOnly: true}]}]
  volumes: [{name: program, hostPath: {path: %s, type: Directory}}]
`, filepath.Dir(program)), "-n", ns)
	shared.Shows(t, time.Minute, "pods: inside\nsecrets: Forbidden\n", "-n", ns, "logs", "inside")
	shared.Shows(t, time.Minute, "Succeeded", "-n", ns, "get", "pod", "inside", "-o", "jsonpath={.status.phase}")
}

// TestGrpcurl creates, reads and watches a pod with grpcurl, which has the API
// by reflection alone.
func TestGrpcurl(t *testing.T) {
	ns := namespace(t)
	endpoint := shared.Endpoints(t)[0]
	pki := filepath.Join(shared.Home, "pki", "admin")
	call := func(ctx context.Context, method, data string, extra ...string) (string, error) {
		args := append([]string{"-cacert", pki + "/ca.crt", "-cert", pki + "/tls.crt", "-key", pki + "/tls.key", "-d", data}, extra...)
		return shared.Run(ctx, "grpcurl", append(args, endpoint, "keelson.resource.v1.ResourceService/"+method)...)
	}
	create := fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q}, "object": {
		"@type": "type.googleapis.com/k8s.io.api.core.v1.Pod",
		"metadata": {"name": "curled", "namespace": %q},
		"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "keelson.dev/demo/busybox:1", "command": ["true"]}]}}}`, ns, ns)
	if out, err := call(t.Context(), "Create", create); err != nil || !strings.Contains(out, "curled") {
		t.Fatalf("Create: %v\n%s", err, out)
	}
	wait.For(t, time.Minute, "the pod has run", func(ctx context.Context) error {
		out, err := call(ctx, "Get", fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q, "name": "curled"}}`, ns))
		if err == nil && !strings.Contains(out, `"Succeeded"`) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	// A watch from the beginning shows the pod, then runs into its time limit.
	out, _ := call(t.Context(), "Watch", fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q}, "sendInitialEvents": true}`, ns), "-max-time", "5")
	if !strings.Contains(out, "TYPE_ADDED") {
		t.Errorf("Watch: %s", out)
	}
	// A client without a certificate is refused.
	out, err := shared.Run(t.Context(), "grpcurl", "-cacert", pki+"/ca.crt", "-d", "{}", endpoint, "keelson.resource.v1.ResourceService/List")
	if err == nil {
		t.Errorf("a client without a certificate was served: %s", out)
	}
}
