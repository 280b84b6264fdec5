package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coordinationrpc "keelson.dev/proto/keelson/coordination/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// FenceKey is the metadata key that carries a leader's token.
const FenceKey = "keelson-fence"

// CauseFenced is the cause, in the details of a Conflict, of a write that was
// refused because its writer's epoch is over.
const CauseFenced metav1.CauseType = "Fenced"

// Fence is a leader's epoch. Every write that is made with a context of
// [WithFence] is refused once another leader has begun its own.
type Fence struct {
	// Token is what [TakeFence] returned; writes fail while it is empty.
	Token string
	// Lost, if set, is called with each write that was refused because the epoch
	// is over. It must be quick.
	Lost func()
}

type fenceKey struct{}

// WithFence makes the writes of a context depend on an epoch.
func WithFence(ctx context.Context, f *Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, f)
}

// FenceFrom is the epoch that the writes of a context depend on; nil is none.
func FenceFrom(ctx context.Context) *Fence {
	f, _ := ctx.Value(fenceKey{}).(*Fence)
	return f
}

// TakeFence begins an epoch for the holder of a Lease, which is given as it was
// acquired. [IsFenced] tells the error that the Lease is another's meanwhile.
func TakeFence(ctx context.Context, c *Client, lease *coordinationv1.Lease) (token string, err error) {
	req := &coordinationrpc.TakeRequest{Namespace: lease.Namespace, Name: lease.Name, Uid: string(lease.UID)}
	if lease.Spec.HolderIdentity != nil {
		req.HolderIdentity = *lease.Spec.HolderIdentity
	}
	if lease.Spec.LeaseTransitions != nil {
		req.LeaseTransitions = *lease.Spec.LeaseTransitions
	}
	resp, err := coordinationrpc.NewFenceServiceClient(c.conn).Take(ctx, req)
	if err != nil {
		return "", fromRPC(ctx, fmt.Sprintf("take the fence of lease %s/%s", lease.Namespace, lease.Name), err)
	}
	return resp.GetToken(), nil
}

// IsFenced tells the error of a write that was refused because its writer's epoch
// is over.
func IsFenced(err error) bool {
	if !apierrors.IsConflict(err) {
		return false
	}
	_, ok := apierrors.StatusCause(err, CauseFenced)
	return ok
}

// fenced is a connection whose writes carry the fence of their context.
type fenced struct{ grpc.ClientConnInterface }

// reads are the unary methods of ResourceService that write nothing.
var reads = map[string]bool{resourcev1.ResourceService_Get_FullMethodName: true}

// Invoke implements grpc.ClientConnInterface. Writes are unary.
func (f fenced) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	fence := FenceFrom(ctx)
	if fence == nil || reads[method] {
		return f.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	if fence.Token == "" {
		return status.Error(codes.FailedPrecondition, "the writer has no epoch yet")
	}
	err := f.ClientConnInterface.Invoke(metadata.AppendToOutgoingContext(ctx, FenceKey, fence.Token), method, args, reply, opts...)
	if fence.Lost != nil && (isFencedCall(err) || err == nil && anyFenced(reply)) {
		fence.Lost()
	}
	return err
}

func isFencedCall(err error) bool {
	if status.Code(err) != codes.Aborted {
		return false
	}
	var se *apierrors.StatusError
	return errors.As(fromRPC(context.Background(), "", err), &se) && IsFenced(se)
}

// anyFenced looks into the results of a Commit.
func anyFenced(reply any) bool {
	commit, ok := reply.(*resourcev1.CommitResponse)
	if !ok {
		return false
	}
	for _, r := range commit.GetResults() {
		if r.GetStatus() == nil {
			continue
		}
		if s := decodeStatus(r.GetStatus()); s != nil && IsFenced(s) {
			return true
		}
	}
	return false
}
