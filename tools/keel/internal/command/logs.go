package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// cleanLogs removes the logs of the pods of nodes that will not be back. They lie
// outside of the cluster's home, where log collectors look for them; which are a
// node's stands in its data directory. dirs is a pattern of such directories.
func cleanLogs(ctx context.Context, dirs string) error {
	found, err := filepath.Glob(filepath.Join(dirs, "log"))
	if err != nil || len(found) == 0 {
		return err
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range found {
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "node"), "--cleanup-logs", "--data-dir", filepath.Dir(dir)).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove logs of pods: %w\n%s", err, out))
		}
	}
	return errors.Join(errs...)
}
