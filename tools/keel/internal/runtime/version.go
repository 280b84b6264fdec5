package runtime

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// oldestContainerd is the major version whose configuration and client keel writes
// and calls. Nodes started without keel run with 1.6 and newer.
const oldestContainerd = 2

// Check refuses a containerd that cannot run what Configure writes. Its error names
// the program, its version, and the command that installs another.
func (p Programs) Check(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, p.Containerd, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", p.Containerd, err)
	}
	version, major := parseVersion(string(out))
	if major < oldestContainerd {
		return fmt.Errorf("%s is containerd %s, and keel needs %d.0 or newer: run `make runtime`, which builds one beside keel", p.Containerd, version, oldestContainerd)
	}
	return nil
}

// parseVersion finds the version in what `containerd --version` prints: "containerd
// PACKAGE VERSION COMMIT", with or without a v. A version that it cannot read counts
// as new: builds from source print what they like.
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
