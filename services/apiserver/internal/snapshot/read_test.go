package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// refused checks that neither status nor restore accepts a file, that the error contains why in
// a single line, and that no file is left behind.
func refused(t *testing.T, data []byte, why string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if _, err := ReadStatus(context.Background(), path, work, table); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "\n") {
		t.Errorf("status: %v; want %q", err, why)
	}
	dir := t.TempDir()
	if _, err := Restore(context.Background(), config(path, dir)); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), why) {
		t.Errorf("restore: %v; want %q", err, why)
	}
	for _, d := range []string{work, dir} {
		if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
			t.Errorf("%v was left behind, %v", left, err)
		}
	}
}

// savedBytes returns a small snapshot.
func savedBytes(t testing.TB) []byte {
	t.Helper()
	s := filled(t, 20)
	data, err := os.ReadFile(saveFile(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// repack returns the archive with changed parts and correct hashes. A part for which change
// returns nil is omitted.
func repack(t *testing.T, data []byte, change func(name string, content []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	a := &archive{w: tar.NewWriter(&out)}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == sumsFile {
			content = a.sums
		}
		if content = change(h.Name, content); content == nil {
			continue
		}
		if err := a.add(h.Name, int64(len(content)), func(w io.Writer) (int64, error) { n, err := w.Write(content); return int64(n), err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnusableFilesAreRefused(t *testing.T) {
	good := savedBytes(t)
	replace := func(old, by string) func(string, []byte) []byte {
		return func(name string, content []byte) []byte {
			if name == manifestFile {
				return bytes.Replace(content, []byte(old), []byte(by), 1)
			}
			return content
		}
	}
	without := func(part string) func(string, []byte) []byte {
		return func(name string, content []byte) []byte {
			if name == part {
				return nil
			}
			return content
		}
	}
	for name, c := range map[string]struct {
		data []byte
		why  string
	}{
		"empty":         {nil, "empty"},
		"text":          {[]byte(strings.Repeat("no snapshot\n", 100)), "neither a snapshot of Keelson nor one of etcd"},
		"newer":         {repack(t, good, replace(`"version": 1`, `"version": 2`)), "reads up to 1: use the version of Keelson that wrote it"},
		"other tar":     {repack(t, good, without(manifestFile)), "not a snapshot of Keelson"},
		"no raft":       {repack(t, good, without(raftFile)), "it contains no raft.snap"},
		"no etcd":       {repack(t, good, without(etcdFile)), "it contains no etcd.db"},
		"no sums":       {repack(t, good, without(sumsFile)), "cut off"},
		"other format":  {repack(t, good, replace(format, "other")), "not one of Keelson's"},
		"broken raft":   {repack(t, good, func(n string, b []byte) []byte { return flipped(b, n == raftFile) }), "raft.snap: the snapshot is damaged"},
		"broken etcd":   {repack(t, good, func(n string, b []byte) []byte { return flipped(b, n == etcdFile) }), "etcd's part is damaged"},
		"etcd, no hash": {etcdOf(t, good, 32, nil), "without the hash"},
		"etcd, cut off": {etcdOf(t, good, 100, nil), "cut off"},
		"etcd, flipped": {etcdOf(t, good, 0, func(b []byte) { b[len(b)/2] ^= 1 }), "damaged"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.data, c.why) })
	}
}

// flipped returns b, with a bit in the middle flipped if really is set.
func flipped(b []byte, really bool) []byte {
	if really {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
	}
	return b
}

// etcdOf returns etcd's part of a snapshot, changed by change and without its last cut bytes.
func etcdOf(t *testing.T, data []byte, cut int, change func([]byte)) (out []byte) {
	t.Helper()
	repack(t, data, func(name string, content []byte) []byte {
		if name == etcdFile {
			out = bytes.Clone(content[:len(content)-cut])
		}
		return content
	})
	if change != nil {
		change(out)
	}
	return out
}

// TestEveryCutIsSeen truncates the file at random places. A truncated file is only accepted if
// all its parts are complete (a tar archive ends with zeros).
func TestEveryCutIsSeen(t *testing.T) {
	good := savedBytes(t)
	path, work := filepath.Join(t.TempDir(), "f"), t.TempDir()
	want, err := openBytes(path, work, good)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(cuts(len(good), 60), len(good)-1024, len(good)-1025, 600, 0) {
		got, err := openBytes(path, work, good[:n])
		if err == nil && got.sum != want.sum {
			t.Fatalf("%d of %d bytes were accepted", n, len(good))
		}
		if err != nil && (!errors.Is(err, ErrFile) || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
}

// TestEveryFlippedBitIsSeen flips a bit at random places. The result is only accepted if the
// parts did not change.
func TestEveryFlippedBitIsSeen(t *testing.T) {
	good := savedBytes(t)
	path, work := filepath.Join(t.TempDir(), "f"), t.TempDir()
	want, err := openBytes(path, work, good)
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	places := append(cuts(len(good), 150), cuts(2048, 100)...)
	for _, n := range append(places, len(good)-1100, len(good)-1500) {
		bad := bytes.Clone(good)
		bad[n] ^= 1 << rand.IntN(8)
		got, err := openBytes(path, work, bad)
		switch {
		case err == nil && got.sum != want.sum:
			t.Fatalf("accepted with a flipped bit in byte %d of %d", n, len(good))
		case err == nil:
			accepted++ // it is padding between the parts
		case !errors.Is(err, ErrFile):
			t.Fatalf("byte %d of %d: %v", n, len(good), err)
		}
	}
	if accepted > len(places)/2 {
		t.Fatalf("%d of %d flips were accepted: most flips hit no content", accepted, len(places))
	}
}

func openBytes(path, work string, data []byte) (*source, error) {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return nil, err
	}
	return open(path, work)
}

// cuts returns n random offsets below size.
func cuts(size, n int) (out []int) {
	for range n {
		out = append(out, rand.IntN(size))
	}
	return out
}

// FuzzOpen calls open with arbitrary bytes.
func FuzzOpen(f *testing.F) {
	f.Add(savedBytes(f))
	f.Add([]byte("no snapshot"))
	path, work := filepath.Join(f.TempDir(), "f"), f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := openBytes(path, work, data)
		if err == nil {
			_, _ = examine(s, newCatalogue(table))
		} else if !errors.Is(err, ErrFile) {
			t.Fatal(err)
		}
	})
}
