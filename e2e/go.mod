module keelson.dev/e2e

go 1.26.0

replace keelson.dev/proto => ../proto

require (
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	k8s.io/api v0.37.2
	k8s.io/apimachinery v0.37.2
	k8s.io/client-go v0.37.2
	keelson.dev/proto v0.0.0
)
