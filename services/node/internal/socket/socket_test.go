package socket_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.dev/services/node/internal/socket"
)

func TestListenIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "kubelet.sock")
	for range 2 { // the second replaces what the first has left
		l, err := socket.Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		defer l.Close()
		for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o750} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
			}
		}
	}
}

func TestListenRefuses(t *testing.T) {
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.Chown(foreign, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	taken := t.TempDir()
	if err := os.WriteFile(filepath.Join(taken, "s"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"others may write": shared, "another owner": foreign, "a link": link, "a file": taken} {
		if l, err := socket.Listen(t.Context(), filepath.Join(dir, "s")); err == nil {
			_ = l.Close()
			t.Errorf("%s: listens", name)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := socket.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Lock(dir); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Errorf("locked twice: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = socket.Lock(dir); err != nil {
		t.Fatal(err)
	}
	_ = unlock()
}
