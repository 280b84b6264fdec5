package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// objects is an in-memory Objects.
type objects struct {
	mu         sync.Mutex
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
	claims     map[string]*corev1.PersistentVolumeClaim
	volumes    map[string]*corev1.PersistentVolume
	token      func(authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error)
	requests   []authenticationv1.TokenRequestSpec
}

func (o *objects) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	return o.configMaps[name], nil
}

func (o *objects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	return o.secrets[name], nil
}

func (o *objects) Claim(_ context.Context, _, name string) (*corev1.PersistentVolumeClaim, error) {
	return o.claims[name], nil
}

func (o *objects) PersistentVolume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	return o.volumes[name], nil
}

func (o *objects) Token(_ context.Context, _, _ string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, spec)
	return o.token(spec)
}

// tree returns a directory as a map from path to content, or to "-> target" for links.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			out[rel] = "-> " + target
			return err
		}
		b, err := os.ReadFile(name)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func files(pairs ...string) map[string]file {
	out := map[string]file{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = file{data: []byte(pairs[i+1]), mode: 0o644}
	}
	return out
}

func TestWriteAtomically(t *testing.T) {
	dir := t.TempDir()
	step := func(payload map[string]file, wantChange bool, visible ...string) {
		t.Helper()
		changed, err := writeAtomically(dir, payload, nil)
		if err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v", changed, err)
		}
		stamp, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{dataLink: "-> " + stamp}
		for name, f := range payload {
			want[filepath.Join(stamp, name)] = string(f.data)
		}
		for _, name := range visible {
			want[name] = "-> ..data/" + name
		}
		if got := tree(t, dir); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	step(files("a", "1", "b", "2"), true, "a", "b")
	step(files("a", "1", "b", "2"), false, "a", "b")
	step(files("a", "1", "c/d/e", "3", "c/f", "4"), true, "a", "c")
	step(files("a", "1", "c/d/e", "5"), true, "a", "c")
	step(files(), true)
	step(files(), false)
	// Directories left by a crash are removed.
	if err := os.Mkdir(filepath.Join(dir, "..2020_01_01_00_00_00.1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, newDataLink)); err != nil {
		t.Fatal(err)
	}
	step(files("z", "9"), true, "z")
	// A missing link is created even if the files are unchanged.
	if err := os.Remove(filepath.Join(dir, "z")); err != nil {
		t.Fatal(err)
	}
	step(files("z", "9"), false, "z")
}

func TestWriteAtomicallyRefuses(t *testing.T) {
	for _, name := range []string{"", "/abs", "../up", "a/../b", "..hidden", "..data", "a//b", strings.Repeat("x", 256)} {
		if _, err := writeAtomically(t.TempDir(), files(name, "x"), nil); err == nil {
			t.Errorf("%q was written", name)
		}
	}
}

func TestWriteAtomicallyModes(t *testing.T) {
	dir := t.TempDir()
	group, user := int64(4321), int64(1234)
	payload := map[string]file{"deep/secret": {data: []byte("s"), mode: 0o600, uid: &user}}
	if _, err := writeAtomically(dir, payload, &group); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "deep", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != 0o640 || st.Gid != 4321 || st.Uid != 1234 {
		t.Errorf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
	}
	if info, err = os.Stat(filepath.Join(dir, "deep")); err != nil || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	if changed, err := writeAtomically(dir, payload, &group); changed || err != nil {
		t.Errorf("unchanged: %v %v", changed, err)
	}
	payload["deep/secret"] = file{data: []byte("s"), mode: 0o400, uid: &user}
	if changed, err := writeAtomically(dir, payload, &group); !changed || err != nil {
		t.Errorf("another mode: %v %v", changed, err)
	}
}

// TestReaders checks that a reader of two files through the links never sees one from
// before a change and the other from after it.
func TestReaders(t *testing.T) {
	dir := t.TempDir()
	if _, err := writeAtomically(dir, files("a", "0", "b", "0"), nil); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			// Read as programs do: resolve ..data once, then read both files.
			data, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
			if err != nil {
				continue // replaced and removed between the two steps
			}
			a, errA := os.ReadFile(filepath.Join(data, "a"))
			b, errB := os.ReadFile(filepath.Join(data, "b"))
			if errA == nil && errB == nil && string(a) != string(b) {
				done <- fmt.Errorf("a is %s, b is %s", a, b)
				return
			}
		}
	}()
	for i := range 200 {
		text := fmt.Sprint(i)
		if _, err := writeAtomically(dir, files("a", text, "b", text), nil); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// rig returns a Set in a directory of the test.
func rig(t *testing.T, o *objects) *Set {
	t.Helper()
	s := New(Config{Dir: t.TempDir(), Objects: o, HostIPs: func() []string { return []string{"192.0.2.1"} }, Allocatable: func() corev1.ResourceList { return nil }})
	t.Cleanup(func() {
		for _, uid := range s.Pods() {
			if err := s.Unmount(uid); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "uid-1"}, Spec: corev1.PodSpec{Volumes: volumes, ServiceAccountName: "account", Containers: []corev1.Container{{Name: "c"}}}}
}

func TestProblems(t *testing.T) {
	yes := true
	unknown := corev1.HostPathType("Weird")
	directory := corev1.HostPathDirectory
	block := corev1.PersistentVolumeBlock
	o := &objects{
		configMaps: map[string]*corev1.ConfigMap{"there": {Data: map[string]string{"k": "v"}}},
		claims: map[string]*corev1.PersistentVolumeClaim{
			"pending": {}, "bound": {ObjectMeta: metav1.ObjectMeta{UID: "c"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
			"raw":   {ObjectMeta: metav1.ObjectMeta{UID: "r"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "raw"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
			"p-eph": {ObjectMeta: metav1.ObjectMeta{UID: "c"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
		},
		volumes: map[string]*corev1.PersistentVolume{
			"pv":  {ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: "another"}}},
			"raw": {ObjectMeta: metav1.ObjectMeta{Name: "raw"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: "r"}, VolumeMode: &block}},
		},
	}
	source := func(s corev1.VolumeSource) corev1.VolumeSource { return s }
	named := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	claim := func(name string) corev1.VolumeSource {
		return source(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}})
	}
	for name, c := range map[string]struct {
		source corev1.VolumeSource
		err    string
	}{
		"no ConfigMap":             {source(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("none")}}), `configmap "none" not found`},
		"optional ConfigMap":       {source(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("none"), Optional: &yes}}), ""},
		"no key":                   {source(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("there"), Items: []corev1.KeyToPath{{Key: "x", Path: "x"}}}}), "references non-existent config key: x"},
		"optional key":             {source(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("there"), Items: []corev1.KeyToPath{{Key: "x", Path: "x"}}, Optional: &yes}}), ""},
		"a path out of the volume": {source(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("there"), Items: []corev1.KeyToPath{{Key: "k", Path: "../../k"}}}}), "invalid path"},
		"no Secret":                {source(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}}), `secret "none" not found`},
		"trust bundle":             {source(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}}}}), "clusterTrustBundle"},
		"no directory":             {source(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/no/such", Type: &directory}}), "is not a directory"},
		"unknown type":             {source(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/", Type: &unknown}}), "not supported"},
		"no claim":                 {claim("none"), `persistentvolumeclaim "none" not found`},
		"pending claim":            {claim("pending"), "is not bound"},
		"another claim's volume":   {claim("bound"), "is bound to another claim"},
		"raw volume":               {claim("raw"), "raw block"},
		"a claim with the name of an ephemeral volume's": {source(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), "was not created for this pod"},
		"unsupported type": {source(corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}), "not supported"},
	} {
		v := corev1.Volume{Name: "v", VolumeSource: c.source}
		if v.Ephemeral != nil {
			v.Name = "eph"
		}
		err := rig(t, o).Mount(context.Background(), podWith(v))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
}

func TestTokens(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	count := 0
	o := &objects{}
	o.token = func(spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		count++
		return &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("token-%d", count), ExpirationTimestamp: metav1.NewTime(at.Add(time.Duration(*spec.ExpirationSeconds) * time.Second))}}, nil
	}
	s := rig(t, o)
	s.tokens.now = func() time.Time { return at }
	seconds := int64(1000)
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "vault", Audience: "vault", ExpirationSeconds: &seconds}},
	}}}})
	user := int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user}
	if err := s.Mount(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	path := s.Ready(p.UID)["v"].Path
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(path, "token"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if read() != "token-1" || len(o.requests) != 2 || o.requests[0].BoundObjectRef.Name != "p" || o.requests[1].Audiences[0] != "vault" {
		t.Errorf("%q, requests %+v", read(), o.requests)
	}
	if info, err := os.Stat(filepath.Join(path, "token")); err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 1000 {
		t.Errorf("file: %v %v", info, err)
	}
	next, err := s.Refresh(context.Background(), p)
	if err != nil || !next.Equal(at.Add(800*time.Second)) || len(o.requests) != 2 {
		t.Errorf("fresh: next %v, %v, %d requests", next, err, len(o.requests))
	}
	// After most of its lifetime the token is renewed. While that fails, the old one is
	// used.
	at = at.Add(801 * time.Second)
	good := o.token
	o.token = func(authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		return nil, errors.New("unavailable")
	}
	if _, err := s.Refresh(context.Background(), p); err != nil || read() != "token-1" {
		t.Errorf("API unavailable: %v, %q", err, read())
	}
	at = at.Add(11 * time.Second)
	o.token = good
	if _, err := s.Refresh(context.Background(), p); err != nil || read() != "token-3" {
		t.Errorf("renewed: %v, %q", err, read())
	}
	at = at.Add(2000 * time.Second)
	o.token = func(authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		return nil, errors.New("unavailable")
	}
	if _, err := s.Refresh(context.Background(), p); err == nil {
		t.Error("an expired token was returned")
	}
}

func TestSubPath(t *testing.T) {
	volume, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(volume, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("inside", filepath.Join(volume, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(volume, "inside"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "inside", "f"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "sub", "0")
	defer func() {
		if err := unmountBelow(target); err != nil {
			t.Error(err)
		}
	}()
	for _, sub := range []string{"inside", "link", "./inside/../inside"} {
		got, err := subPath(volume, sub, target)
		if err != nil || got != target {
			t.Fatalf("%q: %q, %v", sub, got, err)
		}
		if b, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(b) != "text" {
			t.Errorf("%q: %q %v", sub, b, err)
		}
	}
	if _, err := subPath(volume, "inside/f", target); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "text" {
		t.Errorf("a file: %q %v", b, err)
	}
	if _, err := subPath(volume, "a/b", target); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(volume, "a", "b")); err != nil || !info.IsDir() {
		t.Errorf("a path that did not exist: %v", err)
	}
	if list, err := mountpoints(target); err != nil || len(list) != 1 {
		t.Errorf("mounts: %v %v", list, err)
	}
	for _, sub := range []string{"../x", "/etc", "out", "out/x", "a/../../x"} {
		if got, err := subPath(volume, sub, filepath.Join(t.TempDir(), "x")); err == nil {
			t.Errorf("%q: %q", sub, got)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside the volume: %v %v", entries, err)
	}
}

func TestOwn(t *testing.T) {
	dir := t.TempDir()
	group := int64(777)
	if err := os.MkdirAll(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "d/g"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if err := own(dir, &group, corev1.FSGroupChangeAlways, false); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range []string{"", "d", "f", "d/g"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %v %d", name, info.Mode().Perm(), info.Sys().(*syscall.Stat_t).Gid))
	}
	sort.Strings(got)
	for _, line := range got {
		if !strings.HasSuffix(line, " 777") || !strings.Contains(line, "rw") {
			t.Errorf("%s", line)
		}
	}
	if after, err := os.Stat("/etc/passwd"); err != nil || after.Mode() != before.Mode() || after.Sys().(*syscall.Stat_t).Gid != before.Sys().(*syscall.Stat_t).Gid {
		t.Error("a link out of the volume was followed")
	}
	// If the root already has the right owner and mode, the walk is skipped.
	if err := os.Chown(filepath.Join(dir, "f"), -1, 0); err != nil {
		t.Fatal(err)
	}
	if err := own(dir, &group, corev1.FSGroupChangeOnRootMismatch, false); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "f")); err != nil || info.Sys().(*syscall.Stat_t).Gid != 0 {
		t.Error("the volume was walked")
	}
}

func TestUnmount(t *testing.T) {
	s := rig(t, &objects{})
	p := podWith(corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}})
	if err := s.Mount(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	path := s.Ready(p.UID)["m"].Path
	if is, err := isMountpoint(path); err != nil || !is {
		t.Fatalf("%s: %v %v", path, is, err)
	}
	if err := s.Mount(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	if list, err := mountpoints(path); err != nil || len(list) != 1 {
		t.Errorf("mounts after mounting again: %v %v", list, err)
	}
	for range 2 {
		if err := s.Unmount(p.UID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.PodDir(p.UID)); err == nil {
		t.Error("the pod's directory still exists")
	}
	for _, uid := range []string{"", "..", "a/b", "."} {
		if err := s.Unmount(types.UID(uid)); err == nil {
			t.Errorf("UID %q was accepted", uid)
		}
	}
}

// TestMemorySize checks that a volume in memory is as large as the smallest of what the node
// can give, the pod's memory limit and its own size limit.
func TestMemorySize(t *testing.T) {
	q := resource.MustParse
	for _, c := range []struct{ name, allocatable, limit, size, want string }{
		{"nothing is known", "", "", "", "0"},
		{"the node", "8Gi", "", "", "8Gi"},
		{"the pod", "8Gi", "1Gi", "2Gi", "1Gi"},
		{"the volume", "8Gi", "1Gi", "64Mi", "64Mi"},
		{"the volume is larger than the node", "8Gi", "", "9Gi", "8Gi"},
		{"no size", "8Gi", "", "0", "8Gi"},
	} {
		p := podWith(corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}})
		if len(p.Spec.Containers) == 0 {
			p.Spec.Containers = []corev1.Container{{Name: "c"}}
		}
		cfg := Config{}
		if c.allocatable != "" {
			cfg.Allocatable = func() corev1.ResourceList { return corev1.ResourceList{corev1.ResourceMemory: q(c.allocatable)} }
		}
		if c.limit != "" {
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: q(c.limit)}
		}
		if c.size != "" {
			size := q(c.size)
			p.Spec.Volumes[0].EmptyDir.SizeLimit = &size
		}
		m := mount{set: New(cfg), pod: p, v: &p.Spec.Volumes[0]}
		want := q(c.want)
		if got := m.memorySize(); got != want.Value() {
			t.Errorf("%s: %d, want %s", c.name, got, c.want)
		}
	}
}
