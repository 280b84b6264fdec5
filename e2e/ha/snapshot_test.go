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

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

var snapshotObjects = flag.Int("snapshot-objects", 500, "how many objects are saved and restored")

// fill creates n ConfigMaps, kept-00000 and so on.
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

// TestSnapshotIsRestored saves the state of three apiservers under load, deletes half of
// it, and restores: everything is back, also in the caches of clients that watch.
func TestSnapshotIsRestored(t *testing.T) {
	c := start(t)
	api := c.Client(t)
	maps := client.For[*corev1.ConfigMap](api)
	fill(t, api, *snapshotObjects)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()

	// Two caches watch all the time: the Go client's and client-go's.
	ours := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	wg.Go(func() { _ = ours.Run(ctx) })
	<-ours.Synced()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.Home, "kubeconfig"))
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

	load := startLoad(t, c, "load")
	wait.For(t, time.Minute, "the load writes", load.Reaches(21))
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	before := load.Count()
	began := time.Now()
	c.Keel(t, "snapshot", "save", file)
	t.Logf("%d objects were saved in %s, under load", *snapshotObjects, time.Since(began).Round(time.Millisecond))
	after := load.Count()
	wait.For(t, time.Minute, "the load goes on", load.Reaches(after+21))
	load.stop()
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot, which holds Secrets, has mode %v, want 0600: %v", st, err)
	}
	var status struct {
		Resources []struct {
			Resource string
			Objects  int
		}
		Problem string
	}
	if err := json.Unmarshal([]byte(c.Keel(t, "snapshot", "status", file, "-o", "json")), &status); err != nil || status.Problem != "" {
		t.Fatalf("the status of the snapshot is %+v, %v", status, err)
	}
	inFile := 0
	for _, r := range status.Resources {
		if r.Resource == "configmaps" {
			inFile = r.Objects
		}
	}

	// Half of it is deleted, and one object is changed.
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
	wait.For(t, time.Minute, "both caches have the change", func(context.Context) error {
		m, ok := ours.Get("default", "kept-00001")
		n, err := theirs.ConfigMaps("default").Get("kept-00001")
		if err == nil && (!ok || m.Data["k"] != "after the save" || n.Data["k"] != "after the save") {
			err = fmt.Errorf("they have %v and %v", m, n)
		}
		return err
	})

	if out, err := c.Run(ctx, "keel", "snapshot", "restore", file, "--home", c.Home, "--set-aside"); err == nil || !strings.Contains(err.Error(), "keel down") {
		t.Fatalf("restored into a running cluster: %v %s", err, out)
	}
	c.Keel(t, "down")
	began = time.Now()
	out := c.Keel(t, "snapshot", "restore", file, "--set-aside")
	restored := time.Since(began)
	if !strings.Contains(out, "pki") || !strings.Contains(out, "before-restore-") {
		t.Errorf("the output does not name what else to back up, or where the old data is:\n%s", out)
	}
	began = time.Now()
	c.Keel(t, "up")
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
	for _, name := range load.Names()[:before] {
		if there[name] == nil {
			t.Errorf("%s was acknowledged before the save and is not restored", name)
		}
	}
	for _, name := range load.Names()[after+1:] { // the first may have begun before the end of the save
		if there[name] != nil {
			t.Errorf("%s was written after the save and is restored", name)
		}
	}
	if version(t, meta.ResourceVersion) <= version(t, changed.ResourceVersion) {
		t.Errorf("the list's resource version %s is not higher than %s, from before the restore", meta.ResourceVersion, changed.ResourceVersion)
	}
	t.Logf("%d ConfigMaps in the file; %d of the load's before the save, %d at its end", inFile, before, after)
	// A watch that resumes from before the restore is told to list again.
	for _, err := range maps.Watch(ctx, client.WatchOptions{Namespace: "default", ResourceVersion: changed.ResourceVersion}) {
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			t.Errorf("a watch from before the restore: %v", err)
		}
		break
	}
	// The caches that watched all the time list again by themselves.
	informed := func() (out []*corev1.ConfigMap) {
		out, _ = theirs.List(labels.Everything()) // of a cache: it does not fail
		return out
	}
	began = time.Now()
	for _, cache := range []struct {
		name string
		list func() []*corev1.ConfigMap
	}{{"the Go client's cache", ours.List}, {"client-go's cache", informed}} {
		wait.For(t, 2*time.Minute, cache.name+" has the restored state", func(context.Context) error { return differs(cache.list(), there) })
		t.Logf("%s had the restored state after %s", cache.name, time.Since(began).Round(time.Millisecond))
	}
	works(t, api)
}

// differs returns an error that names an object that a cache has otherwise, or nil.
func differs(got []*corev1.ConfigMap, want map[string]*corev1.ConfigMap) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d objects, want %d", len(got), len(want))
	}
	for _, m := range got {
		if w := want[m.Name]; w == nil || w.ResourceVersion != m.ResourceVersion || w.Data["k"] != m.Data["k"] {
			return fmt.Errorf("it has %s at %s", m.Name, m.ResourceVersion)
		}
	}
	return nil
}

// version is a resource version as a number.
func version(t *testing.T, s string) (n int64) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// works checks that controllers, scheduler and nodes work: a new Deployment's pods run.
func works(t *testing.T, api *client.Client) {
	t.Helper()
	two, app := int32(2), map[string]string{"app": "after"}
	deployments := client.For[*appsv1.Deployment](api)
	_, err := deployments.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "after"},
		Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: app}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.invalid/i"}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	wait.For(t, time.Minute, "the pods of a new Deployment run", func(ctx context.Context) error {
		d, err := deployments.Get(ctx, "default", "after")
		if err == nil && d.Status.ReadyReplicas != 2 {
			err = fmt.Errorf("%d of 2 are ready", d.Status.ReadyReplicas)
		}
		return err
	})
	t.Logf("a new Deployment's pods ran after %s", time.Since(began).Round(time.Millisecond))
}

// TestRestoreIsKilled kills restores at random moments: one that then runs to its end
// restores everything, whatever the others left.
func TestRestoreIsKilled(t *testing.T) {
	c := start(t)
	api := c.Client(t)
	fill(t, api, 300)
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	c.Keel(t, "snapshot", "save", file)
	if err := client.For[*corev1.ConfigMap](api).Delete(context.Background(), "default", "kept-00007"); err != nil {
		t.Fatal(err)
	}
	c.Keel(t, "down")
	began := time.Now()
	c.Keel(t, "snapshot", "restore", file, "--set-aside")
	whole := time.Since(began)
	interrupted, tries := 0, 0
	for i := 0; i < 12 || interrupted < 3; i++ {
		if i == 100 {
			t.Fatalf("%d of %d restores were interrupted", interrupted, i)
		}
		tries++
		// In a process group of its own: keel and the program that it runs.
		cmd := c.Command(t.Context(), "keel", "snapshot", "restore", file, "--home", c.Home, "--set-aside")
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
			whole = min(whole, time.Since(began)) // the first one took longer, because nothing was cached
		case <-time.After(rand.N(whole)):
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			if <-done != nil {
				interrupted++
			}
		}
	}
	out := c.Keel(t, "snapshot", "restore", file, "--set-aside")
	t.Logf("%d of %d were killed; the last one printed: %s", interrupted, tries, strings.SplitN(out, "\n", 2)[0])
	c.Keel(t, "up")
	maps := client.For[*corev1.ConfigMap](api)
	for i := range 300 {
		if _, err := maps.Get(context.Background(), "default", fmt.Sprintf("kept-%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	works(t, api)
}

// TestSnapshotMovesToANewHome restores what three apiservers had into a new cluster
// of one, which has a CA of its own.
func TestSnapshotMovesToANewHome(t *testing.T) {
	c := start(t)
	fill(t, c.Client(t), 100)
	file := filepath.Join(t.TempDir(), "cluster.snapshot")
	c.Keel(t, "snapshot", "save", file)
	c.Keel(t, "down")
	n := cluster.New(t)
	if err := os.Remove(n.Home); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Run(t.Context(), "keel", "snapshot", "restore", filepath.Join(c.Home, "cluster.json"), "--home", n.Home); err == nil {
		t.Fatalf("restored a file that is not a snapshot: %s", out)
	}
	if _, err := os.Stat(n.Home); !os.IsNotExist(err) {
		t.Errorf("the refused restore left a home: %v", err)
	}
	n.Keel(t, "snapshot", "restore", file, "--apiservers", "1")
	if _, err := n.Up(t.Context(), "--nodes", "0", "--simulated-nodes", "3"); err != nil {
		t.Fatal(err)
	}
	api := n.Client(t)
	maps := client.For[*corev1.ConfigMap](api)
	for i := range 100 {
		if _, err := maps.Get(context.Background(), "default", fmt.Sprintf("kept-%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	works(t, api)
	ca, err := os.ReadFile(filepath.Join(n.Home, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	wait.For(t, time.Minute, "pods are given the new cluster's CA", func(ctx context.Context) error {
		m, err := maps.Get(ctx, "default", "kube-root-ca.crt")
		if err == nil && m.Data["ca.crt"] != string(ca) {
			err = errors.New("kube-root-ca.crt has another one")
		}
		return err
	})
}

// TestSnapshotOnAFullDisk saves to and restores onto a disk without room.
func TestSnapshotOnAFullDisk(t *testing.T) {
	c := start(t)
	fill(t, c.Client(t), 200)
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatalf("mount a small file system (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fails := func(what, want, program string, args ...string) {
		t.Helper()
		out, err := c.Command(t.Context(), program, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%s: %v, %s; want one line with %q", what, err, out, want)
		}
	}
	fails("saved to a full disk", "no space left on device", "keel", "snapshot", "save", filepath.Join(small, "f"), "--home", c.Home)
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		t.Errorf("%v was left, %v", left, err)
	}
	file := filepath.Join(t.TempDir(), "f")
	c.Keel(t, "snapshot", "save", file)
	restored := filepath.Join(small, "data")
	fails("restored to a full disk", "make room and repeat", "apiserver", "snapshot", "restore", file, "--data-dir", restored)
	if left, err := os.ReadDir(restored); err == nil && len(left) > 0 {
		t.Errorf("%v was left", left)
	}
	c.Must(t, "apiserver", "snapshot", "restore", file, "--data-dir", t.TempDir())
}
