package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContainerdVersions(t *testing.T) {
	for text, want := range map[string]struct {
		version string
		major   int
	}{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1": {"1.6.20~ds1", 1},
		"containerd github.com/containerd/containerd/v2 v2.4.2 ":                      {"v2.4.2", 2},
		"containerd github.com/containerd/containerd/v2 unknown":                      {"of an unknown version", oldestContainerd},
		"": {"of an unknown version", oldestContainerd},
	} {
		if version, major := parseVersion(text); version != want.version || major != want.major {
			t.Errorf("%q: %s, %d; want %s, %d", text, version, major, want.version, want.major)
		}
	}
}

func TestOldContainerdIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "containerd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20~ds1 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := Programs{Containerd: path}.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), path+" is containerd 1.6.20") || !strings.Contains(err.Error(), "make runtime") {
		t.Errorf("%v", err)
	}
}
