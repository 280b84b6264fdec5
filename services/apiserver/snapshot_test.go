package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/snapshot"
	"keelson.dev/services/apiserver/internal/snapshot/snapshottest"
)

// snapshots runs "apiserver snapshot …".
func snapshots(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var a, b bytes.Buffer
	code = snapshot.Command(context.Background(), args, resource.NewTable(kind.All()...), &a, &b)
	return code, a.String(), b.String()
}

func TestAClusterIsSavedAndRestored(t *testing.T) {
	ctx := context.Background()
	c := newCluster(t)
	file := filepath.Join(t.TempDir(), "file")
	var saved, before, lease metav1.ObjectMeta
	t.Run("save", func(t *testing.T) {
		address := c.start(t, "--data-dir", filepath.Join(c.dir, "data"))
		admin := c.client(t, address, "admin", "system:masters")
		maps := client.For[*corev1.ConfigMap](admin)
		m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}, Data: map[string]string{"k": "saved"}})
		if err != nil {
			t.Fatal(err)
		}
		before = m.ObjectMeta
		l, err := client.For[*coordinationv1.Lease](admin).Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "l"}})
		if err != nil {
			t.Fatal(err)
		}
		lease = l.ObjectMeta
		unprivileged := t.TempDir()
		c.ca.Write(t, unprivileged, "reader")
		code, _, said := snapshots(t, "save", file, "--identity", unprivileged, "--apiserver", address)
		if code != 1 || !strings.Contains(said, `User "reader" cannot get path "/snapshot"`) {
			t.Fatalf("without rights: %d, %s", code, said)
		}
		if _, err := os.Stat(file); err == nil {
			t.Fatal("without rights there is a file")
		}
		if code, out, said := snapshots(t, "save", file, "--identity", c.identity, "--apiserver", address); code != 0 || !strings.Contains(out, "saved") {
			t.Fatalf("%d, %s%s", code, out, said)
		}
		m.Data["k"] = "later"
		if m, err = maps.Update(ctx, m); err != nil {
			t.Fatal(err)
		}
		saved = m.ObjectMeta
	})
	code, out, said := snapshots(t, "status", file, "-o", "json")
	var status snapshot.Status
	if err := json.Unmarshal([]byte(out), &status); code != 0 || err != nil || status.Problem != "" || status.Objects < 50 {
		t.Fatalf("%d, %v, %s%s", code, err, out, said)
	}
	if code, out, said := snapshots(t, "status", file); code != 0 || !strings.Contains(out, "configmaps") {
		t.Fatalf("%d, %s%s", code, out, said)
	}
	code, _, said = snapshots(t, "restore", file, "--data-dir", filepath.Join(c.dir, "data"))
	if code != 1 || !strings.Contains(said, "--set-aside") {
		t.Fatalf("%d, %s", code, said)
	}
	if code, _, said = snapshots(t, "restore", file, "--data-dir", filepath.Join(c.dir, "data"), "--set-aside"); code != 0 {
		t.Fatalf("%d, %s", code, said)
	}
	t.Run("restored", func(t *testing.T) {
		address := c.start(t, "--data-dir", filepath.Join(c.dir, "data"))
		admin := c.client(t, address, "admin", "system:masters")
		maps := client.For[*corev1.ConfigMap](admin)
		m, err := maps.Get(ctx, "default", "m")
		if err != nil || m.Data["k"] != "saved" || m.UID != before.UID || m.ResourceVersion != before.ResourceVersion {
			t.Fatalf("%+v, %v; want %+v", m, err, before)
		}
		if l, err := client.For[*coordinationv1.Lease](admin).Get(ctx, "default", "l"); err != nil || l.UID != lease.UID || l.ResourceVersion != lease.ResourceVersion {
			t.Fatalf("%+v, %v; want %+v", l, err, lease)
		}
		for _, version := range []string{before.ResourceVersion, saved.ResourceVersion} {
			for _, err := range maps.Watch(ctx, client.WatchOptions{Namespace: "default", ResourceVersion: version}) {
				if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
					t.Fatalf("a watch from %s: %v", version, err)
				}
				break
			}
		}
		stale := m.DeepCopy()
		stale.ResourceVersion = saved.ResourceVersion
		if _, err := maps.Update(ctx, stale); !apierrors.IsConflict(err) {
			t.Errorf("a write on a lost revision: %v", err)
		}
		m.Data["k"] = "next"
		if m, err = maps.Update(ctx, m); err != nil || len(m.ResourceVersion) <= len(saved.ResourceVersion) {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

func TestAnInterruptedRestoreIsNotServed(t *testing.T) {
	c := newCluster(t)
	dir := filepath.Join(c.dir, "data")
	if err := os.MkdirAll(filepath.Join(dir, "restoring"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := snapshot.Unfinished(dir); err == nil {
		t.Fatal("taken for whole")
	}
	fs := pflag.NewFlagSet("apiserver", pflag.ContinueOnError)
	o := newOptions(fs)
	if err := fs.Parse([]string{"--identity", c.identity, "--service-account-key", c.key, "--data-dir", dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.config(); err == nil || !strings.Contains(err.Error(), "a restore was interrupted: repeat it") {
		t.Fatal(err)
	}
}

func TestAKubernetesClusterMovesIn(t *testing.T) {
	ctx := context.Background()
	k := snapshottest.New(t)
	one := int32(1)
	labels := map[string]string{"app": "web"}
	pod := corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "default", Name: name, UID: "7e9a0b5e-4d6b-4d0e-8a6e-5f0d3c1b2a90", Labels: labels}
	}
	put := func(key string, value []byte) { k.Put("/registry/"+key, value, 0) }
	put("namespaces/default", snapshottest.Encode(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "1"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}, corev1.SchemeGroupVersion))
	put("secrets/default/s", snapshottest.Encode(t, &corev1.Secret{ObjectMeta: meta("s"), Data: map[string][]byte{"p": []byte("hidden")}}, corev1.SchemeGroupVersion))
	put("pods/default/p", snapshottest.Encode(t, &corev1.Pod{ObjectMeta: meta("p"), Spec: pod}, corev1.SchemeGroupVersion))
	put("deployments/default/web", snapshottest.Encode(t, &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
	}}, appsv1.SchemeGroupVersion))
	put("events/default/e", snapshottest.Encode(t, &corev1.Event{ObjectMeta: meta("e"), Message: "it happened"}, corev1.SchemeGroupVersion))
	put("services/specs/default/web", snapshottest.Encode(t, &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.77", ClusterIPs: []string{"10.96.0.77"}, Selector: labels, Ports: []corev1.ServicePort{{Port: 80}},
	}}, corev1.SchemeGroupVersion))
	put("stable.example.com/crontabs/default/mine", []byte(`{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"mine"}}`))
	c := newCluster(t)
	dir := filepath.Join(c.dir, "data")
	code, out, said := snapshots(t, "restore", k.Save(), "--data-dir", dir)
	if code != 0 || !strings.Contains(out, "crontabs.stable.example.com") || !strings.Contains(strings.Join(strings.Fields(out), " "), "moved to the raft store: events") {
		t.Fatalf("%d, %s%s", code, out, said)
	}
	admin := c.client(t, c.start(t, "--data-dir", dir), "admin", "system:masters")
	if s, err := client.For[*corev1.Secret](admin).Get(ctx, "default", "s"); err != nil || string(s.Data["p"]) != "hidden" {
		t.Errorf("%+v, %v", s, err)
	}
	if p, err := client.For[*corev1.Pod](admin).Get(ctx, "default", "p"); err != nil || p.Spec.Containers[0].Image != "i" {
		t.Errorf("%+v, %v", p, err)
	}
	if e, err := client.For[*corev1.Event](admin).Get(ctx, "default", "e"); err != nil || e.Message != "it happened" {
		t.Errorf("%+v, %v", e, err)
	}
	deployments := client.For[*appsv1.Deployment](admin)
	d, err := deployments.Get(ctx, "default", "web")
	if err != nil || *d.Spec.Replicas != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	*d.Spec.Replicas = 2
	if d, err = deployments.Update(ctx, d); err != nil || *d.Spec.Replicas != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	// Its Service keeps its address, and no other Service gets it.
	services := client.For[*corev1.Service](admin)
	if s, err := services.Get(ctx, "default", "web"); err != nil || s.Spec.ClusterIP != "10.96.0.77" {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = services.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "other"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.77", Ports: []corev1.ServicePort{{Port: 80}}}})
	if !apierrors.IsInvalid(err) {
		t.Errorf("the address was given away: %v", err)
	}
}

func TestWrongCalls(t *testing.T) {
	for _, args := range [][]string{
		{}, {"other", "f"}, {"save"}, {"save", "f", "g"}, {"save", "f"}, {"status", "f", "-o", "yaml"}, {"restore", "f"},
		{"restore", "f", "--data-dir", "a=x,a=y"}, {"restore", "f", "--no-such-flag"},
	} {
		if code, _, said := snapshots(t, args...); code != 2 || said == "" {
			t.Errorf("%v: %d, %q", args, code, said)
		}
	}
}
