package process

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"keelson.dev/tools/keel/internal/supervise"
)

// digests fills in what each program's file holds, so that `keel up` starts anew
// what was replaced.
func digests(specs []supervise.Spec) error {
	known := map[string]string{}
	for i := range specs {
		path := specs[i].Args[0]
		if known[path] == "" {
			sum, err := digest(path)
			if err != nil {
				return fmt.Errorf("program of %s: %w", specs[i].Name, err)
			}
			known[path] = sum
		}
		specs[i].Program = known[path]
	}
	return nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}
