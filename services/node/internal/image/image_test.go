package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWithTag(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"nginx": "nginx:latest", "nginx:1": "nginx:1", "host:5000/a/b": "host:5000/a/b:latest", "host:5000/a/b:2": "host:5000/a/b:2",
		"a@" + digest: "a@" + digest, "a:1@" + digest: "a:1@" + digest, "HOST.example/a": "HOST.example/a:latest",
		"": "", " a": "", "UPPER": "", "a:": "", "a@nothing": "", "host:5000/Upper": "",
	} {
		got, err := WithTag(in)
		if (err == nil) != (want != "") || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestRepository(t *testing.T) {
	for in, want := range map[string]string{
		"nginx": "docker.io/library/nginx", "user/app:1": "docker.io/user/app", "docker.io/nginx": "docker.io/library/nginx",
		"localhost/a": "localhost/a", "localhost:5000/a:1": "localhost:5000/a", "r.example/a/b@sha256:x": "r.example/a/b",
	} {
		if got := Repository(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		key, image string
		want       bool
	}{
		{"r.example", "r.example/a", true},
		{"https://r.example", "r.example/a", true},
		{"https://r.example/v2/", "r.example/a", true},
		{"r.example:5000", "r.example:5000/a", true},
		{"r.example", "r.example:5000/a", false},
		{"r.example:5000", "r.example/a", false},
		{"r.example/team", "r.example/team/a", true},
		{"r.example/team", "r.example/teammate/a", false},
		{"r.example/team/a", "r.example/team/a:1", true},
		{"*.example", "r.example/a", true},
		{"*.example", "x.r.example/a", false},
		{"r*.example", "reg.example/a", true},
		{"https://index.docker.io/v1/", "nginx", true},
		{"docker.io", "user/app", true},
		{"r.example", "nginx", false},
		{"", "nginx", false},
		{"://", "nginx", false},
	} {
		if got := matches(c.key, c.image); got != c.want {
			t.Errorf("%q for %q: %v", c.key, c.image, got)
		}
	}
}

func secret(kind corev1.SecretType, key, data string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"}, Type: kind, Data: map[string][]byte{key: []byte(data)}}
}

func TestCredentials(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("alice:pa:ss"))
	modern := secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey,
		`{"auths":{"r.example":{"auth":"`+auth+`"},"r.example/team":{"username":"bob","password":"b"},"other.example":{"username":"x","password":"x"}}}`)
	old := secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"r.example":{"identitytoken":"t"}}`)
	broken := secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{`)
	opaque := secret(corev1.SecretTypeOpaque, "x", "y")
	got, err := Credentials("r.example/team/app:1", []*corev1.Secret{broken, modern, old, opaque})
	if err == nil || !strings.Contains(err.Error(), "secret n/s") || strings.Contains(err.Error(), "pa:ss") {
		t.Errorf("error: %v", err)
	}
	var users []string
	for _, a := range got {
		users = append(users, a.Username+"/"+a.Password+"/"+a.IdentityToken)
	}
	if fmt.Sprint(users) != "[bob/b/ alice/pa:ss/ //t]" {
		t.Errorf("credentials: %q", users)
	}
	if got, err := Credentials("nginx", []*corev1.Secret{modern}); err != nil || len(got) != 0 {
		t.Errorf("another registry: %v %v", got, err)
	}
	bad := secret(corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"r.example":{"auth":"%%%"}}`)
	if _, err := Credentials("r.example/a", []*corev1.Secret{bad}); err == nil {
		t.Error("an auth that is not base64 was accepted")
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add("r.example", "r.example/a", `{"auths":{"r.example":{"auth":"YTpi"}}}`)
	f.Fuzz(func(_ *testing.T, key, image, config string) {
		matches(key, image)
		_, _ = Credentials(image, []*corev1.Secret{secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, config)})
	})
}

// fakeRuntime is a runtime with images and a registry.
type fakeRuntime struct {
	mu      sync.Mutex
	images  map[string]*runtimev1.Image
	pulls   []string
	pull    func(image string, auth *runtimev1.AuthConfig) error
	removed []string
	used    map[string]bool
	most    int
	now     int
}

func (r *fakeRuntime) ImageStatus(_ context.Context, image string) (*runtimev1.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.images[image], nil
}

func (r *fakeRuntime) PullImage(ctx context.Context, image string, auth *runtimev1.AuthConfig, _ *runtimev1.PodSandboxConfig) (string, error) {
	r.mu.Lock()
	r.pulls = append(r.pulls, image+" "+auth.GetUsername())
	r.now++
	r.most = max(r.most, r.now)
	r.mu.Unlock()
	err := r.pull(image, auth)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now--
	if err == nil {
		r.images[image] = &runtimev1.Image{Id: image}
	}
	return image, err
}

func container(image string, policy corev1.PullPolicy) *corev1.Container {
	return &corev1.Container{Name: "c", Image: image, ImagePullPolicy: policy}
}

func TestPuller(t *testing.T) {
	r := &fakeRuntime{images: map[string]*runtimev1.Image{"here:1": {Id: "here"}}, pull: func(string, *runtimev1.AuthConfig) error { return nil }}
	p := NewPuller(r, nil, 2)
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p.now = func() time.Time { return at }
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	ensure := func(c *corev1.Container, secrets ...*corev1.Secret) error {
		_, err := p.Ensure(context.Background(), pod, c, secrets, nil)
		return err
	}
	why := func(err error) string {
		var e *Error
		if errors.As(err, &e) {
			return e.Reason
		}
		return fmt.Sprint(err)
	}
	if err := ensure(container("here:1", corev1.PullIfNotPresent)); err != nil || len(r.pulls) != 0 {
		t.Errorf("present: %v %q", err, r.pulls)
	}
	if err := ensure(container("here:1", corev1.PullAlways)); err != nil || len(r.pulls) != 1 {
		t.Errorf("always: %v %q", err, r.pulls)
	}
	if err := ensure(container("away:1", corev1.PullNever)); why(err) != ReasonNever {
		t.Errorf("never: %v", err)
	}
	if err := ensure(container("Bad", corev1.PullAlways)); why(err) != ReasonName {
		t.Errorf("bad name: %v", err)
	}
	// Credentials are tried one after the other.
	r.pulls = nil
	r.pull = func(_ string, auth *runtimev1.AuthConfig) error {
		if auth.GetUsername() != "right" {
			return errors.New("401")
		}
		return nil
	}
	creds := func(user string) *corev1.Secret {
		return secret(corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{"r.example":{"username":"`+user+`","password":"p"}}}`)
	}
	if err := ensure(container("r.example/a:1", corev1.PullIfNotPresent), creds("wrong"), creds("right")); err != nil || fmt.Sprint(r.pulls) != "[r.example/a:1 wrong r.example/a:1 right]" {
		t.Errorf("credentials: %v %q", err, r.pulls)
	}
	// Back-off grows with each failure, and is reset by a success.
	c := container("r.example/b:1", corev1.PullIfNotPresent)
	for i, wait := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		if err := ensure(c); why(err) != ReasonPull {
			t.Fatalf("attempt %d: %v", i, err)
		}
		at = at.Add(wait*time.Second - time.Millisecond)
		if err := ensure(c); why(err) != ReasonBackOff || !strings.Contains(err.Error(), `Back-off pulling image "r.example/b:1": ErrImagePull: failed to pull image "r.example/b:1": 401`) {
			t.Fatalf("after attempt %d: %v", i, err)
		}
		at = at.Add(time.Millisecond)
	}
	r.pull = func(string, *runtimev1.AuthConfig) error { return nil }
	if err := ensure(c); err != nil || len(p.failures) != 0 {
		t.Errorf("after the back-off: %v", err)
	}
	if len(p.pulling) != 0 {
		t.Error("locks were not released")
	}
}

// TestPullsShare checks that several containers with the same image pull it once, and that
// the number of parallel pulls is bounded.
func TestPullsShare(t *testing.T) {
	gate := make(chan struct{})
	r := &fakeRuntime{images: map[string]*runtimev1.Image{}, pull: func(string, *runtimev1.AuthConfig) error { <-gate; return nil }}
	p := NewPuller(r, nil, 2)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprintf("image-%d:1", i%5)
			if _, err := p.Ensure(context.Background(), &corev1.Pod{}, container(name, corev1.PullIfNotPresent), nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if len(r.pulls) != 5 || r.most > 2 {
		t.Errorf("%d pulls, %d at a time", len(r.pulls), r.most)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Ensure(ctx, &corev1.Pod{}, container("x:1", corev1.PullAlways), nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func (r *fakeRuntime) Images(context.Context) ([]*runtimev1.Image, error) {
	var out []*runtimev1.Image
	for _, img := range r.images {
		out = append(out, img)
	}
	return out, nil
}

func (r *fakeRuntime) RemoveImage(_ context.Context, id string) error {
	r.removed = append(r.removed, id)
	delete(r.images, id)
	return nil
}

func (r *fakeRuntime) ImageFilesystem(context.Context) (string, error)     { return "/images", nil }
func (r *fakeRuntime) UsedImages(context.Context) (map[string]bool, error) { return r.used, nil }

func TestCollector(t *testing.T) {
	img := func(id string, pinned bool) *runtimev1.Image {
		return &runtimev1.Image{Id: id, RepoTags: []string{id + ":1"}, Size: 100, Pinned: pinned}
	}
	r := &fakeRuntime{images: map[string]*runtimev1.Image{"old": img("old", false), "older": img("older", false), "used": img("used", false), "pause": img("pause", true)}, used: map[string]bool{"used:1": true, "old:1": true}}
	c := NewCollector(r)
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	c.now = func() time.Time { return at }
	percent := 50.0
	c.usage = func(string) (float64, uint64, error) { return percent, 1000, nil }
	look := func() {
		t.Helper()
		images, err := c.look(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.collect(context.Background(), images)
	}
	look()
	delete(r.used, "old:1")
	at = at.Add(10 * time.Minute)
	look()
	if len(r.removed) != 0 {
		t.Fatalf("removed on an empty disk: %q", r.removed)
	}
	r.images["fresh"] = img("fresh", false)
	percent = 86 // 60 bytes too many: one image is enough
	look()
	if fmt.Sprint(r.removed) != "[older]" {
		t.Errorf("removed: %q, want one image", r.removed)
	}
	percent = 99
	look()
	if fmt.Sprint(r.removed) != "[older old]" {
		t.Errorf("removed: %q, want all that are removable", r.removed)
	}
	look()
	if listed := c.Listed(); len(listed) != 3 || listed[0].SizeBytes != 100 {
		t.Errorf("listed: %+v", listed)
	}
}
