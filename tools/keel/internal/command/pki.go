package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/process"
)

// pkiOptions are the flags of keel pki.
type pkiOptions struct {
	dir      string
	hosts    []string
	server   string
	domain   string
	services string
	nodes    []string
	owner    int
}

// pki writes the certificates and keys with which the processes of a cluster authenticate, one
// directory per service, for deployments that do not use `keel up`.
//
//	DIR/ca.crt, ca.key            the cluster's certificate authority
//	DIR/peer-authority/           the authority of the apiservers' peer ports
//	DIR/apiserver/peer/           the apiservers' certificate for each other
//	DIR/NAME/{ca.crt,tls.*}       NAME's identity: apiserver, scheduler,
//	                              controller-manager, cloud-controller, admin
//	DIR/{apiserver,controller-manager}/sa.key
//	DIR/controller-manager/ca.key for signing nodes' certificates
//	DIR/NODE/{ca.crt,bootstrap-token} for each --node, whose token is its own
//	DIR/balancer/ca.crt
//	DIR/admin/kubeconfig, DIR/admin/tokens/NODE, for `keel node admit`
//
// Existing valid files are kept, so a second call changes nothing. DIR/NAME can be a separate
// mount, so that each service sees only its own files.
func (e *env) pki() *cobra.Command {
	o := pkiOptions{}
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Write certificates, keys, a kubeconfig and nodes' tokens, one directory per service",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if o.owner < -1 {
				return usageError{fmt.Errorf("--owner %d: expected a user id, or -1 to leave the owner", o.owner)}
			}
			for _, node := range o.nodes {
				if problems := validation.IsDNS1123Subdomain(node); len(problems) > 0 || reservedDirectories[node] {
					return usageError{fmt.Errorf("--node %q: expected the name of a node", node)}
				}
			}
			if err := o.write(); err != nil {
				return fmt.Errorf("pki in %s: %w", o.dir, err)
			}
			e.say("certificates and keys are in %s", o.dir)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "`directory` to write to")
	f.StringSliceVar(&o.hosts, "apiserver-host", nil, "`names` and addresses of the apiservers, besides localhost and those that pods use")
	f.StringVar(&o.server, "server", "https://127.0.0.1:6443", "`URL` of the apiservers in the kubeconfig")
	f.StringVar(&o.domain, "cluster-domain", "cluster.local", "`domain` of the cluster")
	f.StringVar(&o.services, "service-cluster-ip-range", "10.96.0.0/16", "`range` of the Services' addresses")
	f.StringSliceVar(&o.nodes, "node", nil, "`names` of the nodes that may join; each gets its own token")
	f.IntVar(&o.owner, "owner", -1, "numeric `user` and group that own the control plane's files; -1 leaves them to the caller")
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err)
	}
	return cmd
}

func (o *pkiOptions) write() error {
	authority, err := pki.Open(o.dir)
	if err != nil {
		return err
	}
	at := func(names ...string) string { return filepath.Join(append([]string{o.dir}, names...)...) }
	_, err = os.Stat(at("apiserver", "tls.crt"))
	existed := err == nil
	identities, err := process.ControlPlane(append([]string{"localhost", "127.0.0.1"}, o.hosts...), o.services, o.domain)
	if err != nil {
		return fmt.Errorf("--service-cluster-ip-range: %w", err)
	}
	for _, id := range identities {
		if err := directory(at(id.Name), o.owner); err != nil {
			return err
		}
		if err := authority.Ensure(id); err != nil {
			return fmt.Errorf("%s: %w", id.Name, err)
		}
	}
	if err := o.peers(at("peer-authority"), at("apiserver"), existed); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	for _, d := range []string{"balancer", "admin/tokens"} {
		if err := directory(at(d), o.owner); err != nil {
			return err
		}
	}
	for _, d := range append([]string{"tokens"}, o.nodes...) {
		if err := directory(at(d), -1); err != nil {
			return err
		}
	}
	// The originals are created once, before their copies, so a call that was interrupted can
	// be repeated.
	if err := pki.EnsureKey(at("sa.key")); err != nil {
		return err
	}
	kept := map[string][]string{
		"ca.crt": {at("balancer", "ca.crt")},
		"ca.key": {at("controller-manager", "ca.key")},
		"sa.key": {at("apiserver", "sa.key"), at("controller-manager", "sa.key")},
	}
	for _, node := range o.nodes {
		token := filepath.Join("tokens", node)
		if err := ensureToken(at(token)); err != nil {
			return err
		}
		kept["ca.crt"] = append(kept["ca.crt"], at(node, "ca.crt"))
		kept[token] = []string{at(node, "bootstrap-token"), at("admin", "tokens", node)}
	}
	for from, copies := range kept {
		data, err := os.ReadFile(at(from))
		if err != nil {
			return err
		}
		for _, to := range copies {
			if err := pki.Keep(to, data, 0o600); err != nil {
				return err
			}
		}
	}
	config, err := kubeconfigOf(at("admin"), "keelson", o.server)
	if err != nil {
		return err
	}
	return pki.Keep(at("admin", "kubeconfig"), config, 0o600)
}

// transition is the minimum time for which apiservers that have just received peer certificates
// also accept each other's certificates of the cluster's authority. The first call after that
// time ends it.
const transition = time.Hour

// peers creates the certificates with which apiservers authenticate to each other.
func (o *pkiOptions) peers(authority, apiserver string, existed bool) error {
	if err := directory(filepath.Join(apiserver, "peer"), o.owner); err != nil {
		return err
	}
	if err := pki.EnsurePeers(authority, apiserver, existed); err != nil {
		return err
	}
	if since, ok := pki.TransitionSince(apiserver); ok && time.Since(since) > transition {
		return pki.FinishPeers(apiserver)
	}
	return nil
}

// reservedDirectories are the names of the directories that do not belong to nodes.
var reservedDirectories = map[string]bool{
	"apiserver": true, "scheduler": true, "controller-manager": true, "cloud-controller": true, "balancer": true, "admin": true, "tokens": true, "peer-authority": true,
}

// directory creates a directory that only its owner can access. An owner of -1 leaves the owner
// as it is.
func directory(path string, owner int) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if owner >= 0 {
		if err := os.Chown(path, owner, owner); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o700)
}

// ensureToken creates a bootstrap token unless the file exists.
func ensureToken(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return pki.Keep(path, []byte(random(6)+"."+random(16)), 0o600)
}

// kubeconfigOf returns a kubeconfig with the identity that a directory contains.
func kubeconfigOf(dir, name, server string) ([]byte, error) {
	read := func(file string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, file)) }
	ca, err := read("ca.crt")
	if err != nil {
		return nil, err
	}
	crt, err := read("tls.crt")
	if err != nil {
		return nil, err
	}
	key, err := read("tls.key")
	if err != nil {
		return nil, err
	}
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[name] = &api.AuthInfo{ClientCertificateData: crt, ClientKeyData: key}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.Write(*config)
}
