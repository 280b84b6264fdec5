package clienttest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/apistatus"
	"keelson.dev/proto/client"
	coordinationrpc "keelson.dev/proto/keelson/coordination/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// fences implements FenceService.
type fences struct {
	coordinationrpc.UnimplementedFenceServiceServer
	s *Server
}

var leaseKind = client.KindOf(&coordinationv1.Lease{})

// Take implements FenceService.
func (f *fences) Take(_ context.Context, req *coordinationrpc.TakeRequest) (*coordinationrpc.TakeResponse, error) {
	ref := leaseKind.Ref(req.GetNamespace(), req.GetName(), "")
	if err := f.s.failure("Take", ref); err != nil {
		return nil, rpcError(err)
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	c, err := f.s.collection(ref)
	if err != nil {
		return nil, rpcError(err)
	}
	key := client.Key{Namespace: req.GetNamespace(), Name: req.GetName()}
	l, ok := c.objects[key].(*coordinationv1.Lease)
	if !ok {
		return nil, rpcError(fencedOff("the Lease does not exist"))
	}
	holder, transitions := "", int32(0)
	if l.Spec.HolderIdentity != nil {
		holder = *l.Spec.HolderIdentity
	}
	if l.Spec.LeaseTransitions != nil {
		transitions = *l.Spec.LeaseTransitions
	}
	if string(l.UID) != req.GetUid() || holder != req.GetHolderIdentity() || transitions != req.GetLeaseTransitions() {
		return nil, rpcError(fencedOff(fmt.Sprintf("the Lease is held by %q since transition %d", holder, transitions)))
	}
	f.s.revision++
	f.s.epochs[key] = f.s.revision
	return &coordinationrpc.TakeResponse{Token: token(key, f.s.revision)}, nil
}

func token(key client.Key, revision uint64) string {
	return fmt.Sprintf("%s/%s %d", key.Namespace, key.Name, revision)
}

func fencedOff(message string) error {
	err := apierrors.NewConflict(leaseKind.GVR().GroupResource(), "", errors.New(message))
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: apistatus.CauseFenced, Message: message}}
	return err
}

// intercept refuses the writes of leaders whose epoch is over.
func (s *Server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method, ok := strings.CutPrefix(info.FullMethod, "/"+resourcev1.ResourceService_ServiceDesc.ServiceName+"/")
	if !ok || method == "Get" {
		return next(ctx, req)
	}
	header := func(key string) string {
		if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
			return v[len(v)-1]
		}
		return ""
	}
	fence := header(apistatus.FenceKey)
	s.mu.Lock()
	wrote := s.wrote
	lease, _, _ := strings.Cut(fence, " ")
	namespace, name, _ := strings.Cut(lease, "/")
	key := client.Key{Namespace: namespace, Name: name}
	over := fence != "" && fence != token(key, s.epochs[key])
	s.mu.Unlock()
	if wrote != nil {
		wrote(Written{Method: method, UserAgent: header("user-agent"), Fence: fence, Request: req})
	}
	if over {
		return nil, rpcError(fencedOff("the writer is no longer the leader: a later leader has taken over"))
	}
	return next(ctx, req)
}
