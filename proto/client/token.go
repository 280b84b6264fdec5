package client

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// tokenAge is how long a token that was read from a file is used. The kubelet renews a pod's
// token long before it expires.
const tokenAge = time.Minute

// TokenFile returns a source for [Config.Token] that reads a token from a file, and reads it
// again once a minute. The token of a pod's service account is in
// /var/run/secrets/kubernetes.io/serviceaccount/token and is renewed there. Calls fail while
// the file is missing or empty.
func TokenFile(path string) func() (string, error) { return tokenFile(path, time.Now) }

func tokenFile(path string, now func() time.Time) func() (string, error) {
	var mu sync.Mutex
	var token string
	var read time.Time
	return func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if token != "" && now().Sub(read) < tokenAge {
			return token, nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		said := strings.TrimSpace(string(data))
		if said == "" {
			return "", fmt.Errorf("token file %s is empty", path)
		}
		token, read = said, now()
		return token, nil
	}
}
