package log

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree lists everything below a directory.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		out = append(out, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out[1:]
}

// TestLayout checks that two nodes of one machine can share the log directories, and that
// each removes only its own logs, including those of a pod that was removed while the node
// was down.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	a := Layout{Pods: at("pods"), Containers: at("containers"), Ledger: at("node-a")}
	b := Layout{Pods: at("pods"), Containers: at("containers"), Ledger: at("node-b")}
	for _, p := range []struct {
		node          Layout
		pod, uid, cid string
	}{{a, "p", "1", "c1"}, {a, "q", "2", "c2"}, {b, "p", "3", "c3"}} {
		folder := "n_" + p.pod + "_" + p.uid
		log := at("pods", folder, "main", "0.log")
		if err := errors.Join(p.node.Folder(folder, ""), p.node.Folder(folder, "main"), os.WriteFile(log, []byte(p.uid), 0o600),
			p.node.Link(p.pod, "n", "main", p.cid, log), p.node.Link(p.pod, "n", "main", p.cid, log)); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(at("containers", p.pod+"_n_main-"+p.cid+".log")); err != nil || string(text) != p.uid {
			t.Errorf("through the link: %q %v", text, err)
		}
	}
	// Files of other programs, including dangling links.
	if err := errors.Join(os.Mkdir(at("pods", "other_p_9"), 0o700), os.Symlink("/nowhere", at("containers", "other.log"))); err != nil {
		t.Fatal(err)
	}
	// A log directory from before there was a ledger.
	old := at("node-a", "n_old_4", "main")
	if err := errors.Join(os.MkdirAll(old, 0o700), os.WriteFile(filepath.Join(old, "0.log"), nil, 0o600), a.Link("old", "n", "main", "c4", filepath.Join(old, "0.log"))); err != nil {
		t.Fatal(err)
	}
	uids := a.UIDs()
	slices.Sort(uids)
	if got := strings.Join(uids, " "); got != "1 2 4" {
		t.Errorf("pods of a: %s", got)
	}
	if err := errors.Join(a.Remove("1"), a.Remove("1"), a.Remove("absent")); err != nil {
		t.Fatal(err)
	}
	if a.Remove("") == nil || a.Remove("../x") == nil {
		t.Error("an invalid UID was accepted")
	}
	if _, err := os.Lstat(at("pods", "n_p_1")); err == nil {
		t.Error("the directory of pod 1 still exists")
	}
	if err := a.Clear(); err != nil {
		t.Fatal(err)
	}
	want := []string{"containers", "containers/other.log", "containers/p_n_main-c3.log", "node-a", "node-b", "node-b/n_p_3",
		"pods", "pods/n_p_3", "pods/n_p_3/main", "pods/n_p_3/main/0.log", "pods/other_p_9"}
	got := slices.DeleteFunc(tree(t, dir), func(name string) bool { return strings.HasPrefix(name, "node-b.containers") })
	if !slices.Equal(got, want) {
		t.Errorf("files left: %q", got)
	}
}

// TestLayoutElsewhere checks that a node finds its logs by its ledger alone: a pod's logs are
// removed with the pod, and all with the node, also if the directories have been changed since,
// or are not given, as to node --cleanup-logs.
func TestLayoutElsewhere(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	before := Layout{Pods: at("old", "pods"), Containers: at("old", "containers"), Ledger: at("ledger")}
	now := Layout{Pods: at("pods"), Containers: at("containers"), Ledger: at("ledger")}
	for _, uid := range []string{"1", "2"} {
		folder := "n_p_" + uid
		log := at("old", "pods", folder, "main", "0.log")
		if err := errors.Join(before.Folder(folder, "main"), os.WriteFile(log, nil, 0o600), before.Link("p", "n", "main", "c"+uid, log)); err != nil {
			t.Fatal(err)
		}
	}
	other := at("old", "pods", "n_p_3") // of another node
	if err := errors.Join(os.Mkdir(other, 0o700), os.Symlink(filepath.Join(other, "0.log"), at("old", "containers", "p_n_main-c3.log"))); err != nil {
		t.Fatal(err)
	}
	if got := now.Folders(); len(got) != 2 {
		t.Errorf("folders: %q", got)
	}
	if err := now.Remove("1"); err != nil {
		t.Fatal(err)
	}
	want := []string{"old", "old/containers", "old/containers/p_n_main-c2.log", "old/containers/p_n_main-c3.log",
		"old/pods", "old/pods/n_p_2", "old/pods/n_p_2/main", "old/pods/n_p_2/main/0.log", "old/pods/n_p_3"}
	left := func() []string {
		return slices.DeleteFunc(tree(t, dir), func(name string) bool { return strings.HasPrefix(name, "ledger") })
	}
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("after pod 1 was removed: %q", got)
	}
	if err := now.Clear(); err != nil {
		t.Fatal(err)
	}
	want = []string{"old", "old/containers", "old/containers/p_n_main-c3.log", "old/pods", "old/pods/n_p_3"}
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("after the node was removed: %q", got)
	}
}

// TestLinkName checks that names that are too long are truncated as the kubelet does.
func TestLinkName(t *testing.T) {
	if got := linkName("p", "n", "c", "id"); got != "p_n_c-id.log" {
		t.Error(got)
	}
	if got := linkName(strings.Repeat("p", 253), "n", "c", "id"); len(got) != 255 || !strings.HasSuffix(got, "p.log") {
		t.Error(got)
	}
}

// TestHostileFolders checks that a container that can write to the log directories cannot
// make the node read, truncate, overwrite or remove anything elsewhere, or block.
func TestHostileFolders(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	secret := "2026-05-01T12:00:00Z stdout F secret\n" + strings.Repeat("x", 100)
	elsewhere := at("elsewhere")
	if err := errors.Join(os.MkdirAll(filepath.Join(elsewhere, "main"), 0o700), os.WriteFile(filepath.Join(elsewhere, "main", "0.log"), []byte(secret), 0o600)); err != nil {
		t.Fatal(err)
	}
	l := Layout{Pods: at("pods"), Containers: at("containers"), Ledger: at("ledger")}
	if err := errors.Join(l.Folder("n_p_1", "main"), os.Symlink(elsewhere, at("pods", "n_p_2")), l.Folder("n_p_3", ""), os.Symlink(filepath.Join(elsewhere, "main"), at("pods", "n_p_3", "main")),
		os.Symlink(filepath.Join(elsewhere, "main", "0.log"), at("pods", "n_p_1", "main", "1.log")), unix.Mkfifo(at("pods", "n_p_1", "main", "2.log"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if l.Folder("n_p_2", "main") == nil || l.Folder("n_p_3", "main") == nil {
		t.Error("a symbolic link was accepted as a directory")
	}
	within := func(what string, f func()) {
		t.Helper()
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s does not return", what)
		}
	}
	rotation := Rotation{Size: 1, Files: 2, Reopen: func(context.Context, string) error { return nil }}
	for _, name := range []string{at("pods", "n_p_1", "main", "1.log"), at("pods", "n_p_1", "main", "2.log"), at("pods", "n_p_2", "main", "0.log"), at("pods", "n_p_3", "main", "0.log")} {
		within("read "+name, func() {
			var out bytes.Buffer
			if err := Read(context.Background(), name, Options{}, nil, &out); err == nil || out.Len() > 0 {
				t.Errorf("%s was read: %q %v", name, out.String(), err)
			}
		})
		within("rotate "+name, func() {
			if err := rotation.Rotate(context.Background(), "id", name); err == nil {
				t.Errorf("%s was rotated", name)
			}
		})
		within("remove "+name, func() {
			if !strings.Contains(name, "n_p_1") {
				Remove(name)
			}
		})
	}
	// Compression neither writes through a link nor reads a FIFO.
	name := at("pods", "n_p_1", "main", "0.log")
	aside := name + ".20260501-120000.000"
	if err := errors.Join(os.WriteFile(name, []byte(secret), 0o600), os.WriteFile(aside, []byte("old"), 0o600), unix.Mkfifo(name+".20260501-120001.000", 0o600),
		os.Symlink(filepath.Join(elsewhere, "main", "0.log"), aside+tmpSuffix)); err != nil {
		t.Fatal(err)
	}
	rotation.Files = 4
	within("rotate", func() {
		if err := rotation.Rotate(context.Background(), "id", name); err != nil {
			t.Error(err)
		}
	})
	for _, uid := range []string{"1", "2", "3"} {
		if err := l.Remove(uid); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(elsewhere, "main", "0.log")); err != nil || string(text) != secret {
		t.Errorf("file outside the log directories: %q %v", text, err)
	}
	if got := tree(t, at("pods")); len(got) > 0 {
		t.Errorf("files left: %q", got)
	}
}
