package member

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/authz"
)

// Forward implements MemberService on an apiserver that is not a member: it authorizes the
// caller and forwards the request to a member.
type Forward struct {
	memberv1.UnimplementedMemberServiceServer
	names func() []string
	dial  func(name string) (grpc.ClientConnInterface, error)
	may   func(ctx context.Context, verb, name string) error

	mu    sync.Mutex
	conns map[string]grpc.ClientConnInterface
}

// NewForward returns a Forward to the members that names returns. dial connects to a member by
// name.
func NewForward(names func() []string, dial func(name string) (grpc.ClientConnInterface, error), rights authz.Authorizer) *Forward {
	return &Forward{names: names, dial: dial, may: authorized(rights), conns: map[string]grpc.ClientConnInterface{}}
}

// Register registers the service.
func (f *Forward) Register(r grpc.ServiceRegistrar) { memberv1.RegisterMemberServiceServer(r, f) }

// Close closes the connections to the members.
func (f *Forward) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	closeAll(f.conns)
}

// at calls the members in turn until one answers with anything but UNAVAILABLE. All calls of
// MemberService may be repeated.
func at[R any](ctx context.Context, f *Forward, call func(memberv1.MemberServiceClient) (R, error)) (out R, err error) {
	err = status.Error(codes.Unavailable, "no member is known")
	for _, name := range f.names() {
		f.mu.Lock()
		c, ok := f.conns[name]
		if !ok {
			if c, err = f.dial(name); err == nil {
				f.conns[name] = c
			}
		}
		f.mu.Unlock()
		if c == nil {
			continue
		}
		if out, err = call(memberv1.NewMemberServiceClient(c)); status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return out, err
		}
	}
	return out, err
}

// List implements MemberService.
func (f *Forward) List(ctx context.Context, r *memberv1.ListRequest) (*memberv1.ListResponse, error) {
	if err := f.may(ctx, "list", ""); err != nil {
		return nil, err
	}
	return at(ctx, f, func(c memberv1.MemberServiceClient) (*memberv1.ListResponse, error) { return c.List(ctx, r) })
}

// Join implements MemberService.
func (f *Forward) Join(ctx context.Context, r *memberv1.JoinRequest) (*memberv1.JoinResponse, error) {
	if err := f.may(ctx, "create", r.Name); err != nil {
		return nil, err
	}
	return at(ctx, f, func(c memberv1.MemberServiceClient) (*memberv1.JoinResponse, error) { return c.Join(ctx, r) })
}

// Leave implements MemberService.
func (f *Forward) Leave(ctx context.Context, r *memberv1.LeaveRequest) (*memberv1.LeaveResponse, error) {
	if err := f.may(ctx, "delete", r.Name); err != nil {
		return nil, err
	}
	return at(ctx, f, func(c memberv1.MemberServiceClient) (*memberv1.LeaveResponse, error) { return c.Leave(ctx, r) })
}

// Replace implements MemberService.
func (f *Forward) Replace(ctx context.Context, r *memberv1.ReplaceRequest) (*memberv1.ReplaceResponse, error) {
	if err := f.may(ctx, "delete", r.Old); err != nil {
		return nil, err
	}
	return at(ctx, f, func(c memberv1.MemberServiceClient) (*memberv1.ReplaceResponse, error) { return c.Replace(ctx, r) })
}

func closeAll(conns map[string]grpc.ClientConnInterface) {
	for _, c := range conns {
		closeConn(c)
	}
	clear(conns)
}

func closeConn(c grpc.ClientConnInterface) {
	if c, ok := c.(interface{ Close() error }); ok {
		_ = c.Close()
	}
}
