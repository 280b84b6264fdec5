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

// Invitation is with what an apiserver asks to join.
type Invitation struct {
	// Endpoints are host:port of apiservers' gRPC API.
	Endpoints []string
	// TokenFile holds a bootstrap token; empty asks with the certificate alone.
	TokenFile string
	Identity  *identity.Source
}

// Ask asks until one of the apiservers answers, and returns the members. A refusal
// is an error. With a token that is not good (any more), the certificate counts: a
// member that lost its disk comes back with it.
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
			slog.WarnContext(ctx, "the join token is not good; asking with the certificate", "error", err)
			out, err = v.ask(ctx, r, "")
		}
		switch status.Code(err) {
		case codes.OK:
			return out, nil
		case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		default:
			return nil, fmt.Errorf("join the members: %w", err)
		}
		if said != err.Error() {
			said = err.Error()
			slog.InfoContext(ctx, "waiting for an apiserver that lets this one join", "apiservers", v.Endpoints, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("join the members: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// askedTime bounds one attempt.
const askedTime = 10 * time.Second

func (v *Invitation) ask(ctx context.Context, r *memberv1.JoinRequest, token string) ([]*memberv1.Member, error) {
	var options []grpc.DialOption
	if token != "" {
		options = append(options,
			// Without the certificate: it would count in place of the token.
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

// bearer is a token in each call's metadata.
type bearer string

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return true }
