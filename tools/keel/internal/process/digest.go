package process

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"keelson.dev/tools/keel/internal/supervise"
)

// digestVariable is an environment variable with the digest of a process's program. It makes a
// supervisor of any version restart processes whose program has changed.
const digestVariable = "KEELSON_PROGRAM_DIGEST"

// digests adds the digest of its program to each specification, so that `keel up` restarts
// processes whose program was replaced.
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

// digest returns the first 8 bytes of a file's SHA-256 sum in hexadecimal.
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
