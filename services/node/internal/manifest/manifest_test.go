package manifest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const good = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, uid: ../../evil}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: main
    image: example.com/web
    ports: [{containerPort: 80}]
    resources: {limits: {memory: 64Mi}}
    livenessProbe: {httpGet: {port: 80}}
  volumes: [{name: data}]
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// folder returns a directory that only this test's user may write, with trusted parents.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "manifests")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestParse(t *testing.T) {
	d := Dir{Path: folder(t), Node: "Node-A"}
	p, err := d.parse("web.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	c := p.Spec.Containers[0]
	if p.Name != "web-node-a" || p.Namespace != "default" || len(p.UID) != 32 || strings.Contains(string(p.UID), ".") || p.Spec.NodeName != "Node-A" {
		t.Errorf("identity: %s/%s %s on %s", p.Namespace, p.Name, p.UID, p.Spec.NodeName)
	}
	if p.Annotations[pod.AnnotationHash] != string(p.UID) || !pod.IsStatic(p) || pod.IsMirror(p) || !pod.IsCritical(p) || *p.Spec.Priority != 2000001000 {
		t.Errorf("annotations: %v", p.Annotations)
	}
	if *p.Spec.TerminationGracePeriodSeconds != 30 || p.Spec.RestartPolicy != corev1.RestartPolicyAlways || p.Spec.Volumes[0].EmptyDir == nil || len(p.Spec.Tolerations) != 1 {
		t.Errorf("pod defaults: %+v", p.Spec)
	}
	if c.ImagePullPolicy != corev1.PullAlways || c.Ports[0].HostPort != 80 || c.Resources.Requests.Memory().String() != "64Mi" || c.LivenessProbe.FailureThreshold != 3 || c.LivenessProbe.HTTPGet.Path != "/" || c.TerminationMessagePath == "" {
		t.Errorf("container defaults: %+v", c)
	}
	again, err := d.parse("web.yaml", []byte(good))
	if err != nil || again.UID != p.UID {
		t.Errorf("the same manifest has another UID: %s, %v", again.UID, err)
	}
	for what, other := range map[string]func() (*corev1.Pod, error){
		"file": func() (*corev1.Pod, error) { return d.parse("other.yaml", []byte(good)) },
		"content": func() (*corev1.Pod, error) {
			return d.parse("web.yaml", []byte(strings.Replace(good, "64Mi", "65Mi", 1)))
		},
		"node": func() (*corev1.Pod, error) { return Dir{Node: "b"}.parse("web.yaml", []byte(good)) },
	} {
		if q, err := other(); err != nil || q.UID == p.UID {
			t.Errorf("another %s has the same UID, %v", what, err)
		}
	}
	if _, err := d.parse("web.json", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i:1"}]}}`)); err != nil {
		t.Errorf("JSON: %v", err)
	}
}

func TestParseRefused(t *testing.T) {
	of := func(spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: " + spec
	}
	one := `containers: [{name: c, image: i}]`
	for text, want := range map[string]string{
		"[]":                                    "not a pod",
		"apiVersion: apps/v1\nkind: Deployment": "expected v1 and Pod",
		of("{}"):                                "at least one is required",
		of("{containers: [{name: c, image: i}], unknown: 1}"):                                                                    "unknown field",
		of("{containers: [{name: c, image: ''}]}"):                                                                               "image",
		of("{containers: [{name: ../c, image: i}]}"):                                                                             "the name must be a label",
		of("{containers: [{name: c, image: i}, {name: c, image: i}]}"):                                                           "no other container",
		of("{serviceAccountName: x, " + one + "}"):                                                                               "service account",
		of("{imagePullSecrets: [{name: x}], " + one + "}"):                                                                       "secrets",
		of("{runtimeClassName: x, " + one + "}"):                                                                                 "runtime class",
		of("{volumes: [{name: s, secret: {secretName: x}}], " + one + "}"):                                                       "volume is",
		of("{volumes: [{name: ../s}], " + one + "}"):                                                                             "must be a label",
		of("{volumes: [{name: s, hostPath: {path: /a/../b}}], " + one + "}"):                                                     "must not contain",
		of("{containers: [{name: c, image: i, envFrom: [{secretRef: {name: x}}]}]}"):                                             "envFrom",
		of("{containers: [{name: c, image: i, env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: k}}}]}]}"):                "variable A",
		of("{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /a}]}]}"):                                      "needs a volume",
		of("{volumes: [{name: v}], containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /a, subPath: ../x}]}]}"): "leads out",
	} {
		if _, err := (Dir{Node: "n"}).parse("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n: %v, want %q", text, err, want)
		}
	}
}

// TestWho checks that nothing is read that others than root could have written.
func TestWho(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"directory writable by others": func(dir string) error { return os.Chmod(dir, 0o777) },
		"directory writable by group":  func(dir string) error { return os.Chmod(dir, 0o770) },
		"directory of another user":    func(dir string) error { return os.Chown(dir, 12345, 0) },
		"parent writable by others":    func(dir string) error { return os.Chmod(filepath.Dir(dir), 0o777) },
		"parent of another user":       func(dir string) error { return os.Chown(filepath.Dir(dir), 12345, 0) },
		"file writable by group":       func(dir string) error { return os.Chmod(filepath.Join(dir, "web.yaml"), 0o660) },
		"file of another user":         func(dir string) error { return os.Chown(filepath.Join(dir, "web.yaml"), 12345, 0) },
		"symbolic link": func(dir string) error {
			if err := os.Rename(filepath.Join(dir, "web.yaml"), filepath.Join(dir, ".web")); err != nil {
				return err
			}
			return os.Symlink(".web", filepath.Join(dir, "web.yaml"))
		},
		"directory is a link": func(dir string) error {
			if err := os.Rename(dir, dir+".real"); err != nil {
				return err
			}
			return os.Symlink(dir+".real", dir)
		},
		"too large": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(good+strings.Repeat("#", maxSize)), 0o600)
		},
		"too many": func(dir string) error {
			for i := range maxFiles {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir{Path: folder(t), Node: "n"}
			write(t, d.Path, "web.yaml", good)
			if n := len(once(t, d)); n != 1 {
				t.Fatalf("%d pods at first", n)
			}
			if err := spoil(d.Path); err != nil {
				t.Fatal(err)
			}
			if pods := once(t, d); len(pods) != 0 {
				t.Errorf("read: %s", pods[0].Name)
			}
		})
	}
}

// TestUnknown checks that a directory that cannot be read at first is not taken for an empty
// one.
func TestUnknown(t *testing.T) {
	d := Dir{Path: folder(t), Node: "n"}
	if pods := once(t, d); pods == nil {
		t.Error("an empty directory is not known")
	}
	if err := os.Chmod(d.Path, 0o777); err != nil {
		t.Fatal(err)
	}
	if pods := once(t, d); pods != nil {
		t.Errorf("%d pods of a directory that is not trusted", len(pods))
	}
}

// once returns what the directory holds now.
func once(t *testing.T, d Dir) []*corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var out []*corev1.Pod
	if err := d.Run(ctx, func(pods []*corev1.Pod) { out = pods; cancel() }); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRun checks that changes are noticed, and that a file that cannot be used does not hide
// the others.
func TestRun(t *testing.T) {
	d := Dir{Path: filepath.Join(folder(t), "later"), Node: "n"}
	ctx, cancel := context.WithCancel(context.Background())
	sets := make(chan []*corev1.Pod, 100)
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, func(pods []*corev1.Pod) { sets <- pods }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	await := func(what string, ok func([]*corev1.Pod) bool) {
		t.Helper()
		late := time.After(time.Minute)
		for {
			select {
			case pods := <-sets:
				if ok(pods) {
					return
				}
			case <-late:
				t.Fatal("timed out waiting until " + what)
			}
		}
	}
	await("an absent directory has no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	if err := os.Mkdir(d.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, d.Path, "web.yaml", good)
	write(t, d.Path, "bad.yaml", "{")
	write(t, d.Path, "web2.yaml", good) // the same name
	var uid string
	await("the pod appears", func(pods []*corev1.Pod) bool {
		if len(pods) == 1 {
			uid = string(pods[0].UID)
		}
		return len(pods) == 1
	})
	write(t, d.Path, "web.yaml", strings.Replace(good, "64Mi", "65Mi", 1))
	await("the pod changes", func(pods []*corev1.Pod) bool {
		if len(pods) != 1 || string(pods[0].UID) == uid {
			return false
		}
		uid = string(pods[0].UID)
		return true
	})
	// A file that cannot be used, for instance because it is being written, ends no pod.
	write(t, d.Path, "web.yaml", "apiVersion: v1\nkind: P")
	write(t, d.Path, "other.yaml", strings.Replace(good, "name: web", "name: other", 1))
	await("another pod appears", func(pods []*corev1.Pod) bool {
		if !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return string(p.UID) == uid }) {
			t.Fatal("the pod whose manifest cannot be read is gone")
		}
		return len(pods) == 2
	})
	if err := os.Remove(filepath.Join(d.Path, "other.yaml")); err != nil {
		t.Fatal(err)
	}
	await("the other pod is gone", func(pods []*corev1.Pod) bool { return len(pods) == 1 })
	if err := os.Chmod(d.Path, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web.yaml", "web2.yaml"} {
		if err := os.Remove(filepath.Join(d.Path, name)); err != nil {
			t.Fatal(err)
		}
	}
	select { // a directory that is not trusted changes nothing
	case pods := <-sets:
		t.Errorf("an untrusted directory was read: %d pods", len(pods))
	case <-time.After(3 * period):
	}
	if err := os.Chmod(d.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	await("the pod is gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Dir{Node: "n"}.parse("f", text)
		if err == nil && (p.Name == "" || len(p.UID) != 32 || strings.Contains(p.Namespace, "/")) {
			t.Errorf("accepted: %+v", p.ObjectMeta)
		}
	})
}
