package grpc

import (
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha" //nolint:staticcheck // older clients ask for it

	"keelson.dev/services/apiserver/internal/front/grpc/descriptor"
)

// RegisterReflection lets authenticated clients query the server's services and Kubernetes'
// types. It must be called after all services are registered.
func RegisterReflection(s reflection.GRPCServer) {
	o := reflection.ServerOptions{Services: s, DescriptorResolver: descriptor.Resolver{}}
	reflectionv1.RegisterServerReflectionServer(s, reflection.NewServerV1(o))
	reflectionv1alpha.RegisterServerReflectionServer(s, reflection.NewServer(o))
}
