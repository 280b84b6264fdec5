package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.dev/services/apiserver/internal/store"
)

// config returns a restore of a single member.
func config(file, dir string) RestoreConfig {
	return RestoreConfig{File: file, Members: []string{"a"}, Dirs: map[string]string{"a": dir}, Table: table, Log: quiet()}
}

func TestWhatIsSavedIsRestored(t *testing.T) {
	ctx := context.Background()
	s := filled(t, 200)
	file := saveFile(t, s)
	wantEtcd, wantRaft := entries(t, s.etcd), entries(t, s.raft)
	later := put(t, s.etcd, "/registry/configmaps/default/later", configMap(t, "later", 1))
	s.close()

	st, err := ReadStatus(ctx, file, "", table)
	if err != nil || st.Problem != "" || st.Objects != len(wantEtcd)+len(wantRaft) || st.Kind != "keelson" {
		t.Fatalf("%+v, %v", st, err)
	}
	dir := t.TempDir()
	r, err := Restore(ctx, config(file, dir))
	if err != nil {
		t.Fatal(err)
	}
	if r.Objects != st.Objects || r.Dropped != 3 || len(r.SetAside) != 0 || len(r.Moved) != 0 || len(r.NotServed) != 0 {
		t.Errorf("%+v", r)
	}
	n := openStores(t, "a", dir)
	same(t, "etcd", entries(t, n.etcd), wantEtcd)
	same(t, "raft", entries(t, n.raft), wantRaft)
	for _, key := range []string{fencePrefix + "scheduler", joinPrefix + "b", changeKey} {
		if _, _, err := n.etcd.Get(ctx, key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if rev, err := n.etcd.Revision(ctx); err != nil || rev <= later || int64(rev) < r.EtcdRevision {
		t.Errorf("etcd's revision %d, %v; revision %d was acknowledged", rev, err, later)
	}
	if rev, err := n.raft.Revision(ctx); err != nil || int64(rev) < r.RaftRevision {
		t.Errorf("raft's revision %d, %v; want %d", rev, err, r.RaftRevision)
	}
	// A restored cluster can be saved and restored again.
	again := saveFile(t, n)
	n.close()
	next := t.TempDir()
	second, err := Restore(ctx, config(again, next))
	if err != nil || second.EtcdRevision < r.EtcdRevision+revisionSkip {
		t.Fatalf("%+v, %v", second, err)
	}
	n = openStores(t, "a", next)
	same(t, "etcd, again", entries(t, n.etcd), wantEtcd)
	same(t, "raft, again", entries(t, n.raft), wantRaft)
}

func TestDataIsSetAsideOnlyWhenAsked(t *testing.T) {
	ctx := context.Background()
	s := filled(t, 3)
	file := saveFile(t, s)
	s.close()
	dir := t.TempDir()
	old := openStores(t, "a", dir)
	put(t, old.etcd, "/registry/configmaps/default/old", configMap(t, "old", 1))
	cfg := config(file, dir)
	if _, err := Restore(ctx, cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("restored under a running apiserver: %v", err)
	}
	old.close()
	if _, err := Restore(ctx, cfg); err == nil || !strings.Contains(err.Error(), "--set-aside") {
		t.Fatalf("restored over data: %v", err)
	}
	if err := Unfinished(dir); err != nil {
		t.Fatalf("a refused restore was not cleaned up: %v", err)
	}
	cfg.SetAside = true
	r, err := Restore(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	kept := openStores(t, "a", r.SetAside["a"])
	if _, ok := entries(t, kept.etcd)["/registry/configmaps/default/old"]; !ok {
		t.Error("the data that was set aside is not the old data")
	}
	if _, ok := entries(t, openStores(t, "a", dir).etcd)["/registry/configmaps/default/m2"]; !ok {
		t.Error("the restored data is missing")
	}
}

func TestATokenRestoresADirectoryOnce(t *testing.T) {
	ctx := context.Background()
	s := filled(t, 3)
	file := saveFile(t, s)
	put(t, s.etcd, "/registry/configmaps/default/more", configMap(t, "more", 1))
	other := saveFile(t, s)
	s.close()
	dir := t.TempDir()
	cfg := config(file, dir)
	cfg.Members, cfg.SetAside = []string{"a", "b"}, true
	if _, err := Restore(ctx, cfg); err == nil || !strings.Contains(err.Error(), "token") {
		t.Fatalf("restored one of two members without a token: %v", err)
	}
	cfg.Token = "t1"
	if _, err := Restore(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	if r, err := Restore(ctx, cfg); err != nil || len(r.Already) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if after := files(t, dir); after != before {
		t.Errorf("the second restore changed\n%s\nto\n%s", before, after)
	}
	cfg.File = other
	if _, err := Restore(ctx, cfg); err == nil || !strings.Contains(err.Error(), "use a new token") {
		t.Fatalf("restored another file with the same token: %v", err)
	}
	aside := map[string]bool{}
	for _, cfg.Token = range []string{"t2", "t3", "t4"} { // several within a second
		r, err := Restore(ctx, cfg)
		if err != nil || len(r.Already) != 0 || aside[r.SetAside["a"]] {
			t.Fatalf("%+v, %v", r, err)
		}
		aside[r.SetAside["a"]] = true
	}
}

// files returns the names and modification times of the files in a directory.
func files(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// TestInterruptedAnywhere interrupts a restore of two members at each of its steps and repeats
// it. Until it is repeated, no directory is accepted as complete; after that, all are.
func TestInterruptedAnywhere(t *testing.T) {
	ctx := context.Background()
	s := filled(t, 20)
	file := saveFile(t, s)
	want := entries(t, s.etcd)
	s.close()
	fresh := func(members ...string) RestoreConfig {
		cfg := RestoreConfig{File: file, Members: members, Dirs: map[string]string{}, Table: table, Log: quiet()}
		for _, name := range members {
			cfg.Dirs[name] = filepath.Join(t.TempDir(), name)
		}
		return cfg
	}
	var steps []string
	cfg := fresh("a", "b")
	cfg.stop = func(step string) error { steps = append(steps, step); return nil }
	if _, err := Restore(ctx, cfg); err != nil || len(steps) < 18 {
		t.Fatal(err, steps)
	}
	for i, step := range steps {
		cfg := fresh("a", "b")
		n := 0
		cfg.stop = func(string) error {
			if n++; n > i {
				return errStopped
			}
			return nil
		}
		if _, err := Restore(ctx, cfg); !errors.Is(err, errStopped) {
			t.Fatalf("%s: %v", step, err)
		}
		whole := 0
		for _, dir := range cfg.Dirs {
			done, err := readPlan(filepath.Join(dir, doneFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := Unfinished(dir); err == nil && done != nil {
				whole++
			} else if err == nil {
				if entries, err := os.ReadDir(filepath.Join(dir, etcdDir)); err == nil {
					t.Fatalf("%s: %v is accepted as complete", step, entries)
				}
			}
		}
		cfg.stop = nil
		r, err := Restore(ctx, cfg)
		if err != nil {
			t.Fatalf("repeat after %s: %v", step, err)
		}
		if len(r.Already) != whole {
			t.Fatalf("repeat after %s: %v had been restored already, but %d were complete", step, r.Already, whole)
		}
		for name, dir := range cfg.Dirs {
			if err := Unfinished(dir); err != nil {
				t.Fatalf("repeat after %s: %v", step, err)
			}
			p, err := readPlan(filepath.Join(dir, doneFile))
			if err != nil || p == nil || p.Token != r.Token || p.Name != name {
				t.Fatalf("repeat after %s: %s has %+v, %v; want the token %s", step, name, p, err, r.Token)
			}
			for _, left := range []string{workDir, leftDir} {
				if _, err := os.Lstat(filepath.Join(dir, left)); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("repeat after %s: %s was left behind (%v)", step, left, err)
				}
			}
			aside, err := filepath.Glob(filepath.Join(dir, beforePrefix+"*"))
			if err != nil || len(aside) != 0 {
				t.Fatalf("repeat after %s: %v was set aside, although there was no old data", step, aside)
			}
		}
	}
	// The stores of a single member can be opened in this process.
	for i := range 9 {
		cfg := fresh("a")
		n := 0
		cfg.stop = func(string) error {
			if n++; n > i {
				return errStopped
			}
			return nil
		}
		if _, err := Restore(ctx, cfg); !errors.Is(err, errStopped) {
			t.Fatal(i, err)
		}
		cfg.stop = nil
		if _, err := Restore(ctx, cfg); err != nil {
			t.Fatal(i, err)
		}
		n2 := openStores(t, "a", cfg.Dirs["a"])
		same(t, "etcd", entries(t, n2.etcd), want)
		n2.close()
	}
}

func TestAFailureLeavesAllAsItWas(t *testing.T) {
	ctx := context.Background()
	s := filled(t, 3)
	file := saveFile(t, s)
	s.close()
	dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir()}
	old := openStores(t, "a", dirs["a"])
	put(t, old.etcd, "/registry/configmaps/default/old", configMap(t, "old", 1))
	old.close()
	before := files(t, dirs["a"]) + files(t, dirs["b"])
	cfg := RestoreConfig{File: file, Members: []string{"a", "b"}, Dirs: dirs, Table: table, Log: quiet(), SetAside: true}
	broken := errors.New("no space left")
	cfg.stop = func(step string) error {
		if step == "prepared b" {
			return broken
		}
		return nil
	}
	if _, err := Restore(ctx, cfg); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if after := files(t, dirs["a"]) + files(t, dirs["b"]); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
}

// A restore continues from revisions beyond all that were written after an earlier restore,
// even of the same file.
func TestRevisionsOfALaterRestoreAreLater(t *testing.T) {
	first := after(450, "1700000000-a")
	if first < 450+revisionSkip {
		t.Errorf("first restore continues from %d", first)
	}
	for token, least := range map[string]store.Revision{
		"1700000001-b": first + 1<<30,
		"1700086400-c": first + 86400<<30,
		"t1":           450 + revisionSkip, // without a time, only the file counts
	} {
		if got := after(450, token); got < least {
			t.Errorf("token %s: continues from %d, want at least %d", token, got, least)
		}
	}
	if got := after(first+1000, "1700000001-b"); got < first+1000+revisionSkip {
		t.Errorf("a restore of a later snapshot continues from %d", got)
	}
}
