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

	"keelson.dev/proto/apistatus"
	coordinationrpc "keelson.dev/proto/keelson/coordination/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Fence is a leader's epoch. Writes made with a context of [WithFence] are refused once
// another leader has begun an epoch of its own.
type Fence struct {
	// Token is what [TakeFence] returned. Writes fail with FAILED_PRECONDITION, without
	// being sent, while it is empty.
	Token string
	// Lost, if set, is called after each write that was refused because the epoch has
	// ended. It must return quickly.
	Lost func()
}

type fenceKey struct{}

// WithFence returns a context whose writes depend on the epoch f. Reads do not.
func WithFence(ctx context.Context, f *Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, f)
}

// FenceFrom returns the epoch that the writes of a context depend on, or nil.
func FenceFrom(ctx context.Context) *Fence {
	f, _ := ctx.Value(fenceKey{}).(*Fence)
	return f
}

// TakeFence begins an epoch for the holder of lease, which must be the Lease as the caller
// acquired it (its uid, spec.holderIdentity and spec.leaseTransitions), and returns the
// token for [Fence]. It ends the epoch before it. The caller needs the permission to update
// the Lease. If the Lease has since gone to another holder, the error is one for which
// [IsFenced] is true. Calling it again is safe: a token that was lost has no effect.
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

// IsFenced reports whether err refuses a write, or [TakeFence], because another leader's
// epoch or acquisition of the Lease has followed.
func IsFenced(err error) bool {
	if !apierrors.IsConflict(err) {
		return false
	}
	_, ok := apierrors.StatusCause(err, apistatus.CauseFenced)
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
	err := f.ClientConnInterface.Invoke(metadata.AppendToOutgoingContext(ctx, apistatus.FenceKey, fence.Token), method, args, reply, opts...)
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

// anyFenced reports whether a result of a Commit was refused because of its fence.
func anyFenced(reply any) bool {
	commit, ok := reply.(*resourcev1.CommitResponse)
	if !ok {
		return false
	}
	for _, r := range commit.GetResults() {
		if r.GetStatus() == nil {
			continue
		}
		if s := apistatus.FromAny(r.GetStatus()); s != nil && IsFenced(s) {
			return true
		}
	}
	return false
}
