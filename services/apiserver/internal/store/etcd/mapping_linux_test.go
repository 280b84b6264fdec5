package etcd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

// resident returns how much of a file's mappings counts as memory of this process.
func resident(t *testing.T, path string) (kB int) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside, found := false, false
	for line := range strings.Lines(string(smaps)) {
		if f := strings.Fields(line); len(f) >= 5 && strings.Contains(f[0], "-") {
			inside = strings.HasSuffix(strings.TrimSpace(line), path)
			found = found || inside
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && inside {
			kB += n
		}
	}
	if !found {
		t.Fatalf("%s is not mapped", path)
	}
	return kB
}

// What was read from the store's file does not stay in memory, and can be read again.
func TestMappedPagesAreGivenBack(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, EmbeddedConfig{Dir: dir})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const objects, size = 2000, 8 << 10
	var writes []store.Write
	for i := range objects {
		writes = append(writes, store.Write{Key: fmt.Sprintf("/o/%d", i), Value: []byte(strings.Repeat("x", size))})
	}
	if _, err := e.Commit(ctx, writes); err != nil {
		t.Fatal(err)
	}
	e.etcd.Server.Backend().ForceCommit()
	read := func() {
		t.Helper()
		page, err := e.List(ctx, "/o/", store.ListOptions{})
		if err != nil || len(page.Entries) != objects || len(page.Entries[77].Value) != size {
			t.Fatalf("%d entries, %v", len(page.Entries), err)
		}
	}
	read()
	file := filepath.Join(dir, "member", "snap", "db")
	before := resident(t, file)
	if before < objects*size/1024/2 {
		t.Fatalf("only %d kB are resident after everything was read", before)
	}
	stop := e.givingBack(10 * time.Millisecond)
	for after := before; after > before/4; after = resident(t, file) {
		if ctx.Err() != nil {
			t.Fatalf("%d kB of %d are still resident", after, before)
		}
	}
	stop()
	read()
	// A compaction reads the whole file.
	if err := e.compact(ctx, mustRevision(t, e)); err != nil {
		t.Fatal(err)
	}
	if after := resident(t, file); after > before/4 {
		t.Errorf("%d kB are resident after a compaction", after)
	}
	read()
	e.Close()
	e.giveBack() // the store is closed, so this must not touch anything
}

func mustRevision(t *testing.T, e *Embedded) store.Revision {
	t.Helper()
	rev, err := e.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}
