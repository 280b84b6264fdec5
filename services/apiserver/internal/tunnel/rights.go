package tunnel

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/request"
)

var (
	errExpired   = grpcstatus.Error(codes.Unauthenticated, "the node's certificate has expired; connect again with the renewed one")
	errWithdrawn = grpcstatus.Error(codes.Unauthenticated, "the node's certificate is not accepted any more")
)

// rights are the conditions under which a node's stream may stay open: the credential is valid,
// and the node has the same Node object as when the stream began. It is not safe for concurrent
// use.
type rights struct {
	server *Server
	node   string
	uid    types.UID
	user   request.User
	tick   *time.Ticker // when to call check
	expiry *time.Timer  // when the credential expires; nil if it never does
}

// hold checks that a node is registered and returns the rights of its stream. If it succeeds,
// the caller must call release.
func (s *Server) hold(ctx context.Context, node string) (*rights, error) {
	r := &rights{server: s, node: node, user: request.UserFrom(ctx)}
	var registered bool
	if r.uid, registered = s.cfg.Registered(node); !registered {
		return nil, grpcstatus.Errorf(codes.FailedPrecondition, "node %q is not registered: create its Node first", node)
	}
	r.tick = time.NewTicker(s.cfg.RecheckEvery)
	if !r.user.Expires.IsZero() {
		r.expiry = time.NewTimer(r.user.Expires.Sub(s.cfg.Now()))
	}
	return r, nil
}

func (r *rights) release() {
	r.tick.Stop()
	if r.expiry != nil {
		r.expiry.Stop()
	}
}

// expired returns a channel that receives when the credential expires, or nil if it never does.
func (r *rights) expired() <-chan time.Time {
	if r.expiry == nil {
		return nil
	}
	return r.expiry.C
}

// over reports whether the credential has expired.
func (r *rights) over() bool {
	return !r.user.Expires.IsZero() && !r.server.cfg.Now().Before(r.user.Expires)
}

// check returns why the stream must end, as a gRPC status error, or nil while it may stay open.
func (r *rights) check(ctx context.Context) error {
	if r.over() {
		return errExpired
	}
	if uid, ok := r.server.cfg.Registered(r.node); !ok || uid != r.uid {
		return grpcstatus.Errorf(codes.FailedPrecondition, "node %q was deleted", r.node)
	}
	if c := r.user.Credential; c != nil && !c.Valid(ctx) {
		return errWithdrawn
	}
	if c := r.user.Impersonation; c != nil && !c.Valid(ctx) {
		return errWithdrawn
	}
	return nil
}
