package install_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"

	"keelson.dev/e2e/host"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/e2e/internal/writer"
)

// client connects to the control plane by gRPC, as its administrator.
func (r *release) client(t *testing.T) *client.Client {
	t.Helper()
	cert, err := tls.X509KeyPair(r.secret(t, "admin", "tls.crt"), r.secret(t, "admin", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.secret(t, "admin", "ca.crt"))
	c, err := client.Dial(client.Config{
		Endpoints: []string{nodeAddress(t) + ":" + grpcPort}, UserAgent: "e2e",
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// underLoad calls do while the Go client writes, one object after the other, and fails if a write
// fails or none succeeds.
func (r *release) underLoad(t *testing.T, prefix string, do func()) {
	t.Helper()
	configMaps := client.For[*corev1.ConfigMap](r.client(t))
	ctx, cancel := context.WithCancel(t.Context())
	var w writer.Writer
	var failures []error
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, prefix, func(name string) error {
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			_, err := configMaps.Create(call, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
			if err == nil {
				_, err = configMaps.Get(call, "default", name)
			}
			if err == nil {
				err = configMaps.Delete(call, "default", name)
			}
			if err != nil {
				failures = append(failures, fmt.Errorf("%s at %s: %w", name, time.Now().Format(time.TimeOnly), err))
			}
			return err
		})
	}()
	do()
	cancel()
	<-done
	t.Logf("%s: %d rounds of create, get and delete", prefix, w.Count())
	if err := errors.Join(failures...); err != nil || w.Count() == 0 {
		t.Errorf("requests of the Go client failed: %v", err)
	}
}

func TestControlPlane(t *testing.T) {
	if *count > 0 {
		return // TestDensity measures
	}
	outer.Patience = 3 * time.Minute
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := outer.Run(context.Background(), "kubectl", "-n", "a", "get", "pods,jobs,events")
			t.Log(out)
			for _, what := range []string{"job/a-keelson-settle", "job/a-keelson-test", "a-keelson-0", "a-keelson-1", "a-keelson-2"} {
				out, _ := outer.Run(context.Background(), "kubectl", "-n", "a", "logs", what, "--tail", "20")
				t.Log(what, out)
			}
		}
	})
	outer.Kubectl(t, "create", "namespace", "a")
	outer.Kubectl(t, "label", "namespace", "a", "pod-security.kubernetes.io/enforce=restricted")
	outer.Shows(t, time.Minute, "kube-root-ca.crt", "-n", "a", "get", "configmap,serviceaccount")
	outer.Shows(t, time.Minute, "default", "-n", "a", "get", "serviceaccount")
	before := inventory(t)
	look, err := host.Look()
	if err != nil {
		t.Fatal(err)
	}
	r := &release{name: "a", namespace: "a"}
	manifest := "initManifests.first\\.yaml=apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\ndata: {a: b}\n"
	manifest = strings.ReplaceAll(manifest, ",", "\\,")
	r.install(t, "replicaCount=3", manifest)
	r.isScaled(t, 3, "first")
	helm(t, "test", "a", "--namespace", "a", "--timeout", "60s")
	r.used(t)

	for _, n := range []int{1, 3, 5, 3} {
		r.upgrade(t, fmt.Sprintf("replicaCount=%d", n))
		r.isScaled(t, n, "first", "second")
	}

	t.Run("PodsAreKilled", func(t *testing.T) {
		for i := range 3 {
			pod := fmt.Sprintf("a-keelson-%d", i)
			outer.Kubectl(t, "-n", "a", "delete", "pod", pod, "--grace-period=1")
			outer.Kubectl(t, "-n", "a", "rollout", "status", "statefulset/a-keelson", "--timeout=60s")
			outer.Kubectl(t, "-n", "a", "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
		}
		r.isScaled(t, 3, "first", "second")
	})
	t.Run("UpgradeAndRollback", func(t *testing.T) {
		r.underLoad(t, "upgrade", func() { r.upgrade(t, "replicaCount=3", "apiserver.podAnnotations.version=v2") })
		r.underLoad(t, "rollback", func() { helm(t, "rollback", "a", "--namespace", "a", "--wait", "--timeout", "110s") })
		r.isScaled(t, 3, "first", "second")
	})
	t.Run("SleepAndWake", func(t *testing.T) {
		r.upgrade(t, "replicaCount=3", "sleep=true")
		wait.For(t, time.Minute, "nothing runs", func(ctx context.Context) error {
			out, err := outer.Run(ctx, "kubectl", "-n", "a", "get", "pods", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		})
		if _, err := outer.Run(t.Context(), *helmProgram, "upgrade", "a", chart, "--namespace", "a", "--set", "replicaCount=1"); err == nil || !strings.Contains(err.Error(), "wake it with replicaCount=3") {
			t.Errorf("waking one of three members: %v", err)
		}
		r.upgrade(t, "replicaCount=3")
		r.isScaled(t, 3, "first", "second")
	})
	t.Run("SnapshotAndRestore", func(t *testing.T) {
		r.upgrade(t, "replicaCount=3", "snapshots.enabled=true", "persistence.retain=true")
		outer.Kubectl(t, "-n", "a", "create", "job", "now", "--from=cronjob/a-keelson-snapshots")
		outer.Kubectl(t, "-n", "a", "wait", "--for=condition=Complete", "job/now", "--timeout=60s")
		log := outer.Kubectl(t, "-n", "a", "logs", "job/now")
		file := log[strings.Index(log, "/snapshots/")+len("/snapshots/"):]
		file = file[:strings.Index(file, ":")]
		outer.Kubectl(t, "-n", "a", "delete", "job", "now")
		r.must(t, "delete", "configmap", "second")
		helm(t, "uninstall", "a", "--namespace", "a", "--wait", "--timeout", "60s")
		for i := range 5 {
			outer.Kubectl(t, "-n", "a", "delete", "pvc", fmt.Sprintf("data-a-keelson-%d", i), "--ignore-not-found")
		}
		r.install(t, "replicaCount=3", "restore.claim=a-keelson-snapshots", "restore.file="+file)
		r.isScaled(t, 3, "first", "second")
		helm(t, "test", "a", "--namespace", "a", "--timeout", "60s")
	})
	helm(t, "uninstall", "a", "--namespace", "a", "--wait", "--timeout", "60s")
	outer.Kubectl(t, "-n", "a", "delete", "pvc", "a-keelson-snapshots", "--ignore-not-found")
	isGone(t, before)
	wait.For(t, time.Minute, "the machine has what it had", func(context.Context) error { return look.Check() })
}

// used applies, gets and watches objects of the control plane.
func (r *release) used(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log, err := os.Create(filepath.Join(t.TempDir(), "watch"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	watch := outer.Command(ctx, "kubectl", "--kubeconfig", r.kubeconfig, "get", "configmaps", "--watch", "-o", "name")
	watch.Stdout = log
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	r.must(t, "create", "configmap", "second", "--from-literal=a=b")
	wait.For(t, time.Minute, "the watch shows the object", func(context.Context) error {
		data, err := os.ReadFile(log.Name())
		if err == nil && !strings.Contains(string(data), "configmap/second") {
			err = errors.New(string(data))
		}
		return err
	})
	cancel()
	_ = watch.Wait()
	r.must(t, "create", "deployment", "web", "--image=web", "--replicas=3")
	r.must(t, "rollout", "status", "deployment/web", "--timeout=60s")
	if nodes := r.must(t, "get", "nodes", "-o", `jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}`); nodes != "zone-a zone-b zone-c" {
		t.Errorf("zones of the simulated nodes: %s", nodes)
	}
	// The viewer sees, and changes nothing.
	viewer := filepath.Join(t.TempDir(), "viewer")
	if err := os.WriteFile(viewer, r.secret(t, "kubeconfig-viewer", "outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := outer.Run(t.Context(), "kubectl", "--kubeconfig", viewer, "get", "deployments"); err != nil {
		t.Error(err)
	}
	if _, err := outer.Run(t.Context(), "kubectl", "--kubeconfig", viewer, "delete", "deployment", "web"); err == nil || !strings.Contains(err.Error(), "orbidden") {
		t.Errorf("the viewer deletes: %v", err)
	}
}
