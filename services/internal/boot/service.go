package boot

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

// Program names a service that is a client of the apiservers.
type Program struct {
	// Name is the service's name in traces, "scheduler".
	Name string
	// UserAgent is what its calls carry, and so the manager of the fields that it
	// writes. Empty means Name.
	UserAgent string
	// Instance is unique among the processes of the service. Empty means the host's
	// name and a random suffix, as containers of one name have equal process ids.
	Instance string
}

// Running is what the parts of a started service share.
type Running struct {
	// Instance is unique among the processes of the service.
	Instance string
	// Identity is the certificate that the service shows, and the CA that it trusts.
	Identity *identity.Source
	// Conn balances calls over the apiservers. It is closed when everything that was
	// started after StartService has ended.
	Conn *grpc.ClientConn
	// Client calls the apiservers over Conn.
	Client *client.Client
	// Status serves metrics, health and profiles. It reports ready once the service's
	// Run has returned and all checks pass.
	Status *ops.Server
}

// StartService starts what every client of the apiservers needs, in order: identity,
// connection, tracing and the operations listener. The group stops them in reverse
// order. It does not wait for an apiserver. A wrong flag is an [Invalid] error.
func StartService(ctx context.Context, g *Group, flags *Service, p Program) (*Running, error) {
	if err := flags.Check(); err != nil {
		return nil, err
	}
	s := &Running{Instance: p.Instance, Status: ops.New()}
	var err error
	if s.Identity, err = identity.Load(flags.Identity); err != nil {
		return nil, Invalid("--identity: %w", err)
	}
	if s.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("host name: %w", err)
		}
		s.Instance = host + "_" + uuid.NewString()[:8]
	}
	userAgent := cmp.Or(p.UserAgent, p.Name)
	if s.Conn, err = rpc.Dial(s.Identity, flags.APIServers, userAgent); err != nil {
		return nil, Invalid("--apiserver: %w", err)
	}
	g.OnStop("connection", func(context.Context) error { return s.Conn.Close() })
	tel, err := telemetry.Start(ctx, telemetry.Config{Service: p.Name, Instance: s.Instance, Conn: s.Conn})
	if err != nil {
		return nil, err
	}
	g.OnStop("telemetry", tel.Shutdown)
	s.Client = client.New(s.Conn, userAgent)
	s.Status.Ready("start", ops.ReadyWhen(g.started))
	g.Alive(s.Status.CheckHealth)
	s.Status.Ready("apiserver", rpc.Connected(s.Conn))
	g.Go("operations", func(ctx context.Context) error { return s.Status.Serve(ctx, flags.OpsAddress) })
	return s, nil
}
