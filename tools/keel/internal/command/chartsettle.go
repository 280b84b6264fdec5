package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"keelson.dev/proto/client"
	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/keel/internal/chart"
)

// settleOptions describe what a control plane has once an install or upgrade is complete. The
// chart writes them as JSON.
type settleOptions struct {
	Name      string `json:"name"`
	APIServer string `json:"apiserver"`
	// Members is the number of members; 0 if the stores are elsewhere.
	Members int         `json:"members"`
	Users   []chartUser `json:"users"`
	// Simulated are the simulated nodes: those that are called otherwise are deleted.
	Simulated []chartPool `json:"simulated"`
	// Nodes are the real nodes, which may join.
	Nodes []string `json:"nodes"`
	// Certificates is given if the address outside becomes known only now.
	Certificates *certificateOptions `json:"certificates,omitempty"`
}

// chartPool is a group of simulated nodes, called Name-0 to Name-(Count-1).
type chartPool struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// chartManager is the field manager of what the chart applies to the inner cluster.
const chartManager = "keelson-chart"

// chartSettle completes an install or upgrade.
func (e *env) chartSettle() *cobra.Command {
	var config, identity, manifests string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "settle",
		Short: "Wait until the control plane has its members, and give it its users and first objects",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := &settleOptions{}
			if err := readJSON(config, o); err != nil {
				return usageError{err}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			conn, err := dialAt(identity, []string{o.APIServer})
			if err != nil {
				return err
			}
			defer conn.Close()
			if o.Certificates != nil {
				if err := e.settleAddress(ctx, o.Certificates); err != nil {
					return err
				}
			}
			if err := o.awaitMembers(ctx, conn); err != nil {
				return err
			}
			c := client.New(conn, "keel")
			if len(o.Nodes) > 0 {
				if err := o.admitNodes(ctx, c, identity); err != nil {
					return err
				}
			}
			return repeat(ctx, func() error {
				return errors.Join(o.grant(ctx, c), applyFiles(ctx, c, manifests), o.forgetSimulated(ctx, c))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "/config/settle.json", "`file` that describes the control plane")
	f.StringVar(&identity, "identity", "/pki", "`directory` with the administrator's certificate")
	f.StringVar(&manifests, "manifests", "", "`directory` of manifests to apply")
	f.DurationVar(&wait, "wait", 5*time.Minute, "maximum duration")
	return cmd
}

// repeat calls f until it succeeds or ctx ends.
func repeat(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// settleAddress waits for the load balancer's address, and writes certificates and kubeconfigs
// with it.
func (e *env) settleAddress(ctx context.Context, o *certificateOptions) error {
	outer, err := chart.InCluster()
	if err != nil {
		return err
	}
	err = repeat(ctx, func() error {
		if o.Outside, err = loadBalancer(ctx, outer, o.Name); err == nil && o.Outside == "" {
			err = fmt.Errorf("service %s has no load balancer yet", o.Name)
		}
		return err
	})
	if err != nil {
		return err
	}
	return e.keepCertificates(ctx, outer, o, false)
}

// awaitMembers waits until the members are the pods of the StatefulSet, each healthy and with its
// votes. Members that were scaled away and did not leave are removed.
func (o *settleOptions) awaitMembers(ctx context.Context, conn grpc.ClientConnInterface) error {
	if o.Members == 0 {
		return nil
	}
	members := memberv1.NewMemberServiceClient(conn)
	return repeat(ctx, func() error {
		all, err := members.List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("list the members: %w", said(err))
		}
		gone, missing := o.compare(all.Members)
		for _, name := range gone {
			if _, err := members.Leave(ctx, &memberv1.LeaveRequest{Name: name}); err != nil {
				return fmt.Errorf("remove %s, which was scaled away: %w", name, said(err))
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("waiting for %s", strings.Join(missing, ", "))
		}
		return nil
	})
}

// compare returns the members that were scaled away and do not answer any more, and those that are
// not yet as they should be, with the reason.
func (o *settleOptions) compare(all []*memberv1.Member) (gone, missing []string) {
	have := map[string]*memberv1.Member{}
	for _, m := range all {
		have[m.Name] = m
	}
	for i := range o.Members {
		name := fmt.Sprintf("%s-%d", o.Name, i)
		m := have[name]
		delete(have, name)
		switch {
		case m == nil:
			missing = append(missing, name+" (has not joined)")
		case !m.Healthy || m.Etcd != memberv1.Role_ROLE_VOTER || m.Raft != memberv1.Role_ROLE_VOTER:
			missing = append(missing, fmt.Sprintf("%s (etcd %s, raft %s %s)", name, role(m.Etcd, m.LeadsEtcd), role(m.Raft, m.LeadsRaft), m.Problem))
		}
	}
	for name, m := range have {
		if m.Healthy {
			missing = append(missing, name+" (has not left)")
		} else {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	slices.Sort(missing)
	return gone, missing
}

// admitNodes lets the real nodes join that the control plane does not have yet.
func (o *settleOptions) admitNodes(ctx context.Context, c *client.Client, identity string) error {
	tokens, err := readTokens(filepath.Join(identity, "tokens"))
	if err != nil {
		return err
	}
	a := admission{secrets: client.For[*corev1.Secret](c), nodes: client.For[*corev1.Node](c)}
	return repeat(ctx, func() error {
		_, err := a.admit(ctx, tokens, time.Now().Add(admittedFor))
		return err
	})
}

// admittedFor is how long a real node may take to join after an install or upgrade.
const admittedFor = 24 * time.Hour

// grant gives the users of the kubeconfigs their roles.
func (o *settleOptions) grant(ctx context.Context, c *client.Client) error {
	for i := range o.Users {
		u := &o.Users[i]
		subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: u.user()}}
		role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: u.ClusterRole}
		if u.Namespace == "" {
			b := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: u.user()}, Subjects: subjects, RoleRef: role}
			if _, err := client.For[*rbacv1.ClusterRoleBinding](c).Apply(ctx, b, chartManager, client.Force()); err != nil {
				return err
			}
			continue
		}
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: u.Namespace}}
		if _, err := client.For[*corev1.Namespace](c).Apply(ctx, n, chartManager, client.Force()); err != nil {
			return err
		}
		b := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: u.Namespace, Name: u.user()}, Subjects: subjects, RoleRef: role}
		if _, err := client.For[*rbacv1.RoleBinding](c).Apply(ctx, b, chartManager, client.Force()); err != nil {
			return err
		}
	}
	return nil
}

// applyFiles applies the manifests in a directory, in the order of the files' names.
func applyFiles(ctx context.Context, c *client.Client, dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		if err := applyDocuments(ctx, c, data); err != nil {
			return fmt.Errorf("%s: %w", entry.Name(), err)
		}
	}
	return nil
}

func applyDocuments(ctx context.Context, c *client.Client, data []byte) error {
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data)))
	defer documents.Close()
	buffer := make([]byte, len(data)+1)
	for {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var head metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(buffer[:n], &head); err != nil {
			return err
		}
		if head.Kind == "" {
			continue
		}
		kind := client.KindFor(schema.FromAPIVersionAndKind(head.APIVersion, head.Kind))
		if kind == nil {
			return fmt.Errorf("%s %s: no such kind", head.APIVersion, head.Kind)
		}
		namespace := head.Namespace
		if namespace == "" && kind.Namespaced {
			namespace = metav1.NamespaceDefault
		}
		if _, err := client.Metadata(c, kind).ApplyConfiguration(ctx, namespace, head.Name, buffer[:n], chartManager, client.Force()); err != nil {
			return err
		}
	}
}

// forgetSimulated deletes the simulated nodes that the pools do not have any more.
func (o *settleOptions) forgetSimulated(ctx context.Context, c *client.Client) error {
	want := map[string]bool{}
	for _, p := range o.Simulated {
		for i := range p.Count {
			want[fmt.Sprintf("%s-%d", p.Name, i)] = true
		}
	}
	nodes := client.For[*corev1.Node](c)
	all, _, err := nodes.List(ctx, client.ListOptions{LabelSelector: "keelson.dev/simulated=true"})
	if err != nil {
		return err
	}
	for _, n := range all {
		if want[n.Name] {
			continue
		}
		if err := nodes.Delete(ctx, "", n.Name); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
