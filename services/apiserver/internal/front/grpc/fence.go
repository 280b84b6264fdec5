package grpc

import (
	"context"

	"google.golang.org/grpc/metadata"

	"keelson.dev/proto/apistatus"
	coordinationv1 "keelson.dev/proto/keelson/coordination/v1"
	"keelson.dev/services/apiserver/internal/fence"
	"keelson.dev/services/apiserver/internal/request"
)

// FenceService implements keelson.coordination.v1.FenceService.
type FenceService struct {
	coordinationv1.UnimplementedFenceServiceServer
	fences *fence.Fences
}

// NewFenceService returns the service.
func NewFenceService(f *fence.Fences) *FenceService { return &FenceService{fences: f} }

// Take implements coordinationv1.FenceServiceServer.
func (s *FenceService) Take(ctx context.Context, r *coordinationv1.TakeRequest) (*coordinationv1.TakeResponse, error) {
	token, err := s.fences.Take(ctx, fence.Acquisition{
		Namespace: r.GetNamespace(), Name: r.GetName(), UID: r.GetUid(),
		Holder: r.GetHolderIdentity(), Transitions: r.GetLeaseTransitions(),
	})
	if err != nil {
		return nil, wire(ctx, err)
	}
	return &coordinationv1.TakeResponse{Token: token}, nil
}

// withFence adds the epoch that the caller's writes depend on to the context.
func withFence(ctx context.Context) (context.Context, error) {
	tokens := metadata.ValueFromIncomingContext(ctx, apistatus.FenceKey)
	if len(tokens) == 0 {
		return ctx, nil
	}
	f, err := fence.Parse(tokens[len(tokens)-1])
	if err != nil {
		return ctx, err
	}
	return request.WithFence(ctx, f), nil
}
