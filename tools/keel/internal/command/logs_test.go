package command

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The logs of a node are listed in its home or, if that links there or is gone, in the registry.
func TestLedgers(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	for _, d := range []string{at("home/old/log"), at("home/linked"), at("home/dangling"), at("home/new"), at("registry/linked/log"), at("registry/gone/log")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	err = errors.Join(os.Symlink(at("registry/linked/log"), at("home/linked/log")), os.Symlink(at("registry/dangling/log"), at("home/dangling/log")))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ledgers([]string{at("home/*"), at("registry/*")})
	slices.Sort(got)
	if want := []string{at("home/old"), at("registry/gone"), at("registry/linked")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
