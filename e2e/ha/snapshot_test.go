package ha_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/proto/client"
)

var snapshotObjects = flag.Int("snapshot-objects", 500, "how many objects are saved and restored")

// fill creates so many ConfigMaps.
func fill(t *testing.T, api *client.Client, n int) {
	t.Helper()
	const batch = 250
	for from := 0; from < n; from += batch {
		var writes []client.Write
		for i := from; i < min(n, from+batch); i++ {
			writes = append(writes, client.CreateWrite(&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("kept-%05d", i)}, Data: map[string]string{"k": "saved"},
			}))
		}
		results, err := api.Commit(context.Background(), writes...)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
}

// TestSnapshotIsRestored saves the state of three apiservers under load, loses half
// of it, and restores: everything is back, and whoever watched has it too.
func TestSnapshotIsRestored(t *testing.T) {
	c := start(t)
	api := c.client()
	maps := client.For[*corev1.ConfigMap](api)
	fill(t, api, *snapshotObjects)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()

	// Those who watch all the time: the Go client's cache and client-go's.
	ours := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	wg.Go(func() { _ = ours.Run(ctx) })
	<-ours.Synced()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.home, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(set, 0, informers.WithNamespace("default"))
	theirs := factory.Core().V1().ConfigMaps().Lister()
	factory.Core().V1().ConfigMaps().Informer()
	factory.Start(ctx.Done())
	defer func() { cancel(); factory.Shutdown() }()
	factory.WaitForCacheSync(ctx.Done())

	// Saved while somebody writes.
	stop := make(chan struct{})
	var load writer
	var loading sync.WaitGroup
	loading.Go(func() {
		load.run(stop, "load", func(name string) error {
			_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
			return err
		})
	})
	if err := until(time.Minute, func() (bool, error) { return load.acknowledged() > 20, nil }); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	before := load.acknowledged()
	began := time.Now()
	c.keel("snapshot", "save", file)
	t.Logf("%d objects were saved in %s, under load", *snapshotObjects, time.Since(began).Round(time.Millisecond))
	after := load.acknowledged()
	if err := until(time.Minute, func() (bool, error) { return load.acknowledged() > after+20, nil }); err != nil {
		t.Fatal(err)
	}
	close(stop)
	loading.Wait()
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: it holds Secrets", st, err)
	}
	var status struct {
		Resources []struct {
			Resource string
			Objects  int
		}
		Problem string
	}
	if err := json.Unmarshal([]byte(c.keel("snapshot", "status", file, "-o", "json")), &status); err != nil || status.Problem != "" {
		t.Fatalf("%+v, %v", status, err)
	}
	inFile := 0
	for _, r := range status.Resources {
		if r.Resource == "configmaps" {
			inFile = r.Objects
		}
	}

	// Half of it goes, one object changes, and others come.
	for i := 0; i < *snapshotObjects; i += 2 {
		if err := maps.Delete(ctx, "default", fmt.Sprintf("kept-%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	changed, err := maps.Get(ctx, "default", "kept-00001")
	if err != nil {
		t.Fatal(err)
	}
	changed.Data["k"] = "after the save"
	if changed, err = maps.Update(ctx, changed); err != nil {
		t.Fatal(err)
	}
	if err := until(time.Minute, func() (bool, error) {
		m, ok := ours.Get("default", "kept-00001")
		n, err := theirs.ConfigMaps("default").Get("kept-00001")
		return ok && err == nil && m.Data["k"] == "after the save" && n.Data["k"] == "after the save", nil
	}); err != nil {
		t.Fatal("the caches lag before the restore: ", err)
	}

	if out, err := c.try("keel", "snapshot", "restore", file, "--home", c.home, "--set-aside"); err == nil || !strings.Contains(out, "keel down") {
		t.Fatalf("restored into a running cluster: %v %s", err, out)
	}
	c.keel("down")
	began = time.Now()
	out := c.keel("snapshot", "restore", file, "--set-aside")
	restored := time.Since(began)
	if !strings.Contains(out, "pki") || !strings.Contains(out, "before-restore-") {
		t.Errorf("says neither what else to keep nor where the old data is:\n%s", out)
	}
	began = time.Now()
	c.keel("up")
	t.Logf("%d objects were restored in %s, and served %s after the start", *snapshotObjects, restored.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	list, meta, err := maps.List(ctx, client.ListOptions{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]*corev1.ConfigMap{}
	for _, m := range list {
		there[m.Name] = m
	}
	for i := range *snapshotObjects {
		if m := there[fmt.Sprintf("kept-%05d", i)]; m == nil || m.Data["k"] != "saved" {
			t.Fatalf("kept-%05d is %+v", i, m)
		}
	}
	for _, name := range load.names[:before] {
		if there[name] == nil {
			t.Errorf("%s was acknowledged before the save, and is not restored", name)
		}
	}
	for _, name := range load.names[after+1:] { // the first had perhaps begun before
		if there[name] != nil {
			t.Errorf("%s was written after the save, and is there", name)
		}
	}
	if version(t, meta.ResourceVersion) <= version(t, changed.ResourceVersion) {
		t.Errorf("the list's version %s is not after %s", meta.ResourceVersion, changed.ResourceVersion)
	}
	t.Logf("%d ConfigMaps in the file; %d of the load's before the save, %d at its end", inFile, before, after)
	// Who resumes is told to list anew.
	for _, err := range maps.Watch(ctx, client.WatchOptions{Namespace: "default", ResourceVersion: changed.ResourceVersion}) {
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			t.Errorf("a watch from before the restore: %v", err)
		}
		break
	}
	// And who watched all the time has come back by himself.
	informed := func() (out []*corev1.ConfigMap) {
		out, _ = theirs.List(labels.Everything()) // of a cache: it does not fail
		return out
	}
	began = time.Now()
	for _, cache := range []struct {
		name string
		list func() []*corev1.ConfigMap
	}{{"the Go client's cache", ours.List}, {"client-go's cache", informed}} {
		why := ""
		err := until(2*time.Minute, func() (bool, error) {
			why = differs(cache.list(), there)
			return why == "", nil
		})
		if err != nil {
			t.Fatalf("%s: %s", cache.name, why)
		}
		t.Logf("%s had the restored state after %s", cache.name, time.Since(began).Round(time.Millisecond))
	}
	c.works(api)
}

// differs says where a cache has something else; empty if nowhere.
func differs(got []*corev1.ConfigMap, want map[string]*corev1.ConfigMap) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d objects, want %d", len(got), len(want))
	}
	for _, m := range got {
		if w := want[m.Name]; w == nil || w.ResourceVersion != m.ResourceVersion || w.Data["k"] != m.Data["k"] {
			return fmt.Sprintf("%s at %s", m.Name, m.ResourceVersion)
		}
	}
	return ""
}

func version(t *testing.T, s string) (n int64) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// works makes sure that controllers, scheduler and nodes do.
func (c *controlPlane) works(api *client.Client) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	two, app := int32(2), map[string]string{"app": "after"}
	deployments := client.For[*appsv1.Deployment](api)
	_, err := deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "after"},
		Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: app}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.invalid/i"}}},
		}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	began := time.Now()
	err = until(time.Minute, func() (bool, error) {
		d, err := deployments.Get(ctx, "default", "after")
		return err == nil && d.Status.ReadyReplicas == 2, nil
	})
	if err != nil {
		c.t.Fatal("a Deployment's pods do not run: ", err)
	}
	c.t.Logf("a new Deployment's pods ran after %s", time.Since(began).Round(time.Millisecond))
}

// TestRestoreIsKilled kills a restore again and again in the middle: the one that
// is let finish restores everything, whatever the others left.
func TestRestoreIsKilled(t *testing.T) {
	c := start(t)
	api := c.client()
	fill(t, api, 300)
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	c.keel("snapshot", "save", file)
	if err := client.For[*corev1.ConfigMap](api).Delete(context.Background(), "default", "kept-00007"); err != nil {
		t.Fatal(err)
	}
	c.keel("down")
	began := time.Now()
	c.keel("snapshot", "restore", file, "--set-aside")
	whole := time.Since(began)
	interrupted, tries := 0, 0
	for i := 0; i < 12 || interrupted < 3; i++ {
		if i == 100 {
			t.Fatalf("%d of %d restores were interrupted", interrupted, i)
		}
		tries++
		// In a process group of its own: keel and the program that it runs.
		cmd := exec.Command(filepath.Join(c.bin, "keel"), "snapshot", "restore", file, "--home", c.home, "--set-aside")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("restore %d: %v\n%s", i, err, said.String())
			}
			whole = min(whole, time.Since(began)) // the first one took longer, with nothing in memory
		case <-time.After(rand.N(whole)):
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			if <-done != nil {
				interrupted++
			}
		}
	}
	out := c.keel("snapshot", "restore", file, "--set-aside")
	t.Logf("%d of %d were killed; the last one said: %s", interrupted, tries, strings.SplitN(out, "\n", 2)[0])
	c.keel("up")
	maps := client.For[*corev1.ConfigMap](api)
	for i := range 300 {
		if _, err := maps.Get(context.Background(), "default", fmt.Sprintf("kept-%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	c.works(api)
}

// TestSnapshotMovesToANewHome restores what three apiservers had into a new cluster
// of one, which has a CA of its own.
func TestSnapshotMovesToANewHome(t *testing.T) {
	c := start(t)
	fill(t, c.client(), 100)
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	c.keel("snapshot", "save", file)
	c.keel("down")
	n := &controlPlane{t: t, bin: c.bin, home: filepath.Join(t.TempDir(), "new")}
	t.Cleanup(func() {
		if out, err := n.try("keel", "delete", "--home", n.home); err != nil {
			t.Errorf("keel delete: %v\n%s", err, out)
		}
	})
	if out, err := n.try("keel", "snapshot", "restore", filepath.Join(c.home, "cluster.json"), "--home", n.home); err == nil {
		t.Fatalf("restored what is no snapshot: %s", out)
	}
	if _, err := os.Stat(n.home); !os.IsNotExist(err) {
		t.Errorf("what is no snapshot left a home: %v", err)
	}
	n.keel("snapshot", "restore", file, "--apiservers", "1")
	machine.Cluster(n.home)
	n.keel("up", "--nodes", "0", "--simulated-nodes", "3")
	api := n.client()
	maps := client.For[*corev1.ConfigMap](api)
	for i := range 100 {
		if _, err := maps.Get(context.Background(), "default", fmt.Sprintf("kept-%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	n.works(api)
	ca, err := os.ReadFile(filepath.Join(n.home, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	err = until(time.Minute, func() (bool, error) {
		m, err := maps.Get(context.Background(), "default", "kube-root-ca.crt")
		return err == nil && m.Data["ca.crt"] == string(ca), nil
	})
	if err != nil {
		t.Error("pods are still told of the old cluster's CA: ", err)
	}
}

// TestSnapshotOnAFullDisk saves and restores where there is no room.
func TestSnapshotOnAFullDisk(t *testing.T) {
	c := start(t)
	fill(t, c.client(), 200)
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatalf("mount a small file system (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	out, err := c.try("keel", "snapshot", "save", filepath.Join(small, "f"), "--home", c.home)
	if err == nil || !strings.Contains(out, "no space left on device") || strings.Count(strings.TrimSpace(out), "\n") > 0 {
		t.Errorf("saved to a full disk: %v %s", err, out)
	}
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		t.Errorf("%v was left, %v", left, err)
	}
	file := filepath.Join(t.TempDir(), "f")
	c.keel("snapshot", "save", file)
	restored := filepath.Join(small, "data")
	out, err = c.try("apiserver", "snapshot", "restore", file, "--data-dir", restored)
	if err == nil || !strings.Contains(out, "make room and repeat") || strings.Count(strings.TrimSpace(out), "\n") > 0 {
		t.Errorf("restored to a full disk: %v %s", err, out)
	}
	if left, err := os.ReadDir(restored); err == nil && len(left) > 0 {
		t.Errorf("%v was left", left)
	}
	if out, err := c.try("apiserver", "snapshot", "restore", file, "--data-dir", t.TempDir()); err != nil {
		t.Errorf("where there is room: %v %s", err, out)
	}
}
