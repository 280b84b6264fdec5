package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/chart"
	"keelson.dev/tools/keel/internal/process"
)

// chart groups the verbs that pods of the Helm chart run. Package chart describes their states.
func (e *env) chart() *cobra.Command {
	cmd := &cobra.Command{Use: "chart", Short: "What the pods of the Helm chart run", Hidden: true}
	cmd.AddCommand(e.chartCertificates(), e.chartStart(), e.chartLeave(), e.chartSettle(), e.chartSnapshot(), e.chartTest(), e.chartClean(), e.chartFault())
	return cmd
}

// chartUser is a user with a kubeconfig of its own. The administrator is not one of them.
type chartUser struct {
	// Name is part of the name of the Secret; the user is "keelson:NAME".
	Name string `json:"name"`
	// ClusterRole is granted to the user, in Namespace or, if that is empty, everywhere.
	ClusterRole string `json:"clusterRole"`
	Namespace   string `json:"namespace,omitempty"`
}

// user is the user name of a kubeconfig.
func (u *chartUser) user() string { return "keelson:" + u.Name }

// certificateOptions are what the certificates depend on. The chart writes them as JSON.
type certificateOptions struct {
	// Name is the name of the control plane, and of its Service.
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
	// Hosts are the names of the apiservers, Server their URL inside of the outer cluster, and
	// Outside their URL outside of it, if there is one that is known.
	Hosts   []string `json:"hosts"`
	Server  string   `json:"server"`
	Outside string   `json:"outside"`
	// LoadBalancer is true if the address outside is that of the Service.
	LoadBalancer bool        `json:"loadBalancer"`
	Services     string      `json:"serviceCIDR"`
	Domain       string      `json:"clusterDomain"`
	Users        []chartUser `json:"users"`
	Nodes        []string    `json:"nodes"`
	Simulated    bool        `json:"simulated"`
	// Snapshots is the claim for snapshots, if the chart has one of its own.
	Snapshots *chartClaim `json:"snapshots,omitempty"`
}

// chartClaim is a PersistentVolumeClaim that the hook creates.
type chartClaim struct {
	Size         string `json:"size"`
	StorageClass string `json:"storageClass,omitempty"`
}

func readJSON(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (e *env) chartCertificates() *cobra.Command {
	var config string
	var prune bool
	cmd := &cobra.Command{
		Use:   "certificates",
		Short: "Write the certificates, keys and kubeconfigs of a control plane into Secrets, and renew what is due",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := &certificateOptions{}
			if err := readJSON(config, o); err != nil {
				return usageError{err}
			}
			outer, err := chart.InCluster()
			if err != nil {
				return err
			}
			return e.keepCertificates(cmd.Context(), outer, o, prune)
		},
	}
	cmd.Flags().StringVar(&config, "config", "/config/certificates.json", "`file` that describes the control plane")
	cmd.Flags().BoolVar(&prune, "prune", false, "delete the Secrets of users that are gone")
	return cmd
}

// keepCertificates creates what is missing, renews what is in the last third of its life, and
// leaves the rest.
func (e *env) keepCertificates(ctx context.Context, outer *chart.Outer, o *certificateOptions, prune bool) error {
	dir, err := os.MkdirTemp("", "keel-certificates-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store := &chart.Store{Outer: outer, Name: o.Name, Labels: o.Labels}
	if o.LoadBalancer && o.Outside == "" {
		if o.Outside, err = loadBalancer(ctx, outer, o.Name); err != nil {
			return err
		}
	}
	parts := o.parts()
	for i := range parts {
		if err := store.Load(ctx, parts[i].secret, filepath.Join(dir, parts[i].dir)); err != nil {
			return err
		}
	}
	if err := o.write(dir); err != nil {
		return fmt.Errorf("certificates of %s: %w", o.Name, err)
	}
	var kept []string
	// The authority comes first: what it has signed is worth nothing without it.
	for i := range parts {
		data, err := parts[i].read(dir)
		if err != nil {
			return err
		}
		changed, err := store.Keep(ctx, parts[i].secret, data)
		if err != nil {
			return err
		}
		if changed {
			e.say("secret %s-%s is written", o.Name, parts[i].secret)
		}
		kept = append(kept, parts[i].secret)
	}
	if !prune {
		return nil
	}
	if c := o.Snapshots; c != nil {
		if err := store.Claim(ctx, "snapshots", c.StorageClass, c.Size); err != nil {
			return err
		}
	}
	return store.Prune(ctx, kept)
}

// loadBalancer returns the URL of the Service's load balancer, or nothing if it has no address
// yet.
func loadBalancer(ctx context.Context, outer *chart.Outer, name string) (string, error) {
	s, err := outer.Service(ctx, name)
	if err != nil || s == nil || len(s.Status.LoadBalancer.Ingress) == 0 || len(s.Spec.Ports) == 0 {
		return "", err
	}
	host := s.Status.LoadBalancer.Ingress[0].Hostname
	if host == "" {
		host = s.Status.LoadBalancer.Ingress[0].IP
	}
	return fmt.Sprintf("https://%s:%d", host, s.Spec.Ports[0].Port), nil
}

// part is a Secret and the files that it contains.
type part struct {
	secret string
	// dir is the directory of the files, and read reads them.
	dir  string
	read func(dir string) (map[string][]byte, error)
}

// usersDir is the directory of the users' certificates: their names must not collide with others'.
const usersDir = "users"

func (o *certificateOptions) parts() []part {
	files := func(sub string, below ...string) func(string) (map[string][]byte, error) {
		return func(dir string) (map[string][]byte, error) { return chart.Files(filepath.Join(dir, sub), below...) }
	}
	parts := []part{
		{"authority", "", files("", "peer-authority", "tokens")},
		{"apiserver", "apiserver", files("apiserver", "peer")},
		{"scheduler", "scheduler", files("scheduler")},
		{"controller-manager", "controller-manager", files("controller-manager")},
		{"cloud-controller", "cloud-controller", files("cloud-controller")},
		{"admin", "admin", files("admin", "tokens")},
		{"kubeconfig", "kubeconfig", files("kubeconfig")},
	}
	if o.Simulated {
		parts = append(parts, part{"simulator", process.Simulator, files(process.Simulator)})
	}
	if len(o.Nodes) > 0 {
		parts = append(parts, part{"nodes", "node-secrets", files("node-secrets")})
	}
	for i := range o.Users {
		dir := filepath.Join(usersDir, o.Users[i].Name)
		parts = append(parts, part{"kubeconfig-" + o.Users[i].Name, dir, files(dir)})
	}
	return parts
}

// write creates or renews the files in dir.
func (o *certificateOptions) write(dir string) error {
	hosts := slices.Clone(o.Hosts)
	for _, address := range []string{o.Server, o.Outside} {
		if address == "" {
			continue
		}
		u, err := url.Parse(address)
		if err != nil || u.Hostname() == "" {
			return fmt.Errorf("%q is not a URL", address)
		}
		hosts = append(hosts, u.Hostname())
	}
	p := &pkiOptions{dir: dir, hosts: hosts, server: o.Server, domain: o.Domain, services: o.Services, nodes: o.Nodes, owner: -1}
	if err := p.write(); err != nil {
		return err
	}
	authority, err := pki.Open(dir)
	if err != nil {
		return err
	}
	if o.Simulated {
		if err := authority.Ensure(process.SimulatorIdentity()); err != nil {
			return err
		}
	}
	if err := o.kubeconfigs(filepath.Join(dir, "admin"), filepath.Join(dir, "kubeconfig"), "kubernetes-admin"); err != nil {
		return err
	}
	for i := range o.Users {
		u := &o.Users[i]
		at := filepath.Join(dir, usersDir, u.Name)
		if err := authority.Ensure(pki.Identity{Name: filepath.Join(usersDir, u.Name), CommonName: u.user()}); err != nil {
			return err
		}
		if err := o.kubeconfigs(at, at, u.user()); err != nil {
			return err
		}
	}
	for _, node := range o.Nodes {
		to := filepath.Join(dir, "node-secrets")
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		for from, name := range map[string]string{"ca.crt": "ca.crt", "bootstrap-token": node} {
			data, err := os.ReadFile(filepath.Join(dir, node, from))
			if err != nil {
				return err
			}
			if err := pki.Keep(filepath.Join(to, name), data, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// kubeconfigs writes the kubeconfigs of an identity: "config" with the address inside of the outer
// cluster, and "outside" with the one outside, if it is known.
func (o *certificateOptions) kubeconfigs(identity, to, user string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for name, server := range map[string]string{"config": o.Server, "outside": o.Outside} {
		path := filepath.Join(to, name)
		if server == "" {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			continue
		}
		data, err := kubeconfigOf(identity, o.Name, server)
		if err != nil {
			return err
		}
		if data, err = renameUser(data, o.Name, user); err != nil {
			return err
		}
		if err := pki.Keep(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// renameUser gives the user of a kubeconfig's only context a name, so that kubeconfigs of several
// users can be merged.
func renameUser(data []byte, name, user string) ([]byte, error) {
	c, err := clientcmd.Load(data)
	if err != nil {
		return nil, err
	}
	c.AuthInfos = map[string]*api.AuthInfo{user: c.AuthInfos[name]}
	c.Contexts[name].AuthInfo = user
	return clientcmd.Write(*c)
}

func (e *env) chartClean() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Delete the Secrets and the volumes' claims of a control plane that was uninstalled",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			outer, err := chart.InCluster()
			if err != nil {
				return err
			}
			deleted, err := (&chart.Store{Outer: outer, Name: name}).Clean(cmd.Context())
			if len(deleted) > 0 {
				e.say("deleted %s", strings.Join(deleted, ", "))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`name` of the control plane")
	required(cmd, "name")
	return cmd
}

func (e *env) chartSnapshot() *cobra.Command {
	var dir, identity, apiserver string
	var keep int
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save a snapshot to a directory, and delete the oldest ones there",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name := time.Now().UTC().Format("20060102T150405Z") + snapshotSuffix
			path := filepath.Join(dir, name)
			err := run(cmd.Context(), e, "/apiserver", "snapshot", "save", path, "--identity", identity, "--apiserver", apiserver)
			if err != nil {
				return err
			}
			return e.pruneSnapshots(dir, keep)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "/snapshots", "`directory` of the snapshots")
	f.StringVar(&identity, "identity", "/pki", "`directory` with the administrator's certificate")
	f.StringVar(&apiserver, "apiserver", "", "`host:port` of the apiservers' gRPC API")
	f.IntVar(&keep, "keep", 7, "`number` of snapshots to keep")
	required(cmd, "apiserver")
	return cmd
}

const snapshotSuffix = ".snapshot"

// pruneSnapshots deletes the oldest snapshots of a directory. Their names sort by time.
func (e *env) pruneSnapshots(dir string, keep int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var all []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), snapshotSuffix) {
			all = append(all, entry.Name())
		}
	}
	slices.Sort(all)
	for _, name := range all[:max(len(all)-keep, 0)] {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
		e.say("deleted %s", name)
	}
	return nil
}

// required marks flags as required.
func required(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}
