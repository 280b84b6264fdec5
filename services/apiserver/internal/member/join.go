package member

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/rpc"
)

// Invitation is what an apiserver needs to ask others whether it may join.
type Invitation struct {
	// Endpoints are the gRPC addresses (host:port) of apiservers.
	Endpoints []string
	// TokenFile holds a bootstrap token. If it is empty, the certificate authenticates the
	// request.
	TokenFile string
	// Identity authenticates this apiserver, and the servers that it asks.
	Identity *identity.Source
}

// Ask repeats the request until an apiserver answers, and returns the members. It returns an
// error if the request is refused or ctx ends. If the token is not valid (any more), it
// authenticates with the certificate, so that a member that lost its disk can come back.
func (v *Invitation) Ask(ctx context.Context, r *memberv1.JoinRequest) ([]*memberv1.Member, error) {
	token := ""
	if v.TokenFile != "" {
		data, err := os.ReadFile(v.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("--join-token-file: %w", err)
		}
		token = strings.TrimSpace(string(data))
	}
	said := ""
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		out, err := v.ask(ctx, r, token)
		if token != "" && status.Code(err) == codes.Unauthenticated {
			slog.WarnContext(ctx, "the join token is not valid; authenticating with the certificate", "error", err)
			out, err = v.ask(ctx, r, "")
		}
		switch status.Code(err) {
		case codes.OK:
			return out, nil
		case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		default:
			return nil, fmt.Errorf("join the control plane: %w", err)
		}
		if said != err.Error() {
			said = err.Error()
			slog.InfoContext(ctx, "waiting for an apiserver to accept the request to join", "apiservers", v.Endpoints, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("join the control plane: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// askedTime bounds one attempt of Ask.
const askedTime = 10 * time.Second

func (v *Invitation) ask(ctx context.Context, r *memberv1.JoinRequest, token string) ([]*memberv1.Member, error) {
	var options []grpc.DialOption
	if token != "" {
		options = append(options,
			// Do not offer the certificate: the server would prefer it to the token.
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: v.Identity.Current().Roots})),
			grpc.WithPerRPCCredentials(bearer(token)))
	}
	conn, err := rpc.Dial(v.Identity, v.Endpoints, "keelson-apiserver", options...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askedTime)
	defer cancel()
	out, err := memberv1.NewMemberServiceClient(conn).Join(ctx, r, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	return out.Members, nil
}

// bearer is a bearer token that is sent in the metadata of each call.
type bearer string

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return true }
