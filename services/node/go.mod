module keelson.dev/services/node

go 1.26.0

replace keelson.dev/proto => ../../proto

replace keelson.dev/services/internal => ../internal

require (
	github.com/miekg/dns v1.1.73
	github.com/vishvananda/netlink v1.3.1
	github.com/vishvananda/netns v0.0.5
	go.opentelemetry.io/otel v1.47.0
	go.opentelemetry.io/otel/sdk v1.47.0
	go.opentelemetry.io/otel/trace v1.47.0
	go.uber.org/goleak v1.3.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	k8s.io/api v0.37.2
	k8s.io/apimachinery v0.37.2
	k8s.io/client-go v0.37.2
	k8s.io/cri-api v0.37.2
	keelson.dev/proto v0.0.0
	keelson.dev/services/internal v0.0.0
	sigs.k8s.io/knftables v0.0.22
)
