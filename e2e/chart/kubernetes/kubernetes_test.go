// Package kubernetes_test lets a kube-apiserver of Kubernetes accept the charts: each values file is a
// server-side dry run. scripts/chart-kubernetes.sh builds kube-apiserver and etcd, and runs it.
package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

const charts = "../../../charts"

// spawn starts a program until the test ends, with its output in the test's log if that fails.
func spawn(t *testing.T, program string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(program, args...) //nolint:noctx // the cleanup ends it
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run `make chart-kubernetes`, which builds it", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			lines := strings.Split(said.String(), "\n")
			t.Logf("%s: %s", filepath.Base(program), strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
	})
}

// ports returns free ports of loopback.
func ports(t *testing.T, n int) (out []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		out = append(out, port)
	}
	return out
}

// start starts etcd and kube-apiserver, and returns a function that runs a program with its
// kubeconfig.
func start(t *testing.T) func(stdin, program string, args ...string) (string, error) {
	t.Helper()
	bin, err := cluster.Programs()
	if err != nil {
		t.Fatal(err)
	}
	programs := os.Getenv("KEELSON_KUBERNETES")
	dir := t.TempDir()
	run := func(stdin, program string, args ...string) (string, error) {
		path := filepath.Join(bin, program)
		if _, err := os.Stat(path); err != nil {
			path = filepath.Join(bin, "runtime", program)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out, problems bytes.Buffer
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir, "pki", "admin", "kubeconfig"))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &problems
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, &problems)
		}
		return out.String(), nil
	}
	p := ports(t, 3)
	pki := filepath.Join(dir, "pki")
	if _, err := run("", "keel", "pki", "--dir", pki, "--server", "https://127.0.0.1:"+p[2]); err != nil {
		t.Fatal(err)
	}
	store, peer := "http://127.0.0.1:"+p[0], "http://127.0.0.1:"+p[1]
	spawn(t, filepath.Join(programs, "etcd"), "--name", "a", "--data-dir", filepath.Join(dir, "etcd"), "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "a="+peer)
	own, keys := filepath.Join(pki, "apiserver"), filepath.Join(pki, "sa.key")
	spawn(t, filepath.Join(programs, "kube-apiserver"), "--etcd-servers", store,
		"--bind-address", "127.0.0.1", "--secure-port", p[2], "--advertise-address", "192.0.2.1",
		"--client-ca-file", filepath.Join(own, "ca.crt"), "--tls-cert-file", filepath.Join(own, "tls.crt"), "--tls-private-key-file", filepath.Join(own, "tls.key"),
		"--service-account-issuer", "https://test", "--service-account-key-file", keys, "--service-account-signing-key-file", keys,
		"--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "Node,RBAC", "--disable-admission-plugins", "ServiceAccount")
	web := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // only whether it is ready
	wait.For(t, 2*time.Minute, "kube-apiserver is ready", func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:"+p[2]+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := web.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", answer.Status)
		}
		return nil
	})
	return run
}

func TestKubernetesAcceptsTheCharts(t *testing.T) {
	run := start(t)
	must := func(stdin, program string, args ...string) string {
		t.Helper()
		out, err := run(stdin, program, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	must("", "kubectl", "create", "namespace", "ns")
	must("", "kubectl", "label", "namespace", "ns", "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
	must(`{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"p"},"value":1}`, "kubectl", "apply", "-f", "-")
	files := []string{""}
	for _, pattern := range []string{"*/ci/*.yaml", "*/ci/*/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(charts, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) < 6 {
		t.Fatalf("values files: %v", files)
	}
	for _, file := range files {
		name := "keelson"
		args := []string{"template", "x"}
		if file != "" {
			relative, err := filepath.Rel(charts, file)
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ = strings.Cut(relative, "/")
			args = append(args, "--values", file)
		}
		manifest := must("", "helm", append(args, filepath.Join(charts, name), "--namespace", "ns")...)
		out := must(manifest, "kubectl", "apply", "--namespace", "ns", "--dry-run=server", "--validate=strict", "-f", "-")
		t.Logf("%s %s: %d objects", name, file, strings.Count(out, "server dry run"))
	}
}
