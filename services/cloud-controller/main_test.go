package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spf13/pflag"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/leader/leadertest"
	"keelson.dev/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func execute(ctx context.Context, args ...string) (code int, stderr string) {
	var out bytes.Buffer
	code = boot.Execute(ctx, name, args, &out, func(fs *pflag.FlagSet) boot.Run {
		o := newOptions(fs)
		return o.run
	})
	return code, out.String()
}

// identityDir makes the identity directory of a program.
func identityDir(t *testing.T, ca *identitytest.CA, user string) (string, *identity.Source) {
	t.Helper()
	dir := t.TempDir()
	ca.Write(t, dir, user)
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, id
}

func TestWrongCallsEndWithOneLine(t *testing.T) {
	ca := identitytest.NewCA(t)
	dir, _ := identityDir(t, ca, "system:cloud-controller-manager")
	good := []string{"--identity", dir, "--apiserver", "127.0.0.1:1"}
	for _, row := range []struct {
		args []string
		want string
	}{
		{nil, "--identity is required"},
		{[]string{"--identity", dir}, "--apiserver is required"},
		{[]string{"--identity", t.TempDir(), "--apiserver", "127.0.0.1:1"}, "--identity"},
		{[]string{"--identity", dir, "--apiserver", "nonsense"}, "--apiserver"},
		{append(good, "--load-balancer-cidr", "10.90.0.0"), "--load-balancer-cidr"},
		{append(good, "--load-balancer-cidr", "10.90.0.0/24", "--local-inventory", t.TempDir()+"/missing"), "inventory"},
		{append(good, "--provider", "nonsense"), "--provider"},
		{append(good, "--no-such-flag"), "no-such-flag"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		code, stderr := execute(ctx, row.args...)
		cancel()
		last := strings.Split(strings.TrimSpace(stderr), "\n")
		if code != 2 || !strings.Contains(last[len(last)-1], row.want) {
			t.Errorf("%v: code %d, %q; want 2 and %q", row.args, code, stderr, row.want)
		}
	}
}

func program(t *testing.T) leadertest.Program {
	return leadertest.Program{
		Name: name, UserAgent: userAgent, User: "system:cloud-controller-manager",
		Build: func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run },
		Args:  []string{"--local-inventory", t.TempDir(), "--load-balancer-cidr", "10.90.0.0/24", "--load-balancer-routes=false"},
	}
}

func TestTwoWithoutFlagsElectOne(t *testing.T) { leadertest.Elects(t, program(t)) }

func TestItOutlivesItsCertificates(t *testing.T) { leadertest.Rotates(t, program(t)) }

func TestWorksWithoutElection(t *testing.T) {
	s := leadertest.RunUnelected(t, program(t))
	services := client.For[*corev1.Service](s.Client)
	if _, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}}},
	}); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the Service has an address", func() bool {
		svc, err := services.Get(t.Context(), "default", "web")
		return err == nil && len(svc.Status.LoadBalancer.Ingress) == 1
	})
}

// The whole program, with TLS on every wire and a provider in another program:
// it leads, initializes a node and gives a Service its address, and writes nothing
// without its fence.
func TestTheProgramWithARemoteProvider(t *testing.T) {
	ca := identitytest.NewCA(t)
	dir, _ := identityDir(t, ca, "system:cloud-controller-manager")
	_, server := identityDir(t, ca, "kube-apiserver")

	state, c := clienttest.StartServer(t)
	led := leadertest.Attach(t, state, userAgent)
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer state.Serve(tls.NewListener(api, withHTTP2(server.ServerTLS(true))))()

	cloud := providertest.NewFake()
	cloud.Machine("node-0", provider.Instance{ProviderID: "local://c/node-0", Zone: "zone-a",
		Addresses: []provider.Address{{Type: "InternalIP", Address: "10.89.0.11"}}})
	_, cloudID := identityDir(t, ca, "cloud-provider")
	s := rpc.NewServer(rpc.ServerConfig{Identity: cloudID, RequireClientCert: true})
	provider.Register(s, cloud)
	cloudListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Server.Serve(cloudListener) }()
	defer func() { s.Stop(); <-served }()

	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		code   int
		stderr string
	}
	done := make(chan result, 1)
	go func() {
		code, stderr := execute(ctx, "--identity", dir, "--apiserver", api.Addr().String(),
			"--provider", cloudListener.Addr().String(), "--cluster-name", "c", "--ops-address", "127.0.0.1:0")
		done <- result{code, stderr}
	}()

	nodes, services := client.For[*corev1.Node](c), client.For[*corev1.Service](c)
	if _, err := nodes.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-0"},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "node.cloudprovider.kubernetes.io/uninitialized", Effect: corev1.TaintEffectNoSchedule}}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}); err != nil {
		t.Fatal(err)
	}
	svc, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is initialized and the service has an address that leads to it", func() error {
		n, err := nodes.Get(t.Context(), "", "node-0")
		if err != nil {
			return err
		}
		s, err := services.Get(t.Context(), "default", "web")
		if err != nil {
			return err
		}
		lb, _ := cloud.Balancer(string(svc.UID))
		if len(n.Spec.Taints) != 0 || len(s.Status.LoadBalancer.Ingress) != 1 || len(lb.Targets) != 1 || lb.Targets[0].Address != netip.MustParseAddr("10.89.0.11") {
			return fmt.Errorf("taints %v, ingress %v, targets %v", n.Spec.Taints, s.Status.LoadBalancer.Ingress, lb.Targets)
		}
		return nil
	})

	// Its machine goes, and the node is silent: the Node is removed.
	cloud.Remove("node-0")
	eventually(t, "the node is marked as lost", func() error {
		n, err := nodes.Get(t.Context(), "", "node-0")
		if err != nil {
			return err
		}
		n.Status.Conditions[0].Status = corev1.ConditionUnknown
		_, err = nodes.UpdateStatus(t.Context(), n)
		return err
	})
	eventually(t, "the node is removed", func() error {
		if _, err := nodes.Get(t.Context(), "", "node-0"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	led.Fenced("nodes", "services", "events")
	cancel()
	select {
	case r := <-done:
		if r.code != 0 {
			t.Errorf("ended with %d:\n%s", r.code, r.stderr)
		}
	case <-time.After(time.Minute):
		t.Fatal("the program does not end")
	}
}

func withHTTP2(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{"h2"}
	return c
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s: %v", what, err)
		}
		<-tick.C
	}
}
