// Package client is the typed Go client of a Keelson cluster: Kubernetes'
// objects over ResourceService, with generics, and a list-and-watch [Cache] with
// indexes.
//
// Errors are *k8s.io/apimachinery/pkg/api/errors.StatusError wherever the server
// sent a Status, so that apierrors.IsNotFound and its kin work.
//
// It must never retry a write whose repetition could do something else than the
// first attempt: an unknown outcome is returned as the error it was. What a server
// has refused without doing anything, because its store is out of reach, is asked
// again for two seconds, of another one if there is one.
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

// Object is any object of Kubernetes' API in its Go type, for instance
// *corev1.Pod.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// Config says how to reach a cluster.
type Config struct {
	// Endpoints are the host:port of the apiservers' gRPC or HTTPS ports. Calls are
	// balanced over those that answer.
	Endpoints []string
	// TLS holds the client certificate, if any, and the cluster's CA. Without it
	// the connection is in clear text, which only tests want.
	TLS *tls.Config
	// Token, if set, is called for each RPC and sent as a bearer token. It needs
	// TLS.
	Token func() (string, error)
	// UserAgent names the program; its first part is the default field manager.
	UserAgent string
	// DialOptions are added to the connection's own (tracing, for instance).
	DialOptions []grpc.DialOption
}

// Client speaks to a cluster. It is safe for concurrent use.
type Client struct {
	rpc     resourcev1.ResourceServiceClient
	conn    grpc.ClientConnInterface
	close   func() error
	manager string
}

// maxMessage bounds a received message: a page of a list is the largest.
const maxMessage = 64 << 20

// serviceConfig balances over all endpoints and repeats reads that did not reach
// a server. Writes are never repeated, but for those that gRPC knows to have
// never left.
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

// Dial makes a client. It does not wait for a connection; calls fail with
// Unavailable while no endpoint answers.
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
	// The endpoints are handed over as they are: names among them are looked up
	// anew by each dial.
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
	return c, nil
}

// New makes a client on a connection that somebody else owns and closes.
func New(conn grpc.ClientConnInterface, userAgent string) *Client {
	manager, _, _ := strings.Cut(userAgent, "/")
	return &Client{
		rpc:     resourcev1.NewResourceServiceClient(fenced{again{conn}}),
		conn:    conn,
		close:   func() error { return nil },
		manager: manager,
	}
}

// Conn is the connection, for the other services of the same port.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close ends the connection that Dial made; running calls fail.
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
