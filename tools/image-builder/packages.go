package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// download downloads packages and their dependencies, as if no package were installed, and
// returns the paths of their files, sorted.
func download(ctx context.Context, cache string, packages []string) ([]string, error) {
	if len(packages) == 0 {
		return nil, nil
	}
	sum := sha256.Sum256([]byte(strings.Join(packages, " ")))
	dir := filepath.Join(cache, hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	fetch := func() ([]byte, error) {
		args := append([]string{
			"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + dir, "-o", "Debug::NoLocking=1",
			"-o", "APT::Sandbox::User=root", "--no-install-recommends", "-y", "--download-only", "install",
		}, packages...)
		return exec.CommandContext(ctx, "apt-get", args...).CombinedOutput()
	}
	if _, err := fetch(); err != nil {
		// An outdated index lists files that the mirror does not have any more.
		if upd, err := exec.CommandContext(ctx, "apt-get", "update").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("apt-get update: %w: %s", err, bytes.TrimSpace(upd))
		}
		if out, err := fetch(); err != nil {
			return nil, fmt.Errorf("apt-get install --download-only %s: %w: %s", strings.Join(packages, " "), err, bytes.TrimSpace(out))
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	slices.Sort(debs)
	return debs, err
}
