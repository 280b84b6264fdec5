package cluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOutsideProgram builds a Go program outside the workspace, with proto as its
// only module of ours, and lets it create and watch a pod.
func TestOutsideProgram(t *testing.T) {
	dir := t.TempDir()
	source, err := os.ReadFile("testdata/outside/main.go.txt")
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
	for name, data := range map[string][]byte{"main.go": source, "go.mod": []byte(mod), "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-o", "outside", "."}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	ns := namespace(t)
	out, err := exec.Command(filepath.Join(dir, "outside"), grpcEndpoint(t), filepath.Join(shared.home, "pki", "admin"), ns).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Succeeded") {
		t.Errorf("the program: %v\n%s", err, out)
	}
}

func grpcEndpoint(t *testing.T) string {
	t.Helper()
	list, err := status()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.GRPC != "" {
			return s.GRPC
		}
	}
	t.Fatal("no process has a gRPC address")
	return ""
}

// TestGrpcurl creates, reads and watches a pod with grpcurl, which knows the API
// by reflection alone.
func TestGrpcurl(t *testing.T) {
	ns := namespace(t)
	pki := filepath.Join(shared.home, "pki", "admin")
	call := func(method, data string, extra ...string) (string, error) {
		args := append([]string{"-cacert", pki + "/ca.crt", "-cert", pki + "/tls.crt", "-key", pki + "/tls.key", "-d", data}, extra...)
		return try("grpcurl", append(args, grpcEndpoint(t), "keelson.resource.v1.ResourceService/"+method)...)
	}
	create := fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q}, "object": {
		"@type": "type.googleapis.com/k8s.io.api.core.v1.Pod",
		"metadata": {"name": "curled", "namespace": %q},
		"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "keelson.dev/demo/busybox:1", "command": ["true"]}]}}}`, ns, ns)
	if out, err := call("Create", create); err != nil || !strings.Contains(out, "curled") {
		t.Fatalf("Create: %v\n%s", err, out)
	}
	eventually(t, time.Minute, "the pod has run", func() error {
		out, err := call("Get", fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q, "name": "curled"}}`, ns))
		if err == nil && !strings.Contains(out, `"Succeeded"`) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	// A watch from the beginning shows the pod, then runs into its time limit.
	out, _ := call("Watch", fmt.Sprintf(`{"ref": {"version": "v1", "resource": "pods", "namespace": %q}, "sendInitialEvents": true}`, ns), "-max-time", "5")
	if !strings.Contains(out, "TYPE_ADDED") {
		t.Errorf("Watch: %s", out)
	}
	// Without a certificate there is one clear error, and the service stays.
	out, err := try("grpcurl", "-cacert", pki+"/ca.crt", "-d", "{}", grpcEndpoint(t), "keelson.resource.v1.ResourceService/List")
	if err == nil {
		t.Errorf("a client without certificate was served: %s", out)
	}
}
