package process

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"keelson.dev/tools/keel/internal/supervise"
)

// digestVariable names what a program's file holds in the environment of its
// process: a supervisor of any version sees then that it has to start anew.
const digestVariable = "KEELSON_PROGRAM_DIGEST"

// digests notes what each program's file holds, so that `keel up` starts anew what
// was replaced.
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
		specs[i].Env = append(specs[i].Env, digestVariable+"="+known[path])
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
