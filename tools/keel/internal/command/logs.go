package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// cleanLogs removes the logs of the pods of nodes that will not come back. They are outside of
// the cluster's home, where log collectors look for them. The data directory of a node lists
// its logs; dirs is a glob pattern of data directories.
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
			errs = append(errs, fmt.Errorf("remove the logs of pods: %w\n%s", err, out))
		}
	}
	return errors.Join(errs...)
}
