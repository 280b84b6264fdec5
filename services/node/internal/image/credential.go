package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// registryAuth is one entry of a Docker configuration.
type registryAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Credentials returns the credentials that the secrets contain for an image, the most
// specific first. A secret that cannot be read is skipped; the first such secret is named
// in the error.
func Credentials(image string, secrets []*corev1.Secret) ([]*runtimev1.AuthConfig, error) {
	var out []*runtimev1.AuthConfig
	var firstErr error
	for _, s := range secrets {
		entries, err := entriesOf(s)
		if err != nil {
			if firstErr == nil {
				firstErr = fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
			}
			continue
		}
		keys := make([]string, 0, len(entries))
		for k := range entries {
			keys = append(keys, k)
		}
		sort.Sort(sort.Reverse(sort.StringSlice(keys)))
		for _, k := range keys {
			if !matches(k, image) {
				continue
			}
			auth, err := entries[k].config()
			if err != nil {
				if firstErr == nil {
					firstErr = fmt.Errorf("secret %s/%s: %q: %w", s.Namespace, s.Name, k, err)
				}
				continue
			}
			out = append(out, auth)
		}
	}
	return out, firstErr
}

func entriesOf(s *corev1.Secret) (map[string]registryAuth, error) {
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var config struct {
			Auths map[string]registryAuth `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &config); err != nil {
			return nil, fmt.Errorf("%s: not a Docker configuration", corev1.DockerConfigJsonKey)
		}
		return config.Auths, nil
	case corev1.SecretTypeDockercfg:
		var entries map[string]registryAuth
		if err := json.Unmarshal(s.Data[corev1.DockerConfigKey], &entries); err != nil {
			return nil, fmt.Errorf("%s: not a Docker configuration", corev1.DockerConfigKey)
		}
		return entries, nil
	}
	return nil, fmt.Errorf("type %s is not a type for registry credentials", s.Type)
}

func (a registryAuth) config() (*runtimev1.AuthConfig, error) {
	out := &runtimev1.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if out.Username == "" && a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(a.Auth, "="))
		}
		if err != nil {
			return nil, fmt.Errorf("auth is not base64")
		}
		user, password, ok := strings.Cut(string(raw), ":")
		if !ok {
			return nil, fmt.Errorf("auth is not user:password")
		}
		out.Username, out.Password = user, password
	}
	return out, nil
}

// dockerHub is the registry of names without a registry.
const dockerHub = "docker.io"

// Repository returns an image's registry and repository, without tag and digest.
func Repository(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	host, rest, ok := strings.Cut(name, "/")
	if !ok {
		return dockerHub + "/library/" + name
	}
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return dockerHub + "/" + name
	}
	if host == dockerHub && !strings.Contains(rest, "/") {
		return dockerHub + "/library/" + rest
	}
	return name
}

// matches reports whether the credentials under key apply to an image. The hosts must match
// label by label, with the key's labels as globs, the ports must be equal, and the key's path
// must be a prefix of the repository.
func matches(key, image string) bool {
	if !strings.Contains(key, "://") {
		key = "https://" + key
	}
	u, err := url.Parse(key)
	if err != nil {
		return false
	}
	host, keyPath := u.Host, strings.Trim(u.Path, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = dockerHub
	}
	if keyPath == "v1" || keyPath == "v2" {
		keyPath = "" // an API version, as docker login writes it
	}
	for _, version := range []string{"v1/", "v2/"} {
		keyPath = strings.TrimPrefix(keyPath, version)
	}
	repoHost, repoPath, _ := strings.Cut(Repository(image), "/")
	if !hostMatches(host, repoHost) {
		return false
	}
	return keyPath == "" || repoPath == keyPath || strings.HasPrefix(repoPath, keyPath+"/")
}

func hostMatches(pattern, host string) bool {
	patternName, patternPort, hasPort := strings.Cut(pattern, ":")
	name, port, _ := strings.Cut(host, ":")
	if patternPort != port && (hasPort || port != "") {
		return false
	}
	want, have := strings.Split(patternName, "."), strings.Split(name, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
