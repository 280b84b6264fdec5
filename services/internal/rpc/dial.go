package rpc

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/stats"

	"keelson.dev/services/internal/identity"
)

// serviceConfig balances calls over every endpoint that answers, and repeats
// reads that never reached a server or were refused by one that is going down.
// Writes are not repeated: only their caller can decide whether that is safe.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "keelson.resource.v1.ResourceService", "method": "Get"},
      {"service": "keelson.resource.v1.ResourceService", "method": "List"},
      {"service": "keelson.trace.v1.TraceService", "method": "GetTrace"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.05s",
      "maxBackoff": "1s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5}
}`

// Dial returns a connection that balances its calls over the endpoints, each host:port. It
// does not wait for any of them: while none answers, calls fail at once with
// codes.Unavailable. A nil identity dials without TLS. Without an endpoint, or with a
// malformed one, it returns an error.
func Dial(id *identity.Source, endpoints []string, userAgent string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if len(endpoints) == 0 {
		return nil, errors.New("no endpoint to dial")
	}
	state := resolver.State{}
	for _, e := range endpoints {
		host, _, err := net.SplitHostPort(e)
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: want host:port: %w", e, err)
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{
			Addresses: []resolver.Address{{Addr: e, ServerName: host}},
		})
	}
	endpointsResolver := manual.NewBuilderWithScheme("keelson")
	endpointsResolver.InitialState(state)
	options = slices.Concat([]grpc.DialOption{
		grpc.WithResolvers(endpointsResolver),
		grpc.WithUserAgent(userAgent),
	}, dialOptions(id), options)
	conn, err := grpc.NewClient("keelson:///"+strings.Join(endpoints, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", strings.Join(endpoints, ","), err)
	}
	conn.Connect()
	return conn, nil
}

// dialOptions returns the options of all connections of a service.
func dialOptions(id *identity.Source) []grpc.DialOption {
	creds := insecure.NewCredentials()
	if id != nil {
		creds = id.ClientCredentials()
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(), // traffic within a cluster does not pass through a proxy
		grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithMeterProvider(noopmetric.NewMeterProvider()),
			otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return traced(info.FullMethodName) }),
		)),
	}
}
