package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// within fails the test if f has not returned after a minute.
func within(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatalf("%s does not return", what)
		return nil
	}
}

func groupOf(t *testing.T, name string) (gid uint32, mode fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Gid, info.Mode()
}

// TestOwnHostile checks that nothing a container leaves in its volume makes the node change
// files outside the volume, or block.
func TestOwnHostile(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "deep", "secret")
	if err := errors.Join(os.Mkdir(filepath.Dir(secret), 0o700), os.WriteFile(secret, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.Symlink(secret, at("link")), os.Symlink(filepath.Dir(secret), at("linked-folder")), os.Symlink("/nowhere", at("dangling")),
		unix.Mkfifo(at("fifo"), 0o600), unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		os.Mkdir(at("folder"), 0o700), os.WriteFile(at("folder/setuid"), nil, 0o600), os.Chmod(at("folder/setuid"), 0o755|fs.ModeSetuid),
	); err != nil {
		t.Fatal(err)
	}
	group := int64(2000)
	if err := within(t, "own", func() error { return own(dir, &group, corev1.FSGroupChangeAlways, false) }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "linked-folder", "dangling", "fifo", "device", "folder", "folder/setuid", "."} {
		if gid, _ := groupOf(t, at(name)); gid != 2000 {
			t.Errorf("%s: group %d", name, gid)
		}
	}
	if _, mode := groupOf(t, at("folder/setuid")); mode.Perm() != 0o775 || mode&fs.ModeSetuid == 0 {
		t.Errorf("mode %v", mode)
	}
	for _, name := range []string{secret, filepath.Dir(secret)} {
		if gid, mode := groupOf(t, name); gid == 2000 || mode.Perm()&0o070 != 0 {
			t.Errorf("%s outside the volume: group %d, mode %v", name, gid, mode)
		}
	}
}

// TestOwnSwap keeps exchanging a directory with a symbolic link out of the volume while own
// runs.
func TestOwnSwap(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	folder, link := filepath.Join(dir, "folder"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, "secret"), nil, 0o600), os.Symlink(outside, link)); err != nil {
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
			if err := unix.Renameat2(unix.AT_FDCWD, folder, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				done <- err
				return
			}
		}
	}()
	for i := range 2000 {
		group := int64(3000 + i%2)
		if err := own(dir, &group, corev1.FSGroupChangeAlways, false); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if gid, mode := groupOf(t, secret); gid >= 3000 || mode.Perm() != 0o600 {
		t.Errorf("a file outside the volume: group %d, mode %v", gid, mode)
	}
}

// nest creates directories nested in each other.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(at, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	_ = unix.Close(at)
}

// TestOwnDeep checks that own refuses directories nested too deeply, which would use up the
// node's file descriptors.
func TestOwnDeep(t *testing.T) {
	dir := t.TempDir()
	nest(t, dir, maxDepth+1)
	t.Cleanup(func() { _ = RemoveAll(dir) })
	group := int64(2000)
	if err := own(dir, &group, corev1.FSGroupChangeAlways, false); err == nil || !strings.Contains(err.Error(), "nested") {
		t.Errorf("error: %v", err)
	}
}

// TestHostPathHostile checks that a FIFO or a dangling link in place of a file neither
// blocks the node nor makes it create a file elsewhere.
func TestHostPathHostile(t *testing.T) {
	dir := t.TempDir()
	fifo, dangling, elsewhere := filepath.Join(dir, "fifo"), filepath.Join(dir, "dangling"), filepath.Join(dir, "elsewhere")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(elsewhere, dangling)); err != nil {
		t.Fatal(err)
	}
	create, file := corev1.HostPathFileOrCreate, corev1.HostPathFile
	check := func(name string, kind corev1.HostPathType) error {
		return within(t, "hostPath", func() error { _, err := hostPath(name, &kind); return err })
	}
	if err := check(fifo, create); err != nil { // as in Kubernetes
		t.Error(err)
	}
	if check(fifo, file) == nil || check(dangling, create) == nil {
		t.Error("a FIFO or a dangling link was accepted as a file")
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("a file was created through a link")
	}
}

// TestSubPathSaysNothing checks that errors do not quote a subPath expanded from the
// environment.
func TestSubPathSaysNothing(t *testing.T) {
	volume := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(volume, "file"), nil, 0o600), os.Symlink("/etc", filepath.Join(volume, "canary-link"))); err != nil {
		t.Fatal(err)
	}
	s := New(Config{Dir: t.TempDir()})
	s.ready["u"] = map[string]Mounted{"v": {Path: volume}}
	for _, path := range []string{"../canary", "/canary", "file/canary", "canary-link", strings.Repeat("canary", 100)} {
		c := &corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(SUB)"}}}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
		_, err := s.Mounts(p, c, Needs{Lookup: func(string) (string, bool) { return path, true }})
		if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "$(SUB)") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := s.Unmount("u"); err != nil {
		t.Error(err)
	}
}

// TestRemoveHostile checks that a tree is removed whatever a container has put into it,
// with few descriptors, and that nothing outside it is removed.
func TestRemoveHostile(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "volume")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Symlink(outside, filepath.Join(dir, "link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Mkdir(filepath.Join(dir, "many"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for i := range 1200 {
		if err := os.Symlink("/", filepath.Join(dir, "many", strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	nest(t, dir, 600)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err := within(t, "removal", func() error { return errors.Join(RemoveAll(dir), RemoveAll(dir), RemoveAll("/no/such/dir")) })
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tree still exists: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "file")); err != nil {
		t.Error(err)
	}
}
