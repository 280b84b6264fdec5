package client

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of a kubeconfig file that the client reads. Fields of type any are refused
// by name if they are set: ignoring one of them would connect elsewhere, or as someone else.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	CurrentContext string         `json:"current-context"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
	Preferences    ignored        `json:"preferences"`
	Extensions     ignored        `json:"extensions"`
}

// ignored is a field without influence on the connection.
type ignored any

type namedCluster struct {
	Name    string      `json:"name"`
	Cluster clusterInfo `json:"cluster"`
}

type clusterInfo struct {
	Server                   string  `json:"server"`
	TLSServerName            string  `json:"tls-server-name"`
	CertificateAuthority     string  `json:"certificate-authority"`
	CertificateAuthorityData string  `json:"certificate-authority-data"`
	InsecureSkipTLSVerify    bool    `json:"insecure-skip-tls-verify"`
	ProxyURL                 string  `json:"proxy-url"`
	DisableCompression       ignored `json:"disable-compression"`
	Extensions               ignored `json:"extensions"`
}

type namedUser struct {
	Name string   `json:"name"`
	User userInfo `json:"user"`
}

type userInfo struct {
	ClientCertificate     string  `json:"client-certificate"`
	ClientCertificateData string  `json:"client-certificate-data"`
	ClientKey             string  `json:"client-key"`
	ClientKeyData         string  `json:"client-key-data"`
	Token                 string  `json:"token"`
	TokenFile             string  `json:"tokenFile"`
	As                    any     `json:"as"`
	AsUID                 any     `json:"as-uid"`
	AsGroups              any     `json:"as-groups"`
	AsUserExtra           any     `json:"as-user-extra"`
	Username              any     `json:"username"`
	Password              any     `json:"password"`
	AuthProvider          any     `json:"auth-provider"`
	Exec                  any     `json:"exec"`
	Extensions            ignored `json:"extensions"`
}

type namedContext struct {
	Name    string      `json:"name"`
	Context contextInfo `json:"context"`
}

type contextInfo struct {
	Cluster    string  `json:"cluster"`
	User       string  `json:"user"`
	Namespace  string  `json:"namespace"`
	Extensions ignored `json:"extensions"`
}

// FromKubeconfig returns the Config of a context of a kubeconfig file, for [Dial]. If path is empty,
// it is $KUBECONFIG, or else ~/.kube/config; if context is empty, it is the file's current one. The
// server may be an apiserver's HTTPS or gRPC port. It understands certificate authorities, client
// certificates, tokens, token files and tls-server-name; files are read again as they are renewed.
// It refuses, by name, what it does not support: exec plug-ins, auth providers, passwords,
// impersonation, proxies, unverified servers, several files in $KUBECONFIG, and unknown fields.
func FromKubeconfig(path, context string) (Config, error) {
	path, err := kubeconfigPath(path)
	if err != nil {
		return Config{}, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("client: kubeconfig: %w", err)
	}
	cfg, err := parseKubeconfig(data, filepath.Dir(path), context)
	if err != nil {
		return Config{}, fmt.Errorf("client: kubeconfig %s: %w", path, err)
	}
	return cfg, nil
}

func kubeconfigPath(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	if path = os.Getenv("KUBECONFIG"); path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("client: kubeconfig: %w", err)
		}
		return filepath.Join(home, ".kube", "config"), nil
	}
	if strings.ContainsRune(path, filepath.ListSeparator) {
		return "", errors.New("client: several files in KUBECONFIG are not supported: name one")
	}
	return path, nil
}

// parseKubeconfig returns the Config of a context. Relative paths are relative to dir.
func parseKubeconfig(data []byte, dir, context string) (Config, error) {
	var k kubeconfig
	if err := yaml.UnmarshalStrict(data, &k); err != nil {
		return Config{}, err
	}
	if context == "" {
		context = k.CurrentContext
	}
	if context == "" {
		return Config{}, errors.New("no current-context: name a context")
	}
	ctx, ok := find(k.Contexts, func(c namedContext) bool { return c.Name == context })
	if !ok {
		return Config{}, fmt.Errorf("no context %q", context)
	}
	cluster, ok := find(k.Clusters, func(c namedCluster) bool { return c.Name == ctx.Context.Cluster })
	if !ok {
		return Config{}, fmt.Errorf("context %q: no cluster %q", context, ctx.Context.Cluster)
	}
	user, ok := find(k.Users, func(u namedUser) bool { return u.Name == ctx.Context.User })
	if !ok && ctx.Context.User != "" {
		return Config{}, fmt.Errorf("context %q: no user %q", context, ctx.Context.User)
	}
	cfg := Config{Namespace: ctx.Context.Namespace}
	if err := cluster.Cluster.apply(&cfg, dir); err != nil {
		return Config{}, fmt.Errorf("cluster %q: %w", cluster.Name, err)
	}
	if err := user.User.apply(&cfg, dir); err != nil {
		return Config{}, fmt.Errorf("user %q: %w", user.Name, err)
	}
	return cfg, nil
}

func find[T any](list []T, is func(T) bool) (none T, ok bool) {
	for _, v := range list {
		if is(v) {
			return v, true
		}
	}
	return none, false
}

func (c *clusterInfo) apply(cfg *Config, dir string) error {
	switch {
	case c.InsecureSkipTLSVerify:
		return errors.New("insecure-skip-tls-verify is not supported: give the certificate-authority")
	case c.ProxyURL != "":
		return errors.New("proxy-url is not supported")
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("server %q: want https://HOST:PORT without a path", c.Server)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	cfg.Endpoints = []string{net.JoinHostPort(u.Hostname(), port)}
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLSServerName}
	ca, err := material(c.CertificateAuthorityData, c.CertificateAuthority, dir)
	if err != nil {
		return fmt.Errorf("certificate-authority: %w", err)
	}
	if ca == nil {
		return nil // the system's authorities
	}
	cfg.TLS.RootCAs = x509.NewCertPool()
	if !cfg.TLS.RootCAs.AppendCertsFromPEM(ca) {
		return errors.New("certificate-authority: no certificate in PEM")
	}
	return nil
}

func (u *userInfo) apply(cfg *Config, dir string) error {
	for name, v := range map[string]any{
		"as": u.As, "as-uid": u.AsUID, "as-groups": u.AsGroups, "as-user-extra": u.AsUserExtra,
		"username": u.Username, "password": u.Password, "auth-provider": u.AuthProvider, "exec": u.Exec,
	} {
		if v != nil {
			return fmt.Errorf("%s is not supported", name)
		}
	}
	switch {
	case u.TokenFile != "": // it takes precedence, as in client-go
		cfg.Token = TokenFile(resolve(dir, u.TokenFile))
	case u.Token != "":
		cfg.Token = func() (string, error) { return u.Token, nil }
	}
	pair := func() (*tls.Certificate, error) {
		cert, err := material(u.ClientCertificateData, u.ClientCertificate, dir)
		if err != nil {
			return nil, fmt.Errorf("client-certificate: %w", err)
		}
		key, err := material(u.ClientKeyData, u.ClientKey, dir)
		if err != nil {
			return nil, fmt.Errorf("client-key: %w", err)
		}
		if cert == nil && key == nil {
			return nil, nil
		}
		out, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client-certificate: %w", err)
		}
		return &out, nil
	}
	first, err := pair()
	if err != nil || first == nil {
		return err
	}
	// The files are read at each handshake, because they are renewed.
	cfg.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair() }
	return nil
}

// material returns what a field or the file of another contains, or nil if neither is set.
func material(data, file, dir string) ([]byte, error) {
	switch {
	case data != "":
		return base64.StdEncoding.DecodeString(data)
	case file != "":
		return os.ReadFile(resolve(dir, file))
	}
	return nil, nil
}

func resolve(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// serviceAccount is where a pod finds its service account.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster returns the Config of a program in a pod: its service account's token, which it reads
// again as it is renewed, and the cluster's address and authority. It fails outside of pods.
func InCluster() (Config, error) { return inCluster(os.Getenv, serviceAccount) }

func inCluster(getenv func(string) string, dir string) (Config, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Config{}, errors.New("client: not in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return Config{}, fmt.Errorf("client: the cluster's authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return Config{}, fmt.Errorf("client: the cluster's authority: no certificate in %s", filepath.Join(dir, "ca.crt"))
	}
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if err != nil {
		return Config{}, fmt.Errorf("client: the pod's namespace: %w", err)
	}
	return Config{
		Endpoints: []string{net.JoinHostPort(host, port)},
		TLS:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		Token:     TokenFile(filepath.Join(dir, "token")),
		Namespace: strings.TrimSpace(string(namespace)),
	}, nil
}
