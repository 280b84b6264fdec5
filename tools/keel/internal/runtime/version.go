package runtime

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// oldestContainerd is the oldest major version that supports the configuration and the client
// that keel uses. Nodes that are started without keel work with 1.6 and newer.
const oldestContainerd = 2

// Check returns an error if containerd is too old for the configuration that Configure writes.
// The error contains the program, its version, and the command that installs a newer one.
func (p Programs) Check(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, p.Containerd, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", p.Containerd, err)
	}
	version, major := parseVersion(string(out))
	if major < oldestContainerd {
		return fmt.Errorf("%s is containerd %s, but keel needs %d.0 or newer: build one next to keel with `make runtime`", p.Containerd, version, oldestContainerd)
	}
	return nil
}

// parseVersion finds the version in the output of `containerd --version`, which is "containerd
// PACKAGE VERSION COMMIT", with or without a v before the version. An unreadable version counts
// as new, because builds from source print arbitrary text.
func parseVersion(text string) (version string, major int) {
	for _, word := range strings.Fields(text) {
		number, _, ok := strings.Cut(strings.TrimPrefix(word, "v"), ".")
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(number); err == nil {
			return word, n
		}
	}
	return "of an unknown version", oldestContainerd
}
