package provider_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	cloudv1 "keelson.dev/proto/keelson/cloud/v1"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	t.Parallel()
	providertest.Run(t, func(*testing.T) (provider.Provider, func(string, provider.Instance), func(string)) {
		f := providertest.NewFake()
		return f, f.Machine, f.Remove
	})
}

// A provider that is not there, or does not know machines, never reports that a
// machine does not exist.
func TestSilenceIsNotAbsence(t *testing.T) {
	t.Parallel()
	f := providertest.NewFake()
	f.Fail(errors.New("the cloud is down"))
	p := providertest.OverWire(t, f)
	if _, err := p.Instance(t.Context(), "node-0", ""); err == nil || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a cloud that is down: %v", err)
	}

	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer() // serves nothing at all
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///provider", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close(); s.Stop(); <-done }()
	if _, err := provider.New(conn).Instance(t.Context(), "node-0", ""); err == nil || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a program without the service: %v", err)
	}
}

// Junk on the wire is refused as such.
func TestJunkIsRefused(t *testing.T) {
	t.Parallel()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	f := providertest.NewFake()
	provider.Register(s, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///provider", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close(); s.Stop(); <-done }()
	c := cloudv1.NewLoadBalancerServiceClient(conn)
	for name, req := range map[string]*cloudv1.EnsureLoadBalancerRequest{
		"address": {Cluster: "c", Id: "a", RequestedAddress: "10.90.0"},
		"node":    {Cluster: "c", Id: "a", Nodes: []*cloudv1.Target{{Name: "n", Address: "nowhere"}}},
		"range":   {Cluster: "c", Id: "a", SourceRanges: []string{"10.0.0.0/99"}},
	} {
		if _, err := c.EnsureLoadBalancer(t.Context(), req); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if f.Ensures("a") != 0 {
		t.Error("junk reached the provider")
	}
}
