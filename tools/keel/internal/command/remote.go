package command

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/tools/keel/internal/cluster"
)

// remoteTimeout bounds a verb's requests to a control plane.
const remoteTimeout = 15 * time.Second

// remote describes how a verb reaches a control plane: the one of --home, or with --server and
// --kubeconfig one that `keel up` did not create here.
type remote struct {
	*env
	server, kubeconfig string
}

func (r *remote) flags(f *pflag.FlagSet) {
	f.StringVar(&r.server, "server", "", "`host:port,…` of the apiservers' gRPC ports, for a cluster that keel up did not create here")
	f.StringVar(&r.kubeconfig, "kubeconfig", "", "`file` with the credentials for --server (default $KUBECONFIG); without --server, keel uses the kubeconfig's server")
}

// elsewhere reports whether the flags name a cluster other than that of --home.
func (r *remote) elsewhere() bool { return r.server != "" || r.kubeconfig != "" }

// reach connects to the control plane. The cluster is nil if the flags name one elsewhere.
func (r *remote) reach() (*grpc.ClientConn, *cluster.Cluster, error) {
	if !r.elsewhere() {
		c, err := cluster.Load(r.home)
		if err != nil {
			return nil, nil, err
		}
		conn, err := dial(c)
		return conn, c, err
	}
	t, err := r.target()
	if err != nil {
		return nil, nil, err
	}
	var options []grpc.DialOption
	if t.token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(t.token)))
	}
	conn, err := dialEndpoints(t.endpoints, t.tls, options...)
	return conn, nil, err
}

// target is a control plane elsewhere with the credentials for it.
type target struct {
	endpoints []string
	tls       *tls.Config
	// cert, key and ca are the contents of tls in PEM, for programs that read them from files.
	cert, key, ca []byte
	token         string
}

// kubeconfigPath is the kubeconfig that the flag or the environment names.
func (r *remote) kubeconfigPath() string {
	return cmp.Or(r.kubeconfig, os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
}

// target reads the control plane's address and credentials from the kubeconfig's current
// context.
func (r *remote) target() (*target, error) {
	path := r.kubeconfigPath()
	if path == "" {
		return nil, usageError{errors.New("--server needs --kubeconfig, or KUBECONFIG in the environment")}
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if config.ExecProvider != nil || config.AuthProvider != nil {
		return nil, fmt.Errorf("kubeconfig %s: keel does not run credential plugins; use a context with a client certificate or a token", path)
	}
	if err := restclient.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	t := &target{cert: config.CertData, key: config.KeyData, ca: config.CAData, token: config.BearerToken}
	if t.token == "" && config.BearerTokenFile != "" {
		data, err := os.ReadFile(config.BearerTokenFile)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
		}
		t.token = strings.TrimSpace(string(data))
	}
	t.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	if !t.tls.RootCAs.AppendCertsFromPEM(t.ca) {
		return nil, fmt.Errorf("kubeconfig %s: the current context's cluster has no certificate authority", path)
	}
	if len(t.cert) > 0 {
		pair, err := tls.X509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: the user's certificate: %w", path, err)
		}
		t.tls.Certificates = []tls.Certificate{pair}
	} else if t.token == "" {
		return nil, fmt.Errorf("kubeconfig %s: the current context's user has neither a client certificate nor a token", path)
	}
	if r.server != "" {
		t.endpoints = strings.Split(r.server, ",")
	} else {
		u, err := url.Parse(config.Host)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("kubeconfig %s: server %q is not a URL", path, config.Host)
		}
		t.endpoints = []string{net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443"))}
	}
	for _, e := range t.endpoints {
		if _, _, err := net.SplitHostPort(e); err != nil {
			return nil, usageError{fmt.Errorf("--server %q: expected host:port: %w", e, err)}
		}
	}
	return t, nil
}

// identity writes the caller's certificate into a directory that only the caller can read, for
// a program that takes --identity. remove deletes it.
func (t *target) identity() (dir string, remove func(), err error) {
	if len(t.cert) == 0 {
		return "", nil, errors.New("this needs a client certificate, but the kubeconfig's user has only a token")
	}
	dir, err = os.MkdirTemp("", "keel-identity-*")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	for name, data := range map[string][]byte{"tls.crt": t.cert, "tls.key": t.key, "ca.crt": t.ca} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			remove()
			return "", nil, err
		}
	}
	return dir, remove, nil
}

// bearer is a token that is sent with each call.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

var _ credentials.PerRPCCredentials = bearer("")
