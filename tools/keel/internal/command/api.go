package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"keelson.dev/proto/client"

	"keelson.dev/tools/keel/internal/cluster"
)

// dial connects to the cluster's gRPC API as its administrator.
func dial(c *cluster.Cluster) (*grpc.ClientConn, error) {
	return dialAt(c.Path("pki", "admin"), strings.Split(c.GRPC(), ","))
}

// dialOthers connects to any apiserver other than the one called name, which is about to be
// removed.
func dialOthers(c *cluster.Cluster, name string) (*grpc.ClientConn, error) {
	var endpoints []string
	for _, m := range c.Members {
		if m.Name != name {
			endpoints = append(endpoints, fmt.Sprintf("%s:%d", m.IP, c.GRPCPort))
		}
	}
	if len(endpoints) == 0 {
		return dial(c)
	}
	return dialAt(c.Path("pki", "admin"), endpoints)
}

// dialAt connects to apiservers with the identity in a directory.
func dialAt(identity string, endpoints []string) (*grpc.ClientConn, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(identity, "tls.crt"), filepath.Join(identity, "tls.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(identity, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return dialEndpoints(endpoints, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13})
}

// dialEndpoints returns a connection to any endpoint that answers.
func dialEndpoints(endpoints []string, config *tls.Config, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	list := manual.NewBuilderWithScheme("keelson")
	var state resolver.State
	for _, endpoint := range endpoints {
		host, _, err := net.SplitHostPort(endpoint)
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: expected host:port: %w", endpoint, err)
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: endpoint, ServerName: host}}})
	}
	list.InitialState(state)
	return grpc.NewClient("keelson:///apiservers", append(options,
		grpc.WithResolvers(list),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithUserAgent("keel"))...)
}

// waitNodes waits until all nodes of the cluster are usable, and calls step for each.
func waitNodes(ctx context.Context, c *cluster.Cluster, step func(string, ...any)) error {
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	nodes := client.For[*corev1.Node](client.New(conn, "keel"))
	seen := map[string]bool{}
	for {
		waiting := ""
		for _, n := range c.Nodes {
			if seen[n.Name] {
				continue
			}
			node, err := nodes.Get(ctx, "", n.Name)
			switch {
			case err != nil:
				waiting = fmt.Sprintf("node %s: %v", n.Name, err)
			case !usable(node):
				waiting = fmt.Sprintf("node %s is not Ready: %s", n.Name, notReadyReason(node))
			default:
				seen[n.Name] = true
				step("node %s is Ready", n.Name)
			}
		}
		if waiting == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s", waiting)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// usable reports whether a node is Ready and has been initialized by the cloud-controller.
func usable(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Key == "node.cloudprovider.kubernetes.io/uninitialized" || t.Key == corev1.TaintNodeNotReady {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// notReadyReason returns why a node is not usable.
func notReadyReason(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return c.Message
		}
	}
	for _, t := range n.Spec.Taints {
		return "taint " + t.Key
	}
	return "the node has not reported yet"
}
