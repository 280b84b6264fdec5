package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/boot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A usage error exits with one line and code 2.
func TestWrongCalls(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := []string{"--identity", t.TempDir(), "--apiserver", "127.0.0.1:1"}
	for flag, args := range map[string][]string{
		"--apiserver":                   {"--identity", t.TempDir()},
		"--cluster-cidr":                append(base, "--cluster-cidr", "10.244.0.0"),
		"--node-cidr-mask-size":         append(base, "--node-cidr-mask-size", "8"),
		"--local-volume-dir":            append(base, "--local-volume-dir", "volumes"),
		"--cluster-ca":                  append(base, "--cluster-ca", t.TempDir()),
		"--service-account-key":         append(base, "--service-account-key", junk),
		"--terminated-pod-gc-threshold": append(base, "--terminated-pod-gc-threshold", "-1"),
		"--controllers":                 append(base, "--controllers", "*,-deployment"),
		"--identity":                    base,
	} {
		var out bytes.Buffer
		code := boot.Execute(t.Context(), name, args, &out, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
		if code != 2 || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), flag) {
			t.Errorf("%s: code %d, output %q", flag, code, out.String())
		}
	}
}

// startAll runs every controller of the catalogue.
func startAll(t *testing.T) *World {
	w := Start(t)
	o := newOptions(pflag.NewFlagSet(name, pflag.ContinueOnError))
	o.service.Identity, o.service.APIServers = "x", []string{"x:1"}
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	o.catalogue.ca = func() []byte { return []byte("pem") }
	w.Run(o.catalogue.build(w.Cluster)...)
	return w
}

// All controllers together bring an application up, become idle, and remove it with its
// namespace. While they are idle, nothing is written.
func TestAllTogether(t *testing.T) {
	w := startAll(t)
	Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	w.Kubelet("n1", nil)
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	labels := map[string]string{"app": "web"}
	n := int32(3)
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "web"}
	Create(w, &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
		},
	}})
	Create(w, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}}})
	w.Eventually("the application serves", func() bool {
		ready := 0
		for _, s := range List[*discoveryv1.EndpointSlice](w, "shop") {
			for _, e := range s.Endpoints {
				if *e.Conditions.Ready {
					ready++
				}
			}
		}
		return ready == 3 && Get[*appsv1.Deployment](w, "shop", "web").Status.AvailableReplicas == 3 &&
			Exists[*corev1.ServiceAccount](w, "shop", "default") && Exists[*corev1.ConfigMap](w, "shop", "kube-root-ca.crt") &&
			Get[*corev1.Node](w, "", "n1").Spec.PodCIDR != ""
	})
	// Idle: no write for a while.
	last, since := w.Server.Revision(), time.Now()
	w.Eventually("rest", func() bool {
		if now := w.Server.Revision(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
	Delete[*corev1.Namespace](w, "", "shop")
	w.Eventually("the namespace is deleted", func() bool { return !Exists[*corev1.Namespace](w, "", "shop") })
	// That nothing is created in a terminating namespace is enforced by the apiserver,
	// not by the in-memory server. The end-to-end tests check it.
}
