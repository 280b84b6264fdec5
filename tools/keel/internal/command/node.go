package command

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"keelson.dev/proto/client"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/process"
	"keelson.dev/tools/keel/internal/runtime"
)

// node adds nodes that are not on this machine's own network to a cluster.
func (e *env) node() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Run nodes on other machines and in containers"}
	cmd.AddCommand(e.nodeToken(), e.nodeJoin(), e.nodeRun(), e.nodeAdmit())
	return cmd
}

// nodeToken creates a bootstrap token and prints how to use it.
func (e *env) nodeToken() *cobra.Command {
	var ttl time.Duration
	var only string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create a token with which machines may join, and print the command to run there",
		Example: `  keel node token
  keel node token --node worker-7 --ttl 1h   # only for this node, and once`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if msgs := validation.IsDNS1123Subdomain(only); only != "" && len(msgs) > 0 {
				return usageError{fmt.Errorf("--node %q: %s", only, msgs[0])}
			}
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			a, err := pki.Open(c.Path("pki"))
			if err != nil {
				return err
			}
			conn, err := dial(c)
			if err != nil {
				return err
			}
			defer conn.Close()
			token := newToken()
			secret := bootstrapSecret(token, time.Now().Add(ttl), nodeJoiners, "created by keel node token")
			name := ""
			if only != "" {
				forNode(secret, only)
				name = " --name " + only
			}
			if err := putToken(cmd.Context(), conn, secret); err != nil {
				return err
			}
			// The token is passed by standard input, because every user of a machine can read
			// command lines.
			e.say("keel node join --server %s --ca-hash %s%s --token-file - <<'END'\n%s\nEND", c.NodeGRPC(), a.Hash(), name, token)
			return nil
		},
	}
	cmd.Flags().StringVar(&only, "node", "", "`name` of the only node that may join with the token; it may do so once")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "lifetime of the token")
	return cmd
}

// nodeJoiners is the group of clients that may request a node's certificate.
const nodeJoiners = "system:bootstrappers:keelson:default-node-token"

// makeToken creates a bootstrap token for a group.
func makeToken(ctx context.Context, conn grpc.ClientConnInterface, ttl time.Duration, group, why string) (string, error) {
	token := newToken()
	return token, putToken(ctx, conn, bootstrapSecret(token, time.Now().Add(ttl), group, why))
}

// newToken returns the text of a new bootstrap token.
func newToken() string { return random(6) + "." + random(16) }

func putToken(ctx context.Context, conn grpc.ClientConnInterface, secret *corev1.Secret) error {
	_, err := client.For[*corev1.Secret](client.New(conn, "keel")).Create(ctx, secret)
	return err
}

// forNode restricts a token to one node and one certificate.
func forNode(secret *corev1.Secret, node string) {
	secret.StringData["node-name"], secret.StringData["single-use"] = node, "true"
}

// random returns n random characters of a bootstrap token ([a-z0-9]).
func random(n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	var b [1]byte
	for len(out) < n {
		if _, err := rand.Read(b[:]); err != nil {
			panic(err) // crypto/rand never fails on Linux
		}
		if b[0] < 252 { // 7 × 36, so that all characters are equally likely
			out = append(out, alphabet[b[0]%36])
		}
	}
	return string(out)
}

var tokenForm = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

// nodeJoin makes this machine a node of a cluster elsewhere.
func (e *env) nodeJoin() *cobra.Command {
	var server, tokenFile, hash, name, zone string
	cmd := &cobra.Command{
		Use:     "join",
		Short:   "Make this machine a node of a cluster elsewhere",
		Example: `  keel node join --server 10.0.0.1:6444 --ca-hash sha256:… --token-file token`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			token, err := readToken(tokenFile, cmd.InOrStdin())
			if err != nil {
				return usageError{fmt.Errorf("--token-file: %w", err)}
			}
			if name == "" {
				name, _ = os.Hostname()
			}
			if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
				return usageError{fmt.Errorf("--name %q: %s", name, msgs[0])}
			}
			var ca []byte
			var local string
			for _, one := range strings.Split(server, ",") {
				if ca, local, err = fetchCA(one, hash); err == nil {
					break
				}
			}
			if err != nil {
				return err
			}
			return e.join(cmd, server, token, name, zone, ca, local)
		},
	}
	f := cmd.Flags()
	f.StringVar(&server, "server", "", "`host:port,…` of the apiservers' gRPC ports")
	f.StringVar(&tokenFile, "token-file", "", "`file` with the token printed by keel node token; - means standard input")
	f.StringVar(&hash, "ca-hash", "", "`sha256:…` of the cluster's authority, as printed by keel node token")
	f.StringVar(&name, "name", "", "the node's `name` (default: the host name)")
	f.StringVar(&zone, "zone", "zone-a", "the node's failure `domain`")
	for _, required := range []string{"server", "token-file", "ca-hash"} {
		if err := cmd.MarkFlagRequired(required); err != nil {
			panic(err)
		}
	}
	return cmd
}

// readToken reads a token from a file, or from standard input if path is "-".
func readToken(path string, stdin io.Reader) (string, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		stdin = f
	}
	data, err := io.ReadAll(io.LimitReader(stdin, 1024))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if !tokenForm.MatchString(token) {
		return "", fmt.Errorf("%s does not contain a token of the form abcdef.0123456789abcdef, as printed by `keel node token`", path)
	}
	return token, nil
}

// fetchCA connects to the server and returns the certificate in its chain that is an authority
// with the given hash. It also returns this machine's address towards the server.
func fetchCA(server, hash string) (ca []byte, local string, err error) {
	var found *x509.Certificate
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second},
		Config: &tls.Config{
			MinVersion: tls.VersionTLS13,
			NextProtos: []string{"h2"},
			// The chain is verified with the hash below, instead of a root certificate, which
			// this machine does not have yet.
			InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				for _, cert := range s.PeerCertificates {
					if cert.IsCA && pki.Hash(cert) == hash {
						found = cert
						return s.PeerCertificates[0].CheckSignatureFrom(cert)
					}
				}
				return fmt.Errorf("%s does not belong to the cluster of --ca-hash: its chain contains no authority with that hash", server)
			},
		},
	}
	conn, err := d.Dial("tcp", server)
	if err != nil {
		return nil, "", fmt.Errorf("reach the apiserver: %w", err)
	}
	defer conn.Close()
	local, _, err = net.SplitHostPort(conn.LocalAddr().String())
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: found.Raw}), local, err
}

// join starts the node's processes and waits until it has joined.
func (e *env) join(cmd *cobra.Command, server, token, name, zone string, ca []byte, local string) error {
	bin, err := programs()
	if err != nil {
		return err
	}
	progs, err := runtime.Find(filepath.Join(bin, "runtime"))
	if err == nil {
		err = progs.Check(cmd.Context())
	}
	if err != nil {
		return err
	}
	unlock, err := e.alone(cmd.Context(), e.home)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := cluster.Open(cluster.Options{Home: e.home, Nodes: 0, Simulated: 0, Free: unused})
	if err == nil {
		err = c.Register()
	}
	if err != nil {
		return err
	}
	c.Joined = &cluster.Joined{GRPC: server, NodeIP: local}
	c.Nodes = []cluster.Node{{Name: name, IP: local, Zone: zone}}
	for _, d := range []string{"run", "log", "images", filepath.Join("pki", name)} {
		if err := os.MkdirAll(c.Path(d), 0o700); err != nil {
			return err
		}
	}
	err = errors.Join(c.Save(),
		cluster.WriteFile(c.Path("pki", "ca.crt"), ca, 0o644),
		cluster.WriteFile(c.Path("pki", name, "ca.crt"), ca, 0o644),
		cluster.WriteFile(c.Path("pki", "bootstrap-token"), []byte(token), 0o600),
		hostnet.BlockRanges(c))
	if err != nil {
		return err
	}
	specs, err := process.Specs(c, bin, progs)
	if err != nil {
		return err
	}
	if err := errors.Join(c.KeepLedgers(), dir(c).WriteSpecs(specs)); err != nil {
		return err
	}
	ctx := cmd.Context()
	if err := dir(c).Ensure(ctx, c.Path("log", "supervisor.log"), filepath.Join(bin, "keel"), "supervise", "--home", c.Home); err != nil {
		return err
	}
	if err := e.importImages(ctx, c, progs, bin); err != nil {
		return explain(ctx, c, err)
	}
	if err := waitServices(ctx, c, func(format string, args ...any) { e.say(format, args...) }); err != nil {
		return explain(ctx, c, err)
	}
	e.say("%s has joined; it is shown by `kubectl get nodes` there", name)
	return nil
}
