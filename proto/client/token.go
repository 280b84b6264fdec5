package client

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// tokenAge is how long a token read from a file is used: a pod's is renewed long before
// it expires.
const tokenAge = time.Minute

// TokenFile is a source for Config.Token that reads a file, and reads it again once a
// minute: the token of a pod's service account lies in
// /var/run/secrets/kubernetes.io/serviceaccount/token and is renewed there.
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
