package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
)

// cleanLogs removes the logs of the pods of nodes that will not come back. They are outside of
// the cluster's home, where log collectors look for them. The data directory of a node, or its
// directory in the registry, lists its logs; dirs are glob patterns of such directories.
func cleanLogs(ctx context.Context, dirs ...string) error {
	found, err := ledgers(dirs)
	if err != nil || len(found) == 0 {
		return err
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range found {
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "node"), "--cleanup-logs", "--data-dir", dir).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove the logs of pods: %w\n%s", err, out))
		}
	}
	return errors.Join(errs...)
}

// ledgers returns the directories that match one of the patterns and list logs. If one of them
// only links to the list in another, it returns the other one, once.
func ledgers(patterns []string) (dirs []string, err error) {
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(p, "log"))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			list, err := filepath.EvalSymlinks(f)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the registry was removed
			}
			if err != nil {
				return nil, err
			}
			if dir := filepath.Dir(list); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}
