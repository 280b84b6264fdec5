package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Object is an object of Kubernetes' API in its Go type, for instance *corev1.Pod. The
// types of k8s.io/api implement it.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// Config describes how to reach a cluster.
type Config struct {
	// Endpoints are the addresses (host:port) of the apiservers' gRPC or HTTPS ports, at
	// least one. Calls are balanced over those that answer; host names are looked up
	// again at each connection attempt.
	Endpoints []string
	// TLS holds the cluster's CA and, optionally, a client certificate. If it is nil, the
	// connection is in clear text, which is for tests only.
	TLS *tls.Config
	// Token, if set, is called for each RPC, and its result is sent as a bearer token. It
	// needs TLS. Its error fails the call.
	Token func() (string, error)
	// UserAgent names the program, for instance "shop/1.2". The part before the first
	// slash is the default field manager of writes.
	UserAgent string
	// Namespace is the default namespace of the kubeconfig's context, or that of the pod. The
	// client does not use it: it is for the program.
	Namespace string
	// FollowEndpoints adds the addresses of the cluster's other apiservers to Endpoints, as they
	// come and go: those in the EndpointSlices of the Service default/kubernetes, which the
	// caller must be allowed to watch, and be able to reach. Endpoints remain in use.
	FollowEndpoints bool
	// DialOptions are added to those of the client, for instance for tracing.
	DialOptions []grpc.DialOption
}

// Client is a connection to a cluster. It is safe for concurrent use.
type Client struct {
	rpc     resourcev1.ResourceServiceClient
	conn    grpc.ClientConnInterface
	close   func() error
	manager string
}

// maxMessage bounds a received message: a page of a list is the largest.
const maxMessage = 64 << 20

// serviceConfig balances over all endpoints and repeats reads that did not reach a server.
// Writes are repeated only by gRPC itself, and only if they never left the client.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "keelson.resource.v1.ResourceService", "method": "Get"},
      {"service": "keelson.resource.v1.ResourceService", "method": "List"}
    ],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// Dial returns a client for the cluster of cfg. It does not wait for a connection: while no
// endpoint answers, calls fail with the gRPC code UNAVAILABLE. It fails if cfg has no
// endpoints, an endpoint that is not host:port, or a token without TLS. The caller closes
// the client.
func Dial(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("client: no endpoints")
	}
	addrs := make([]resolver.Address, 0, len(cfg.Endpoints))
	for _, e := range cfg.Endpoints {
		host, _, err := net.SplitHostPort(e)
		if err != nil {
			return nil, fmt.Errorf("client: endpoint %q: %w", e, err)
		}
		addrs = append(addrs, resolver.Address{Addr: e, ServerName: host})
	}
	// The endpoints are passed on unresolved, so that each dial looks names up again.
	list := manual.NewBuilderWithScheme("keelson")
	list.InitialState(resolver.State{Addresses: addrs})

	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		creds = credentials.NewTLS(cfg.TLS)
	} else if cfg.Token != nil {
		return nil, errors.New("client: a token needs TLS")
	}
	opts := []grpc.DialOption{
		grpc.WithResolvers(list),
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent(cfg.UserAgent),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
	}
	if cfg.Token != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(cfg.Token)))
	}
	conn, err := grpc.NewClient("keelson:///apiserver", append(opts, cfg.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c := New(conn, cfg.UserAgent)
	c.close = conn.Close
	if cfg.FollowEndpoints {
		stop := follow(c, addrs, list.UpdateState)
		c.close = func() error {
			stop()
			return conn.Close()
		}
	}
	return c, nil
}

// New returns a client that uses conn, which the caller owns and closes. userAgent is as
// in [Config]; it only names the default field manager.
func New(conn grpc.ClientConnInterface, userAgent string) *Client {
	manager, _, _ := strings.Cut(userAgent, "/")
	return &Client{
		rpc:     resourcev1.NewResourceServiceClient(fenced{again{conn}}),
		conn:    conn,
		close:   func() error { return nil },
		manager: manager,
	}
}

// Conn returns the connection, for the generated clients of other services on the same
// port. Calls on it carry no fence and are not repeated.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close closes the connection that Dial made; calls in progress fail. It does nothing for a
// client of [New].
func (c *Client) Close() error { return c.close() }

// bearer sends a token with each RPC.
type bearer func() (string, error)

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b()
	if err != nil {
		return nil, fmt.Errorf("bearer token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
