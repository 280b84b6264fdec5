module keelson.dev/services/controller-manager

go 1.26.0

replace keelson.dev/proto => ../../proto

replace keelson.dev/services/internal => ../internal

require (
	go.opentelemetry.io/otel v1.47.0
	go.opentelemetry.io/otel/sdk v1.47.0
	go.opentelemetry.io/otel/trace v1.47.0
	go.uber.org/goleak v1.3.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	k8s.io/api v0.37.2
	k8s.io/apimachinery v0.37.2
	k8s.io/client-go v0.37.2
	keelson.dev/proto v0.0.0
	keelson.dev/services/internal v0.0.0
)
